"""What can be made to go wrong: a closed list, and how it is written.

``crash:2,reboot:1@rand,bad-build:5%,newer-build@50%``: what, how many hosts (or which part of them), and when. When is a part of
the hosts that have got a permit (``50%``), a time (``10m``), or left to the seed (``rand``, the default).
"""

from __future__ import annotations

import random
import re
from enum import Enum

from msgspec import Struct

from deployd_core.errors import ConfigError, did_you_mean
from deployd_core.units import Duration, Share

_FAULT = re.compile(r"([a-z-]+)(?::(\d+%?))?(?:@(\S+))?")


class FaultKind(Enum):
    """What can go wrong."""

    CRASH = "crash"
    REBOOT = "reboot"
    DEAD = "dead"
    SESSION = "session"
    LOST_ANSWER = "lost-answer"
    LATE_WATCH = "late-watch"
    DOUBLE_WATCH = "double-watch"
    FAILED_START = "failed-start"
    BAD_BUILD = "bad-build"
    SLOW_START = "slow-start"
    SLOW_PROBE = "slow-probe"
    SLOW_DRAIN = "slow-drain"
    FLAP = "flap"
    DISK_FULL = "disk-full"
    NEWER_BUILD = "newer-build"
    NEW_SPEC = "new-spec"
    PAUSE = "pause"
    FREEZE = "freeze"
    PROMOTE = "promote"
    JOIN = "join"
    LEAVE = "leave"

    @property
    def meaning(self) -> str:
        """What happens, for the documentation."""
        return _MEANINGS[self]

    @property
    def of_hosts(self) -> bool:
        """Whether it happens to hosts, so that it takes a number of them."""
        return self not in _OF_THE_SERVICE

    @property
    def lasting(self) -> bool:
        """Whether it is so from the beginning, and has no moment."""
        return self in _LASTING


_MEANINGS = {
    FaultKind.CRASH: "the agent dies just before or just after one of its acts, any with equal odds, and a new one starts",
    FaultKind.REBOOT: "the host goes down with everything on it, and comes back; one that is restarting, if there is one",
    FaultKind.DEAD: "the host goes down for good; one that is restarting, if there is one",
    FaultKind.SESSION: "the session of the agent expires, and it gets a new one; half of them are of hosts that wait",
    FaultKind.LOST_ANSWER: "the answer to a write is lost: half of these writes were carried out, half were not",
    FaultKind.LATE_WATCH: "what the agent should hear of changes comes half a minute late",
    FaultKind.DOUBLE_WATCH: "what the agent hears of changes comes twice",
    FaultKind.FAILED_START: "the first start of an instance on the new build fails, the second succeeds",
    FaultKind.BAD_BUILD: "instances on the new build never get healthy",
    FaultKind.SLOW_START: "instances take ten times as long to start",
    FaultKind.SLOW_PROBE: "every look at an instance takes two seconds",
    FaultKind.SLOW_DRAIN: "requests outlast the time that a drain may take",
    FaultKind.FLAP: "instances get healthy, unhealthy again, and healthy for good",
    FaultKind.DISK_FULL: "the disk is full for five minutes from the beginning",
    FaultKind.NEWER_BUILD: "another build is enabled while this one is on its way",
    FaultKind.NEW_SPEC: "the spec is written anew with another timeout",
    FaultKind.PAUSE: "somebody pauses the rollout, and goes on ten minutes later",
    FaultKind.FREEZE: "somebody freezes everything, and ends that ten minutes later",
    FaultKind.PROMOTE: "somebody promotes the build of the canary hosts; by default within ten minutes of their serving it",
    FaultKind.JOIN: "a host joins the service, still with the old build",
    FaultKind.LEAVE: "a host goes down for good, and somebody takes its permit away and excuses it",
}
_OF_THE_SERVICE = frozenset({FaultKind.NEWER_BUILD, FaultKind.NEW_SPEC, FaultKind.PAUSE, FaultKind.FREEZE, FaultKind.PROMOTE})
_LASTING = frozenset(
    {
        FaultKind.CRASH,  # its moment is an act
        FaultKind.LOST_ANSWER,  # likewise
        FaultKind.LATE_WATCH,
        FaultKind.DOUBLE_WATCH,
        FaultKind.FAILED_START,
        FaultKind.BAD_BUILD,
        FaultKind.SLOW_START,
        FaultKind.SLOW_PROBE,
        FaultKind.SLOW_DRAIN,
        FaultKind.FLAP,
        FaultKind.DISK_FULL,
    }
)


class Fault(Struct, frozen=True, kw_only=True):
    """One kind of fault, as it was asked for."""

    kind: FaultKind
    share: Share = Share(1)
    """To how many hosts; a percentage is of all of them."""
    progress: float | None = None
    """When so large a part of the hosts has got a permit."""
    at: float | None = None
    """Seconds after the beginning. With neither, the seed decides."""

    def count(self, hosts: int) -> int:
        """How many hosts it happens to; a percentage rounds up, for whoever writes 1 % of 20 hosts wants to see something."""
        return min(hosts, self.share.at_least(hosts))

    def __str__(self) -> str:
        number = f":{self.share}" if self.kind.of_hosts else ""
        when = f"@{self.progress * 100:g}%" if self.progress is not None else f"@{Duration(self.at)}" if self.at is not None else ""
        return f"{self.kind.value}{number}{when}"


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read a list of faults; no text is none.

    Raises:
        ConfigError: There is no such fault, or it is written differently.
    """
    return tuple(_parse(part.strip(), text) for part in text.split(",")) if text else ()


def moments(fault: Fault, hosts: int, rng: random.Random) -> list[Fault]:
    """One fault for each time that it happens, each with its moment."""
    times = fault.count(hosts) if fault.kind.of_hosts else 1
    set_already = fault.kind.lasting or fault.progress is not None or fault.at is not None
    # Drawn even when nobody needs it, so that the rest of the run does not change with how a moment is written.
    drawn = [rng.random() for _ in range(times)]
    return [
        Fault(kind=fault.kind, progress=fault.progress if set_already else part, at=fault.at if set_already else None)
        for part in drawn
    ]


def _parse(text: str, among: str) -> Fault:
    if not text:
        raise ConfigError(f"the list of faults {among!r} has nothing before or behind a comma", hint="write crash:2,reboot:1")
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no fault", hint="write NAME, NAME:COUNT or NAME:COUNT@WHEN: reboot:2@50%")
    name, share, when = match.groups()
    names = [kind.value for kind in FaultKind]
    if name not in names:
        raise ConfigError(f"there is no fault {name!r}", hint=did_you_mean(name, names))
    kind = FaultKind(name)
    if share is not None and not kind.of_hosts:
        raise ConfigError(f"{text!r}: {name} happens to the service and not to hosts", hint=f"write {name} or {name}@50%")
    if when not in (None, "rand") and kind.lasting:
        raise ConfigError(f"{text!r}: {name} has no moment of its own", hint=f"write {name} or {name}:COUNT")
    try:
        parsed = Fault(kind=kind, share=Share(share or 1))
        if when is None or when == "rand":
            return parsed
        if when.endswith("%"):
            return Fault(kind=kind, share=parsed.share, progress=Share(when).part_of(1000) / 1000)
        return Fault(kind=kind, share=parsed.share, at=float(Duration(when)))
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}", hint="such as reboot:2@50%, dead:1@10m, bad-build:5%") from error
