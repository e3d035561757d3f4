"""A service spec: what is written in ``web.toml`` and stored, as JSON of the same shape, in the `spec` node.

Tables that name a plugin (``{ use = "http", … }``) are kept as they are written; `deployd_core.config` resolves them against
the plugins' own option types.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any

from msgspec import Meta, Struct

from deployd_core.errors import ConfigError
from deployd_core.model import Instance
from deployd_core.units import Duration, Share, Size

Table = dict[str, Any]

_STATUSES = re.compile(r"([1-5](?:xx|\d\d))(?:-([1-5](?:xx|\d\d)))?")


class ServiceTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[service]``"""

    root: Annotated[str, Meta(description="directory on each host, absolute and its own; {service} and {host} are filled in")]
    keep_releases: Annotated[int, Meta(ge=2, description="releases to keep on disk beside those in use")] = 5
    keep_bytes: Annotated[Size | None, Meta(description="bytes of releases to keep at most; those in use always stay")] = None
    reserve: Annotated[Size, Meta(description="free space to leave on the disk when a build is fetched and unpacked")] = Size(
        "200MB"
    )


class WarmupTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[instances] warmup``, when it says more than the paths."""

    paths: Annotated[tuple[str, ...], Meta(description="paths to request, in this order")]
    rounds: Annotated[int, Meta(ge=1, le=10_000, description="how often each is requested")] = 1
    concurrency: Annotated[int, Meta(ge=1, le=64, description="requests under way at a time")] = 1
    timeout: Annotated[Duration, Meta(description="longest all of them may take")] = Duration("1m")
    success: Annotated[str, Meta(description='statuses that are a success, such as "2xx-3xx" or "2xx,404"')] = "2xx-3xx"

    @property
    def statuses(self) -> tuple[range, ...]:
        """What `success` says.

        Raises:
            ConfigError: It is no list of statuses.
        """
        found = []
        for part in self.success.replace(" ", "").split(","):
            match = _STATUSES.fullmatch(part)
            if match is None:
                raise ConfigError(f"success {self.success!r} is no list of statuses", hint='write "2xx-3xx", "200" or "2xx,404"')
            first, last = match[1], match[2] or match[1]
            found.append(range(int(first.replace("x", "0")), int(last.replace("x", "9")) + 1))
        return tuple(found)


def none_to_restart(floor: int, count: int) -> str:
    """Why no instance of a host may be restarted, ever, with the arithmetic; empty when one may. A single one always may."""
    if floor < count or count < 2:
        return ""
    return f"min_available keeps {floor} of {count} instances up, which leaves none to restart: lower it, or add instances"


class InstancesTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[instances]``"""

    names: Annotated[tuple[str, ...], Meta(description="names; digits after an @ are the port")] = ()
    count: Annotated[int, Meta(ge=1, le=10_000, description="instead of names: how many, with `pattern`")] | None = None
    pattern: Annotated[str, Meta(description='such as "web@{port}" or "web-{number}"; {number} counts from 1')] = ""
    first_port: Annotated[int, Meta(ge=1, le=65535, description="the port of the first instance of a pattern")] | None = None
    manager: Annotated[Table | None, Meta(description="what starts and stops them")] = None
    probe: Annotated[Table | None, Meta(description="what tells whether one is healthy")] = None
    gate: Annotated[Table | None, Meta(description="what turns the traffic of one off and on")] = None
    warmup: Annotated[
        tuple[str, ...] | WarmupTable, Meta(description="paths to request before traffic comes back, or a table that says more")
    ] = ()
    min_available: Annotated[Share, Meta(description="never fewer open and healthy on a host because of a deploy")] = Share(0)
    restart_timeout: Annotated[Duration, Meta(description="longest a manager may take to restart one")] = Duration("1m")
    healthy_timeout: Annotated[Duration, Meta(description="longest from a restart until one is healthy and stable")] = Duration(
        "5m"
    )


class RestartTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[restart]``"""

    strategy: Annotated[str, Meta(description="name of the strategy: see `deployd strategies list`")] = "all-at-once"
    options: Annotated[Table, Meta(description="the strategy's own options: see `deployd strategies show NAME`")] = {}


class OnHostFailure(Enum):
    """What a host does when the wanted build has failed on it."""

    REVERT = "revert"  # goes back to its last good release, and gives its permit back
    STAY = "stay"  # stands still, and keeps its permit until a person decides


class OnBudget(Enum):
    """What becomes of a rollout in which more hosts failed than its budget allows."""

    HALT = "halt"
    ROLLBACK = "rollback"


class Promotion(Enum):
    """Who takes a build from the canary hosts to the fleet."""

    MANUAL = "manual"
    AUTO = "auto"


class WindowsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[rollout.windows]``"""

    allow: Annotated[tuple[str, ...], Meta(description='when hosts may begin, such as "Mon-Fri 09:00-16:00"; empty is always')] = ()
    deny: Annotated[tuple[str, ...], Meta(description="when they may not, whatever is allowed")] = ()
    timezone: Annotated[str, Meta(description="the time zone that the windows are written in")] = "UTC"
    takes: Annotated[Duration, Meta(description="longest one host may take: it begins only when that fits into the window")] = (
        Duration("15m")
    )


class RolloutTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[rollout]``"""

    budget: Annotated[Share, Meta(description="hosts that may fail before the rollout halts")] = Share(0)
    on_host_failure: Annotated[
        OnHostFailure, Meta(description="what a host does when the build fails on it: go back to its last good one, or stand still")
    ] = OnHostFailure.REVERT
    on_budget: Annotated[OnBudget, Meta(description="over budget: halt, or go back to the last build that was completed")] = (
        OnBudget.HALT
    )
    min_available: Annotated[Share, Meta(description="hosts to keep up: none begins while fewer others are known to be")] = Share(0)
    ramp: Annotated[
        tuple[Share, ...], Meta(description='limits to begin with, such as [1, "10%"]: one more step after as many hosts')
    ] = ()
    stagger: Annotated[Duration, Meta(description="shortest time from one permit to the next, whatever rollout")] = Duration("0s")
    canary_first: Annotated[bool, Meta(description="canary hosts go first, the others when the build is promoted")] = False
    promotion: Annotated[Promotion, Meta(description="who promotes a build from the canaries to the fleet")] = Promotion.MANUAL
    bake: Annotated[Duration, Meta(description="how long canaries must have been healthy before an automatic promotion")] = (
        Duration("10m")
    )
    windows: Annotated[WindowsTable | None, Meta(description="when hosts may begin")] = None
    permit_alarm: Annotated[Duration, Meta(description="a permit held for longer raises an alarm event")] = Duration("15m")


class ServiceSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an agent has to know of a service."""

    service: ServiceTable
    source: Table
    steps: tuple[Table, ...] = ()
    instances: InstancesTable = InstancesTable()
    restart: RestartTable = RestartTable()
    rollout: RolloutTable = RolloutTable()

    @property
    def warmup(self) -> WarmupTable | None:
        """The warm-up, however it is written; None when there is none."""
        written = self.instances.warmup
        table = written if isinstance(written, WarmupTable) else WarmupTable(paths=written)
        return table if table.paths else None

    def instances_of(self, service: str) -> tuple[Instance, ...]:
        """The instances of the service on every host.

        Raises:
            ConfigError: Neither or both of names and count are given, a name is malformed, or two are the same.
        """
        table = self.instances
        if table.names and table.count:
            raise ConfigError("[instances] gives both names and count", hint="keep one of them")
        names = table.names or tuple(self._pattern_names())
        instances = tuple(Instance.parse(service, name) for name in names)
        if len({instance.name for instance in instances}) != len(instances):
            raise ConfigError("[instances] names one instance twice")
        return instances

    def obstacle(self, service: str) -> str:
        """Why no instance of a host may be restarted, ever, whatever the strategy; empty when one may.

        Raises:
            ConfigError: See `instances_of`.
        """
        count = len(self.instances_of(service))
        return none_to_restart(self.instances.min_available.at_least(count), count)

    def _pattern_names(self) -> list[str]:
        table = self.instances
        if table.count is None:
            return []
        if "{port}" in table.pattern and table.first_port is None:
            raise ConfigError("[instances] pattern has {port} but there is no first_port")
        if table.count > 1 and "{port}" not in table.pattern and "{number}" not in table.pattern:
            raise ConfigError(
                f"[instances] pattern {table.pattern!r} gives {table.count} instances one name", hint="use {port} or {number}"
            )
        first = table.first_port or 0
        return [
            table.pattern.replace("{port}", str(first + index)).replace("{number}", str(index + 1)) for index in range(table.count)
        ]
