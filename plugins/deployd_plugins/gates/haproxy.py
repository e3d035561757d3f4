"""The `haproxy` gate: has HAProxy itself stop sending requests, over its runtime API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from deployd_core.api import (
    ClosedGate,
    ConfigError,
    Connections,
    DeploydError,
    Gate,
    GateCall,
    HostCall,
    Instance,
    InstanceCall,
    Meta,
    Options,
    Unavailable,
    hookimpl,
)
from deployd_plugins.gates.haproxy_runtime import TIMEOUT, Runtime, backend_of

_NAMES = re.compile(r"[A-Za-z0-9_.:-]+/[A-Za-z0-9_.:-]+")
"""What HAProxy permits in the names of a backend and a server: there is no @ among it."""
_SOCKET_PATH_BYTES = 107

# Bits of srv_admin_state in `show servers state`: by hand or by us, then all of them, with what other servers and DNS impose.
_FORCED_MAINT, _FORCED_DRAIN = 0x01, 0x08
_CLOSED = 0x3F


class HaproxyOptions(Options, frozen=True, kw_only=True):
    """Where HAProxy is, and what it calls an instance."""

    socket: Annotated[
        str, Meta(description="its `stats socket` with `level admin`: a path, or host:port; {root} and the like are filled in")
    ] = "/run/haproxy/admin.sock"
    server: Annotated[
        str,
        Meta(description="backend/server that is the instance; HAProxy permits no @ in these names, so use {port}"),
    ] = "{service}/{service}-{port}"
    state: Annotated[
        Literal["auto", "drain", "maint"],
        Meta(
            description="what closes it: drain lets in clients that stick to the server by a cookie or a table, maint does not but "
            "cuts sessions under `on-marked-down shutdown-sessions`; auto: maint where the backend has cookies or a stick-table"
        ),
    ] = "auto"
    leases: Annotated[
        str, Meta(description="directory for the leases of closed gates; the agent puts another one on record for `deployd drains`")
    ] = "/var/lib/deployd/gates/haproxy"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.server.count("/") != 1 or "@" in self.server:
            raise ValueError(f"server {self.server!r} must be backend/server, such as 'web/web-{{port}}', without an @")
        if self.socket.startswith("/") and "{" not in self.socket and len(self.socket.encode()) > _SOCKET_PATH_BYTES:
            raise ValueError(f"socket {self.socket!r} is longer than the {_SOCKET_PATH_BYTES} bytes of a socket's path")


class HaproxyGate(Gate[HaproxyOptions]):
    """Turn the traffic of an instance off in HAProxy: `set server … state drain`, and back.

    The right gate wherever HAProxy pools connections to its servers: it knows which are in use, and stops using them at once.
    Where clients stick to their server, which a drain does not change, the server goes into maintenance instead.

    HAProxy keeps neither comments nor leases. So what a lease says lies in a file, written before the server is drained; whether
    it *is* drained is always asked of HAProxy. Its weakness: HAProxy does not open by itself. With no agent alive an instance stays
    drained past its lease until the agent starts again or ``deployd drains reap`` runs, for which a timer ships. A reload of
    HAProxy opens every gate, unless it loads its servers' state from a file.

    A server that a person has drained or put into maintenance is given back in that state, also when that was in mid-drain.
    """

    name = "haproxy"

    def close(self, call: GateCall) -> None:
        """Drain the server: requests under way go on, new ones go elsewhere."""
        if call.hold:
            raise ConfigError(
                f"the haproxy gate cannot hold back the clients of {call.instance.name}",
                hint="set hold = false and run two instances, or use the iptables gate",
            )
        path, haproxy, server = self._path(call), self._haproxy(call), self._server(call)
        state = haproxy.states(server).get(server)
        if state is None:
            raise haproxy.unknown(server)
        found, before = _read_lease(path), _name_of(state)
        if found is not None and before == found.by:
            by, before = found.by, found.before
        else:
            by = self._closing_state(haproxy, server)
        lease = _Lease(
            host=call.host,
            service=call.service,
            instance=call.instance.name,
            owner=call.owner,
            until=call.until,
            socket=haproxy.address,
            server=server,
            before=before,
            by=by,
        )
        _write_lease(path, lease)
        haproxy.set_state(server, by)

    def open(self, call: InstanceCall) -> None:
        """Give the server back in the state it was found in; one that we have not closed is left alone."""
        path = self._path(call)
        lease = _read_lease(path)
        if lease is not None:
            _give_back(path, lease, call.timeout)

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """The leases on file whose servers HAProxy really keeps closed."""
        paths = [path for path in self._paths() if path.name.startswith(f"{call.host}:{call.service}:")]
        mine = [(path, lease) for path in paths if (lease := _read_lease(path)) is not None]
        return tuple(lease.gate for lease in _really_closed(mine, call.timeout))

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """The same of every service, by the leases in this directory; where HAProxy does not answer, what a lease says counts."""
        found: list[_Lease] = []
        for path, lease in self._leases():
            try:
                found += _really_closed([(path, lease)], TIMEOUT)
            except DeploydError:
                found.append(lease)
        return tuple(lease.gate for lease in found)

    def clear(
        self, service: str | None = None, instance: str | None = None, *, expired_only: bool = False
    ) -> tuple[ClosedGate, ...]:
        """Give back what is closed; a HAProxy that does not answer keeps none of the others from being opened.

        Raises:
            DeploydError: One of them does not answer; the rest is open.
        """
        import time

        opened: list[ClosedGate] = []
        problem: DeploydError | None = None
        for path, lease in self._leases():
            meant = service in (None, lease.service) and instance in (None, lease.instance)
            if not meant or (expired_only and lease.until > time.time()):
                continue
            try:
                opened += [lease.gate] if _really_closed([(path, lease)], TIMEOUT) else []
                _give_back(path, lease, TIMEOUT)
            except DeploydError as error:
                problem = error
        if problem is not None:
            raise problem
        return tuple(opened)

    def explain(self, call: HostCall) -> str:
        """Whether the runtime API is there, and what this gate cannot do."""
        fields = {name: getattr(call, name) for name in HostCall.__struct_fields__}
        haproxy = self._haproxy(InstanceCall(**fields, instance=Instance(service=call.service, name=call.service)))
        version = haproxy.check_level()
        return (
            f"HAProxy {version} at {haproxy.address} drains its servers itself; leases do not end by themselves, but when an agent "
            "or `deployd drains reap` sees to it"
        )

    def connections(self, call: InstanceCall) -> Connections:
        """What HAProxy counts: requests under way, and new ones in the last second. What it pools is its own business.

        Once reloaded, it says nothing of the requests that its old process has under way: those the kernel knows.
        """
        stat = self._haproxy(call).stat(self._server(call))
        busy = int(stat["scur"] or 0) + int(stat["qcur"] or 0)
        # Neither on its way up or down by its health checks, nor in its slowstart.
        in_rotation = stat["status"] in ("UP", "no check") and not stat["throttle"]
        return Connections(
            busy=max(busy, _in_kernel(call.instance.port)), recent=max(busy, int(stat["rate"] or 0)), in_rotation=in_rotation
        )

    def _closing_state(self, haproxy: Runtime, server: str) -> str:
        if self.options.state != "auto":
            return self.options.state
        return "maint" if haproxy.has_sticking_clients(server) else "drain"

    def _path(self, call: InstanceCall) -> Path:
        return Path(self.options.leases) / f"{call.host}:{call.service}:{call.instance.name}.json"

    def _paths(self) -> list[Path]:
        return sorted(Path(self.options.leases).glob("*.json"))

    def _leases(self) -> Iterator[tuple[Path, _Lease]]:
        """Those of every service; a broken file is told to the log, and keeps none of the others from being opened."""
        import logging

        for path in self._paths():
            try:
                lease = _read_lease(path)
            except ConfigError as error:
                logging.getLogger(__name__).warning(str(error))
            else:
                if lease is not None:
                    yield path, lease

    def _haproxy(self, call: InstanceCall) -> Runtime:
        return Runtime(call.expand(self.options.socket), call.timeout)

    def _server(self, call: InstanceCall) -> str:
        server = call.expand(self.options.server)
        if not _NAMES.fullmatch(server):
            raise ConfigError(
                f"{server!r} cannot be a backend/server of HAProxy", hint="its names are made of letters, digits and -_.: alone"
            )
        return server


class _Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file of a closed gate: enough to open it with no spec at hand."""

    host: str
    service: str
    instance: str
    owner: str
    until: float
    socket: str
    server: str
    before: str
    """The state to give the server back in: ready, drain or maint."""
    by: str = "drain"
    """The state that closes it."""

    @property
    def gate(self) -> ClosedGate:
        """What the contract wants to know of it."""
        return ClosedGate(service=self.service, instance=self.instance, owner=self.owner, until=self.until)


_DECODER = msgspec.json.Decoder(_Lease)
"""Made while the module is imported: what msgspec finds out about a type must not be found out by two threads at once."""


def _really_closed(leases: list[tuple[Path, _Lease]], timeout: float) -> list[_Lease]:
    """Those whose servers HAProxy keeps closed."""
    import time

    found = []
    states: dict[str, dict[str, int]] = {}
    for path, lease in leases:
        where = f"{lease.socket} {backend_of(lease.server)}"
        if where not in states:
            states[where] = Runtime(lease.socket, timeout).states(lease.server)
        if states[where].get(lease.server, 0) & _CLOSED:
            found.append(lease)
        elif lease.until < time.time():
            # Left by a crash between opening and removing. Were it kept, a later drain by hand would pass for ours.
            path.unlink(missing_ok=True)
    return found


def _give_back(path: Path, lease: _Lease, timeout: float) -> None:
    """Give a server back in the state it was found in, then forget the lease; one that is gone needs no opening."""
    haproxy = Runtime(lease.socket, timeout)
    state = haproxy.states(lease.server).get(lease.server)
    # Another state than ours is what a person has put it into since: it stays.
    if state is not None and _name_of(state) in (lease.by, "ready"):
        haproxy.set_state(lease.server, lease.before)
    path.unlink(missing_ok=True)


def _read_lease(path: Path) -> _Lease | None:
    try:
        return _DECODER.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="look at `show servers state` of HAProxy and remove the file"
        ) from error


def _write_lease(path: Path, lease: _Lease) -> None:
    """Whole or not at all, and on the disk before HAProxy hears of it: a drained server that nobody knows of would stay so."""
    import os

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        with aside.open("wb") as file:
            file.write(msgspec.json.encode(lease))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error


def _in_kernel(port: int | None) -> int:
    """Requests under way on a port of this host, as far as can be told."""
    from deployd_plugins.gates import sockets

    try:
        return sockets.under_way(port) if port is not None else 0
    except DeploydError:
        return 0


def _name_of(state: int) -> str:
    if state & _FORCED_MAINT:
        return "maint"
    return "drain" if state & _FORCED_DRAIN else "ready"


@hookimpl
def deployd_gates() -> list[type[HaproxyGate]]:
    """Register the gate."""
    return [HaproxyGate]
