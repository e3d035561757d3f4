"""Warm-up: the requests a fresh instance gets before its traffic comes back."""

from __future__ import annotations

import http.client
from collections.abc import Sequence

from deployd_core.api import InstanceCall
from deployd_core.errors import ConfigError, Unavailable

_REQUEST_TIMEOUT = 30.0


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
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{call.instance.name} did not answer warm-up request {path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 500:
            raise Unavailable(f"{call.instance.name} answered warm-up request {path} with {response.status}")
