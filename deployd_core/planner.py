"""PURE: what a host should do next about one service. No I/O, no clock, no memory.

The engine observes, asks `plan_host`, starts the acts it is given, and asks again when anything has changed. A crash is no special
case: the next observation finds what is done and what is left. The shape (a planner that yields the next moves and can be cut off
after any of them) follows the quorum planner of patroni and the message-in, messages-out core of etcd's raft.

The life of a deploy on a host::

    resolve → fetch → unpack → steps        staging: disturbs nothing, needs no permit
    → permit → flip                         only when staged, only while ZooKeeper answers
    → the cycle of each instance            close gate → drained → restart → healthy → warm up → open gate → clients are back
    → settle                                mark the release good, give the permit back, tidy up

A host on which the build failed goes back to its last good release by the same cycle, planned as if that one were wanted. That a
revert is under way is written nowhere: a failure on record, a permit, and what `current` and the processes say are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

import msgspec
from msgspec import Struct

from deployd_core import cycle
from deployd_core.acts import (
    Act,
    Advance,
    Fetch,
    Flip,
    LeaveQueue,
    RecordFailure,
    Resolve,
    RunStep,
    Settle,
    TakePermit,
    Tidy,
    Unpack,
)
from deployd_core.errors import ConfigError, DeploydError, PluginError, UnknownPlugin
from deployd_core.model import Health, HostView, InstanceView, Phase, Plan
from deployd_core.observation import Observation

_STALE, _READY = Phase.STALE, Phase.READY  # see `deployd_core.cycle`
_LOOKING = "looking at the instances"
_ON_RECORD = frozenset({Settle(build="").key, Tidy().key})
_ZOOKEEPER_AWAY = "ZooKeeper does not answer: nothing new begins until it does"


class HostStep(Enum):
    """What a host is doing about a service; the `step` of its report."""

    IDLE = "idle"  # nothing is enabled
    FETCHING = "fetching"
    UNPACKING = "unpacking"
    PREPARING = "preparing"  # runs post-install steps
    WAITING = "waiting"  # for a permit
    FLIPPING = "flipping"
    RESTARTING = "restarting"
    CHECKING = "checking"  # serves the wanted build, and is finding out whether it is healthy
    DEGRADED = "degraded"  # serves the wanted build, but not every instance is healthy
    CONVERGED = "converged"
    REVERTING = "reverting"  # the wanted build failed: on the way back to the last good one
    REVERTED = "reverted"  # serves the last good build, since the wanted one failed; until a person retries, or enables another
    BROKEN = "broken"  # the wanted build failed and there is no good one to serve: keeps its permit until it is healthy
    FAILED = "failed"  # stands still, with its permit if it has one, until it is healthy or a person decides
    BLOCKED = "blocked"  # a person must change something; nothing was disturbed


class Remedy(Enum):
    """What ends a block; the `remedy` of a host's report."""

    INSTALL = "install"  # a plugin is not on the host: it is looked for when the agent is reloaded
    PLUGIN = "plugin"  # a plugin of the host breaks its contract: a mended one is imported when the agent is restarted
    SPEC = "spec"  # another spec, which is taken up at once
    BUILD = "build"  # another build
    HOST = "host"  # something on the host, which is looked at again and again


def remedy_of(error: DeploydError) -> Remedy:
    """What ends a block that an error causes."""
    if isinstance(error, UnknownPlugin):
        return Remedy.INSTALL
    if isinstance(error, PluginError):
        return Remedy.PLUGIN
    return Remedy.SPEC if isinstance(error, ConfigError) else Remedy.HOST


class Decision(Struct, frozen=True, kw_only=True):
    """What to do now, and what to say about it."""

    step: HostStep
    acts: tuple[Act, ...] = ()
    reason: str = ""
    deadline: float | None = None
    """When the wait ends in a failure."""
    waits: frozenset[str] = frozenset()
    """What is being waited for. The engine remembers since when, and hands it back in `Observation.waits`: losing it on a crash
    makes a wait longer, never wrong."""
    instances: tuple[InstanceView, ...] = ()
    plan: Plan | None = None
    remedy: Remedy | None = None
    """Of a step that is BLOCKED, where it is known."""

    @property
    def down(self) -> bool:
        """Whether an instance cannot serve, and that is not the doing of a restart that goes well."""
        return self.step not in _UNDER_WAY and any(view.health is Health.UNHEALTHY for view in self.instances)

    @property
    def settled(self) -> Decision:
        """What is to be reported when the permit is given back."""
        failed = next((act.failed for act in self.acts if isinstance(act, Settle)), "")
        step = HostStep.REVERTED if failed else HostStep.CONVERGED
        return Decision(step=step, reason=failed, instances=self.instances)


_UNDER_WAY = (HostStep.FLIPPING, HostStep.RESTARTING, HostStep.REVERTING)


def plan_host(seen: Observation, strategy: Callable[[HostView], Plan]) -> Decision:
    """Decide what the host does next.

    Args:
        seen: What was observed.
        strategy: The strategy's plan; may raise `DeploydError`, which the engine reports.
    """
    if seen.build is None:
        held = "; this host holds a permit, which it gives back when a build is enabled and served" if seen.permit.held else ""
        return _decide(seen, HostStep.IDLE, reason=f"nothing is enabled{held}")
    if seen.busy & _ON_RECORD:
        # A permit is being given back, or releases removed, maybe under an earlier build: nothing begins until that is done.
        way_there = HostStep.RESTARTING if seen.failure is None else HostStep.REVERTING
        done = seen.good and seen.failure is None
        return _decide(seen, HostStep.CONVERGED if done else way_there, reason="putting the deploy on record")
    if seen.failure is not None and seen.rules.revert:
        return _plan_failed(seen, f"{seen.build} failed: {seen.failure}", strategy)
    return _plan_staging(seen) or _plan_serving(seen, strategy)


def _plan_serving(seen: Observation, strategy: Callable[[HostView], Plan]) -> Decision:
    """The build is on the disk: have every instance serve it."""
    views = cycle.views(seen)
    if seen.flipped and not seen.permit.held and all(view.phase is not _STALE for view in views):
        return _plan_at_rest(seen, views)
    if not seen.permit.held and (seen.facts is None or not all(facts.looked for facts in seen.instances)):
        return _decide(seen, HostStep.CHECKING, reason=_LOOKING, views=views)
    if seen.flipped and views_ready(views):
        return _settle(seen, HostStep.RESTARTING, views)
    if seen.failure is not None:
        return _decide(seen, HostStep.FAILED, reason=seen.failure, views=views)
    return _plan_restart(seen, views, strategy)


def _plan_failed(seen: Observation, failed: str, strategy: Callable[[HostView], Plan]) -> Decision:
    """The wanted build has failed: serve the last good one, unless the wanted one gets healthy after all."""
    views = cycle.views(seen)
    if seen.flipped and views_ready(views):
        return _settle(seen, HostStep.RESTARTING if seen.permit.held else HostStep.CONVERGED, views)
    if seen.last_good is None:
        reason = f"{failed}; there is no other good build to go back to"
        return _decide(seen, HostStep.BROKEN, reason=reason, views=views)
    decision = _plan_revert(back_to(seen, seen.last_good), failed, strategy)
    if decision.step not in (HostStep.FLIPPING, HostStep.RESTARTING):
        return decision
    return msgspec.structs.replace(
        decision, step=HostStep.REVERTING, reason=f"going back to {seen.last_good}, since {failed}: {decision.reason}"
    )


def back_to(seen: Observation, build: str) -> Observation:
    """The same host, as if its last good build were the one that is wanted."""
    return msgspec.structs.replace(seen, build=build, restart="", good=True)


def _plan_revert(seen: Observation, failed: str, strategy: Callable[[HostView], Plan]) -> Decision:
    """Plan towards the last good build, which `seen` takes for the wanted one."""
    views = cycle.views(seen)
    reverted = f"serves {seen.build}; {failed}"
    if seen.permit.held:
        if seen.flipped and views_ready(views):
            return _settle(seen, HostStep.RESTARTING, views, failed=reverted)
        decision = _plan_restart(seen, views, strategy)
        if decision.step is HostStep.BROKEN:
            return msgspec.structs.replace(decision, reason=f"{failed}; going back to {seen.build} failed too: {decision.reason}")
        return decision
    if not all(facts.looked for facts in seen.instances):
        return _decide(seen, HostStep.CHECKING, reason=_LOOKING, views=views)
    if seen.flipped and all(view.phase is not _STALE for view in views):
        return _decide(seen, HostStep.REVERTED, reason="; ".join([reverted, *_sick(seen)]), views=views)
    reason = f"{failed}; its permit was taken away before it was back on {seen.build}"
    return _decide(seen, HostStep.FAILED, reason=reason, views=views)


def _sick(seen: Observation) -> list[str]:
    """The instances that are not healthy, in words."""
    return [f"{facts.name}: {facts.reason}" for facts in seen.instances if facts.health is Health.UNHEALTHY]


def _settle(seen: Observation, step: HostStep, views: tuple[InstanceView, ...], *, failed: str = "") -> Decision:
    """Everything is right, or as it was before the wanted build failed: put it on record."""
    act = Settle(build=seen.build or "", failed=failed)
    setback = seen.setbacks.get(act.key)
    return _decide(seen, step, acts=_if_ready(seen, act), reason=setback.reason if setback else act.doing, views=views)


def views_ready(views: tuple[InstanceView, ...]) -> bool:
    """Whether every instance serves the wanted build, healthy and open."""
    return all(view.phase is _READY for view in views)


def _plan_staging(seen: Observation) -> Decision | None:
    """Bring the build onto the disk. None when it is all there."""
    staging, build = seen.staging, seen.build or ""
    if staging.unpacked and seen.digest and staging.on_disk_digest not in (None, seen.digest):
        reason = (
            f"build {seen.build} on disk has digest {staging.on_disk_digest}, but {seen.digest} is enabled: "
            "a build id names one artifact for ever; publish it under a new id"
        )
        return _blocked(seen, Remedy.BUILD, reason)
    act: Act
    if seen.digest is None:
        step, act = HostStep.FETCHING, Resolve(build=build)
    elif not staging.unpacked and not staging.fetched:
        step, act = HostStep.FETCHING, Fetch(build=build)
    elif not staging.unpacked:
        step, act = HostStep.UNPACKING, Unpack(build=build)
    else:
        missing = [number for number, marker in enumerate(seen.steps) if marker not in staging.steps_done]
        if not missing:
            return None
        step, act = HostStep.PREPARING, RunStep(build=build, number=missing[0], marker=seen.steps[missing[0]])
    setback = seen.setbacks.get(act.key)
    # A step that is running may be of a spec that has been changed since: two would write to one release at the same time.
    runs = step is HostStep.PREPARING and any(key.startswith(RunStep.prefix_of(build)) for key in seen.busy)
    acts = () if runs else _if_ready(seen, act)
    if setback is not None and setback.blocking:
        remedy = Remedy.BUILD if setback.retry_at == math.inf else Remedy.HOST
        return _blocked(seen, remedy, setback.reason, acts=acts)
    return _decide(seen, step, acts=acts, reason=setback.reason if setback else act.doing)


def _plan_at_rest(seen: Observation, views: tuple[InstanceView, ...]) -> Decision:
    """Nothing has to be restarted and no permit is held: at most something is to be put on record."""
    if views_ready(views):
        if seen.good and seen.failure is None:
            return _decide(seen, HostStep.CONVERGED, acts=_afterwards(seen), views=views)
        return _settle(seen, HostStep.CONVERGED, views)
    if seen.failure is not None:
        return _decide(seen, HostStep.FAILED, reason=seen.failure, views=views)
    sick = _sick(seen)
    if sick:
        return _decide(seen, HostStep.DEGRADED, reason=sick[0], views=views)
    open_questions = [
        f"{facts.name}: {facts.reason}" for facts in seen.instances if facts.health is Health.UNKNOWN and facts.reason
    ]
    return _decide(seen, HostStep.CHECKING, reason=open_questions[0] if open_questions else _LOOKING, views=views)


def _afterwards(seen: Observation) -> tuple[Act, ...]:
    """What is left to do when nothing is left to do."""
    tidy = () if seen.tidy else _if_ready(seen, Tidy())
    return tidy if seen.advanced or not seen.connected else (*tidy, *_if_ready(seen, Advance()))


def _plan_restart(seen: Observation, views: tuple[InstanceView, ...], strategy: Callable[[HostView], Plan]) -> Decision:
    """Ask the strategy, and carry out as much of its plan as the rules allow."""
    view = HostView(
        service=seen.service,
        host=seen.host,
        zone=seen.zone,
        role=seen.role,
        build=seen.build or "",
        instances=views,
        permit=seen.permit,
        fleet=seen.fleet,
        facts=seen.facts or {},
        now=seen.now,
    )
    try:
        plan = strategy(view)
    except DeploydError as error:
        if not seen.permit.held:
            return _blocked(seen, remedy_of(error), error.message, views=views)
        plan = Plan(cycle=(), why=error.message)  # what is in the cycle already goes on without the strategy
    obstacle, remedy = _obstacle(seen, plan)
    if obstacle:
        return _blocked(seen, remedy, obstacle, views=views, plan=plan)
    if not seen.permit.held:
        return _plan_permit(seen, views, plan)
    if not seen.flipped:
        # Nothing is restarted before a flip is over, although the link may be there already: it ends every earlier order.
        return _plan_flip(seen, views, plan)
    moves = cycle.plan(seen, views, plan)
    acts: tuple[Act, ...] = moves.acts
    if moves.failure and seen.failure is not None:
        return _decide(seen, HostStep.BROKEN, reason=moves.failure, waits=moves.waits, views=views, plan=plan)
    if moves.failure:
        acts = (*acts, *_if_ready(seen, RecordFailure(reason=moves.failure)))
    return _decide(
        seen,
        HostStep.RESTARTING,
        acts=acts,
        reason=moves.failure or moves.reason,
        deadline=moves.deadline,
        waits=moves.waits,
        views=views,
        plan=plan,
    )


def _obstacle(seen: Observation, plan: Plan) -> tuple[str, Remedy | None]:
    """What a person must change before anything is disturbed, and where; empty when there is nothing."""
    blind = [facts for facts in seen.instances if facts.gate_problem] if seen.rules.drain and not seen.permit.held else []
    if blind:
        return f"{blind[0].name}: {blind[0].gate_problem}", Remedy.HOST
    if seen.flip_problem and not seen.flipped:
        return seen.flip_problem, Remedy.HOST
    unknown = seen.rules.looks and plan.impossible
    return cycle.impossible(plan, seen.rules, len(seen.instances)), None if unknown else Remedy.SPEC


def _plan_permit(seen: Observation, views: tuple[InstanceView, ...], plan: Plan) -> Decision:
    return _begin(seen, HostStep.WAITING, TakePermit(limit=plan.limit, priority=plan.priority), views, plan)


def _plan_flip(seen: Observation, views: tuple[InstanceView, ...], plan: Plan) -> Decision:
    return _begin(seen, HostStep.FLIPPING, Flip(build=seen.build or "", rollout=seen.restart), views, plan)


def _begin(seen: Observation, step: HostStep, act: Act, views: tuple[InstanceView, ...], plan: Plan) -> Decision:
    """Begin something new, which needs ZooKeeper's word."""
    setback = seen.setbacks.get(act.key)
    if not seen.connected:
        return _decide(seen, step, reason=_ZOOKEEPER_AWAY, views=views, plan=plan)
    return _decide(seen, step, acts=_if_ready(seen, act), reason=setback.reason if setback else act.doing, views=views, plan=plan)


def _blocked(
    seen: Observation,
    remedy: Remedy | None,
    reason: str,
    *,
    acts: tuple[Act, ...] = (),
    views: tuple[InstanceView, ...] | None = None,
    plan: Plan | None = None,
) -> Decision:
    """A decision to disturb nothing until something has changed."""
    decision = _decide(seen, HostStep.BLOCKED, acts=acts, reason=reason, views=views, plan=plan)
    return msgspec.structs.replace(decision, remedy=remedy)


def _decide(
    seen: Observation,
    step: HostStep,
    *,
    acts: tuple[Act, ...] = (),
    reason: str = "",
    deadline: float | None = None,
    waits: frozenset[str] = frozenset(),
    views: tuple[InstanceView, ...] | None = None,
    plan: Plan | None = None,
) -> Decision:
    """A decision; outside the cycle it also opens every gate that was left closed."""
    if views is None:
        views = cycle.views(seen)
    if step is not HostStep.RESTARTING:
        acts += cycle.leftovers(seen)
    if (step is not HostStep.WAITING or _cannot_ask(seen)) and seen.queued and seen.connected:
        acts += _if_ready(seen, LeaveQueue())  # whoever waits for nothing must not be waited for
    return Decision(
        step=step,
        acts=acts,
        reason=reason,
        deadline=deadline,
        waits=waits | cycle.waiting(seen, views, draining=step in (HostStep.RESTARTING, HostStep.BROKEN)),
        instances=views,
        plan=plan,
    )


def _cannot_ask(seen: Observation) -> bool:
    """Whether this host fails to ask for a permit, be it that a veto raises or hangs, which is as good as a no."""
    setback = seen.setbacks.get(TakePermit.verb)
    return setback is not None and not setback.refused and not setback.environment


def _if_ready(seen: Observation, act: Act) -> tuple[Act, ...]:
    """The act, unless it is under way or has to wait after a setback."""
    return (act,) if seen.ready(act.key) else ()
