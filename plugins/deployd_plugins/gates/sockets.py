"""Connections of an instance, asked of the kernel itself: sock_diag over netlink. Not a gate itself.

Port, state and mark are filtered in the kernel, for both families; `tcp_info` tells a connection on which a request is under way
from one that a client merely keeps. This is what ``ss -tin`` does, without a process to start and text to parse.

`tcp_info` counts time in ticks of some milliseconds. When the last data of a client and our last answer fall into one tick, their
order is lost: a new request may have come right behind the answer. An acknowledgement that came later, alone, proves that the
answer was last; without one, the connection counts as busy until it has been silent for five times as long.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from deployd_core.api import ConfigError, Connections, Unavailable

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_BYTECODE, _MARK_CONDITION = 1, 10
_INFO = 2

_ESTABLISHED, _SYN_RECV, _FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _LISTEN, _CLOSING, _NEW_SYN_RECV = (
    *(1, 3, 4, 5, 6, 8, 9),
    *(10, 11, 12),
)
_SERVING = (_ESTABLISHED, _SYN_RECV, _NEW_SYN_RECV, _CLOSE_WAIT)
_ENDING = (_FIN_WAIT1, _FIN_WAIT2, _LAST_ACK, _CLOSING)

_HEADER = struct.Struct("=IHHII")
_REQUEST_V2 = struct.Struct("=BBBxI48s")
_ID = struct.Struct("!HH16s16s12x")
# nlmsghdr (length, type), inet_diag_msg: state, id, expires, rqueue, wqueue
_MESSAGE = struct.Struct("=IH10x xBxx48sIII8x")
_ATTRIBUTE = struct.Struct("=HH")
# An attribute (its type), tcp_info: unacked, last_data_sent, last_data_recv, last_ack_recv (ms ago), bytes_received, data_segs_out
_TCP_INFO = struct.Struct("=2xH24xI16xI4xII68xQ20xI")
# In inet_diag_sockid: ports and addresses, ours and theirs.
_OUR_PORT, _THEIR_PORT, _OUR_ADDRESS, _THEIR_ADDRESS = slice(0, 2), slice(2, 4), slice(4, 20), slice(20, 36)

_MAPPED = bytes(10) + b"\xff\xff"
_BUFFER, _ANSWER = 1 << 18, 1 << 12
"""Bytes of an answer with many connections, and of one with one."""
_RECENT_MS = 1000
_TIME_WAIT_MS = 60_000
"""How long the kernel keeps a connection that we have closed; a constant of Linux."""
_MOST_ENDED = 2000
"""How many connections in TIME_WAIT are looked at: a busy instance has tens of thousands of them."""
_UNSURE = 5


class Connection(NamedTuple):
    """One connection as the kernel sees it; times are in milliseconds ago."""

    family: int
    identity: bytes
    state: int
    expires: int
    queued: int
    """Bytes that the instance has not read, or its client not acknowledged."""
    sent: int = 0
    received: int = 0
    acknowledged: int = 0
    bytes_received: int = 0
    answers: int = 0
    """Segments with data that were sent."""

    def idle(self, idle_after: int) -> bool:
        """Whether it is proven that no request is under way."""
        _, _, state, _, queued, sent, received, acknowledged, amount, answers = self
        if state != _ESTABLISHED or queued:
            return False
        if sent < received or not amount:
            return bool(answers) or not amount
        if sent > received or not answers:
            return False
        return acknowledged < received or received >= _UNSURE * idle_after

    @property
    def under_way(self) -> bool:
        """Whether it is certain that a request is: it is newer than the last answer, or something has not been read yet."""
        unanswered = self.bytes_received > 0 and (not self.answers or self.sent > self.received)
        return self.state == _ESTABLISHED and (unanswered or self.queued > 0)


class Query(NamedTuple):
    """Whose connections are meant."""

    port: int
    address: str = ""
    """The instance's own; empty: any."""
    passing_source: str = ""
    """Connections from here are the probe's own, and left out."""
    passing_mark: int = 0
    """The same for local sockets of this mark."""
    idle_after: int = 1000


def count(query: Query) -> Connections:
    """Count the connections of clients.

    Raises:
        ConfigError: The kernel cannot be asked.
        Unavailable: It did not answer.
    """
    busy = idle = recent = 0
    for connection in _of_clients(query, (*_SERVING, *_ENDING)):
        if connection.bytes_received and (connection.sent < _RECENT_MS or connection.received < _RECENT_MS):
            recent += 1
        if connection.idle(query.idle_after):
            idle += 1
        elif connection.state not in _ENDING:
            busy += 1
    return Connections(busy=busy, idle=idle, recent=recent or _ended_just_now(query))


def close_idle(query: Query) -> int | None:
    """Close connections that have been idle for `query.idle_after`; how many, or None when this kernel cannot.

    Raises:
        ConfigError: The kernel cannot be asked, or not by this user.
    """
    closed = 0
    for connection in list(_of_clients(query, (_ESTABLISHED,))):
        if not _silent(connection, query):
            continue
        try:
            closed += _destroy_if_silent(connection, query)
        except FileNotFoundError:
            continue  # it has gone by itself
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return None
            raise _refusal(error) from error
    return closed


def under_way(port: int) -> int:
    """On how many connections to a port a request is under way for certain, whoever sent it.

    Raises:
        ConfigError: The kernel cannot be asked.
        Unavailable: It did not answer.
    """
    return sum(connection.under_way for family in _families() for connection in _dump(family, (_ESTABLISHED,), source=port))


def listens(port: int) -> bool:
    """Whether anything listens on a port."""
    return any(True for family in _families() for _ in _dump(family, (_LISTEN,), source=port))


def _of_clients(query: Query, states: Sequence[int]) -> Iterator[Connection]:
    marked = _marked_ends(query)
    for family in _families():
        ours = _raw(query.passing_source, family) if query.passing_source else None
        at = _raw(query.address, family) if query.address else None
        for connection in _dump(family, states, source=query.port):
            identity = connection.identity
            if identity[_THEIR_ADDRESS] == ours or (at is not None and identity[_OUR_ADDRESS] != at):
                continue
            if marked and _end(identity[_THEIR_ADDRESS], identity[_THEIR_PORT], family) in marked:
                continue
            yield connection


def _ended_just_now(query: Query) -> int:
    """Connections that the instance closed within the last second: without keep-alive a look rarely meets one that is open."""
    for number, connection in enumerate(_of_clients(query, (_TIME_WAIT,))):
        if connection.expires > _TIME_WAIT_MS - _RECENT_MS:
            return 1
        if number >= _MOST_ENDED:
            break
    return 0


def _marked_ends(query: Query) -> set[bytes]:
    """The local ends of connections to the instance that carry the mark: a mark stays with the socket that connects."""
    if not query.passing_mark:
        return set()
    code = struct.pack("=BBHII", _MARK_CONDITION, 12, 16, query.passing_mark, 0xFFFFFFFF)
    return {
        _end(connection.identity[_OUR_ADDRESS], connection.identity[_OUR_PORT], family)
        for family in _families()
        for connection in _dump(family, (*_SERVING, *_ENDING), target=query.port, code=code)
    }


def _end(address: bytes, port: bytes, family: int) -> bytes:
    """One end of a connection, IPv4 mapped into IPv6: a socket of either family may meet one of the other."""
    return (_MAPPED + address[:4] if family == socket.AF_INET else address) + port


def _families() -> tuple[int, ...]:
    return (socket.AF_INET, socket.AF_INET6) if os.path.exists("/proc/net/tcp6") else (socket.AF_INET,)  # noqa: PTH110


def _raw(address: str, family: int) -> bytes:
    """An address as sockets of that family have it."""
    packed = ipaddress.ip_address(address).packed
    if family == socket.AF_INET:
        return packed.ljust(16, b"\0")
    return packed if len(packed) == 16 else _MAPPED + packed


def _dump(family: int, states: Sequence[int], *, source: int = 0, target: int = 0, code: bytes = b"") -> Iterator[Connection]:
    """Every connection of one family in one of the states, with these ports."""
    wanted = sum(1 << state for state in states)
    body = _REQUEST_V2.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), wanted, struct.pack("!HH", source, target))
    if code:
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(code), _BYTECODE) + code
    buffer = bytearray(_BUFFER)
    try:
        with _asked(_SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, body) as netlink:
            while not (yield from _parsed(buffer, netlink.recv_into(buffer), family)):
                pass
    except OSError as error:
        raise _refusal(error) from error


def _parsed(buffer: bytearray, length: int, family: int) -> Generator[Connection, None, bool]:
    """The connections in an answer of the kernel; returns whether that was all.

    Raises:
        OSError: It is a refusal.
    """
    offset = info = 0
    while offset < length:
        size, kind, state, identity, expires, unread, unacknowledged = _MESSAGE.unpack_from(buffer, offset)
        if kind != _SOCK_DIAG_BY_FAMILY:
            _check(kind, buffer, offset)
            return True
        queued = unread + unacknowledged
        # The attribute with tcp_info is where it was in the last message, nearly always.
        if not 0 < info <= size - _TCP_INFO.size or _ATTRIBUTE.unpack_from(buffer, offset + info)[1] != _INFO:
            info = _place_of_info(buffer, offset, size)
        if info:
            _, unacked, sent, received, acknowledged, amount, answers = _TCP_INFO.unpack_from(buffer, offset + info)
            queued += unacked
            yield Connection(family, identity, state, expires, queued, sent, received, acknowledged, amount, answers)
        else:
            yield Connection(family, identity, state, expires, queued)
        offset += size + 3 & ~3
    return False


def _place_of_info(buffer: bytearray, offset: int, size: int) -> int:
    """Where in a message the attribute with tcp_info begins; 0 when there is none."""
    at = _MESSAGE.size
    while at < size:
        length, kind = _ATTRIBUTE.unpack_from(buffer, offset + at)
        if kind == _INFO and length >= _TCP_INFO.size:
            return at
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
    return 0


def _silent(connection: Connection, query: Query) -> bool:
    """Whether it has been idle for so long that no request can be on its way into it."""
    return min(connection.sent, connection.received) >= query.idle_after and connection.idle(query.idle_after)


def _destroy_if_silent(connection: Connection, query: Query) -> bool:
    """Have the kernel reset it, both ends at once, unless it has been used since it was listed; whether it was reset.

    The list may be milliseconds old, or seconds where no processor is free; between this look and the reset lie microseconds.

    Raises:
        OSError: It could not.
    """
    body = _REQUEST_V2.pack(connection.family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << connection.state, connection.identity)
    buffer = bytearray(_ANSWER)
    with _asked(_SOCK_DIAG_BY_FAMILY, _REQUEST, body) as netlink:
        now = next(_parsed(buffer, netlink.recv_into(buffer), connection.family), None)
        if now is None or not _silent(now, query):
            return False
        _ask(netlink, _SOCK_DESTROY, _REQUEST | _ACK, body)
        netlink.recv_into(buffer)
        _check(_NLMSG_ERROR, buffer, 0)
    return True


def _asked(kind: int, flags: int, body: bytes) -> socket.socket:
    """A netlink socket with a question on its way."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    try:
        netlink.settimeout(5.0)
        _ask(netlink, kind, flags, body)
    except OSError:
        netlink.close()
        raise
    return netlink


def _ask(netlink: socket.socket, kind: int, flags: int, body: bytes) -> None:
    netlink.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body, (0, 0))


def _check(kind: int, buffer: bytearray, offset: int) -> None:
    """Raise what the kernel says has gone wrong."""
    code = struct.unpack_from("=i", buffer, offset + _HEADER.size)[0] if kind == _NLMSG_ERROR else 0
    if code:
        raise OSError(-code, os.strerror(-code))


def _refusal(error: OSError) -> ConfigError | Unavailable:
    if error.errno in (errno.EPERM, errno.EACCES):
        return ConfigError("only root may look at the marks of connections, and close them", hint="run the agent as root")
    if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return ConfigError(
            "this kernel cannot be asked for connections (tcp_diag)",
            hint="load it, modprobe tcp_diag, or use a kernel with CONFIG_INET_DIAG",
        )
    return Unavailable(f"the kernel did not say which connections there are: {error}")
