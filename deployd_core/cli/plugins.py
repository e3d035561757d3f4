"""`deployd plugins`: everything that was found, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployd_core.cli.checking import facts_option, option_option, seed_options
from deployd_core.cli.groups import Group
from deployd_core.cli.settings import Settings, complete_plugins, config_options, json_option, pass_settings
from deployd_core.errors import did_you_mean

if TYPE_CHECKING:
    from deployd_core.plugins import Kind


@click.group(
    "plugins",
    cls=Group,
    examples=["deployd plugins list", "deployd plugins show probe http", "deployd plugins new by-night --kind strategy"],
)
def command() -> None:
    """List, describe, check and begin plugins of every kind."""


@command.command("list", examples=["deployd plugins list", "deployd plugins list --kind gate --json"])
@click.option("--kind", metavar="KIND", help="Only strategy, gate, manager, probe, source, step or reporter.")
@json_option
@config_options
@pass_settings
def list_plugins(settings: Settings, *, kind: str | None, as_json: bool) -> None:
    """List what was found: installed plugins, and the files of the plugin directory.

    A plugin that cannot be used is a row with the reason.
    """
    from deployd_core.cli.listing import print_rows

    print_rows(settings.plugins(), kind_of(kind) if kind else None, as_json=as_json, group="plugins")


@command.command("show", examples=["deployd plugins show probe http", "deployd plugins show manager supervisor --json"])
@click.argument("kind")
@click.argument("name", shell_complete=complete_plugins)
@json_option
@config_options
@pass_settings
def show_plugin(settings: Settings, *, kind: str, name: str, as_json: bool) -> None:
    """Describe a plugin and its options."""
    from deployd_core.cli.listing import print_plugin

    print_plugin(settings.plugins(), kind_of(kind), name, as_json=as_json, group="plugins")


@command.command(
    "check",
    examples=["deployd plugins check gate nftables", "deployd plugins check probe http --option url=http://127.0.0.1:{port}/"],
)
@click.argument("kind")
@click.argument("name", shell_complete=complete_plugins)
@option_option
@facts_option
@seed_options
@json_option
@config_options
@pass_settings
def check_plugin(
    settings: Settings, *, kind: str, name: str, options: tuple[str, ...], facts: str, seed: int, seeds: int, as_json: bool
) -> int:
    """Hold a plugin to the contract of its kind.

    A strategy runs on modelled hosts, as by `deployd strategies check`. A gate is closed and opened in a network of its own, which
    needs root; a probe is asked about what is not there, does not answer, or has just ended. Other kinds are refused: only their
    author can set up what they work on. Exits with 1 when a check fails, and with 2 when nothing could be checked.
    """
    from deployd_core.cli.checking import Wish, check

    where = settings.flags(zookeeper=False)
    wish = Wish(kind=kind_of(kind), name=name, options=options, facts=facts, seed=seed, seeds=seeds, where=where)
    return check(settings.plugins(), wish, as_json=as_json)


@command.command(
    "new",
    examples=[
        "deployd plugins new by-night --kind strategy",
        "deployd plugins new by-night --kind strategy --single-file --directory /etc/deployd/plugins.d",
        "deployd plugins new acme-balancer --kind gate",
    ],
)
@click.argument("name")
@click.option("--kind", metavar="KIND", required=True, help="strategy, gate, manager, probe, source, step or reporter.")
@click.option("--single-file", is_flag=True, help="A file for the plugin directory of an agent, rather than a package.")
@click.option("--directory", type=click.Path(path_type=Path), metavar="DIR", help="Where. [default: deployd-NAME; of a file: here]")
@click.option("--force", is_flag=True, help="Although another plugin has the name: one of the two will have to be disabled.")
@config_options
@pass_settings
def new_plugin(settings: Settings, *, name: str, kind: str, single_file: bool, directory: Path | None, force: bool) -> None:
    """Write the beginning of a plugin: a package that installs, with a module that works and tests that pass.

    Nothing is ever overwritten, and a name that a plugin here has already is refused.
    """
    from deployd_core.scaffold.writing import next_command, write_file, write_package

    of_kind = kind_of(kind)
    if not force:
        _check_free(settings, of_kind, name)
    if single_file:
        path = write_file(of_kind, name, directory or Path())
        click.echo(f"{path}\n\nTry: deployd --plugins-dir {path.parent} {next_command(of_kind, name).removeprefix('deployd ')}")
        return
    target = directory or Path(f"deployd-{name}")
    for path in write_package(of_kind, name, target):
        click.echo(path)
    click.echo(f"\nTry: pip install --editable '{target}[test]' && {next_command(of_kind, name)} && pytest {target}")


def _check_free(settings: Settings, kind: Kind, name: str) -> None:
    """Raise when a plugin of the kind, or an entry point, has the name: of two that claim one, ours alone or neither is used."""
    from deployd_core.errors import Conflict

    for row in settings.plugins().rows:
        if (row.kind, row.name) == (kind.value, name) or row.provider.entry == name:
            raise Conflict(f"the name {name!r} is taken: {row.provider} has it", hint="choose another name, or --force")


def kind_of(text: str) -> Kind:
    """Read a kind, singular or plural.

    Raises:
        click.BadParameter: There is no such kind.
    """
    from deployd_core.plugins import Kind

    for kind in Kind:
        if text in (kind.value, kind.plural):
            return kind
    raise click.BadParameter(f"there is no kind {text!r}; {did_you_mean(text, [kind.value for kind in Kind])}")
