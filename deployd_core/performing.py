"""Carries out one act of a plan: the only bridge from the planner to the disk, the plugins and ZooKeeper.

Every act can be repeated, and leaves its evidence outside the process. Runs on a task thread; raises `DeploydError`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core import warmup
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
    Resolve,
    Restart,
    RunStep,
    Settle,
    TakePermit,
    Tidy,
    Unpack,
    WarmUp,
)
from deployd_core.api import BuildCall, ClosedGate, DrainOptions, Gate, GateCall, HostCall, InstanceCall, StepCall
from deployd_core.boundary import Bound, Provider, call_plugin, checked
from deployd_core.clock import Clock
from deployd_core.config import ServiceSetup, step_timeout
from deployd_core.coordination import Coordination, Denied, HostStatus, Permit, Snapshot
from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.model import Action, Build, RestartRequest, Veto
from deployd_core.releases import ReleaseStore
from deployd_core.remembered import remember

_TRANSFER_TIMEOUT = 30.0
"""Seconds without a byte before a transfer is given up."""
_GRACE = 10.0
"""Seconds that a plugin gets beyond its own timeout before it is abandoned."""
_LOG_MAX = 16 << 20
"""Bytes of the log of a step that are kept, and what its next run adds."""
_VETO = "asking for a veto"

Hooks = Callable[[str], Sequence[tuple[Provider, Callable[..., Any]]]]
"""The functions that plugins offer for a hook, by its name: `deployd_core.plugins.Plugins.hook_functions`."""


class Identity(Struct, frozen=True, kw_only=True):
    """Which host this is."""

    host: str
    zone: str
    address: str
    owner: str
    """This very agent, in the gates that it closes: ``host/pid/start time``."""
    version: str
    state_directory: Path
    """Where gates with options are put on record, for `deployd drains`."""


class Scene(Struct, frozen=True, kw_only=True):
    """What an act is about: it was planned from this, and is carried out on this."""

    service: str
    host: str
    zone: str
    address: str
    owner: str
    """Names this agent in the gates that it closes."""
    state_directory: Path
    root: Path
    snapshot: Snapshot
    setup: ServiceSetup
    build: Build | None
    """None until its digest is known."""
    current: str | None
    running: frozenset[str]
    """Builds that some instance still serves."""
    settled_status: HostStatus
    """The report that goes with giving the permit back."""
    cancel: threading.Event
    """Set when another build is wanted, or the agent stops: long transfers end."""

    def host_call(self, timeout: float) -> HostCall:
        """What a strategy that looks at the host is told."""
        return HostCall(service=self.service, host=self.host, zone=self.zone, address=self.address, root=self.root, timeout=timeout)

    def instance_call(self, name: str, timeout: float) -> InstanceCall:
        """What a manager or a probe is told.

        Raises:
            DeploydError: The gate cannot say how to get past it.
        """
        return InstanceCall(
            **msgspec.structs.asdict(self.host_call(timeout)),
            instance=next(instance for instance in self.setup.instances if instance.name == name),
            build=self.current,
            release=self.root / "releases" / self.current if self.current else None,
            passing=self.setup.passing,
        )


class Performer:
    """Carries out acts."""

    def __init__(
        self,
        *,
        store: ReleaseStore,
        coordination: Coordination,
        hooks: Hooks,
        progress: Callable[[int, int | None], None],
        clock: Clock,
    ) -> None:
        self._store = store
        self._coordination = coordination
        self._hooks = hooks
        self._progress = progress
        self._clock = clock
        self._performers: dict[type[Act], Callable[[Any, Scene], Any]] = {
            Resolve: self._resolve,
            Fetch: self._fetch,
            Unpack: lambda _, scene: store.unpack(_pinned(scene), stop=scene.cancel),
            RunStep: self._run_step,
            TakePermit: self._take_permit,
            LeaveQueue: lambda _, scene: coordination.leave_queue(scene.service),
            Advance: self._advance,
            Flip: lambda act, _: store.flip(act.build, rollout=act.rollout),
            Settle: self._settle,
            RecordFailure: lambda act, scene: coordination.record_failure(scene.snapshot, act.reason),
            Tidy: self._tidy,
        }

    def timeout(self, act: Act, scene: Scene) -> float:
        """Seconds after which an act is abandoned: a net under the deadlines inside it."""
        table = scene.setup.spec.instances
        match act:
            case Fetch() | Unpack():
                return 6 * 3600.0
            case RunStep(number=number):
                return step_timeout(scene.setup.steps[number]) + _GRACE
            case Restart():
                return table.restart_timeout + _GRACE
            case WarmUp():
                return (scene.setup.spec.warmup.timeout if scene.setup.spec.warmup else 0.0) + _GRACE
            case Settle() | Flip() | Tidy():
                return 600.0
            case _:
                return 60.0

    def perform(self, act: Act, scene: Scene) -> Any:
        """Do it.

        Returns:
            The digest for `Resolve`; a `Permit`, `Denied` or `Veto` for `TakePermit`; seconds until it is worth asking again, or
            None, for `Advance`; a `ClosedGate` for `CloseGate`; nothing else matters.

        Raises:
            DeploydError: It could not be done.
        """
        if isinstance(act, InstanceAct):
            return self._touch(act, scene)
        return self._performers[type(act)](act, scene)

    def _resolve(self, _: Resolve, scene: Scene) -> str:
        enabled = scene.snapshot.enabled
        if enabled is None:
            raise ConfigError("nothing is enabled")
        call = BuildCall(service=scene.service, build=enabled.build, timeout=_TRANSFER_TIMEOUT)
        artifact = scene.setup.source.call(f"resolving {enabled.build}", lambda source: source.resolve(call))
        if artifact.digest is None:
            raise ConfigError(
                f"build {enabled.build} of {scene.service} was enabled without a digest, and {artifact.location} publishes none",
                hint=f"deployd enable {scene.service} {enabled.build} --digest sha256:…",
            )
        return artifact.digest

    def _fetch(self, _: Fetch, scene: Scene) -> None:
        build = _pinned(scene)
        fetch = self._store.fetch
        scene.setup.source.call(
            f"fetching {build.id}",
            lambda source: fetch(build, source, timeout=_TRANSFER_TIMEOUT, stop=scene.cancel, progress=self._progress),
        )

    def _run_step(self, act: RunStep, scene: Scene) -> None:
        step = scene.setup.steps[act.number]
        release = self._store.release(_pinned(scene).id)
        log = scene.root / ".deployd" / "logs" / f"{release.build.id}-{act.marker}.log"
        _bound(log)
        call = StepCall(release=release, host=scene.host, log=log, timeout=step_timeout(step))
        step.call(f"in step {act.number + 1}", lambda plugin: plugin.run(call))
        self._store.mark_step(release.build.id, act.marker)

    def _take_permit(self, act: TakePermit, scene: Scene) -> Permit | Denied | Veto:
        request = RestartRequest(
            service=scene.service, host=scene.host, zone=scene.zone, build=_pinned(scene).id, serving=scene.current
        )
        for provider, hook in self._hooks("deployd_veto"):
            answer = call_plugin(provider, _VETO, lambda hook=hook: hook(request=request))  # type: ignore[misc]
            if answer is not None:
                veto = checked(provider, Veto, _VETO, answer)
                self._coordination.leave_queue(scene.service)  # others must not wait until this host may
                return Veto(reason=f"{provider.entry}: {veto.reason}", retry_after=veto.retry_after)
        return self._coordination.take_permit(scene.snapshot, act.limit, priority=act.priority)

    def _advance(self, _: Advance, scene: Scene) -> float | None:
        return self._coordination.advance(scene.snapshot, lambda build: promotion_veto(self._hooks, scene.service, build))

    def _settle(self, act: Settle, scene: Scene) -> None:
        """The order matters: once the permit is gone nobody comes back for the mark."""
        self._store.mark_good(act.build)
        if scene.cancel.is_set():
            raise Unavailable("another build is wanted: the permit is kept for it")
        self._coordination.release_permit(scene.snapshot, scene.settled_status, keep_failure=bool(act.failed))

    def _tidy(self, _: Tidy, scene: Scene) -> None:
        table = scene.setup.spec.service
        protect = scene.running | {_pinned(scene).id}
        self._store.prune(keep=table.keep_releases, keep_bytes=table.keep_bytes, protect=protect)

    def _touch(self, act: InstanceAct, scene: Scene) -> Any:
        table = scene.setup.spec.instances
        call = scene.instance_call(act.instance, table.restart_timeout)
        match act:
            case Restart(action=action):
                manager = scene.setup.manager
                if manager is None:
                    raise ConfigError(f"{scene.service}: [instances] has no manager")
                reload = action is Action.RELOAD
                manager.call(
                    f"{'reloading' if reload else 'restarting'} {act.instance}",
                    lambda plugin: plugin.reload(call) if reload else plugin.restart(call),
                )
            case WarmUp():
                if scene.setup.spec.warmup is not None:
                    warmup.send(call, scene.setup.spec.warmup)
            case CloseGate():
                return self._close_gate(act, call, scene)
            case CloseIdle():
                return _gate(scene).call(f"closing idle connections of {act.instance}", lambda gate: gate.close_idle(call))
            case OpenGate():
                _gate(scene).call(f"opening {act.instance}", lambda gate: gate.open(call))
        return None

    def _close_gate(self, act: CloseGate, call: InstanceCall, scene: Scene) -> ClosedGate:
        drain = scene.setup.drain or DrainOptions()
        until = self._clock.time() + drain.lease
        fields = {name: getattr(call, name) for name in call.__struct_fields__}
        closing = GateCall(**fields, until=until, owner=scene.owner, hold=drain.hold)
        remember(scene.state_directory, scene.service, scene.setup.spec.instances.gate)
        _gate(scene).call(f"closing {act.instance}", lambda gate: gate.close(closing))
        return ClosedGate(service=scene.service, instance=act.instance, owner=scene.owner, until=until)


def _bound(log: Path) -> None:
    """Begin the log of a step anew when it has grown too big: one that fails is run again every minute, for as long as it does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_MAX:
        os.truncate(log, 0)  # and not removed: what outlived an agent that was killed has it locked


def promotion_veto(hooks: Hooks, service: str, build: str) -> str:
    """Why a build must not be promoted; empty when no plugin objects. What could not be asked has not agreed."""
    for provider, hook in hooks("deployd_veto_promotion"):
        try:
            reason: object = call_plugin(
                provider,
                _VETO,
                lambda hook=hook: hook(service=service, build=build),  # type: ignore[misc]
            )
        except DeploydError as error:
            reason = error.message
        if reason is not None:
            return f"{provider.entry}: {reason}"
    return ""


def _pinned(scene: Scene) -> Build:
    if scene.build is None:
        raise ConfigError(f"{scene.service}: no build with a digest is enabled")
    return scene.build


def _gate(scene: Scene) -> Bound[Gate[Any]]:
    if scene.setup.gate is None:
        raise ConfigError(f"{scene.service}: [instances] has no gate")
    return scene.setup.gate
