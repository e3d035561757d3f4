"""`deployd services`: what the services are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Group
from deployd_core.cli.output import NO_SERVICE, is_terminal, message, print_json, print_table
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options

if TYPE_CHECKING:
    from deployd_core.config import ServiceSetup
    from deployd_core.zookeeper.services import ServiceRecord


@click.group(
    "services", cls=Group, examples=["deployd services apply web.toml", "deployd services list", "deployd services show web"]
)
def command() -> None:
    """Write, list and delete the specs of services."""


@command.command(
    "apply",
    examples=[
        "deployd services apply web.toml --check",
        "deployd services apply web.toml",
        "deployd services apply staging.toml --name web",
    ],
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="SERVICE", help="The service. [default: the name of FILE, without .toml]")
@click.option("--check", is_flag=True, help="Only check it, and print what was understood: ask no ZooKeeper, write nothing.")
@zookeeper_options
@pass_settings
def apply_spec(settings: Settings, *, file: Path, name: str | None, check: bool) -> int:
    """Create a service from a spec, or change it.

    The whole spec is checked against the options of its plugins before anything is written, and its strategy is asked whether it
    could restart anything at all. Agents take it up at once; nothing is restarted because of it.
    """
    from deployd_core import rollouts
    from deployd_core.asking import refuse_impossible
    from deployd_core.cli.store import connected
    from deployd_core.config import load_spec, set_up
    from deployd_core.model import check_name

    service = check_name(name or file.stem, "service")
    spec = load_spec(file, settings.plugins(), service)
    setup = set_up(spec, service, settings.plugins())
    refuse_impossible(setup, service, where=str(file))
    if check:
        _print_understood(setup, service, file)
        return Exit.DONE
    with connected(settings, create=True) as session:
        applied = rollouts.apply_spec(session, service, spec)
    click.echo(f"{service} {applied.outcome}")
    if applied.outcome == "created":
        message(f"next: deployd enable {service} BUILD, and {service!r} among the services of each host's agent.toml")
    return Exit.DONE


def _print_understood(setup: ServiceSetup, service: str, file: Path) -> None:
    from deployd_core.cli.understood import understood

    click.echo(f"{file} is in order, as the spec of {service}:")
    print_table(("WHAT", "UNDERSTOOD AS"), understood(setup))
    named = f" --name {service}" if service != file.stem else ""
    message(f"nothing was written; to write it: deployd services apply {file}{named}")


@command.command("list", examples=["deployd services list", "deployd services list --json"])
@json_option
@zookeeper_options
@pass_settings
def list_services(settings: Settings, *, as_json: bool) -> int:
    """List the services and what is enabled."""
    from deployd_core import rollouts
    from deployd_core.cli.store import connected
    from deployd_core.picture import stopped

    with connected(settings) as session:
        records = rollouts.list_services(session)
    if as_json:
        print_json("deployd.services.list/1", {"services": [_as_object(record) for record in records]})
        return Exit.DONE
    if not records:
        click.echo(NO_SERVICE)
        return Exit.DONE
    rows = [
        (
            record.service,
            record.enabled.build if record.enabled else "",
            record.canary.build if record.canary else "",
            record.spec.restart.strategy if record.spec else "",
            str(record.hosts),
            record.problem or stopped(record) or record.rollout.state.value,
        )
        for record in records
    ]
    print_table(("NAME", "ENABLED", "CANARY", "STRATEGY", "HOSTS", "ROLLOUT"), rows, colours={"open": "green"})
    return Exit.DONE


@command.command(
    "show",
    examples=["deployd services show web", "deployd services show web --toml > web.toml", "deployd services show web --json"],
)
@click.argument("service")
@click.option("--toml", "as_toml", is_flag=True, help="As a file that `services apply` takes; what is as by default is left out.")
@json_option
@zookeeper_options
@pass_settings
def show_service(settings: Settings, *, service: str, as_toml: bool, as_json: bool) -> int:
    """Print the spec of a service, as it is stored."""
    from deployd_core import rollouts
    from deployd_core.cli.store import connected, require_spec
    from deployd_core.config import spec_to_json, spec_to_toml

    if as_toml and as_json:
        raise click.UsageError("--toml and --json are two ways to print it: give one of them.")
    with connected(settings) as session:
        record = rollouts.read_service(session, service)
    if as_json:
        print_json("deployd.services.show/1", _as_object(record) | {"spec": record.spec})
        return Exit.DONE
    spec = require_spec(record)
    click.echo(spec_to_toml(spec).rstrip("\n") if as_toml else spec_to_json(spec).decode())
    return Exit.DONE


@command.command("delete", examples=["deployd services delete web", "deployd services delete web --confirm web --force"])
@click.argument("service")
@click.option("--confirm", metavar="SERVICE", help="Its name once more, instead of being asked.")
@click.option("--force", is_flag=True, help="Even though hosts are registered for it.")
@zookeeper_options
@pass_settings
def delete_service(settings: Settings, *, service: str, confirm: str | None, force: bool) -> int:
    """Delete a service with its history.

    What its hosts run is left running; their agents only stop looking after it.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected

    with connected(settings) as session:
        rollouts.read_service(session, service)
        if confirm is None and is_terminal():
            confirm = click.prompt(f"This deletes {service} and its history. Type its name to go on")
        if confirm != service:
            raise click.UsageError(f"nothing was deleted: --confirm {service} says that it is meant.")
        rollouts.delete_service(session, service, force=force)
    click.echo(f"{service} deleted")
    return Exit.DONE


def _as_object(record: ServiceRecord) -> dict[str, object]:
    return {
        "name": record.service,
        "enabled": record.enabled,
        "canary": record.canary,
        "strategy": record.spec.restart.strategy if record.spec else None,
        "hosts": record.hosts,
        "rollout": record.rollout.state.value,
        "problem": record.problem,
    }
