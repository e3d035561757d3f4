"""The `tcp` probe: connects to an instance."""

from __future__ import annotations

from typing import Annotated

from deployd_core.api import ConfigError, InstanceCall, Meta, Probe, ProbeOptions, Verdict, hookimpl
from deployd_plugins.probes.network import verdict_of


class TcpOptions(ProbeOptions, frozen=True, kw_only=True):
    """Where to connect."""

    host: Annotated[str, Meta(description="host name or address; {address} is the one in agent.toml")] = "{address}"
    port: Annotated[str, Meta(description="port; {port} is the instance's own")] = "{port}"
    source_ip: Annotated[str, Meta(description="address to connect from: a gate may let one through, such as 127.0.0.2")] = ""


class TcpProbe(Probe[TcpOptions]):
    """Call an instance healthy when it takes a connection.

    It may take connections long before it can answer a request; prefer the http probe where there is HTTP.
    """

    name = "tcp"

    def check(self, call: InstanceCall) -> Verdict:
        """Connect once."""
        timeout = min(self.options.timeout, call.timeout)
        try:
            address = (call.expand(self.options.host), _port(call.expand(self.options.port)))
            with call.connect(*address, timeout, source=self.options.source_ip) as connection:
                if connection.getsockname() == connection.getpeername():
                    # Linux may pick, for the connection to a free port, that very port to connect from: it then meets itself.
                    return Verdict.unhealthy("nothing listens")
        except (ConfigError, OSError) as error:
            return verdict_of(error, timeout)
        return Verdict.healthy(f"takes connections on port {address[1]}")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"port {text!r} is no port")
    return int(text)


@hookimpl
def deployd_probes() -> list[type]:
    """The probe of this module."""
    return [TcpProbe]
