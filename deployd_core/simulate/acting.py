"""What acts do to a virtual host, and what its agent learns of them: `Performer` and `Engine` in virtual time.

An act has its effect at its end; an agent that dies before has it left undone, but for a restart, which is the manager's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.acts import (
    Act,
    Advance,
    CloseGate,
    CloseIdle,
    Fetch,
    Flip,
    InstanceAct,
    LeaveQueue,
    OpenGate,
    RecordFailure,
    Restart,
    RunStep,
    Settle,
    TakePermit,
    Tidy,
    Unpack,
    WarmUp,
)
from deployd_core.api import ClosedGate
from deployd_core.coordination import Denied, HostStatus, Permit, Snapshot
from deployd_core.errors import DeploydError, RestartFailed, Unavailable
from deployd_core.model import State
from deployd_core.observation import Drain
from deployd_core.planner import Decision
from deployd_core.simulate.disks import change_disk
from deployd_core.simulate.faults import FaultKind
from deployd_core.simulate.instance import NEVER, VirtualInstance
from deployd_core.simulate.looks import catch_up, essence, look_again

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost

_SLOW, _TOO_LONG = 10.0, 2.0
_FLAP = (0.5, 3.5)
"""From when to when an instance that flaps is unhealthy again, in seconds after it got healthy."""
_GATE = 0.02
_STIR_LATER = (InstanceAct, TakePermit, Advance)
"""Of an instance the look that follows says more; the others stir a host when there is something to do."""
_WRITES = (TakePermit, Settle, RecordFailure, LeaveQueue, Advance)


class Task(Struct, frozen=True, kw_only=True):
    """An act under way."""

    act: Act
    life: int
    epoch: int
    snapshot: Snapshot
    started: float
    plans: int
    """How many the host had made when it began."""
    status: HostStatus | None = None
    """The report that goes with giving a permit back."""


def begin(host: VirtualHost, act: Act, decision: Decision) -> None:
    """Begin an act; the agent may die of it."""
    world, now, snapshot = host.world, host.world.clock.now, host.snapshot
    if snapshot is None:
        return
    host.acts += act.key != host.last_begun  # a question that is asked again is the same act
    host.last_begun = act.key
    if _dies(host, host.acts, before=True):
        world.kill_agent(host, f"before {act.key}")
        return
    world.say(host, f"begins {act.key}")
    world.judge.begins(host, act, decision)
    seconds = _begin(host, act)
    host.busy[act.key] = host.acts
    status = host.status(decision.settled, snapshot) if isinstance(act, Settle) else None
    task = Task(act=act, life=host.life, epoch=host.epoch, snapshot=snapshot, started=now, plans=host.plans, status=status)
    world.agenda.after(seconds, _end, host, task, host.acts)


def _dies(host: VirtualHost, number: int, *, before: bool) -> bool:
    """Whether this is the act of which the agent of a host is to die, which happens once."""
    if host.dies_at != (number, before):
        return False
    host.dies_at = None
    return True


def write_report(host: VirtualHost, status: HostStatus) -> None:
    """Write a report; one that is lost is written again."""
    try:
        _lose(host)
        host.coordination.report(host.world.service, status)
    except DeploydError:
        host.step = None
        host.stir_at(host.world.clock.now + 1.0)


def start_instance(host: VirtualHost, instance: VirtualInstance) -> None:
    """A new process of an instance runs, in what `current` points at."""
    world, build = host.world, host.disk.current
    typical = world.scenario.behaviour.start * (_SLOW if FaultKind.SLOW_START in host.plagues else 1.0)
    answers_from = world.clock.now + world.draw(typical)
    outage = (NEVER, NEVER)
    if build == world.scenario.build and FaultKind.BAD_BUILD in host.plagues:
        answers_from = NEVER
    elif FaultKind.FLAP in host.plagues:
        outage = (answers_from + _FLAP[0], answers_from + _FLAP[1])
    instance.start(build, answers_from, outage)
    for moment in (answers_from, *outage):
        if moment < NEVER:
            world.agenda.at(moment, world.recount, host, instance)


# How an act begins.


def _begin(host: VirtualHost, act: Act) -> float:
    """What is so from the first moment of an act; how many seconds it takes."""
    times = host.world.scenario.behaviour
    if isinstance(act, Restart):
        return _begin_restart(host, host.by_name[act.instance])
    if isinstance(act, CloseGate) and (instance := host.by_name[act.instance]).closed is None:
        host.world.disturb(host, instance)
        instance.draining_since = instance.draining_since or host.world.clock.now
    if isinstance(act, (CloseGate, OpenGate, CloseIdle)):
        return _GATE
    typical = {WarmUp: times.warmup, Fetch: times.fetch, Unpack: times.unpack, RunStep: times.step}
    return host.world.draw(typical.get(type(act), times.write))


def _begin_restart(host: VirtualHost, instance: VirtualInstance) -> float:
    world, number = host.world, host.instances.index(instance)
    host.counts[number] = []
    host.watches[number].restarting(world.clock.now)
    host.dirty(number)
    world.disturb(host, instance)
    world.record.cut += instance.in_flight(world.clock.now)
    instance.stop()
    instance.starts += 1
    world.recount(host, instance)
    seconds = world.draw(world.scenario.behaviour.restart)
    world.agenda.after(seconds, _manager_starts, host, instance, instance.starts)
    return seconds


def _manager_starts(host: VirtualHost, instance: VirtualInstance, start: int) -> None:
    """The manager does what it was ordered to, whatever has become of the agent."""
    if instance.starts != start or not host.up:
        return
    if FaultKind.FAILED_START in host.plagues:
        host.plagues.discard(FaultKind.FAILED_START)
        instance.stop(State.FAILED)
    else:
        start_instance(host, instance)


# How an act ends.


def _end(host: VirtualHost, task: Task, number: int) -> None:
    """An act ends: it has its effect, and the agent hears of it."""
    if task.life != host.life:
        return
    world, act = host.world, task.act
    host.busy.pop(act.key, None)
    value: Any = None
    error: DeploydError | None = None
    try:
        value = _perform(host, task)
    except DeploydError as raised:
        error = raised
    outcome = f"fails: {error}" if error else value.code.value if hasattr(value, "code") else "done"
    world.say(host, f"{act.key} {outcome}")
    if _dies(host, number, before=False):
        world.kill_agent(host, f"after {act.key}")
        return
    if error is None:
        world.progressed(host, act, value)
    _learn(host, task, value, error)


def _perform(host: VirtualHost, task: Task) -> Any:
    if isinstance(task.act, _WRITES):
        _lose(host)
        return _write(host, task)
    if isinstance(task.act, InstanceAct):
        return _touch(host, task.act)
    return change_disk(host, task.act, task.snapshot)


def _write(host: VirtualHost, task: Task) -> Any:
    coordination, snapshot = host.coordination, task.snapshot
    match task.act:
        case TakePermit() as act:
            return _take_permit(host, task, act)
        case RecordFailure(reason=reason):
            return coordination.record_failure(snapshot, reason)
        case LeaveQueue():
            return coordination.leave_queue(host.world.service)
        case Advance():
            return coordination.advance(snapshot, lambda _: "")
        case _:
            return _settle(host, task)


def _take_permit(host: VirtualHost, task: Task, act: TakePermit) -> Permit | Denied:
    """Ask for a permit; it is given whether the host hears of it or not."""
    holders = host.world.nodes.holders
    held = host.name in holders
    try:
        return host.coordination.take_permit(task.snapshot, act.limit, priority=act.priority)
    finally:
        if not held and host.name in holders:
            host.world.judge.granted(host, task.snapshot, act)


def _lose(host: VirtualHost) -> None:
    """Count a write; the answer to one of them may be lost."""
    if host.loses is None:
        return
    left, applied = host.loses
    host.loses = (left - 1, applied) if left else None
    if not left:
        host.coordination.lose_next_answer(applied=applied)


def _settle(host: VirtualHost, task: Task) -> None:
    act, good = task.act, host.disk.good
    assert isinstance(act, Settle)
    host.disk = replace(host.disk, good=(act.build, *(other for other in good if other != act.build)))
    if task.epoch != host.epoch:
        raise Unavailable("another build is wanted: the permit is kept for it")
    if task.status is not None:
        host.world.judge.settles(host, act)
        host.coordination.release_permit(task.snapshot, task.status, keep_failure=bool(act.failed))


def _touch(host: VirtualHost, act: InstanceAct) -> ClosedGate | None:
    world, instance = host.world, host.by_name[act.instance]
    catch_up(host, host.instances.index(instance))
    match act:
        case Restart() if instance.state is State.FAILED:
            raise RestartFailed(f"{act.instance} did not start")
        case WarmUp() if not instance.healthy(world.clock.now):
            raise Unavailable(f"{act.instance} did not answer a warm-up request")
        case CloseGate():
            return _close(host, instance)
        case OpenGate():
            instance.draining_since = None
            open_gate(host, instance)
    return None


def _close(host: VirtualHost, instance: VirtualInstance) -> ClosedGate:
    world = host.world
    drain = host.setup.rules.drain or Drain()
    if instance.closed is None:
        slow = FaultKind.SLOW_DRAIN in host.plagues
        typical = _TOO_LONG * drain.timeout if slow else world.scenario.behaviour.drain
        instance.drained_at = world.clock.now + world.draw(typical)
    until = world.clock.time() + drain.lease
    instance.closed = ClosedGate(service=world.service, instance=instance.name, owner=host.owner, until=until)
    world.recount(host, instance)
    world.agenda.after(drain.lease, _lease_ends, host, instance, until)
    return instance.closed


def open_gate(host: VirtualHost, instance: VirtualInstance) -> None:
    """The gate of an instance opens."""
    world = host.world
    if instance.closed is not None:
        instance.back_at = world.clock.now + world.draw(world.scenario.behaviour.clients)
    instance.closed = None
    world.recount(host, instance)


def _lease_ends(host: VirtualHost, instance: VirtualInstance, until: float) -> None:
    """A gate that nobody has closed again opens by itself."""
    if instance.closed is not None and instance.closed.until == until:
        host.world.say(host, f"lease of {instance.name} runs out")
        host.world.judge.lease_runs_out(host, instance)
        catch_up(host, host.instances.index(instance))
        open_gate(host, instance)
        if host.alive:
            look_again(host, host.instances.index(instance))


# What the agent learns: as `Engine._take_act` does.


def _learn(host: VirtualHost, task: Task, value: Any, error: DeploydError | None) -> None:
    act = task.act
    match act:
        case InstanceAct():
            _learn_of_instance(host, act, value, error)
        case Settle():
            if error is None and host.snapshot is not None:
                host.snapshot = replace(host.snapshot, permit=None)
            host.changed = True
        case Tidy():
            host.tidy = True
        case Flip():
            host.forget_orders()
    if task.epoch == host.epoch:
        if error is not None:
            host.setbacks.failed(act.key, error, host.world.clock.now)
        else:
            host.setbacks.succeeded(act.key)
            _learn_success(host, task, value)
    told = isinstance(act, _STIR_LATER) or (isinstance(act, Tidy) and host.plans == task.plans)
    if error is not None or task.epoch != host.epoch or not told:
        host.stir()


def _learn_success(host: VirtualHost, task: Task, value: Any) -> None:
    match task.act:
        case Settle():
            host.tidy = False
            host.turn.finished()
        case Advance():
            host.turn.looked(value, host.world.clock.now)
            if not host.idle("advance"):
                host.stir()
        case TakePermit():
            host.answered(value, task.started)
        case RecordFailure() | LeaveQueue():
            host.changed = True


def _learn_of_instance(host: VirtualHost, act: InstanceAct, value: Any, error: DeploydError | None) -> None:
    number = host.instances.index(host.by_name[act.instance])
    watch, now = host.watches[number], host.world.clock.now
    if isinstance(act, Restart):
        watch.touched(now)
    elif error is None:
        match act:
            case CloseGate():
                before = host.know(number)
                watch.gate_closed(now, value)
                host.dirty(number)
                if before.gate_closed and before.gate_ours and before.lease_left:
                    host.lease_moved()
                    return  # which no look shows
                if before.gate_closed:
                    host.stir()  # it was taken over, which no look shows
            case OpenGate():
                watch.gate_opened(now)
                host.dirty(number)
                host.shown[number] = essence(host, host.know(number))
            case CloseIdle():
                watch.idle_closed(now)
            case WarmUp():
                watch.warmed()
    look_again(host, number)
