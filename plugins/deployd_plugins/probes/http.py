"""The `http` probe: asks an instance for a page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from deployd_core.api import ConfigError, InstanceCall, Meta, Probe, ProbeOptions, Size, Verdict, hookimpl
from deployd_plugins.probes.network import verdict_of

if TYPE_CHECKING:
    import http.client
    import socket


class HttpOptions(ProbeOptions, frozen=True, kw_only=True):
    """What to ask, and what to expect."""

    url: Annotated[str, Meta(description="page to ask for; {port} and the like are filled in")] = "http://{address}:{port}/"
    method: Annotated[str, Meta(pattern="^[A-Z]+$", description="HTTP method")] = "GET"
    status: Annotated[tuple[int | str, ...], Meta(min_length=1, description='healthy: statuses and ranges such as "200-399"')] = (
        "200-299",
    )
    contains: Annotated[str, Meta(description="text that the body must hold")] = ""
    headers: Annotated[Mapping[str, str], Meta(description="headers to send")] = {}
    source_ip: Annotated[str, Meta(description="address to ask from: a gate may let one through, such as 127.0.0.2")] = ""
    verify: Annotated[bool, Meta(description="check the certificate of an https server")] = True
    max_body: Annotated[Size, Meta(description="how much of the body to search for `contains`")] = Size("1MB")

    def __post_init__(self) -> None:
        """Refuse a status that is neither a number nor a range."""
        for status in self.status:
            _bounds(status)


class HttpProbe(Probe[HttpOptions]):
    """Call an instance healthy when it answers a request as it should.

    Redirects are not followed: a 302 is a 302. Proxies are not used, whatever the environment of the agent says.
    """

    name = "http"

    def check(self, call: InstanceCall) -> Verdict:
        """Ask once."""
        import http.client
        import ssl

        timeout = min(self.options.timeout, call.timeout)
        deadline = time.monotonic() + timeout
        try:
            return self._ask(call, timeout)
        except http.client.InvalidURL as error:
            return Verdict.unknown(f"cannot ask: {error}")
        except (http.client.HTTPException, ssl.SSLError, ConnectionError) as error:
            # A connection that we hung up on breaks in any of these ways.
            late = time.monotonic() >= deadline
            return Verdict.unhealthy(f"no whole answer in {timeout:g} s" if late else f"no answer: {_words(error)}")
        except (ConfigError, OSError) as error:
            return verdict_of(error, timeout)
        except ValueError as error:
            # http.client and ssl refuse a URL, a header or an address that cannot be.
            return Verdict.unknown(f"cannot ask {self.options.url}: {error}")

    def _ask(self, call: InstanceCall, timeout: float) -> Verdict:
        import threading

        connection, path = self._connection(call, timeout)
        headers = {"User-Agent": "deployd", "Connection": "close"}
        headers |= {name: call.expand(value) for name, value in self.options.headers.items()}
        deadline = time.monotonic() + timeout
        # The time limit of a socket is per wait: one byte now and then would keep us here for ever.
        timer = threading.Timer(deadline - time.monotonic(), _hang_up, (connection.sock,))
        timer.daemon = True
        timer.start()
        try:
            connection.request(self.options.method, path, headers=headers)
            return self._judge(connection.getresponse())
        finally:
            timer.cancel()
            connection.close()

    def _judge(self, response: http.client.HTTPResponse) -> Verdict:
        if not any(low <= response.status <= high for low, high in map(_bounds, self.options.status)):
            return Verdict.unhealthy(f"answered {response.status} {response.reason}".strip())
        if not self.options.contains:
            return Verdict.healthy(f"answered {response.status}")
        if self.options.contains.encode() not in response.read(self.options.max_body):
            return Verdict.unhealthy(f"answered {response.status}, but without {self.options.contains!r}")
        return Verdict.healthy(f"answered {response.status} with {self.options.contains!r}")

    def _connection(self, call: InstanceCall, timeout: float) -> tuple[http.client.HTTPConnection, str]:
        import http.client
        import ssl
        from urllib.parse import urlsplit

        url = self.options.url
        if ":" in call.address:
            url = url.replace("://{address}", "://[{address}]")  # how a URL holds an IPv6 address
        url = call.expand(url)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no http or https URL")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = http.client.HTTPConnection(
            parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), timeout=timeout
        )
        connection.sock = call.connect(connection.host, connection.port, timeout, source=self.options.source_ip)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            if not self.options.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        return connection, path


def _bounds(status: int | str) -> tuple[int, int]:
    """The lowest and highest status of ``200`` or ``"200-399"``.

    Raises:
        ValueError: It is neither.
    """
    low, dash, high = str(status).partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise ValueError(f"status {status!r} must be a number such as 200 or a range such as '200-399'")
    return int(low), int(high or low)


def _hang_up(connection: socket.socket) -> None:
    import contextlib
    import socket

    with contextlib.suppress(OSError):
        # Not SSLSocket's own shutdown: it would forget that there is TLS while another thread reads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@hookimpl
def deployd_probes() -> list[type]:
    """The probe of this module."""
    return [HttpProbe]
