"""`deployd drains`: the closed gates of this host."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Group
from deployd_core.cli.here import spec_option, this_host
from deployd_core.cli.output import complain, is_terminal, message, print_json, print_table
from deployd_core.cli.settings import Settings, config_options, duration, json_option, pass_settings, zookeeper_options
from deployd_core.errors import ConfigError, DeploydError
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.drains import Asked, Closed, Found, Rehearsal
    from deployd_core.survey import Here


@click.group("drains", cls=Group, examples=["deployd drains list", "deployd drains clear web", "deployd drains rehearse web"])
def command() -> None:
    """List and open what is closed on this host, and rehearse a drain."""


@command.command("list", examples=["deployd drains list", "deployd drains list --json"])
@json_option
@config_options
@pass_settings
def list_drains(settings: Settings, *, as_json: bool) -> int:
    """List the instances whose traffic is off, on this host.

    A lease is `held` by a process that lives, `orphaned` when that is gone, `expired` when its time is up. Needs no agent.
    """
    from deployd_core.drains import list_closed

    found = list_closed(_gates(settings))
    if as_json:
        print_json("deployd.drains.list/1", {"closed": [_as_object(closed) for closed in found.closed], "problems": found.problems})
        return _blind(found)
    _warn(found)
    now = time.time()
    rows = [
        (
            closed.lease.service,
            closed.lease.instance,
            closed.gate,
            closed.state.value,
            _left(closed.lease.until - now),
            closed.lease.owner,
        )
        for closed in found.closed
    ]
    colours = {"held": "green", "orphaned": "red", "expired": "yellow"}
    if rows:
        print_table(("SERVICE", "INSTANCE", "GATE", "STATE", "LEFT", "OWNER"), rows, colours=colours)
    elif not found.problems:
        click.echo("Nothing is closed on this host.")
    return _blind(found)


@command.command(
    "clear", examples=["deployd drains clear web", "deployd drains clear web web@8001 --yes", "deployd drains clear --yes"]
)
@click.argument("service", required=False)
@click.argument("instance", required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_options
@pass_settings
def clear_drains(settings: Settings, *, service: str | None, instance: str | None, yes: bool) -> int:
    """Open what is closed: everything, or what is SERVICE's, or one INSTANCE of it. Whoever closed it.

    An agent in mid-deploy closes an instance again when it is not ready for its clients.
    """
    from deployd_core.drains import clear, list_closed

    found = list_closed(_gates(settings))
    _warn(found)
    meant = [one for one in found.closed if service in (None, one.lease.service) and instance in (None, one.lease.instance)]
    if not meant:
        message("nothing of that is closed" if service else "nothing is closed")
        return Exit.FAILED if found.problems else Exit.DONE
    names = ", ".join(f"{one.lease.instance} of {one.lease.service}" for one in meant)
    if not yes and not (is_terminal() and click.confirm(f"This turns the traffic of {names} on. Go on?")):
        raise click.UsageError(f"nothing was opened: --yes says that {names} is meant.")
    return _report(*clear(meant))


@command.command("reap", examples=["deployd drains reap", "deployd drains reap --grace 0s"])
@click.option(
    "--grace",
    type=duration,
    metavar="DURATION",
    default="10s",
    help="Let an agent that is being restarted take over what it left. [default: 10s]",
)
@config_options
@pass_settings
def reap_drains(settings: Settings, *, grace: Duration) -> int:
    """Open what no living process stands for: leases that have run out, and those whose owner is gone.

    Needs neither an agent nor ZooKeeper. A systemd timer that runs it every minute ships in packaging/.
    """
    from deployd_core.drains import clear, dead

    gone = dead(_gates(settings), grace=float(grace))
    _warn(gone)
    return _report(*clear(gone.closed)) or _blind(gone)


@command.command("rehearse", examples=["deployd drains rehearse web", "deployd drains rehearse web --instance web@8001 --json"])
@click.argument("service")
@click.option("--instance", "only", metavar="NAME", help="Only this one. [default: each in turn]")
@click.option("--yes", is_flag=True, help="Even though nobody serves meanwhile.")
@spec_option
@json_option
@zookeeper_options
@pass_settings
def rehearse_drains(settings: Settings, *, service: str, only: str | None, yes: bool, spec_file: Path | None, as_json: bool) -> int:
    """Close and open the gate of each instance of this host in turn, without a restart, and say what clients would have lost.

    Ctrl-C opens what is closed; if even that is not to be, a short lease does. An agent that begins to deploy takes over.
    """
    from deployd_core.cli.here import find_service

    here = find_service(settings, service, spec_file=spec_file)
    rehearsals = []
    with _interruptible():
        for rehearsal in _rehearse(here, only, yes=yes):
            rehearsals.append(rehearsal)
            if not as_json:
                click.echo("\n".join(_in_words(rehearsal, here)))
    if as_json:
        print_json("deployd.drains.rehearse/1", {"service": service, "host": here.config.host, "instances": rehearsals})
    return Exit.DONE if all(rehearsal.drained_after is not None for rehearsal in rehearsals) else Exit.FAILED


def _rehearse(here: Here, only: str | None, *, yes: bool) -> Iterator[Rehearsal]:
    from deployd_core.drains import in_the_way, rehearse
    from deployd_core.remembered import remember

    drain, gate, service = here.setup.drain, here.gate, here.snapshot.service
    if drain is None:
        raise ConfigError(f"{service} is restarted without draining", hint="choose a strategy that drains: see docs/gates.md")
    instances = [instance for instance in here.setup.instances if only in (None, instance.name)]
    if not instances:
        known = ", ".join(instance.name for instance in here.setup.instances)
        raise ConfigError(f"{service} has no instance {only!r}", hint=f"known: {known or 'none'}")
    problem = in_the_way(gate, here.host_call())
    if problem:
        raise ConfigError(problem, hint=f"deployd drains clear {service} (opens it); or deployd drains list")
    if len(here.setup.instances) == 1 and not yes:
        raise ConfigError(
            f"{instances[0].name} is the only instance here: nobody serves while it is closed", hint="to do it all the same: --yes"
        )
    remember(Path(here.config.state_directory), service, here.setup.spec.instances.gate)
    for instance in instances:
        yield rehearse(gate, lambda until, it=instance: here.gate_call(it, until=until), drain)  # type: ignore[misc]


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does: with open gates."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_words(rehearsal: Rehearsal, here: Here) -> Iterator[str]:
    found, drain = rehearsal.at_close, here.setup.drain
    yield click.style(rehearsal.instance, bold=True)
    yield f"  at the close   {found.busy} connections busy, {found.idle} kept open by clients"
    if rehearsal.drained_after is not None:
        yield f"  drained        after {rehearsal.drained_after:.1f} s; {rehearsal.idle_closed} idle connections were closed"
        yield "  lost           nothing in flight"
    else:
        policy = drain.at_deadline.value if drain else ""
        left = f"{rehearsal.left.busy} busy, {rehearsal.left.idle} idle left"
        yield f"  not drained    in {drain.drain_timeout if drain else ''}: {left}"
        yield f"  lost           {rehearsal.left.busy} connections in flight, had it been restarted (at_deadline = {policy})"
    if rehearsal.clients_back_after is not None:
        yield f"  clients back   after {rehearsal.clients_back_after:.1f} s"
    elif found.busy + found.idle + found.recent:
        yield f"  clients back   not seen in {drain.traffic_timeout if drain else ''}"


def _gates(settings: Settings) -> Asked:
    from deployd_core.drains import gates

    return gates(settings.plugins(), Path(this_host(settings).state_directory))


def _report(opened: list[Closed], errors: list[DeploydError]) -> int:
    for one in opened:
        click.echo(f"{one.lease.instance} of {one.lease.service} opened ({one.gate}, {one.state.value})")
    for error in errors:
        complain(error.message, error.hint)
    return Exit.FAILED if errors else Exit.DONE


def _blind(found: Found) -> int:
    """A gate that this host does not have closes nothing; one that this user may not look at, who knows."""
    from deployd_core.survey import may_see_everything

    return Exit.FAILED if found.problems and not may_see_everything() else Exit.DONE


def _warn(found: Found) -> None:
    for problem in found.problems:
        message(f"deployd: warning: {problem}")


def _left(seconds: float) -> str:
    return str(Duration(round(seconds))) if seconds > 0 else "0s"


def _as_object(closed: Closed) -> dict[str, Any]:
    from deployd_core.clock import rfc3339

    lease = closed.lease
    return {
        "service": lease.service,
        "instance": lease.instance,
        "gate": closed.gate,
        "state": closed.state.value,
        "owner": lease.owner,
        "until": rfc3339(lease.until),
    }
