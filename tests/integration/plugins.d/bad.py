"""Strategies as they must not be, each under the name of its fault."""

import contextlib
import datetime as dt
import os
import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from deployd_core.api import FleetOptions, HostCall, HostView, Meta, Options, Phase, Plan, Share, Strategy, Unavailable, hookimpl


class NarrowOptions(FleetOptions, frozen=True, kw_only=True):
    instances_at_once: Annotated[Share, Meta(description="instances of a host at a time")] = Share(1)
    min_available: Annotated[Share, Meta(description="instances that stay up")] = Share(1)


class AtOnceUnderALimit(Strategy[NarrowOptions]):
    """Restart everything at once, whatever the options say."""

    name = "at-once-under-a-limit"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, limit=self.options.fleet_limit, min_available=self.options.min_available, why="all")


class ManyHosts(Strategy[FleetOptions]):
    """Forget the limit of the fleet."""

    name = "many-hosts"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why="all hosts")


class NeverFinishes(Strategy[Options]):
    """Leave the last instance alone."""

    name = "never-finishes"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale[:-1], why="not the last one")


class Raises(Strategy[Options]):
    """Take it that the restart is under way."""

    name = "raises"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why=f"{view.cycling[0]} first")


class Sleeps(Strategy[Options]):
    """Wait a moment."""

    name = "sleeps"

    def plan(self, view: HostView) -> Plan:
        time.sleep(0.2)
        return Plan(cycle=view.stale, why="after a moment")


class Hangs(Strategy[Options]):
    """Think for ever."""

    name = "hangs"

    def plan(self, view: HostView) -> Plan:
        while True:
            pass


class ChangesItsView(Strategy[Options]):
    """Take an instance off the view when it has named it."""

    name = "changes-its-view"

    def plan(self, view: HostView) -> Plan:
        going = view.cycling or view.stale[:1]
        msgspec.structs.force_setattr(view, "instances", tuple(found for found in view.instances if found.name not in going))
        return Plan(cycle=going, why="one by one")


class ChangesItsFacts(Strategy[Options]):
    """Leave a note in the facts."""

    name = "changes-its-facts"

    def plan(self, view: HostView) -> Plan:
        view.facts["seen"] = True
        return Plan(cycle=view.stale, why="noted")


class CountsItsCalls(Strategy[Options]):
    """Let one more instance go with every call."""

    name = "counts-its-calls"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.calls = 0

    def plan(self, view: HostView) -> Plan:
        self.calls += 1
        return Plan(cycle=view.stale[: self.calls], why="one more each time")


class RemembersWhereItBegan(Strategy[Options]):
    """Go on from the first view that it was shown."""

    name = "remembers-where-it-began"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.first: int | None = None

    def plan(self, view: HostView) -> Plan:
        self.first = len(view.stale) if self.first is None else self.first
        return Plan(cycle=view.cycling or view.stale[: self.first], why=f"{self.first} at first")


SEEN: set[str] = set()


class RemembersInItsModule(Strategy[Options]):
    """Keep what it has been asked about in its module."""

    name = "remembers-in-its-module"

    def plan(self, view: HostView) -> Plan:
        SEEN.update(found.name for found in view.instances if found.phase is Phase.READY)
        return Plan(cycle=view.cycling or view.stale[:1], why=f"{len(SEEN)} have been ready")


class ReadsTheClock(Strategy[Options]):
    """Wait for the full hour."""

    name = "reads-the-clock"

    def plan(self, view: HostView) -> Plan:
        hour = dt.datetime.now(dt.UTC).hour
        return Plan(cycle=view.stale, why="by day" if hour > 6 else "by night")


class ReadsAFile(Strategy[Options]):
    """Look into a file, and hide it."""

    name = "reads-a-file"

    def plan(self, view: HostView) -> Plan:
        with contextlib.suppress(BaseException):
            Path("/etc/hostname").read_text(encoding="utf-8")
        return Plan(cycle=view.stale, why="as the file says")


class ReadsTheEnvironment(Strategy[Options]):
    """Do what a variable says."""

    name = "reads-the-environment"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why=os.environ.get("WHY", "no reason"))


class RollsDice(Strategy[Options]):
    """Let fate decide."""

    name = "rolls-dice"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=tuple(random.sample(view.stale, len(view.stale))), why="by chance")


class StartsThreads(Strategy[Options]):
    """Think beside."""

    name = "starts-threads"

    def plan(self, view: HostView) -> Plan:
        threading.Thread(target=int).start()
        return Plan(cycle=view.stale, why="thought about it")


class NamesStrangers(Strategy[Options]):
    """Restart an instance of somebody else."""

    name = "names-strangers"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=(*view.stale, "db@5432"), why="everybody")


class SaysNothing(Strategy[Options]):
    """Give no reason."""

    name = "says-nothing"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why="")


class ReturnsNonsense(Strategy[Options]):
    """Return what is no plan."""

    name = "returns-nonsense"

    def plan(self, view: HostView) -> Plan:
        return view.stale  # type: ignore[return-value]


class FallsOverARareHost(Strategy[Options]):
    """Count on it that no host has six instances of which one is down."""

    name = "falls-over-a-rare-host"

    def plan(self, view: HostView) -> Plan:
        down = [found.name for found in view.instances if found.serves is None]
        return Plan(cycle=view.stale, why=f"{100 // (abs(len(view.instances) - 6) + abs(len(down) - 1))}")


class BeginsOnlyAtTheBeginning(Strategy[Options]):
    """Go on only while nothing was interrupted: whoever is there when it all began."""

    name = "begins-only-at-the-beginning"

    def plan(self, view: HostView) -> Plan:
        fresh = all(found.phase is Phase.STALE for found in view.instances)
        return Plan(cycle=view.stale if fresh else (), why="all in one go")


class Looks(Strategy[Options]):
    """What all have in common that look at the world before they plan."""

    def plan(self, view: HostView) -> Plan:
        unknown = "" if view.facts else "nobody knows the primary"
        return Plan(cycle=() if unknown else view.stale[:1], why=unknown or "one by one", impossible=unknown)


class LooksInVain(Looks):
    """Look for a file that is not there."""

    name = "looks-in-vain"

    def facts(self, host: HostCall) -> Mapping[str, object]:
        return {"primary": Path("/nonexistent/primary").read_text(encoding="utf-8")}


class LooksForEver(Looks):
    """Wait for an answer that never comes."""

    name = "looks-for-ever"

    def facts(self, host: HostCall) -> Mapping[str, object]:
        threading.Event().wait()
        return {}


class FindsNoNames(Looks):
    """Return values without names."""

    name = "finds-no-names"

    def facts(self, host: HostCall) -> Mapping[str, object]:
        return ["web@1"]  # type: ignore[return-value]


class FindsAnObject(Looks):
    """Return what no JSON can say."""

    name = "finds-an-object"

    def facts(self, host: HostCall) -> Mapping[str, object]:
        return {"busy": {object()}}


class CannotLook(Looks):
    """Say on purpose that it cannot look."""

    name = "cannot-look"

    def facts(self, host: HostCall) -> Mapping[str, object]:
        raise Unavailable("nobody is there to ask")


class KeepsWhatItFinds(Strategy[Options]):
    """Plan by what it has found, and not by what it is shown."""

    name = "keeps-what-it-finds"
    found = ""

    def facts(self, host: HostCall) -> Mapping[str, object]:
        self.found = host.host
        return {"host": host.host}

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why=self.found or "nothing found")


@hookimpl
def deployd_strategies() -> list[type]:
    return [found for found in globals().values() if isinstance(found, type) and "name" in vars(found)]
