"""One run, many runs, and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum

from msgspec import Struct

from deployd_core.coordination import Denial, RolloutState
from deployd_core.model import Role
from deployd_core.planner import HostStep
from deployd_core.plugins import Plugins
from deployd_core.simulate.host import VirtualHost
from deployd_core.simulate.invariants import Broken
from deployd_core.simulate.record import Record
from deployd_core.simulate.scenario import Scenario
from deployd_core.simulate.world import World

_FOR_A_PERSON = (HostStep.FAILED, HostStep.REVERTED, HostStep.BROKEN, HostStep.BLOCKED, HostStep.DEGRADED)
"""Steps of which a host gets no further by itself."""
_STOPS = (Denial.PROMOTION, Denial.WINDOW, Denial.FROZEN)
_SHOWN = 3


class Outcome(Enum):
    """How a run ended."""

    CONVERGED = "converged"
    HALTED = "halted"
    TAKEN_BACK = "taken-back"  # over budget, and every host serves the build before again
    HELD = "held"  # somebody has paused or frozen it
    WAITING = "waiting"  # for a person: a host is dead, failed or blocked, or nobody has promoted the build; or for a window
    STUCK = "stuck"  # and nobody could say why: a mistake of the strategy's or of ours


class Run(Struct, frozen=True, kw_only=True):
    """One run of a scenario."""

    seed: int
    outcome: Outcome
    reason: str
    """Why it did not converge; empty when it did."""
    seconds: float
    """From the moment at which the build was enabled until nothing happened any more."""
    hosts: int
    converged: int
    instances: int
    lowest: float
    """The part of all instances that could serve at the worst moment."""
    lowest_by_zone: dict[str, float]
    most_out: int
    """Instances that could not serve, at the worst moment."""
    most_permits: int
    cut: int
    """Requests that were in flight on instances as these were restarted."""
    broken: tuple[Broken, ...]
    order: tuple[str, ...]
    """Hosts, as they got their first permits."""
    missed: tuple[str, ...]
    """Faults whose moment never came, for the run was over."""
    rounds: int
    trace: str
    """The digest of everything that happened: equal runs have equal ones."""


class Summary(Struct, frozen=True, kw_only=True):
    """Many runs of a scenario, each from its own seed."""

    runs: tuple[Run, ...]

    def duration(self, percent: int) -> float | None:
        """Seconds within which so many percent of the runs that converged had done so; None when none has."""
        seconds = [run.seconds for run in self.runs if run.outcome is Outcome.CONVERGED]
        return percentile(seconds, percent) if seconds else None

    @property
    def other_ends(self) -> dict[Outcome, tuple[float, float]]:
        """Of runs that did not converge, by outcome: after how many seconds the first and the last of them got no further."""
        ends = {outcome: [run.seconds for run in self.runs if run.outcome is outcome] for outcome in self.outcomes}
        return {outcome: (min(times), max(times)) for outcome, times in ends.items() if outcome is not Outcome.CONVERGED}

    @property
    def missed(self) -> dict[str, int]:
        """By fault whose moment never came, in how many runs it did not."""
        return dict(Counter(fault for run in self.runs for fault in run.missed))

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many runs ended how; those that none did are left out."""
        counts = {outcome: sum(run.outcome is outcome for run in self.runs) for outcome in Outcome}
        return {outcome: number for outcome, number in counts.items() if number}

    @property
    def lowest(self) -> float:
        """The part of all instances that could serve at the worst moment of any run."""
        return min(run.lowest for run in self.runs)

    @property
    def lowest_by_zone(self) -> dict[str, float]:
        """The same for each zone."""
        zones = sorted({zone for run in self.runs for zone in run.lowest_by_zone})
        return {zone: min(run.lowest_by_zone.get(zone, 1.0) for run in self.runs) for zone in zones}

    @property
    def most_out(self) -> int:
        """Instances that could not serve, at the worst moment of any run."""
        return max(run.most_out for run in self.runs)

    @property
    def most_cut(self) -> int:
        """Requests that restarts cut off, in the worst run."""
        return max(run.cut for run in self.runs)

    @property
    def most_permits(self) -> int:
        """Hosts that held a permit at a time, at most."""
        return max(run.most_permits for run in self.runs)

    @property
    def broken(self) -> dict[str, list[Run]]:
        """By rule, the runs that broke it."""
        rules = sorted({broken.rule for run in self.runs for broken in run.broken})
        return {rule: [run for run in self.runs if any(broken.rule == rule for broken in run.broken)] for rule in rules}


def simulate(scenario: Scenario, plugins: Plugins, seed: int, *, full: bool = False) -> tuple[Run, Record]:
    """Run a scenario once.

    Args:
        scenario: What to run.
        plugins: Where the strategy is.
        seed: Decides everything that is left to chance.
        full: Whether to keep the trace, the curves and the timeline.

    Raises:
        ConfigError: The spec or its options are wrong.
        UnknownPlugin: It names a plugin that is not here.
    """
    world = World(scenario, plugins, seed, full=full)
    world.run()
    outcome, reason, stuck = _outcome(world)
    world.judge.ends(stuck)
    record = world.record
    run = Run(
        seed=seed,
        outcome=outcome,
        reason=reason,
        seconds=world.ended_at,
        hosts=len(world.hosts),
        converged=len(world.done),
        instances=record.fleet.total,
        lowest=record.fleet.lowest,
        lowest_by_zone={zone: count.lowest for zone, count in sorted(record.zones.items())},
        most_out=record.fleet.most_out,
        most_permits=record.most_permits,
        cut=record.cut,
        broken=tuple(world.judge.broken),
        order=tuple(record.order),
        missed=world.injector.missed(),
        rounds=world.rounds,
        trace=record.digest,
    )
    return run, record


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _outcome(world: World) -> tuple[Outcome, str, dict[str, str]]:
    """How a run ended, why, and by host what those that wait for nobody were doing."""
    undone = [host for host in world.hosts if host.name not in world.done]
    rollout = world.ensemble.rollout(world.service)
    if not undone:
        back = rollout.rollback_of and world.ensemble.enabled(world.service, Role.FLEET) != world.ordered
        return (Outcome.TAKEN_BACK, rollout.why, {}) if back else (Outcome.CONVERGED, "", {})
    # One that had finished before it went down for good takes up room all the same.
    persons = [host for host in world.hosts if not host.alive or (host in undone and _needs_a_person(host))]
    moving = [host for host in undone if host not in persons and not host.asleep]
    if moving or not (persons or rollout.state is not RolloutState.OPEN):
        stuck = {host.name: _words(host) for host in moving or undone}
        return Outcome.STUCK, _some(stuck), stuck
    if rollout.state is RolloutState.HALTED:
        return Outcome.HALTED, rollout.why, {}
    if rollout.state is not RolloutState.OPEN:
        return Outcome.HELD, f"{rollout.state.value} by {rollout.by}: {rollout.why}", {}
    frozen = next((host.reason for host in persons if host.denial is Denial.FROZEN and host.step is HostStep.WAITING), "")
    if frozen:
        return Outcome.HELD, frozen, {}
    return Outcome.WAITING, _some({host.name: _words(host) for host in persons}), {}


def _needs_a_person(host: VirtualHost) -> bool:
    """Whether it gets no further by itself; or waits for a promotion, for a window, or for the end of a freeze."""
    return host.step in _FOR_A_PERSON or (host.step is HostStep.WAITING and host.denial in _STOPS)


def _words(host: VirtualHost) -> str:
    if not host.up:
        return "down for good" if host.life else "dead: its agent does not run"
    step = host.step.value if host.step is not None else "starting"
    return f"{step}: {host.reason}" if host.reason else step


def _some(words: dict[str, str]) -> str:
    listed = [f"{host} is {what}" for host, what in list(words.items())[:_SHOWN]]
    return "; ".join([*listed, f"and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else listed)
