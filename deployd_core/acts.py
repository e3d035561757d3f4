"""What a planner may ask of the engine: the closed list of acts."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

from deployd_core.model import Action, FleetLimit


class Act(Struct, frozen=True):
    """Something to do. At most one act of a key is under way."""

    verb: ClassVar[str] = "act"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.verb = cls.__name__.lower()

    @property
    def key(self) -> str:
        """What tells acts apart: the verb, and the instance or step it is about."""
        return self.verb

    @property
    def doing(self) -> str:
        """What is being done, for a person."""
        return self.verb


class BuildAct(Act, frozen=True):
    """An act on one build: one that hangs for an old build is not in the way of a new one."""

    build: str

    @property
    def key(self) -> str:
        """The verb and the build."""
        return f"{self.verb}:{self.build}"


class Resolve(BuildAct, frozen=True):
    """Ask the source for the digest that nobody pinned."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "asking the source for the digest"


class Fetch(BuildAct, frozen=True):
    """Download the build and verify its digest."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "fetching and verifying the build"


class Unpack(BuildAct, frozen=True):
    """Unpack the verified archive aside, and publish it as a release."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "unpacking the build"


class RunStep(BuildAct, frozen=True):
    """Run one post-install step in the release."""

    number: int
    marker: str

    @classmethod
    def prefix_of(cls, build: str) -> str:
        """How the keys of all steps of a build begin: one of them at a time is under way."""
        return f"{cls.verb}:{build}:"

    @property
    def key(self) -> str:
        """One step at a time is under way, but each fails for itself."""
        return f"{self.prefix_of(self.build)}{self.marker}"

    @property
    def doing(self) -> str:
        """For a person."""
        return f"running post-install step {self.number + 1}"


class TakePermit(Act, frozen=True):
    """Ask for the right to restart."""

    limit: FleetLimit
    priority: int = 0

    @property
    def doing(self) -> str:
        """For a person."""
        return "asking for a permit"


class LeaveQueue(Act, frozen=True):
    """Stand in the queue for a permit no longer."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "leaving the queue for a permit"


class Advance(Act, frozen=True):
    """Take the rollout further when it is time: complete it, or promote its build."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "looking whether the rollout is complete"


class Flip(Act, frozen=True):
    """Point `current` at the release of a build."""

    build: str
    rollout: str = ""
    """The rollout that asks for a restart, in which it is put on record even when `current` points there already."""

    @property
    def doing(self) -> str:
        """For a person."""
        return f"flipping current to {self.build}"


class InstanceAct(Act, frozen=True):
    """An act on one instance."""

    instance: str

    @classmethod
    def key_of(cls, instance: str) -> str:
        """The key of such an act on an instance."""
        return f"{cls.verb}:{instance}"

    @property
    def key(self) -> str:
        """The verb and the instance."""
        return self.key_of(self.instance)


class CloseGate(InstanceAct, frozen=True):
    """Turn the traffic of an instance off, or move the end of the lease."""

    @property
    def doing(self) -> str:
        """For a person."""
        return f"closing the gate of {self.instance}"


class CloseIdle(InstanceAct, frozen=True):
    """Close the connections that clients keep open and do not use."""

    @property
    def doing(self) -> str:
        """For a person."""
        return f"closing idle connections of {self.instance}"


class OpenGate(InstanceAct, frozen=True):
    """Turn the traffic of an instance on."""

    @property
    def doing(self) -> str:
        """For a person."""
        return f"opening the gate of {self.instance}"


class Restart(InstanceAct, frozen=True):
    """Bring an instance onto the new release."""

    action: Action = Action.RESTART
    cut: int = 0
    """Busy connections that the restart cuts."""

    @property
    def doing(self) -> str:
        """For a person."""
        return f"{self.action.value}ing {self.instance}"


class WarmUp(InstanceAct, frozen=True):
    """Send the warm-up requests of the spec past the closed gate."""

    @property
    def doing(self) -> str:
        """For a person."""
        return f"warming up {self.instance}"


class Settle(Act, frozen=True):
    """Mark the release of a build as good, and give the permit back with the report."""

    build: str
    failed: str = ""
    """Why the wanted build is not the one that is served: the failure stays on record. Empty when it is."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "putting the deploy on record"


class Tidy(Act, frozen=True):
    """Remove releases and archives that nobody needs."""

    @property
    def doing(self) -> str:
        """For a person."""
        return "removing old releases"


class RecordFailure(Act, frozen=True):
    """Enter this host into the failures of the rollout; its permit stays."""

    reason: str
