"""`deployd enable`: say which build a service should serve, and watch it happen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deployd_core.cli.groups import Command
from deployd_core.cli.output import folded, message
from deployd_core.cli.people import by_option, person, why_option
from deployd_core.cli.settings import Settings, pass_settings, zookeeper_options
from deployd_core.cli.waiting import wait_options
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.model import Role
    from deployd_core.zookeeper.services import ServiceRecord
    from deployd_core.zookeeper.status import FleetStatus


@click.command(
    "enable",
    cls=Command,
    examples=[
        "deployd enable web 2026.11.23-1",
        "deployd enable web 2026.11.23-1 --canary --wait",
        "deployd enable web 2026.11.22-4 --wait --timeout 30m --by ann --why 'issue 17'",
    ],
)
@click.argument("service")
@click.argument("build")
@click.option("--canary", is_flag=True, help="For the canary hosts only.")
@click.option("--digest", metavar="sha256:HEX", help="The digest to pin. [default: what the source publishes]")
@click.option("--no-check", is_flag=True, help="Do not ask the source for the build; needs --digest.")
@wait_options
@why_option
@by_option
@zookeeper_options
@pass_settings
def command(
    settings: Settings,
    *,
    service: str,
    build: str,
    canary: bool,
    digest: str | None,
    no_check: bool,
    wait: bool,
    timeout: Duration,
    by: str | None,
    why: str,
) -> int:
    """Enable a build of a service, for the fleet or its canary hosts.

    Checks that the build exists and pins its digest, so that every host gets the same bytes. Canary hosts follow the fleet until
    they are given a build of their own. Enabling opens a rollout that was paused or halted; for the canary hosts alone it leaves a
    stop that is about the fleet as it is.
    """
    from deployd_core import rollouts
    from deployd_core.chronicle import last_completed
    from deployd_core.cli.orders import end_order
    from deployd_core.cli.pinning import check_history
    from deployd_core.cli.store import connected
    from deployd_core.model import Role, check_build_id, check_digest

    check_build_id(build)
    if digest is not None:
        check_digest(digest)
    elif no_check:
        raise click.UsageError("--no-check needs --digest: somebody has to say what the build is.")
    role = Role.CANARY if canary else Role.FLEET
    with connected(settings) as session:
        before = rollouts.fleet_status(session, service)
        digest = digest if no_check and digest else _pinned(settings, before.record, build, digest)
        told = rollouts.history(session, service)
        check_history(told, build, digest)
        rollout = rollouts.enable(session, service, build, digest, role=role, by=by or person(), why=why)
        _say_what_changed(before, build, digest, role)
        back = last_completed(told, "", before.record.rollout.completed)
        then = _go_back(service, back, build, role)
        return end_order(session, before.record, rollout=rollout, role=role, wait=wait, timeout=timeout, then=then)


def _pinned(settings: Settings, record: ServiceRecord, build: str, digest: str | None) -> str:
    from deployd_core.asking import refuse_impossible
    from deployd_core.cli.pinning import pin
    from deployd_core.cli.store import require_spec
    from deployd_core.config import set_up

    setup = set_up(require_spec(record), record.service, settings.plugins())
    hint = f"deployd services show {record.service} --toml (prints it as a file; mend that, and apply it)"
    refuse_impossible(setup, record.service, where=record.service, hint=hint)
    return pin(setup.source, record.service, build, digest, message)


def _say_what_changed(before: FleetStatus, build: str, digest: str, role: Role) -> None:
    from deployd_core.model import Role

    record = before.record
    previous = record.enabled_for(role)
    follow = record.canary is None or role is Role.CANARY
    hosts = [entry for entry in before.hosts if entry.role is role or (follow and role is Role.FLEET)]
    was = f" (was {previous.build})" if previous is not None and previous.build != build else ""
    whom = "the fleet" if role is Role.FLEET else "the canary hosts"
    click.echo(folded(f"enabled {build} for {whom} of {record.service}{was}, {digest}"))
    if not hosts and role is Role.CANARY:
        message(
            f"deployd: warning: {record.service} has no canary host; choose one: deployd hosts role {record.service} HOST canary"
        )
    elif not hosts:
        message(f"deployd: warning: {record.service} has no host: one registers itself when its agent starts")
    if role is Role.FLEET and record.spec is not None and record.spec.rollout.canary_first:
        message(_who_goes_first(before))
    elif role is Role.FLEET and record.canary is not None and record.canary.build != build:
        message(f"its canary hosts stay on {record.canary.build}")


def _who_goes_first(before: FleetStatus) -> str:
    """What `canary_first` means for a build of the fleet."""
    service = before.record.service
    canaries = [entry.host for entry in before.hosts if entry.role.value == "canary"]
    if not canaries:
        return f"deployd: warning: [rollout] canary_first is set, but {service} has no canary host: the whole fleet goes now"
    auto = before.record.spec is not None and before.record.spec.rollout.promotion.value == "auto"
    then = "it is promoted by itself when it has baked" if auto else f"then: deployd promote {service}"
    return f"the canary hosts go first ({', '.join(canaries[:5])}{', …' if len(canaries) > 5 else ''}); {then}"


def _go_back(service: str, back: str, build: str, role: Role) -> str:
    """The way back to the build that the fleet completed last; that the one before was enabled does not say that it served."""
    if back in ("", build):
        return ""
    return f"go back: deployd enable {service} {back}" + (" --canary" if role.value == "canary" else "")
