"""Observe → plan → act, over and over, for one service on one host.

The loop decides and never waits for the world: whatever takes time is a task (`deployd_core.tasks`) whose outcome wakes the loop.
What it keeps between two rounds is only what makes it quicker or more patient (when it last looked, since when it waits, when to
try again); lose it, and the next observation finds the same end by the same way.

Failure: an error in one act is a setback of that act, retried with backoff or, where that cannot help, shown until a person
changes something. An error of our own in a round is logged with its traceback and the round tried again; other services go on.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from deployd_core import ending
from deployd_core.acts import Act, Advance, CloseIdle, Restart
from deployd_core.api import InstanceCall
from deployd_core.asking import ask_strategy
from deployd_core.clock import Clock, rfc3339
from deployd_core.config import ServiceSetup, root_of, set_up
from deployd_core.coordination import Coordination, HostStatus, Link, Snapshot
from deployd_core.errors import DeploydError
from deployd_core.events import Events
from deployd_core.looking import Looking
from deployd_core.model import Build, Event, Instance
from deployd_core.observation import Observation
from deployd_core.observing import observe, pinned_digest, stand
from deployd_core.performing import Identity, Performer, Scene
from deployd_core.planner import Decision, HostStep, Remedy, plan_host, remedy_of
from deployd_core.plugins import Plugins
from deployd_core.releases import ReleaseStore
from deployd_core.reporting import Report
from deployd_core.retention import Disk
from deployd_core.setbacks import Setbacks
from deployd_core.sightings import unseen
from deployd_core.tasks import Outcome, Tasks, ThreadTasks, error_of
from deployd_core.turn import Turn

_LOG = logging.getLogger("deployd.engine")

_REREAD_EVERY = 60.0
"""Seconds after which ZooKeeper is read again without being told to: a net under missed watches."""
_RETRY = 1.0
_CHANGES_DISK = ("fetch", "unpack", "runstep", "flip", "settle", "tidy")
_EXCLUSIVE = (*ending.DISRUPTIVE, "runstep", "settle", "tidy", "takepermit")
"""Acts of which no second one is begun beside a first that hangs."""
_GIVING_BACK = ("takepermit", "settle", "recordfailure")
"""Acts that may wait for ZooKeeper: when it has something new to say there is no reason to wait on."""


class Engine:
    """One service on one host."""

    def __init__(
        self,
        service: str,
        identity: Identity,
        *,
        coordination: Coordination,
        plugins: Plugins,
        events: Events,
        clock: Clock,
        observe_every: float,
        make_tasks: Callable[[Clock, Callable[[], None]], Tasks] = ThreadTasks,
        rng: random.Random | None = None,
    ) -> None:
        self.service = service
        self._identity = identity
        self._coordination = coordination
        self._plugins = plugins
        self._events = events
        self._clock = clock
        self._awake = threading.Event()
        self._tasks = make_tasks(clock, self._awake.set)
        # What is known of the world.
        self._changed = True
        self._woken_at = self._read_at = 0.0
        self._snapshot: Snapshot | None = None
        self._setup: ServiceSetup | None = None
        self._problem = ""
        self._remedy: Remedy | None = None
        self._store: ReleaseStore | None = None
        self._root = Path()
        self._disk: Disk | None = None
        self._seen: tuple[Observation, Scene] | None = None
        self._looking = Looking(self._tasks, observe_every=observe_every, owner=identity.owner)
        # What makes it patient.
        self._epoch = 0
        self._aim: tuple[object, ...] = ()
        self._digest: str | None = None
        self._tidy = False
        self._random = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._setbacks = Setbacks(self._random)
        self._turn = Turn(self._setbacks, clock, self._random)
        self._waits: dict[str, float] = {}
        self._overtaken: set[str] = set()
        self._cancel = threading.Event()
        self._last_error = ""
        self.last_round = clock.monotonic()
        """When it last went round, on the monotonic clock."""
        self._report = Report(service, coordination, clock, version=identity.version)

    def wake(self) -> None:
        """Something in ZooKeeper has changed. May be called from any thread."""
        self._woken_at = self._clock.monotonic()
        self._changed = True
        self._awake.set()

    def run(self, stop: threading.Event) -> None:
        """Go round until `stop` is set and `wake` called; then end at a safe point, with the gates open of what can serve."""
        ending.go_round(self, stop, self._awake, self._tasks, self._clock)

    def round(self) -> float:
        """Observe, plan and act once; the seconds until the next round is due."""
        self.last_round = self._clock.monotonic()
        for outcome in self._tasks.collect():
            self._take(outcome)
        self._read()
        now = self._clock.monotonic()
        if self._snapshot is None:
            return _RETRY
        if self._problem or self._setup is None or self._disk is None:
            decision = Decision(step=HostStep.BLOCKED, reason=self._problem, remedy=self._remedy)
            self._turn.stand_aside(self._snapshot, self._coordination, self._tasks, self._epoch)
        else:
            seen, decision = self._decide(self._snapshot, self._setup, self._disk, now)
            self._waits = {key: self._waits.get(key, now) for key in decision.waits}
            self._seen = seen, self._start(decision, self._snapshot, self._setup, self._disk, now)
        status = self._tell(decision, self._snapshot)
        return self._until_next(decision, status, now)

    def final_round(self) -> None:
        """Learn what has ended, and open what can serve."""
        self._cancel.set()
        for outcome in self._tasks.collect():
            self._take(outcome)
        if self._seen is not None and not self._problem:
            seen, scene = self._seen
            now, instances = self._clock.monotonic(), self._looking.facts(self._clock.time())
            for act in ending.last_acts(seen, instances, busy=self._tasks.busy, setbacks=self._setbacks.by_key, now=now):
                self._start_act(act, scene)

    def round_failed(self, error: Exception) -> None:
        """A round ended in a bug of ours, which is to be shown."""
        _LOG.error("%s: a round failed; this is a bug in deployd, please report it", self.service, exc_info=error)
        self._last_error = f"a round failed, see the agent's log: {type(error).__name__}: {error}"
        self._changed = True  # what this round has heard of may not have been taken in

    # Observe.

    def _read(self) -> None:
        """Bring the snapshot up to date, and what follows from it."""
        now, unheard = self._clock.monotonic(), not self._changed
        if unheard and now - self._read_at < _REREAD_EVERY:
            return
        self._changed = False
        try:
            snapshot = self._coordination.snapshot(self.service, afresh=unheard)
        except DeploydError as error:
            _LOG.warning("%s: %s", self.service, error)
            self._read_at = now - _REREAD_EVERY + _RETRY
            return
        woken, self._read_at = self._woken_at >= self._read_at, now
        self._look_at_disk()  # a person may have put right what was in the way
        before, self._snapshot = self._snapshot, snapshot
        if before is None or before.spec != snapshot.spec or snapshot.problem or self._problem:
            self._prepare(snapshot)
        aim = (snapshot.rollout_id, snapshot.spec)
        if aim != self._aim:
            self._aim = aim
            self._take_aim()
        elif before is not None and (before.failure is None) != (snapshot.failure is None):
            self._take_aim()  # it goes back to its last good build, or somebody wants it tried again
        for key in _GIVING_BACK if woken else ():
            self._setbacks.lift(key)
            self._overtaken |= {key} & self._tasks.busy  # that was begun on what was read before

    def _prepare(self, snapshot: Snapshot) -> None:
        """Make what the spec names. A spec that cannot be carried out is shown as a problem, and nothing is touched."""
        self._problem, self._remedy = snapshot.problem, None
        if snapshot.spec is None:
            self._remedy = Remedy.SPEC
            self._problem = self._problem or f"service {self.service} has no spec; try: deployd services apply {self.service}.toml"
            return
        try:
            setup = set_up(snapshot.spec, self.service, self._plugins)
            root = root_of(setup.spec, service=self.service, host=self._identity.host)
            self._store = ReleaseStore(self.service, root, reserve=setup.spec.service.reserve)
            if root != self._root:
                # Once per root: it clears leftovers, which may be what a task of ours is writing.
                self._store.prepare()
                self._root = root
            self._disk = self._store.look()
        except DeploydError as error:
            self._problem, self._remedy = f"{error.message}; {error.hint}" if error.hint else error.message, remedy_of(error)
            return
        self._setup = setup
        self._looking.follow(setup)

    def _take_aim(self) -> None:
        """Another build or another spec is wanted: nothing that failed or was ordered before says anything now."""
        self._epoch += 1
        self._cancel.set()
        self._cancel = threading.Event()
        self._digest = None
        self._last_error = ""
        self._tidy = False
        self._setbacks.clear()
        self._turn.begin(self._snapshot)
        self._waits.clear()
        self._looking.forget_orders()

    # Plan.

    def _decide(self, snapshot: Snapshot, setup: ServiceSetup, disk: Disk, now: float) -> tuple[Observation, Decision]:
        seen = observe(
            stand(snapshot, setup, disk, digest=self._digest),
            self._looking.facts(self._clock.time()),
            tidy=self._tidy,
            busy=self._tasks.busy,
            setbacks=self._setbacks.by_key,
            waits=self._waits,
            facts=self._looking.strategy_facts,
            connected=self._coordination.link is Link.CONNECTED,
            advanced=self._turn.advanced,
            now=now,
        )
        return seen, self._report.with_progress(plan_host(seen, lambda view: ask_strategy(setup.strategy, view)))

    # Act.

    def _start(self, decision: Decision, snapshot: Snapshot, setup: ServiceSetup, disk: Disk, now: float) -> Scene:
        """Begin the acts of a decision, and the looks that are due; the scene of it all."""
        scene = self._scene(decision, snapshot, setup, disk)
        for act in decision.acts:
            self._start_act(act, scene)

        def call(instance: Instance, timeout: float) -> InstanceCall:
            return scene.instance_call(instance.name, timeout)

        self._looking.start(decision, call, disk.flips, epoch=self._epoch, now=now)
        self._looking.start_facts(setup, scene.host_call, epoch=self._epoch, now=now)
        return scene

    def _start_act(self, act: Act, scene: Scene) -> None:
        if self._store is None:
            return
        performer = Performer(
            store=self._store,
            coordination=self._coordination,
            hooks=self._plugins.hook_functions,
            progress=self._report.progressed,
            clock=self._clock,
        )
        if isinstance(act, Restart):
            self._looking.restarting(act.instance, self._clock.monotonic())
            if act.cut:
                self._last_error = f"{act.instance} was restarted with {act.cut} connections in flight: the drain took too long"
                self._emit("instance.cut", scene.snapshot, {"instance": act.instance, "connections": act.cut})
        # What is done again and again, though nothing is wrong, need not fill the log.
        _LOG.log(logging.DEBUG if isinstance(act, CloseIdle | Advance) else logging.INFO, "%s: %s", self.service, act.doing)
        self._tasks.start(
            act.key,
            lambda: performer.perform(act, scene),
            timeout=performer.timeout(act, scene),
            epoch=self._epoch,
            exclusive=act.key.startswith(_EXCLUSIVE),
        )

    def _scene(self, decision: Decision, snapshot: Snapshot, setup: ServiceSetup, disk: Disk) -> Scene:
        digest = pinned_digest(snapshot, disk, self._digest)
        return Scene(
            service=self.service,
            host=self._identity.host,
            zone=snapshot.membership.zone,
            address=self._identity.address,
            owner=self._identity.owner,
            state_directory=self._identity.state_directory,
            root=self._root,
            snapshot=snapshot,
            setup=setup,
            build=Build(id=snapshot.enabled.build, digest=digest) if snapshot.enabled and digest else None,
            current=disk.current,
            running=self._looking.served,
            settled_status=self._status(decision.settled, snapshot),
            cancel=self._cancel,
        )

    # Learn how it went.

    def _take(self, outcome: Outcome) -> None:
        kind, _, name = outcome.key.partition(":")
        error = error_of(outcome, self.service)
        if kind == "look":
            seen = outcome.value if error is None else unseen(error)
            self._looking.saw(name, seen, started=outcome.started, ended=outcome.ended)
        elif kind == "report":
            self._report.sent(error)
        elif kind == "facts":
            self._looking.learnt(outcome.value, error)
        else:
            self._take_act(kind, name, outcome, error)
            if kind in self._overtaken:
                self._setbacks.lift(kind)  # what it has to wait for may have come meanwhile
            self._overtaken.discard(kind)

    def _take_act(self, kind: str, name: str, outcome: Outcome, error: DeploydError | None) -> None:
        now = self._clock.monotonic()
        if kind in _CHANGES_DISK:
            self._look_at_disk()
            self._report.progressed()
        if kind == "flip":
            self._looking.forget_orders()  # they were for what `current` was before
        if kind == "restart":
            self._looking.restarted(name, now)
        if kind != "restart" and error is None:
            self._looking.take_gate(kind, name, outcome.value, now)
        if kind == "settle" and self._snapshot is not None:
            # The permit is gone, or may be, whatever is wanted by now: nothing may begin on what was read before.
            if error is None:
                self._snapshot = msgspec.structs.replace(self._snapshot, permit=None)
            self._changed = True
        if kind == "tidy":
            self._tidy = True
        if outcome.epoch != self._epoch:
            return
        if error is not None:
            self._last_error = error.message
            self._setbacks.failed(outcome.key, error, now)
            return
        self._setbacks.succeeded(outcome.key)
        self._take_success(kind, name, outcome, now)

    def _take_success(self, kind: str, name: str, outcome: Outcome, now: float) -> None:
        match kind:
            case "settle":
                self._last_error, self._tidy = "", False
                self._turn.finished()
            case "resolve":
                self._digest = outcome.value
            case "warmup":
                self._looking.warmed(name)
            case "takepermit":  # a permit shows in the next snapshot; a no is a setback that any change in ZooKeeper ends
                self._changed |= self._turn.answered(outcome.value, now)
                self._alarm(outcome.value)
            case "recordfailure" | "leavequeue":  # or the same would be planned again until somebody writes something
                self._changed = True
            case "advance":
                self._turn.looked(outcome.value, now)

    def _look_at_disk(self) -> None:
        if self._store is None:
            return
        try:
            self._disk = self._store.look()
        except DeploydError as error:
            self._problem = error.message

    # Report.

    def _status(self, decision: Decision, snapshot: Snapshot) -> HostStatus:
        error = self._looking.facts_problem or self._last_error
        return self._report.status(decision, snapshot, self._looking.facts(self._clock.time()), last_error=error)

    def _tell(self, decision: Decision, snapshot: Snapshot) -> HostStatus:
        status = self._status(decision, snapshot)
        self._alarm()
        if self._report.tell(status, self._tasks, self._epoch):
            detail = {"reason": status.reason, "served": status.served, "rollout": status.rollout}
            self._emit(f"host.{status.step}", snapshot, detail)
        return status

    def _alarm(self, answer: object = None) -> None:
        if self._snapshot is not None and (detail := self._turn.alarm(self._snapshot, answer)) is not None:
            self._emit("permit.held-too-long", self._snapshot, detail)

    def _emit(self, name: str, snapshot: Snapshot, detail: Mapping[str, object]) -> None:
        build = snapshot.enabled.build if snapshot.enabled else ""
        at = rfc3339(self._clock.time())
        self._events.emit(Event(name=name, service=self.service, host=self._identity.host, at=at, build=build, detail=detail))

    def _until_next(self, decision: Decision, status: HostStatus, now: float) -> float:
        """Seconds until something is due that no task and no watch will wake us for."""
        due = [
            self._read_at + _REREAD_EVERY,
            self._tasks.next_deadline(),
            self._setbacks.next_retry(now),
            self._looking.next_due(decision.instances),
            self._report.due(status, self._tasks.busy),
            decision.deadline if decision.deadline is not None and decision.deadline > now else None,
        ]
        if self._changed:
            return 0.0
        return max(0.0, min(moment for moment in due if moment is not None) - self._clock.monotonic())
