"""Warm-up: the requests a fresh instance gets before its traffic comes back."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Sequence

from deployd_core.api import InstanceCall
from deployd_core.errors import ConfigError, Unavailable

_REQUEST_TIMEOUT = 30.0
_SOURCE, _MARK = "127.0.0.2", 0xDEB
"""What a closed gate lets pass unless it is told otherwise: this source over IPv4, this socket mark over IPv6."""


def send(call: InstanceCall, paths: Sequence[str]) -> None:
    """Request every path once, in order, from the instance on this host.

    Raises:
        ConfigError: The instance has no port.
        Unavailable: It did not answer, or with a server error.
    """
    if call.instance.port is None:
        raise ConfigError(f"{call.instance.name} has no port to warm up", hint="name it NAME@PORT")
    for path in paths:
        connection = http.client.HTTPConnection(call.address, call.instance.port, timeout=_REQUEST_TIMEOUT)
        try:
            connection.sock = _connect(call.address, call.instance.port)
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{call.instance.name} did not answer warm-up request {path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 500:
            raise Unavailable(f"{call.instance.name} answered warm-up request {path} with {response.status}")


def _connect(address: str, port: int) -> socket.socket:
    """A connection that a closed gate lets pass."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(_REQUEST_TIMEOUT)
        if family == socket.AF_INET:
            connection.bind((_SOURCE, 0))
        else:
            with contextlib.suppress(PermissionError):  # not root: then no firewall is closed either
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        connection.connect(place)
    except OSError:
        connection.close()
        raise
    return connection
