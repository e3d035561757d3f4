"""Where things lie in ZooKeeper, and how they are written: the only place with path strings and codecs.

Every node holds one JSON object in UTF-8, or nothing. Reading tolerates keys that it does not know, so that agents of two versions
can share a fleet; what is written never has one. `enabled` may also be a bare build id, as one would type it in zkCli.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from deployd_core.coordination import AgentInfo, Enabled, Freeze, HistoryEntry, HostStatus, Membership, Permit, Rollout, Waiter
from deployd_core.decoding import convert
from deployd_core.errors import ConfigError
from deployd_core.model import Role, check_build_id, check_digest
from deployd_core.spec import ServiceSpec
from deployd_core.units import encode_unit
from deployd_core.zookeeper.session import Stat

SERVICES = "/services"
AGENTS = "/agents"
FREEZE = "/freeze"

STATUS_LIMIT = 64 * 1024
"""Bytes of one report; ZooKeeper drops the connection that sends more than 1 MB."""

ROLLOUT_LIMIT = 768 * 1024
"""Bytes of a rollout with its failures."""

StructT = TypeVar("StructT", bound=Struct)


def agent(host: str) -> str:
    """The ephemeral node that says a host's agent is alive."""
    return f"{AGENTS}/{host}"


class ServicePaths:
    """The nodes of one service."""

    def __init__(self, service: str) -> None:
        self.root = f"{SERVICES}/{service}"
        self.spec = f"{self.root}/spec"
        self.enabled = f"{self.root}/enabled"
        self.canary = f"{self.root}/enabled/canary"
        self.hosts = f"{self.root}/hosts"
        self.statuses = f"{self.root}/status"
        self.rollout = f"{self.root}/rollout"
        self.permits = f"{self.root}/rollout/permits"
        self.queue = f"{self.root}/rollout/queue"
        self.downs = f"{self.root}/rollout/down"
        self.history = f"{self.root}/history"

    def host(self, host: str) -> str:
        """A host's membership."""
        return f"{self.hosts}/{host}"

    def status(self, host: str) -> str:
        """A host's last report."""
        return f"{self.statuses}/{host}"

    def permit(self, host: str) -> str:
        """A host's permit."""
        return f"{self.permits}/{host}"

    def down(self, host: str) -> str:
        """Says that a host cannot serve, and that this is not the doing of a deploy."""
        return f"{self.downs}/{host}"

    def zone_queue(self, zone: str) -> str:
        """Where hosts of a zone wait for a permit."""
        return f"{self.queue}/{zone}"

    def enabled_for(self, role: Role) -> str:
        """The node that says what hosts of a role should serve."""
        return self.canary if role is Role.CANARY else self.enabled

    @property
    def history_entry(self) -> str:
        """What the name of an entry begins with; ZooKeeper appends the number."""
        return f"{self.history}/entry-"

    def history_child(self, name: str) -> str:
        """One entry of the history."""
        return f"{self.history}/{name}"

    @property
    def scaffold(self) -> tuple[str, ...]:
        """What must exist beside the spec, parents first: a grant checks the versions of these."""
        return (
            self.enabled,
            self.canary,
            self.hosts,
            self.statuses,
            self.rollout,
            self.permits,
            self.queue,
            self.downs,
            self.history,
        )


COMMON_NODES = (SERVICES, AGENTS, FREEZE)
"""What must exist beside the services."""


def encode(value: Struct) -> bytes:
    """Write a value as its node holds it, without the keys that have no value."""
    return msgspec.json.encode(_without_none(msgspec.to_builtins(value, enc_hook=encode_unit)))


@functools.lru_cache(maxsize=64)  # it is by far the largest, is looked at with every change of anything, and hardly ever changes
def decode_spec(path: str, data: bytes) -> ServiceSpec | None:
    """Read a `spec` node; None when it is empty."""
    return _decode(path, data, ServiceSpec, "apply the spec again: deployd services apply FILE")


def decode_enabled(path: str, data: bytes) -> Enabled | None:
    """Read an `enabled` node: an object, a bare build id, or nothing.

    Raises:
        ConfigError: It holds something else.
    """
    hint = "enable a build again: deployd enable SERVICE BUILD"
    text = data.strip()
    if text and not text.startswith(b"{"):
        text = msgspec.json.encode({"build": text.decode(errors="replace").strip('"')})
    enabled = _decode(path, text, Enabled, hint)
    if enabled is None:
        return None
    try:
        check_build_id(enabled.build)
        if enabled.digest is not None:
            check_digest(enabled.digest)
    except ConfigError as error:
        raise ConfigError(f"node {path}: {error}", hint=hint) from error
    return enabled


def decode_membership(path: str, data: bytes) -> Membership:
    """Read a `hosts/<host>` node; an empty one is a fleet host."""
    return _decode(path, data, Membership, "set its role again: deployd hosts role SERVICE HOST fleet") or Membership()


def decode_rollout(path: str, data: bytes) -> Rollout:
    """Read a `rollout` node; an empty one is open."""
    return _decode(path, data, Rollout, "resume or enable again writes it anew") or Rollout()


def decode_permit(path: str, data: bytes, stat: Stat) -> Permit:
    """Read a `permits/<host>` node; its token is its czxid.

    One that holds nonsense is a permit all the same: the node is the permit, what it holds only tells about it.
    """
    try:
        permit = _decode(path, data, Permit, "")
    except ConfigError:
        permit = None
    if permit is None:
        permit = Permit(host=path.rpartition("/")[2], zone="", rollout="", since="", nonce="")
    return msgspec.structs.replace(permit, host=path.rpartition("/")[2], token=stat.czxid)


def decode_waiter(path: str, data: bytes) -> Waiter | None:
    """Read a node of a queue."""
    return _decode(path, data, Waiter, "delete the node: its host joins again")


def decode_freeze(path: str, data: bytes) -> Freeze | None:
    """Read the `/freeze` node; None when it is empty."""
    return _decode(path, data, Freeze, f"empty it to lift the freeze: zkCli set {path} ''")


def decode_status(path: str, data: bytes) -> HostStatus | None:
    """Read a `status/<host>` node; None when it is empty."""
    return _decode(path, data, HostStatus, "its agent writes it anew with the next change")


def decode_agent(path: str, data: bytes) -> AgentInfo | None:
    """Read an `/agents/<host>` node."""
    return _decode(path, data, AgentInfo, "restart that agent")


def decode_history(path: str, data: bytes) -> HistoryEntry | None:
    """Read one entry of a service's history."""
    return _decode(path, data, HistoryEntry, "delete the node")


def encode_status(status: HostStatus) -> bytes:
    """Write a report, dropping the instances' details and then the instances when it would be too large."""
    data = encode(status)
    if len(data) <= STATUS_LIMIT:
        return data
    brief = tuple(msgspec.structs.replace(instance, reason=instance.reason[:80]) for instance in status.instances)
    shorter = msgspec.structs.replace(status, instances=brief, reason=status.reason[:4096], last_error=status.last_error[:4096])
    data = encode(shorter)
    if len(data) <= STATUS_LIMIT:
        return data
    return encode(msgspec.structs.replace(shorter, instances=()))


def encode_rollout(rollout: Rollout) -> bytes:
    """Write a rollout, shortening why hosts failed, and then leaving it out, when so many failed that it would be too large."""
    data = encode(rollout)
    for length in (80, 0):
        if len(data) <= ROLLOUT_LIMIT:
            break
        brief = {host: msgspec.structs.replace(failed, reason=failed.reason[:length]) for host, failed in rollout.failures.items()}
        data = encode(msgspec.structs.replace(rollout, failures=brief))
    return data


def rollout_id(build: str, mzxid: int) -> str:
    """Name the rollout that one write of an `enabled` node began."""
    return f"{build}-{mzxid:x}"


def _decode(path: str, data: bytes, kind: type[StructT], hint: str) -> StructT | None:
    if not data.strip():
        return None
    try:
        raw = msgspec.json.decode(data)
        return convert(_known_keys(raw, kind), kind)
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise ConfigError(f"node {path} holds no valid {kind.__name__}: {error}", hint=hint) from error


def _known_keys(raw: Any, kind: Any) -> Any:
    """`raw` without the keys that the struct, or a struct within it, would refuse."""
    struct = _struct_in(kind)
    if struct is None or not isinstance(raw, dict) or not struct.__struct_config__.forbid_unknown_fields:
        return raw
    hints = _hints(struct)
    return {key: _known_keys(value, hints[key]) for key, value in raw.items() if key in hints}


@functools.cache
def _hints(struct: type[Struct]) -> dict[str, Any]:
    return typing.get_type_hints(struct)


def _struct_in(kind: Any) -> type[Struct] | None:
    """The struct that a type such as ``InstancesTable | None`` allows."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, Struct)), None)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
