"""The `haproxy` gate: has HAProxy itself stop sending requests, over its runtime API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from deployd_core.api import (
    ClosedGate,
    ConfigError,
    Connections,
    Gate,
    GateCall,
    HostCall,
    InstanceCall,
    Meta,
    Options,
    Unavailable,
    hookimpl,
)

if TYPE_CHECKING:
    import socket

_NAMES = re.compile(r"[A-Za-z0-9_.:-]+/[A-Za-z0-9_.:-]+")
"""What HAProxy permits in the names of a backend and a server: there is no @ among it."""
_SOCKET_PATH_BYTES = 107
_TIMEOUT = 5.0
"""Longest to wait for an answer; HAProxy gives one within a millisecond."""

# Bits of srv_admin_state in `show servers state`. What the configuration or another server imposes cannot be lifted from here.
_FORCED_MAINT, _FORCED_DRAIN = 0x01, 0x08
_CLOSED = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20


class HaproxyOptions(Options, frozen=True, kw_only=True):
    """Where HAProxy is, and what it calls an instance."""

    socket: Annotated[
        str, Meta(description="its `stats socket` with `level admin`: a path, or host:port; {root} and the like are filled in")
    ] = "/run/haproxy/admin.sock"
    server: Annotated[
        str,
        Meta(description="backend/server that is the instance; HAProxy permits no @ in these names, so use {port}"),
    ] = "{service}/{service}-{port}"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.server.count("/") != 1 or "@" in self.server:
            raise ValueError(f"server {self.server!r} must be backend/server, such as 'web/web-{{port}}', without an @")
        if self.socket.startswith("/") and "{" not in self.socket and len(self.socket.encode()) > _SOCKET_PATH_BYTES:
            raise ValueError(f"socket {self.socket!r} is longer than the {_SOCKET_PATH_BYTES} bytes of a socket's path")


class HaproxyGate(Gate[HaproxyOptions]):
    """Turn the traffic of an instance off in HAProxy: `set server … state drain`, and back.

    The right gate wherever HAProxy pools connections to its servers: it knows which are in use, and stops using them at once.

    HAProxy keeps neither comments nor leases. So what a lease says lies in a file under ``{root}/.deployd/gates/haproxy``, written
    before the server is drained; whether it *is* drained is always asked of HAProxy. Its weakness: HAProxy does not open by itself.
    With no agent alive an instance stays drained past its lease until the agent starts again or ``deployd drains reap`` runs, for
    which a timer ships. A reload of HAProxy opens every gate, unless it loads its servers' state from a file.

    A server that a person has drained or put into maintenance is given back in that state.
    """

    name = "haproxy"

    def close(self, call: GateCall) -> None:
        """Drain the server: requests under way go on, new ones go elsewhere."""
        if call.hold:
            raise ConfigError(
                f"the haproxy gate cannot hold back the clients of {call.instance.name}",
                hint="set hold = false and run two instances, or use the iptables gate",
            )
        path, haproxy, server = _lease_path(call), self._haproxy(call), self._server(call)
        state = haproxy.states(server).get(server)
        if state is None:
            raise haproxy.unknown(server)
        lease = _Lease(
            service=call.service,
            instance=call.instance.name,
            owner=call.owner,
            until=call.until,
            socket=haproxy.address,
            server=server,
            before=_name_of(state),
        )
        found = _read_lease(path)
        if found is not None and state & _CLOSED:
            lease = msgspec.structs.replace(lease, before=found.before)
        _write_lease(path, lease)
        haproxy.set_state(server, "drain")

    def open(self, call: InstanceCall) -> None:
        """Give the server back in the state it was found in; one that we have not closed is left alone."""
        path = _lease_path(call)
        lease = _read_lease(path)
        if lease is None:
            return
        haproxy = _Haproxy(lease.socket, call.timeout)
        if haproxy.states(lease.server).get(lease.server) is not None:  # a server that is gone needs no opening
            haproxy.set_state(lease.server, lease.before)
        path.unlink(missing_ok=True)

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """The leases on file whose servers HAProxy really keeps closed."""
        import time

        found = []
        states: dict[str, dict[str, int]] = {}
        for path in sorted(_leases(call).glob("*.json")):
            lease = _read_lease(path)
            if lease is None:
                continue
            where = f"{lease.socket} {_backend(lease.server)}"
            if where not in states:
                states[where] = _Haproxy(lease.socket, call.timeout).states(lease.server)
            if states[where].get(lease.server, 0) & _CLOSED:
                found.append(ClosedGate(service=lease.service, instance=lease.instance, owner=lease.owner, until=lease.until))
            elif lease.until < time.time():
                # Left by a crash between opening and removing. Were it kept, a later drain by hand would pass for ours.
                path.unlink(missing_ok=True)
        return tuple(found)

    def connections(self, call: InstanceCall) -> Connections:
        """What HAProxy counts: requests under way, and new ones in the last second. What it pools is its own business."""
        stat = self._haproxy(call).stat(self._server(call))
        busy = int(stat["scur"] or 0) + int(stat["qcur"] or 0)
        return Connections(busy=busy, recent=max(busy, int(stat["rate"] or 0)))

    def _haproxy(self, call: InstanceCall) -> _Haproxy:
        return _Haproxy(call.expand(self.options.socket), call.timeout)

    def _server(self, call: InstanceCall) -> str:
        server = call.expand(self.options.server)
        if not _NAMES.fullmatch(server):
            raise ConfigError(
                f"{server!r} cannot be a backend/server of HAProxy", hint="its names are made of letters, digits and -_.: alone"
            )
        return server


class _Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file of a closed gate: enough to open it with no spec at hand."""

    service: str
    instance: str
    owner: str
    until: float
    socket: str
    server: str
    before: str
    """The state to give the server back in: ready, drain or maint."""


def _leases(call: HostCall) -> Path:
    return call.root / ".deployd" / "gates" / "haproxy"


def _lease_path(call: InstanceCall) -> Path:
    return _leases(call) / f"{call.instance.name}.json"


def _read_lease(path: Path) -> _Lease | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Lease)
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


class _Haproxy:
    """The runtime API. It has no error codes: a command that was carried out is answered by nothing, any other by words."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self._timeout = min(_TIMEOUT, timeout)

    def states(self, server: str) -> dict[str, int]:
        """The bits of srv_admin_state of the server and of all in its backend; empty when there is no such backend.

        The status of `show stat` would not do: a server that is drained and down is DOWN there.
        """
        answer = self._ask(f"show servers state {_backend(server)}")
        if answer.startswith("Can't find"):
            return {}
        version, _, table = answer.partition("\n")
        if version.strip() != "1" or not table.startswith("# "):
            raise self._strange(answer)
        heading, *rows = table[2:].splitlines()
        servers = [dict(zip(heading.split(), row.split(), strict=False)) for row in rows]
        return {f"{row['be_name']}/{row['srv_name']}": int(row["srv_admin_state"]) for row in servers if "srv_admin_state" in row}

    def stat(self, server: str) -> dict[str, str]:
        """The row of a server in `show stat`.

        Raises:
            ConfigError: There is no such server.
        """
        import csv

        answer = self._ask(f"show stat {_backend(server)} 4 -1")
        if answer.startswith("No such"):
            raise self.unknown(server)
        if not answer.startswith("# "):
            raise self._strange(answer)
        for row in csv.DictReader(answer[2:].splitlines()):
            if f"{row['pxname']}/{row['svname']}" == server:
                return row
        raise self.unknown(server)

    def set_state(self, server: str, state: str) -> None:
        """Have a server be ``ready``, ``drain`` or ``maint``."""
        answer = self._ask(f"set server {server} state {state}")
        if answer.startswith("No such"):
            raise self.unknown(server)
        if answer.startswith("Permission denied"):
            raise ConfigError(f"HAProxy's socket {self.address} may only look", hint="add `level admin` to its `stats socket`")
        if answer:
            raise self._strange(answer)

    def unknown(self, server: str) -> ConfigError:
        """The error for a server that is not there."""
        return ConfigError(
            f"HAProxy at {self.address} has no server {server}", hint="compare `server` of the gate with `show servers state`"
        )

    def _strange(self, answer: str) -> Unavailable:
        return Unavailable(f"{self.address} does not answer as HAProxy does: {answer[:200]!r}")

    def _ask(self, command: str) -> str:
        """One command on a connection of its own, which HAProxy closes after its answer."""
        try:
            with self._connect() as connection:
                connection.sendall(f"{command}\n".encode())
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except PermissionError as error:
            raise ConfigError(
                f"HAProxy's socket {self.address} may not be used: {error.strerror}",
                hint="run the agent as root, or give it user and mode",
            ) from error
        except TimeoutError as error:
            raise Unavailable(f"HAProxy at {self.address} did not answer in {self._timeout:g} s") from error
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"HAProxy at {self.address} does not answer: {getattr(error, 'strerror', None) or error}",
                hint="is HAProxy running, with `stats socket … level admin` in its `global`?",
            ) from error
        return answer.decode(errors="replace").strip()

    def _connect(self) -> socket.socket:
        import socket

        if not self.address.startswith("/"):
            host, _, port = self.address.rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)), timeout=self._timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout)
            connection.connect(self.address)
        except OSError:
            connection.close()
            raise
        return connection


def _backend(server: str) -> str:
    return server.partition("/")[0]


def _name_of(state: int) -> str:
    if state & _FORCED_MAINT:
        return "maint"
    return "drain" if state & _FORCED_DRAIN else "ready"


@hookimpl
def deployd_gates() -> list[type[HaproxyGate]]:
    """Register the gate."""
    return [HaproxyGate]
