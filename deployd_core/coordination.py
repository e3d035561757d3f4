"""What hosts agree on: the wanted build, permits to restart, failures, reports; and the Protocol behind which ZooKeeper stands.

The engine knows only `Coordination`. ZooKeeper implements it in `deployd_core.zookeeper`; tests and the simulator pass their own,
held to the same contract tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Protocol

from msgspec import Struct, field

from deployd_core.errors import Conflict
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import ServiceSpec

PATIENCE = timedelta(seconds=50)
"""How long one and the same host may stand before another in the queue and leave room unused, until it is passed."""


class Enabled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The build a role should serve: the `enabled` node."""

    build: str
    digest: str | None = None
    """``sha256:…``; None when somebody wrote a bare build id, and the source must say."""
    by: str = ""
    at: str = ""
    restart: bool = False
    """Every instance is to be restarted although it may serve the build already; the rollout's id names the request."""


class Excuse(Struct, frozen=True, kw_only=True):
    """Somebody's word that a host is not to be waited for."""

    by: str
    why: str
    at: str
    """RFC 3339."""


def is_well(host: str) -> Conflict:
    """The error for an excuse that a host does not need: its agent lives, and does not say that the host is down."""
    return Conflict(
        f"{host} is well: its agent runs, and does not say that it is down",
        hint="to go on without it, stop its agent first: an excuse ends when that comes back",
    )


class Membership(Struct, frozen=True, kw_only=True):
    """A host's place in a service: the `hosts/<host>` node."""

    role: Role = Role.FLEET
    zone: str = "default"
    excused: Excuse | None = None
    """While its agent is away it does not count as down, and no rollout waits for it. Ends when its agent comes back."""


class RolloutState(Enum):
    """Whether permits are handed out."""

    OPEN = "open"
    PAUSED = "paused"
    HALTED = "halted"


class Failure(Struct, frozen=True, kw_only=True):
    """One host failed in one rollout."""

    rollout: str
    reason: str
    at: str


class Rollout(Struct, frozen=True, kw_only=True):
    """The `rollout` node: rarely written, by compare-and-swap."""

    state: RolloutState = RolloutState.OPEN
    by: str = ""
    why: str = ""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """By host. Those of earlier rollouts no longer count."""
    promoted: str = ""
    """The build that hosts of the fleet may take although canaries go first."""
    rollback_of: str = ""
    """The rollout that this one takes back, be it by itself or by a person: such a one can only halt, and waits for no window."""
    grants_before: int = 0
    """Permits that had been granted when this rollout began: the version of the node above them."""
    done: Mapping[str, str] = field(default_factory=dict)
    """Rollouts that every host has completed, and when (RFC 3339). Only those of what is enabled now are kept."""
    completed: Enabled | None = None
    """The last build that the whole fleet completed: what a rollback goes to."""

    def failed_in(self, rollout: str) -> dict[str, Failure]:
        """The failures that count for one rollout."""
        return {host: failure for host, failure in self.failures.items() if failure.rollout == rollout}


class Permit(Struct, frozen=True, kw_only=True):
    """A host's right to be restarting: the `rollout/permits/<host>` node, persistent."""

    host: str
    zone: str
    rollout: str
    since: str
    """RFC 3339."""
    nonce: str
    """That of the waiter that it was granted to: tells which place in the queue went with it."""
    token: int = 0
    """The node's czxid: later permits have higher ones."""


class Waiter(Struct, frozen=True, kw_only=True):
    """A host that waits for a permit: an ephemeral node in ``rollout/queue/<zone>/``. Whoever is first may admit others, too."""

    host: str
    role: Role
    rollout: str
    limit: FleetLimit
    nonce: str
    membership: int
    """Version of the host's own node: a grant on its behalf is made under the role and zone that it knew."""


class Freeze(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stop for all services: the `/freeze` node. Empty while there is none."""

    by: str = ""
    why: str = ""
    until: str | None = None
    """RFC 3339; None is until somebody lifts it, and so is a time that cannot be read."""

    def active(self, now: datetime) -> bool:
        """Whether it holds at `now`, which must know its time zone."""
        if self.until is None:
            return True
        try:
            until = datetime.fromisoformat(self.until)
        except ValueError:
            return True
        return now < (until if until.tzinfo else until.replace(tzinfo=UTC))


class AgentInfo(Struct, frozen=True, kw_only=True):
    """What an agent says of itself while it lives: the ephemeral `/agents/<host>` node."""

    host: str
    instance: str
    """Names what can run only once: machine id and path of the agent's lock file. An agent that begins and finds its own `instance`
    announced replaces it, since that predecessor must be dead; another's is left alone, and so is a copy of the machine that has
    taken its own place meanwhile."""
    version: str = ""
    pid: int = 0
    since: str = ""
    """RFC 3339."""
    zone: str = ""
    services: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


class Verb(Enum):
    """What an entry of the history tells."""

    ENABLE = "enable"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    RESTART = "restart"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    HALT = "halt"
    COMPLETE = "complete"
    RELEASE = "release"  # a host's permit was taken away
    EXCUSE = "excuse"
    RETIRE = "retire"
    LOST = "lost"

    @property
    def begins(self) -> bool:
        """Whether it begins a rollout."""
        return self in (Verb.ENABLE, Verb.PROMOTE, Verb.ROLLBACK, Verb.RESTART)


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """Who did what, when, why: one node below `history`."""

    verb: Verb = Verb.ENABLE
    build: str = ""
    digest: str | None = None
    role: Role = Role.FLEET
    by: str = ""
    at: str = ""
    """RFC 3339."""
    why: str = ""
    host: str = ""
    """The host it is about, if it is about one."""
    rollout: str = ""
    """The rollout it is about; one that it begins has no name before it is written, and is told by its build and time."""
    nonce: str = ""
    """Chosen by who gave the order, to recognise it when the answer to its commit was lost and others have written since."""


class InstanceStatus(Struct, frozen=True, kw_only=True):
    """One instance in a host's report."""

    name: str
    phase: str
    serves: str | None = None
    state: str
    health: str
    reason: str = ""


class HostStatus(Struct, frozen=True, kw_only=True):
    """A host's report on one service: the `status/<host>` node. Written when it changes."""

    host: str
    zone: str
    role: Role
    wanted: str | None = None
    served: str | None = None
    """The one build that every instance serves; None while they differ, or serve nothing."""
    step: str
    """What the host is doing: `deployd_core.planner.HostStep`."""
    since: str
    """When this step began, RFC 3339."""
    rollout: str = ""
    reason: str = ""
    """What the step waits for, or why it failed."""
    remedy: str = ""
    """What ends a block: `deployd_core.planner.Remedy`; empty when that is not known."""
    deadline: str | None = None
    last_error: str = ""
    down: bool = False
    """An instance of this host cannot serve, and that is not the doing of a restart that goes well."""
    instances: tuple[InstanceStatus, ...] = ()
    agent: str = ""
    """Version of the agent."""


class Snapshot(Struct, frozen=True, kw_only=True):
    """What coordination says of one service to one host, read at one moment. The versions guard what is written from it."""

    service: str
    host: str
    spec: ServiceSpec | None
    membership: Membership
    enabled: Enabled | None
    """For this host's role; None when nothing is enabled."""
    rollout_id: str = ""
    """Names the rollout: the build and the transaction that enabled it (``v2-1a3f``)."""
    rollout: Rollout = Rollout()
    freeze: Freeze | None = None
    permit: Permit | None = None
    """Held by this host."""
    queued: bool = False
    """This host stands in the queue for one."""
    permits: int = 0
    """How many are held by anybody, as far as this host has heard: nobody is woken to keep it up to date."""
    hosts: int = 1
    problem: str = ""
    """A node that holds nonsense: which, why, and how to mend it. The other fields hold what could be read."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """Node path → version, for the implementation alone."""

    @property
    def failure(self) -> Failure | None:
        """This host's failure in this rollout."""
        return self.rollout.failed_in(self.rollout_id).get(self.host)


class Denial(Enum):
    """Why a permit was not granted."""

    FROZEN = "frozen"
    HALTED = "halted"
    PAUSED = "paused"
    WINDOW = "outside-window"
    PROMOTION = "needs-promotion"
    FAILED = "already-failed"  # this host failed in this rollout and holds no permit
    SLOTS_FULL = "slots-full"
    CAPACITY = "capacity"  # with the hosts that are down anyway there would be too few
    ZONE_FULL = "zone-full"
    STAGGER = "stagger"
    QUEUED = "queued"  # others asked first
    DUPLICATE = "duplicate-host"  # another live agent calls itself by this host's name
    CHANGED = "changed"  # something was written meanwhile: look again


class Denied(Struct, frozen=True, kw_only=True):
    """No, why, and who is in the way."""

    code: Denial
    reason: str
    blockers: tuple[str, ...] = ()
    """Hosts that are in the way."""
    stuck: tuple[str, ...] = ()
    """Those of them that have held a permit for longer than is good, as far as this host has seen."""
    until: str | None = None
    """RFC 3339: when this reason ends by itself."""


class Link(Enum):
    """The state of the connection."""

    CONNECTED = "connected"
    SUSPENDED = "suspended"  # begin nothing new, finish what is under way, write nothing
    LOST = "lost"  # a new session will follow: ephemeral nodes are gone, observe afresh


class Coordination(Protocol):
    """What the engine needs of ZooKeeper. Without a connection every method soon raises `Unavailable`."""

    @property
    def link(self) -> Link:
        """The state of the connection now."""
        ...

    def join(self, service: str, zone: str) -> None:
        """Make this host a member of the service, with the next `snapshot` and if the service exists. It keeps its role."""
        ...

    def snapshot(self, service: str, *, afresh: bool = False) -> Snapshot:
        """Read everything about a service and watch it; a later change wakes the engine once.

        With `afresh` nothing is taken for unchanged because no watch has said so: a net under those that were missed.
        """
        ...

    def take_permit(self, snapshot: Snapshot, limit: FleetLimit, *, priority: int = 0) -> Permit | Denied:
        """Ask for a permit under what `snapshot` said: one transaction, refused when any of it has changed.

        A host that cannot have one at once stands in the queue of its zone from then on, and is woken when it is its turn: hosts
        that are down first, then by `priority`, then as they came. One that leaves room unused is passed after
        `PATIENCE`. Returns the permit already held, if there is one. A lost answer is resolved by the nonce.
        """
        ...

    def leave_queue(self, service: str) -> None:
        """Stand in the queue no longer: nothing is to be restarted here for now."""
        ...

    def release_permit(self, snapshot: Snapshot, status: HostStatus, *, keep_failure: bool = False) -> None:
        """Give the permit back and report in one transaction; without a permit only report.

        Clears this host's failure, unless it is to be kept: the host serves well again, but not what is wanted.
        """
        ...

    def record_failure(self, snapshot: Snapshot, reason: str) -> None:
        """Enter this host into the rollout's failures. When that exceeds the budget the same write halts the rollout, or has it go
        back to the last completed build.
        """
        ...

    def report(self, service: str, status: HostStatus) -> None:
        """Write this host's report, and whether it is down."""
        ...

    def advance(self, snapshot: Snapshot, may_promote: Callable[[str], str]) -> float | None:
        """Take the rollout further when it is time: put on record that every host has completed it, or promote what has baked.

        Any host may do it, and the first does. `may_promote` is told the build, and says why not.

        Returns:
            Seconds until it is worth asking again; None when there is nothing left to do.
        """
        ...
