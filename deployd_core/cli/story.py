"""What a host would do, printed: the output of `deployd strategies plan`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from deployd_core.acts import CloseGate, Flip, InstanceAct, RecordFailure, Restart
from deployd_core.cli.output import folded, format_table, message, print_json
from deployd_core.errors import DeploydError
from deployd_core.model import Health
from deployd_core.planner import HostStep
from deployd_core.units import Duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployd_core.dry_run import Move, Story
    from deployd_core.observation import Observation
    from deployd_core.survey import Here


def print_story(here: Here, seen: Observation, story: Story, *, as_json: bool) -> None:
    """Print it, with the rules that each gate would make."""
    from deployd_core.survey import may_see_everything

    if not may_see_everything():
        message("deployd: warning: not run as root, so that this may see less than the agent does")
    if as_json:
        print_json("deployd.strategies.plan/1", _as_object(here, seen, story))
        return
    parts = (_head(here, seen), _moves(here, seen, story), _end(seen, story))
    click.echo("\n\n".join("\n".join(lines) for part in parts if (lines := list(part))))


def explain_gate(here: Here) -> str:
    """How traffic is turned off here, and why so; or why that cannot be."""
    if here.setup.drain is None or here.setup.gate is None:
        return "none: instances are restarted in front of their clients"
    try:
        return here.setup.gate.call("explaining itself", lambda gate: gate.explain(here.host_call())) or here.setup.gate.name
    except DeploydError as error:
        return f"{here.setup.gate.name} cannot be used: {error.message}" + (f" ({error.hint})" if error.hint else "")


def _head(here: Here, seen: Observation) -> Iterator[str]:
    strategy = here.setup.spec.restart.strategy
    head = folded(f"{seen.service} on {seen.host}: from {seen.current or 'nothing'} to {seen.build}, by {strategy}")
    yield click.style(seen.service, bold=True) + head.removeprefix(seen.service)
    yield folded(f"  gate      {explain_gate(here)}", indent=12)
    yield folded(f"  limits    {_limits(seen)}", indent=12)
    for facts in seen.instances:
        gate = ", gate closed" if facts.gate_closed else ""
        found = facts.connections
        count = f", {found.busy} connections busy and {found.idle} idle" if found else ""
        serves = f"serves {facts.serves or 'nothing that can be told'}"
        why = f"; {facts.reason}" if facts.health is not Health.HEALTHY and facts.reason else ""
        yield folded(f"  {facts.name:9} {facts.state.value}, {facts.health.value}, {serves}{gate}{count}{why}", indent=12)


def _limits(seen: Observation) -> str:
    rules, drain = seen.rules, seen.rules.drain
    limits = [f"restart {Duration(rules.restart_timeout)}", f"healthy {Duration(rules.healthy_timeout)}"]
    if drain is not None:
        limits = [
            f"drain {Duration(drain.timeout)}, then {drain.at_deadline.value}",
            *limits,
            f"clients back {Duration(drain.traffic_timeout)}",
            f"lease {Duration(drain.lease)}",
        ]
    return "; ".join(limits)


def _moves(here: Here, seen: Observation, story: Story) -> Iterator[str]:
    rows: list[tuple[str, str, str]] = []
    rules: dict[int, tuple[str, ...]] = {}
    closed: set[str] = set()
    for number, move in enumerate(story.moves, start=1):
        rows.append((_seconds(move.at), _words(move, seen), "" if move.deadline is None else _seconds(move.deadline)))
        if isinstance(move.act, CloseGate) and move.act.instance not in closed:
            closed.add(move.act.instance)
            rules[number] = _rules(here, move.act.instance)
    if not rows:
        return
    for number, row in enumerate(format_table(("AT", "MOVE", "DEADLINE"), rows, fold=(1,))):
        yield row
        yield from (f"{'':10}{rule}" for rule in rules.get(number, ()))


def _words(move: Move, seen: Observation) -> str:
    match move.act:
        case InstanceAct() as act:
            again = isinstance(act, CloseGate) and any(facts.name == act.instance and facts.gate_closed for facts in seen.instances)
            verb = {"closegate": "close", "opengate": "open", "warmup": "warm up", "closeidle": "close idle connections of"}
            name = type(act).__name__.lower()
            action = act.action.value if isinstance(act, Restart) else verb.get(name, name)
            return f"{action} {act.instance}" + (" (closed already: the lease becomes the agent's)" if again else "")
        case RecordFailure():
            return "put the failure on record"
        case Flip(build=build):
            return f"point current at {build}"
        case act:
            return act.doing


def _rules(here: Here, name: str) -> tuple[str, ...]:
    """The rules that closing an instance would make; why they cannot be told."""
    if here.setup.gate is None or here.setup.drain is None:
        return ()
    instance = next(found for found in here.setup.instances if found.name == name)
    call = here.gate_call(instance, until=time.time() + here.setup.drain.lease)
    try:
        return tuple(here.setup.gate.call(f"previewing {name}", lambda gate: gate.preview(call)))
    except DeploydError as error:
        return (f"({error.message})",)


def _end(seen: Observation, story: Story) -> Iterator[str]:
    count = len(seen.instances)
    if story.ended is not HostStep.CONVERGED:
        yield click.style(folded(f"{story.ended.value} after {_seconds(story.seconds)}: {story.reason}"), fg="red")
        return
    if not story.moves:
        yield f"Nothing to do: this host serves {seen.build}."
        return
    worst = f"{story.fewest_available} of {count} instances are available"
    yield folded(f"Converged after {_seconds(story.seconds)}; at the worst moment {worst}.")
    yield folded("Assumed: a permit at once, requests end within a second, instances start in time, clients come back in 2 s.")


def _seconds(seconds: float) -> str:
    return str(Duration(round(max(0.0, seconds), 1)))


def _as_object(here: Here, seen: Observation, story: Story) -> dict[str, Any]:
    return {
        "service": seen.service,
        "host": seen.host,
        "build": seen.build,
        "current": seen.current,
        "strategy": here.setup.spec.restart.strategy,
        "gate": explain_gate(here),
        "moves": [
            {
                "at": round(move.at, 3),
                "act": type(move.act).__name__.lower(),
                "instance": move.act.instance if isinstance(move.act, InstanceAct) else None,
                "deadline": None if move.deadline is None else round(move.deadline, 3),
                "rules": _rules(here, move.act.instance) if isinstance(move.act, CloseGate) else (),
            }
            for move in story.moves
        ],
        "ended": story.ended.value,
        "reason": story.reason,
        "seconds": round(story.seconds, 3),
        "fewest_available": story.fewest_available,
    }
