"""A strategy for a database with replicas: they first, one at a time, and the primary last."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Annotated

from deployd_core.api import FleetOptions, HostCall, HostView, Meta, Plan, Share, Strategy, Unavailable, hookimpl


class PrimaryLastOptions(FleetOptions, frozen=True, kw_only=True):
    """What a spec can say under [restart.options]."""

    limit: Annotated[Share, Meta(description="hosts restarting at a time")] = Share(1)
    primary: Annotated[
        tuple[str, ...], Meta(description="command that prints the name of the primary, or nothing when it is elsewhere")
    ] = ("cat", "{root}/shared/primary")


class PrimaryLast(Strategy[PrimaryLastOptions]):
    """Restart the replicas of a database one by one, and its primary last.

    Hosts that have replicas alone come first in the queue for permits, too. Where the primary is says a command of yours, such as
    one that asks Patroni, or reads what its on_role_change callback wrote.
    """

    name = "primary-last"

    def facts(self, host: HostCall) -> Mapping[str, object]:
        """Ask the command: the one place where a strategy may look at the world."""
        argv = [word.replace("{root}", str(host.root)) for word in self.options.primary]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=host.timeout, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"nobody says which instance is the primary: {error}") from error
        return {"primary": done.stdout.strip()}

    def plan(self, view: HostView) -> Plan:
        """Let one stale instance go, a primary that serves after all the others."""
        if "primary" not in view.facts:
            unknown = "nobody says which instance is the primary"
            return Plan(cycle=(), why=unknown, impossible=unknown)
        primary = view.facts["primary"]
        here = any(found.name == primary for found in view.instances)
        # A primary that is down anyway need not wait: while it is, min_available may keep every replica from going.
        up = {found.name for found in view.instances if found.available}
        waiting = tuple(sorted(view.stale, key=lambda name: name == primary and name in up))
        return Plan(
            cycle=view.cycling or waiting[:1],
            limit=self.options.fleet_limit,
            priority=0 if here else 10,
            why=f"one by one, {primary} last" if here else "one by one: the primary is elsewhere",
        )


@hookimpl
def deployd_strategies() -> list[type[PrimaryLast]]:
    """Register the strategy."""
    return [PrimaryLast]
