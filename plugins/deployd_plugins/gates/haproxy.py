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
    DeploydError,
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
        label, address, server = _label_path(call), self._socket(call), self._server(call)
        found = _read_label(label)
        state = _admin_states(_ask(address, f"show servers state {_backend(server)}")).get(server)
        if state is None:
            raise _no_server(address, server)
        before = found.before if found and state & _CLOSED else _name_of(state)
        lease = _Lease(
            service=call.service,
            instance=call.instance.name,
            owner=call.owner,
            until=call.until,
            socket=address,
            server=server,
            before=before,
        )
        _write_label(label, lease)
        _set_state(address, server, "drain")

    def open(self, call: InstanceCall) -> None:
        """Give the server back in the state it was found in; one that we have not closed is left alone."""
        label = _label_path(call)
        lease = _read_label(label)
        if lease is None:
            return
        answer = _ask(lease.socket, f"set server {lease.server} state {lease.before}")
        if answer and not answer.startswith("No such"):  # a server that is gone needs no opening
            raise _refusal(lease.socket, lease.server, answer)
        label.unlink(missing_ok=True)

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """The leases on file whose servers HAProxy really keeps closed."""
        import time

        found = []
        answers: dict[tuple[str, str], str] = {}
        for path in sorted(_labels(call).glob("*.json")):
            lease = _read_label(path)
            if lease is None:
                continue
            backend = _backend(lease.server)
            if (lease.socket, backend) not in answers:
                answers[lease.socket, backend] = _ask(lease.socket, f"show servers state {backend}")
            if (_admin_states(answers[lease.socket, backend]).get(lease.server) or 0) & _CLOSED:
                found.append(ClosedGate(service=lease.service, instance=lease.instance, owner=lease.owner, until=lease.until))
            elif lease.until < time.time():  # left by a crash between opening and removing; a later drain by hand is not ours
                path.unlink(missing_ok=True)
        return tuple(found)

    def connections(self, call: InstanceCall) -> Connections:
        """What HAProxy counts: requests under way, and new ones in the last second. What it pools is its own business."""
        address, server = self._socket(call), self._server(call)
        stat = _stat(_ask(address, f"show stat {_backend(server)} 4 -1"), server)
        if stat is None:
            raise _no_server(address, server)
        busy = int(stat["scur"] or 0) + int(stat["qcur"] or 0)
        return Connections(busy=busy, recent=max(busy, int(stat["rate"] or 0)))

    def _socket(self, call: InstanceCall) -> str:
        return call.expand(self.options.socket)

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


def _labels(call: HostCall) -> Path:
    return call.root / ".deployd" / "gates" / "haproxy"


def _label_path(call: InstanceCall) -> Path:
    return _labels(call) / f"{call.instance.name}.json"


def _read_label(path: Path) -> _Lease | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Lease)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="look at `show servers state` of HAProxy and remove the file"
        ) from error


def _write_label(path: Path, lease: _Lease) -> None:
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


def _backend(server: str) -> str:
    return server.partition("/")[0]


def _name_of(state: int) -> str:
    if state & _FORCED_MAINT:
        return "maint"
    return "drain" if state & _FORCED_DRAIN else "ready"


def _set_state(address: str, server: str, state: str) -> None:
    answer = _ask(address, f"set server {server} state {state}")
    if answer:
        raise _refusal(address, server, answer)


def _admin_states(answer: str) -> dict[str, int]:
    """The bits of srv_admin_state by server. The status of `show stat` would not do: drained and down is DOWN there."""
    if answer.startswith("Can't find"):
        return {}
    version, _, table = answer.partition("\n")
    if version.strip() != "1" or not table.startswith("# "):
        raise Unavailable(f"HAProxy does not answer `show servers state` as it should: {answer[:200]!r}")
    heading, *rows = table[2:].splitlines()
    columns = heading.split()
    servers = [dict(zip(columns, row.split(), strict=False)) for row in rows]
    return {f"{row['be_name']}/{row['srv_name']}": int(row["srv_admin_state"]) for row in servers if "srv_admin_state" in row}


def _stat(answer: str, server: str) -> dict[str, str] | None:
    """The row of a server in the CSV of `show stat`; None when there is none."""
    import csv

    if answer.startswith("No such"):
        return None
    if not answer.startswith("# "):
        raise Unavailable(f"HAProxy does not answer `show stat` as it should: {answer[:200]!r}")
    rows = csv.DictReader(answer[2:].splitlines())
    return next((row for row in rows if f"{row['pxname']}/{row['svname']}" == server), None)


def _no_server(address: str, server: str) -> ConfigError:
    return ConfigError(
        f"HAProxy at {address} has no server {server}", hint="compare `server` of the gate with `show servers state`"
    )


def _refusal(address: str, server: str, answer: str) -> DeploydError:
    """HAProxy has no error codes: what it answers to a command that it has carried out is nothing, and words otherwise."""
    if answer.startswith(("No such", "Require")):
        return _no_server(address, server)
    if answer.startswith("Permission denied"):
        return ConfigError(f"HAProxy's socket {address} may only look", hint="add `level admin` to its `stats socket`")
    return Unavailable(f"HAProxy at {address} refused to change {server}: {answer[:200]}")


def _ask(address: str, command: str) -> str:
    """One command on a connection of its own, which HAProxy closes after its answer."""
    try:
        with _connect(address) as connection:
            connection.sendall(f"{command}\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except PermissionError as error:
        raise ConfigError(
            f"HAProxy's socket {address} may not be used: {error.strerror}",
            hint="run the agent as root, or give it user and mode",
        ) from error
    except TimeoutError as error:
        raise Unavailable(f"HAProxy at {address} did not answer in {_TIMEOUT:g} s") from error
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"HAProxy at {address} does not answer: {getattr(error, 'strerror', None) or error}",
            hint="is HAProxy running, with `stats socket … level admin` in its `global`?",
        ) from error
    return answer.decode(errors="replace").strip()


def _connect(address: str) -> socket.socket:
    import socket

    if not address.startswith("/"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_TIMEOUT)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


@hookimpl
def deployd_gates() -> list[type[HaproxyGate]]:
    """Register the gate."""
    return [HaproxyGate]
