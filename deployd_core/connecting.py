"""Connections of the agent's own (probes, warm-up), which get past a gate that is closed to everybody else."""

from __future__ import annotations

import contextlib
import ipaddress
import socket


def connect(host: str, port: int, timeout: float, *, source: str = "", mark: int = 0) -> socket.socket:
    """Open a TCP connection, to the first of the host's addresses that takes it.

    Args:
        host: A name or an address.
        port: Where.
        timeout: Seconds for each address.
        source: The address to come from; for an IPv4 address that is only of use on the loopback, it is left out elsewhere.
        mark: The socket mark to carry (SO_MARK), if we may set it.

    Raises:
        OSError: None of the addresses took it.
    """
    problem: OSError = ConnectionError(f"{host} has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with contextlib.ExitStack() as unless_connected:
            connection = unless_connected.enter_context(socket.socket(family, kind, protocol))
            connection.settimeout(timeout)
            try:
                if source and _of_use(source, family, str(place[0])):
                    connection.bind((source, 0))
                if mark:
                    with contextlib.suppress(PermissionError):  # not root: then no firewall is closed by us either
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                connection.connect(place)
            except OSError as error:
                problem = error
                continue
            unless_connected.pop_all()
            return connection
    raise problem


def _of_use(source: str, family: socket.AddressFamily, place: str) -> bool:
    """Whether a connection to the place can come from the source."""
    address = ipaddress.ip_address(source)
    same_family = (address.version == 4) == (family == socket.AF_INET)
    return same_family and (not address.is_loopback or ipaddress.ip_address(place.partition("%")[0]).is_loopback)
