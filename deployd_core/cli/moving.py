"""`deployd promote`, `rollback`, `restart` and `retry`: what sends hosts on their way without naming a new build."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import message
from deployd_core.cli.people import by_option, person, why_option
from deployd_core.cli.settings import Settings, pass_settings, zookeeper_options
from deployd_core.cli.waiting import wait_options
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.zookeeper.services import ServiceRecord

_VETO_TIMEOUT = 10.0
"""Seconds that all plugins together may take to say whether they object to a promotion."""


@click.command(
    "promote",
    cls=Command,
    examples=["deployd promote web", "deployd promote web --wait", "deployd promote web --force --why 'the canary lost its disk'"],
)
@click.argument("service")
@click.option("--force", is_flag=True, help="Although a canary host is not healthy with it, or a plugin objects; needs --why.")
@wait_options
@why_option
@by_option
@zookeeper_options
@pass_settings
def promote(settings: Settings, *, service: str, force: bool, wait: bool, timeout: Duration, why: str, by: str | None) -> int:
    """Let the fleet have the build of the canary hosts.

    Refused while a canary host does not serve it, is not healthy, or has no agent; and while a plugin on this machine objects.
    """
    from deployd_core import rollouts
    from deployd_core.cli.orders import build_of, end_order
    from deployd_core.cli.store import connected
    from deployd_core.model import Role

    with connected(settings) as session:
        before = rollouts.read_service(session, service)
        if not force:
            _ask_plugins(settings, before)
        rollout = rollouts.promote(session, service, by=by or person(), why=why, force=force)
        build = build_of(rollouts.read_service(session, service))
        click.echo(f"promoted {build} to the fleet of {service}{' by force' if force else ''}")
        then = f"stop it: deployd pause {service}"
        return end_order(session, before, rollout=rollout, role=Role.FLEET, wait=wait, timeout=timeout, then=then)


def _ask_plugins(settings: Settings, record: ServiceRecord) -> None:
    """Raise when a plugin objects to the promotion, or does not say in time."""
    from deployd_core.errors import Conflict
    from deployd_core.performing import promotion_veto
    from deployd_core.zookeeper.progress import unpromoted

    build = unpromoted(record)
    if build is None:
        return
    plugins, said = settings.plugins(), [f"no plugin may take longer than {_VETO_TIMEOUT:g} s to agree"]

    def ask() -> None:
        said[0] = promotion_veto(plugins.hook_functions, record.service, build.build)

    asking = threading.Thread(target=ask, daemon=True)  # a plugin that hangs must not keep us
    asking.start()
    asking.join(_VETO_TIMEOUT)
    if said[0]:
        hint = f"deployd promote {record.service} --force --why TEXT (overrides it)"
        raise Conflict(f"{build.build} is not promoted: vetoed by {said[0]}", hint=hint)


@click.command(
    "rollback",
    cls=Command,
    examples=["deployd rollback web", "deployd rollback web --to 2026.11.22-4 --wait", "deployd rollback web --why 'issue 17'"],
)
@click.argument("service")
@click.option("--to", metavar="BUILD", help="The build. [default: the last one that every host completed, before this one]")
@wait_options
@why_option
@by_option
@zookeeper_options
@pass_settings
def rollback(settings: Settings, *, service: str, to: str | None, wait: bool, timeout: Duration, why: str, by: str | None) -> int:
    """Go back to the build that was completed last.

    Under the same limits, hosts that are down first. It needs no promotion and waits for no window; a failure in it only halts it.
    Canary hosts with a build of their own stay on that.
    """
    from deployd_core import rollouts
    from deployd_core.cli.orders import build_of, end_order
    from deployd_core.cli.store import connected
    from deployd_core.model import Role

    with connected(settings) as session:
        before = rollouts.read_service(session, service)
        rollout = rollouts.rollback(session, service, by=by or person(), why=why, to=to)
        record = rollouts.read_service(session, service)
        build = build_of(record)
        was = f" (was {before.enabled.build})" if before.enabled is not None else ""
        click.echo(f"the fleet of {service} goes back to {build}{was}")
        if record.canary is not None and record.canary.build != build:
            message(f"its canary hosts stay on {record.canary.build}: deployd enable {service} {build} --canary takes them along")
        return end_order(session, before, rollout=rollout, role=Role.FLEET, wait=wait, timeout=timeout)


@click.command(
    "restart",
    cls=Command,
    examples=["deployd restart web", "deployd restart web --canary", "deployd restart web --wait --why 'new certificate'"],
)
@click.argument("service")
@click.option("--canary", is_flag=True, help="The canary hosts only; they must have a build of their own.")
@wait_options
@why_option
@by_option
@zookeeper_options
@pass_settings
def restart(settings: Settings, *, service: str, canary: bool, wait: bool, timeout: Duration, why: str, by: str | None) -> int:
    """Restart every instance with the build it serves.

    By the same strategy and under the same limits as a new build.
    """
    from deployd_core import rollouts
    from deployd_core.cli.orders import build_of, end_order
    from deployd_core.cli.store import connected
    from deployd_core.model import Role

    role = Role.CANARY if canary else Role.FLEET
    with connected(settings) as session:
        before = rollouts.read_service(session, service)
        rollout = rollouts.restart(session, service, role=role, by=by or person(), why=why)
        build = build_of(before, role)
        click.echo(f"{'the canary hosts' if canary else 'the fleet'} of {service} restart{'' if canary else 's'} {build}")
        then = f"stop it: deployd pause {service}"
        return end_order(session, before, rollout=rollout, role=role, wait=wait, timeout=timeout, then=then)


@click.command("retry", cls=Command, examples=["deployd retry web", "deployd retry web --why 'the disks are mended'"])
@click.argument("service")
@why_option
@by_option
@zookeeper_options
@pass_settings
def retry(settings: Settings, *, service: str, why: str, by: str | None) -> int:
    """Try the hosts that failed again, and go on after a halt.

    The failures are forgotten, so that the budget is whole again. Hosts that hold a permit go on with it.
    """
    from deployd_core import rollouts
    from deployd_core.cli.orders import warn_of_stop
    from deployd_core.cli.store import connected
    from deployd_core.coordination import RolloutState

    with connected(settings) as session:
        before = rollouts.read_service(session, service)
        rollouts.retry(session, service, by=by or person(), why=why)
        record = rollouts.read_service(session, service)
    failed = sorted(before.rollout.failures)
    if before.rollout.state is RolloutState.OPEN and not failed:
        click.echo(f"{service} has nothing to retry: its rollout is open, and no host has failed in it")
        return Exit.DONE
    names = ", ".join(failed[:10]) + (f" and {len(failed) - 10} more" if len(failed) > 10 else "")
    opened = f"the rollout of {service} goes on" if before.rollout.state is not RolloutState.OPEN else f"{service} tries again"
    click.echo(f"{opened}; on {names} again" if failed else opened)
    warn_of_stop(record)
    message(f"watch it: deployd status {service} --watch; go back instead: deployd rollback {service}")
    return Exit.DONE
