"""What a look makes of a manager that does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployd_core.api import InstanceCall, Manager, Options, Status
from deployd_core.boundary import Bound, Provider
from deployd_core.errors import DeploydError, PluginError, Unavailable
from deployd_core.model import Instance, State
from deployd_core.sightings import Lookout, Watch


class Mute(Manager[Options]):
    """A manager that has nothing to say but an error."""

    name = "mute"

    def __init__(self, error: Exception) -> None:
        super().__init__(Options())
        self.error = error

    def state(self, call: InstanceCall) -> Status:
        raise self.error

    def start(self, call: InstanceCall) -> None: ...

    def stop(self, call: InstanceCall) -> None: ...

    def restart(self, call: InstanceCall) -> None: ...


@pytest.mark.parametrize(
    ("error", "away"),
    [(Unavailable("supervisor does not answer"), True), (PluginError("it hangs"), False), (ValueError("a bug"), False)],
)
def test_a_manager_that_is_unavailable_is_away_and_one_that_is_broken_is_not(error: DeploydError, away: bool) -> None:
    """What is unavailable is waited for; a broken plugin must not hold a failed host for ever."""
    provider = Provider(entry="mute", distribution="", version="", origin="here")
    manager: Bound[Any] = Bound(Mute(error), "mute", provider)
    lookout = Lookout(manager=manager, probe=None, gate=None, probe_timeout=1.0, owner="h1/1/1.00")
    instance = Instance.parse("web", "web")
    call = InstanceCall(
        service="web", host="h1", zone="z", address="127.0.0.1", root=Path("/srv/web"), timeout=1.0, instance=instance
    )
    watch = Watch(instance)

    watch.saw(lookout.look(call, call.root, ()), started=1.0, ended=1.0)

    facts = watch.facts(0.0, "h1/1/1.00")
    assert (facts.state, facts.looked, facts.manager_away) == (State.UNKNOWN, True, away)
