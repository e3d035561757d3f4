"""`deployd plugins`: everything that was found, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deployd_core.cli.groups import Group, did_you_mean
from deployd_core.cli.settings import Settings, complete_plugins, config_options, json_option, pass_settings

if TYPE_CHECKING:
    from deployd_core.plugins import Kind


@click.group(
    "plugins", cls=Group, examples=["deployd plugins list", "deployd plugins list --kind probe", "deployd plugins show probe http"]
)
def command() -> None:
    """List and describe plugins of every kind."""


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
