"""The state of a small fleet: hosts, what stops a rollout, and the rules that are in force.

A state says nothing of names, times or numbers of builds, only what a decision or a promise depends on: whether a host is on the
wanted build, not on which. So any number of builds, pauses, crashes and failures fits into finitely many states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import NamedTuple

from deployd_core.admission import Granted, Request, admit
from deployd_core.coordination import Denied, RolloutState
from deployd_core.model import FleetLimit
from deployd_core.spec import RolloutTable
from deployd_core.units import Share


class Build(IntEnum):
    """Which build, seen from what is wanted."""

    WANTED = 0
    COMPLETED = 1  # the last one that the whole fleet completed; told apart only where a rollout may go back to it
    OTHER = 2


class Service(IntEnum):
    """How the service on a host does."""

    SERVES = 0
    OURS = 1  # out because we are restarting it
    ROTTED = 2  # out by itself
    OFF = 3  # the machine is off; serves as before when it is on again


class Permit(IntEnum):
    """What a host holds."""

    NONE = 0
    HELD = 1
    OLDER = 2  # granted in an earlier rollout; told apart only where a mutant does


class Read(IntFlag):
    """What has been written since a host read what lets it have a permit. `FRESH` with no other flag is all up to date."""

    NOT = 0  # nothing read, or a no
    FRESH = 1
    ROLLOUT = 2
    ENABLED = 4
    FREEZE = 8
    PERMITS = 16
    DOWN = 32  # no node that a transaction could check: which hosts are down


CHECKED = Read.ROLLOUT | Read.ENABLED | Read.FREEZE | Read.PERMITS
"""What a grant checks: `deployd_core.zookeeper.permits.guards`, the rollout, and the version of the permits."""


class Host(NamedTuple):
    """One host."""

    zone: int = 0
    build: int = Build.OTHER
    """What `current` points to."""
    good: int = Build.OTHER
    """The last build that it completed."""
    service: int = Service.SERVES
    alive: bool = True
    """Its agent."""
    permit: int = Permit.NONE
    failed: bool = False
    """On record for this rollout."""
    broken: bool = False
    """Neither the wanted build nor the last good one gets healthy: it waits for a newer one, or for `retry`."""
    taken: bool = False
    """A person took its permit away while it was out because of us."""
    excused: bool = False
    canary: bool = False
    baked: bool = False
    """A canary whose last report says that it has been finished for as long as a build is to bake."""
    read: int = Read.NOT

    @property
    def out(self) -> bool:
        """Whether it serves nobody."""
        return self.service != Service.SERVES

    @property
    def counts_as_down(self) -> bool:
        """What ZooKeeper knows: the agent is gone, or says that it is down; and nobody has excused it."""
        return (self.out or not self.alive) and not self.excused

    @property
    def finished(self) -> bool:
        """All that can be wished for."""
        return self.build == self.good == Build.WANTED and not self.out and self.alive and not self.permit

    @property
    def wants(self) -> bool:
        """Whether it asks for a permit. A service that died on the wanted build is its manager's to start, not ours."""
        return self.alive and not self.permit and (self.build != Build.WANTED or self.taken)


class Fleet(NamedTuple):
    """What is true of all hosts."""

    state: RolloutState = RolloutState.OPEN
    frozen: bool = False
    went_back: bool = False
    """This rollout began by itself, because another was over its budget."""
    completed: bool = False
    """What is wanted is also what was completed last."""
    granted: int = 0
    """Permits granted since the rollout began, as far as a ramp looks."""
    recent: bool = False
    """The last permit was granted less than a stagger ago, in whatever rollout."""
    promoted: bool = False
    """On record: the build is for the fleet, too."""
    allowed: bool = False
    """In truth: a person said so, or the canaries have baked."""

    def with_grant(self, rules: Rules) -> Fleet:
        """After one more permit."""
        counted = min(self.granted + 1, rules.most_granted)
        return self._replace(granted=counted, recent=bool(rules.policy.stagger))

    @property
    def stopped(self) -> bool:
        """Whether no permit may be granted to anybody."""
        return self.frozen or self.state is not RolloutState.OPEN


class Event(NamedTuple):
    """What a write, or something that befalls a host, means to all other hosts."""

    written: int = Read.NOT
    forgives: bool = False
    """Failures are forgotten."""
    supersedes: bool = False
    was_completed: bool = False
    """What was wanted until now is what was completed last."""
    goes_back: bool = False
    """The build that becomes the wanted one is the one that was completed last."""
    completes: bool = False


NOTHING = Event()


class Violation(Enum):
    """A broken promise."""

    TOO_FEW_LEFT = "with the hosts that are down anyway, more are out than the limit"
    TOO_MANY_PERMITS = "more permits than the limit"
    OUT_WITHOUT_PERMIT = "a host is out because of us and holds no permit"
    GRANTED_WHILE_STOPPED = "a permit was granted under a pause, a halt or a freeze"
    GRANTED_FOR_OLDER = "a permit was granted for a build that is no longer the wanted one"
    FAILED_AGAIN = "a host that failed in this rollout was granted another permit in it"
    TOO_MANY_FAILED = "more hosts failed in one rollout than its budget and its limit allow"
    PERMIT_VANISHED = "a permit is gone that neither its healthy host nor a person gave back"
    BEYOND_THE_RAMP = "more permits than the step of the ramp, with the hosts that have finished"
    TOO_SOON = "a permit was granted less than the stagger after another"
    NOT_PROMOTED = "a host of the fleet was granted a permit for a build that is still for the canaries"
    NOT_BAKED = "a build was promoted by itself that a canary has not baked"
    WENT_BACK_TWICE = "a rollout that began by itself began another"
    OPENED_BY_ITSELF = "a rollout that was paused or halted goes on, and no person said so"
    STUCK = "nothing that hosts and people do can get every host to the wanted build"


Decide = Callable[[Request], Granted | Denied]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is in force, what may happen, and how a mutant differs from the protocol."""

    hosts: int = 3
    zones: int = 1
    limit: int = 1
    per_zone: int | None = None
    canaries: int = 0
    """The first so many hosts."""
    policy: RolloutTable = RolloutTable()
    may: frozenset[str] = frozenset({"crash", "retry", "lost", "supersede", "fail"})
    """Beside reading, granting and restarting."""
    decide: Decide = admit
    checks: Read = CHECKED
    """What a grant checks."""
    ephemeral: bool = False
    """A permit dies with its agent."""
    expires: bool = False
    """The permit of an agent that is gone expires."""
    counts_older: bool = True
    """Permits of earlier rollouts count."""
    releases_early: bool = False
    """A permit is given back before the host is healthy."""
    retargets: bool = True
    """A broken host takes a newer build, or tries again."""
    batch_counts_all: bool = True
    """Who is admitted by the head of the queue is counted with those admitted before."""
    batches_staggered: bool = False
    """The head of the queue admits others with it, stagger or not."""
    halts_at_once: bool = True
    """The failure that exceeds the budget halts the rollout in the same write."""
    resumes_halted: bool = False
    """`resume` opens a rollout that is halted."""

    @property
    def fleet_limit(self) -> FleetLimit:
        """As the strategy of every host says it."""
        return FleetLimit(hosts=Share(self.limit), per_zone=None if self.per_zone is None else Share(self.per_zone))

    @property
    def room(self) -> int:
        """How many hosts may be out because of us."""
        return min(self.limit, self.hosts - self.policy.min_available.at_least(self.hosts))

    @property
    def most_failures(self) -> int:
        """The promise: the budget, and what is in flight when it is exceeded."""
        return self.policy.budget.part_of(self.hosts) + self.limit

    @property
    def most_granted(self) -> int:
        """Beyond so many permits a ramp is behind us, whoever holds one or has failed."""
        return sum(step.at_most(self.hosts) for step in self.policy.ramp) + 2 * self.hosts if self.policy.ramp else 0

    def step(self, finished: int) -> int:
        """The promise of a ramp: as many hosts have finished as all the steps before let begin at a time."""
        behind = 0
        for share in self.policy.ramp:
            size = share.at_most(self.hosts)
            if finished < behind + size:
                return min(size, self.limit)
            behind += size
        return self.limit

    @property
    def goes_back(self) -> bool:
        """Whether a rollout over its budget may go back."""
        return "goes back" in self.may

    def start(self) -> tuple[Fleet, tuple[Host, ...]]:
        """A build has just been enabled; every host serves the one before."""
        build = Build.COMPLETED if self.goes_back else Build.OTHER
        free = not self.policy.canary_first or not self.canaries
        return Fleet(promoted=free, allowed=free), tuple(
            Host(zone=number % self.zones, build=build, good=build, canary=number < self.canaries) for number in range(self.hosts)
        )


def touched(host: Host, event: Event, rules: Rules) -> Host:
    """A host after something that it did not do itself, or did."""
    if host.baked and not host._replace(alive=True).finished:
        host = host._replace(baked=False)
    if event == NOTHING:
        return host
    if event.written:
        host = host._replace(read=aged(host.read, event.written, rules))
    if event.forgives or event.supersedes:
        host = host._replace(failed=False, broken=host.broken and not rules.retargets)
    if event.completes and rules.goes_back:
        host = host._replace(build=_completed(host.build), good=_completed(host.good))
    if event.supersedes or event.goes_back:
        host = host._replace(build=_superseded(host.build, event, rules), good=_superseded(host.good, event, rules))
        if host.permit and not rules.counts_older:
            host = host._replace(permit=Permit.OLDER)
    return host


def aged(read: int, written: int, rules: Rules) -> int:
    """What a host may still do with what it read.

    A transaction that would be refused leaves nothing behind: it is as if the host had not read.
    """
    if read == Read.NOT or written & rules.checks:
        return Read.NOT
    return read | written


def _completed(build: int) -> int:
    return build if build == Build.WANTED else Build.OTHER


def _superseded(build: int, event: Event, rules: Rules) -> int:
    if event.goes_back:
        return {Build.COMPLETED: Build.WANTED, Build.WANTED: Build.OTHER}.get(Build(build), Build.OTHER)
    if rules.goes_back and event.was_completed:
        return Build.COMPLETED if build == Build.WANTED else Build.OTHER
    return Build.COMPLETED if build == Build.COMPLETED else Build.OTHER
