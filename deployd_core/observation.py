"""What the planner is given: everything that was observed about one service on one host, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from deployd_core.acts import Flip
from deployd_core.contracts import AtDeadline, Connections
from deployd_core.model import FleetView, Health, PermitView, Role, State
from deployd_core.units import Share

_FLIP = Flip(build="").key


class Drain(Struct, frozen=True, kw_only=True):
    """How traffic is turned off. Times in seconds."""

    settle: float = 0.3
    timeout: float = 30.0
    at_deadline: AtDeadline = AtDeadline.PROCEED
    traffic_timeout: float = 15.0
    lease: float = 120.0


class Rules(Struct, frozen=True, kw_only=True):
    """What a spec says about the cycle. Times in seconds."""

    drain: Drain | None = None
    """None: instances are restarted without a gate."""
    warmup: bool = False
    healthy_after: int = 2
    stable_for: float = 1.0
    healthy_timeout: float = 300.0
    restart_timeout: float = 0.0
    min_available: Share = Share(0)
    looks: bool = False
    """Whether the strategy looks at the world: what it finds impossible may be so because of what it saw there."""
    revert: bool = True
    """Whether a host goes back to its last good release when the wanted one has failed on it."""


class InstanceFacts(Struct, frozen=True, kw_only=True):
    """What was observed of an instance."""

    name: str
    port: int | None = None
    looked: bool = False
    """It has been looked at since the last thing that was done to it."""
    state: State = State.UNKNOWN
    running: bool = False
    """It has a main process."""
    serves: str | None = None
    restarted_for: str = ""
    """The rollout that the last flip before its process started was for, when that was a restart."""
    health: Health = Health.UNKNOWN
    streak: int = 0
    """Healthy answers in a row, from this very process."""
    healthy_since: float | None = None
    healthy_until: float | None = None
    """When the last look that found it healthy was begun."""
    lives: int = 0
    """Processes that it was seen with since it was last restarted."""
    state_since: float = 0.0
    """Since when every look found this very process, or none, in this state."""
    manager_away: bool = False
    """Its manager could not be asked, which is no word about the instance."""
    reason: str = ""
    """The last word of the probe or the manager."""
    evidence: str = ""
    """Why it is said to serve that build, or none."""
    ordered: bool = False
    """This engine has had it restarted for the wanted build. Lost on a crash, which costs a wait at most."""
    warm: bool = False
    """The warm-up requests have been sent to this very process."""
    gate_closed: bool = False
    gate_ours: bool = True
    """This very agent closed it. What a dead one left closed is taken over by closing it again."""
    gate_held: bool = False
    """Another process that lives closed it: a rehearsal, or a person. It is left alone until a deploy needs the instance."""
    gate_lost: bool = False
    """It was closed, and is open though this agent did not open it: its lease ran out, or somebody removed it."""
    gate_problem: str = ""
    """Why the gate could not be looked at."""
    lease_left: float = 0.0
    """Seconds until its gate opens by itself."""
    connections: Connections | None = None
    """Counted while its gate is closed, and while clients come back."""
    quiet: int = 0
    """Counts in a row, since its gate was closed, that found no connection at all."""
    opened_at: float | None = None
    """When its gate was opened, or found open: from then on its clients are waited for."""
    traffic_back: bool = False
    """Clients have used it for a second and more since then."""


class Setback(Struct, frozen=True, kw_only=True):
    """An act failed: why, and when it may be tried again."""

    reason: str
    retry_at: float
    blocking: bool = False
    """A person must change something; what is wrong on this host itself may be mended without a word, so it is tried again."""
    environment: bool = False
    """Something outside was not there: that is no fault of the build."""
    refused: bool = False
    """Somebody said no, which is no error."""


class Staging(Struct, frozen=True, kw_only=True):
    """How far the wanted build is on this host's disk."""

    fetched: bool = False
    unpacked: bool = False
    steps_done: frozenset[str] = frozenset()
    on_disk_digest: str | None = None
    """Digest of the release that has the wanted id, whatever was pinned."""


class Observation(Struct, frozen=True, kw_only=True):
    """Everything the planner knows, at one moment."""

    now: float
    service: str
    host: str
    zone: str = "default"
    role: Role = Role.FLEET
    build: str | None
    """The id of the enabled build."""
    digest: str | None = None
    """Pinned, or told by the source; None when neither."""
    staging: Staging = Staging()
    steps: tuple[str, ...] = ()
    """Markers of the post-install steps, in order."""
    current: str | None = None
    restart: str = ""
    """The id of a rollout that asks for a restart on the build that is served already; empty in any other."""
    flipped_for: str = ""
    """The rollout that the last flip was for, when that was a restart."""
    flip_problem: str = ""
    good: bool = False
    """The wanted build is marked as the last good one."""
    last_good: str | None = None
    """The newest build that served well here, is not the wanted one, and can be flipped to at once; None when there is none."""
    tidy: bool = True
    """Releases that nobody needs have been removed since the last deploy."""
    instances: tuple[InstanceFacts, ...] = ()
    rules: Rules = Rules()
    connected: bool = True
    permit: PermitView = PermitView()
    queued: bool = False
    """It stands in the queue for a permit."""
    advanced: bool = True
    """There is nothing left that this host could do for the rollout as a whole."""
    fleet: FleetView = FleetView()
    failure: str | None = None
    """Why this host failed in this rollout."""
    busy: frozenset[str] = frozenset()
    """Keys of acts under way."""
    setbacks: Mapping[str, Setback] = field(default_factory=dict)
    """By key of the act that failed."""
    waits: Mapping[str, float] = field(default_factory=dict)
    """Since when something has been waited for; see `Decision.waits`."""
    facts: Mapping[str, object] | None = field(default_factory=dict)
    """What the strategy found out about the host; None until it has looked."""

    @property
    def flipped(self) -> bool:
        """Whether `current` points at the wanted build, and was pointed there for the restart that is asked for.

        Not while a flip is under way: it may be to a build that was wanted before, and `current` still what it was.
        """
        return self.current == self.build and self.restart in ("", self.flipped_for) and _FLIP not in self.busy

    def right(self, facts: InstanceFacts) -> bool:
        """Whether what an instance runs is what is wanted: the build, by a process that was started after the flip to it."""
        return facts.serves is not None and facts.serves == self.build and (not self.restart or self.restart == facts.restarted_for)

    def ready(self, key: str) -> bool:
        """Whether an act may begin: it is not under way, and needs not wait after a setback."""
        setback = self.setbacks.get(key)
        return key not in self.busy and (setback is None or setback.retry_at <= self.now)
