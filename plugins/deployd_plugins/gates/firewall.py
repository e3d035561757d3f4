"""What the gates have in common that work at the host's own firewall: options, and counting connections. Not a gate itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from deployd_core.api import ConfigError, Connections, Duration, Gate, HostCall, InstanceCall, Meta, Options, Passing

if TYPE_CHECKING:
    from deployd_plugins.gates.sockets import Query

IPV4, IPV6 = 4, 6


class FirewallOptions(Options, frozen=True, kw_only=True):
    """Who passes a closed gate, and which connections are a client's."""

    bypass_source: Annotated[str, Meta(description="IPv4 address that passes a closed gate: the probe's source_ip")] = "127.0.0.2"
    mark: Annotated[
        int, Meta(ge=1, le=0xFFFFFFFF, description="socket mark (SO_MARK) that passes a closed gate, over IPv4 and IPv6")
    ] = 0xDEB
    address: Annotated[
        str, Meta(description="close the port on this address alone; {address} is the one in agent.toml; empty: on every address")
    ] = ""
    ipv6: Annotated[Literal["auto", "off"], Meta(description="auto: close IPv6 too when the host has it; off: IPv4 alone")] = "auto"
    idle_after: Annotated[
        Duration,
        Meta(
            description="a connection silent for so long after an answer may be closed; longer than any pause in an answer that is "
            "streamed, and than any request that shares a connection (HTTP/2)"
        ),
    ] = Duration("1s")

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        import ipaddress

        try:
            ipaddress.IPv4Address(self.bypass_source)
        except ValueError:
            raise ValueError(f"bypass_source {self.bypass_source!r} is no IPv4 address") from None
        if self.address not in ("", "{address}"):
            try:
                ipaddress.ip_address(self.address)
            except ValueError:
                raise ValueError(f"address {self.address!r} is no IP address") from None


OptionsT = TypeVar("OptionsT", bound=FirewallOptions)


class FirewallGate(Gate[OptionsT]):
    """Counts connections in the kernel, which sees those of every balancer and of clients that come directly."""

    def passing(self) -> Passing:
        """By the source and the mark that the rules let through."""
        return Passing(source=self.options.bypass_source, mark=self.options.mark)

    def connections(self, call: InstanceCall) -> Connections:
        """Count what clients have open to the instance's port."""
        from deployd_plugins.gates import sockets

        return sockets.count(self._query(call))

    def close_idle(self, call: InstanceCall) -> int:
        """Reset what has been idle for `idle_after`, so that no request can be on its way into it."""
        from deployd_plugins.gates import sockets

        closed = sockets.close_idle(self._query(call))
        if closed is None:
            self._say_once(
                "this kernel cannot close connections (CONFIG_INET_DIAG_DESTROY): drains wait until clients close theirs"
            )
        return closed or 0

    def _query(self, call: InstanceCall) -> Query:
        from deployd_plugins.gates.sockets import Query

        return Query(
            port=port_of(call),
            address=self._address(call),
            passing_source=self.options.bypass_source,
            passing_mark=self.options.mark,
            idle_after=round(self.options.idle_after * 1000),
        )

    def _address(self, call: HostCall) -> str:
        """The one address whose traffic is meant, or empty.

        Raises:
            ConfigError: It is none.
        """
        import ipaddress

        address = self.options.address.replace("{address}", call.address)
        try:
            return str(ipaddress.ip_address(address)) if address else ""
        except ValueError as error:
            raise ConfigError(
                f"the gate's address {address!r} is no IP address", hint="set `address` of agent.toml to one"
            ) from error

    def _families(self, address: str) -> tuple[int, ...]:
        """Which families are to be closed; IPv6 first: where it cannot be, nothing is closed by half."""
        if address:
            return (IPV6,) if ":" in address else (IPV4,)
        return (IPV6, IPV4) if self.options.ipv6 == "auto" and has_ipv6() else (IPV4,)

    def _say_once(self, words: str) -> None:
        import logging

        if words not in _SAID:
            _SAID.add(words)
            logging.getLogger(__name__).warning(words)


_SAID: set[str] = set()
"""What need not be said again in this process."""


def has_ipv6() -> bool:
    """Whether any interface of the host has an IPv6 address."""
    try:
        return bool(Path("/proc/net/if_inet6").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False


def port_of(call: InstanceCall) -> int:
    """The port whose traffic is turned off.

    Raises:
        ConfigError: The instance has none.
    """
    if call.instance.port is None:
        raise ConfigError(f"{call.instance.name} has no port whose traffic could be turned off", hint="name it NAME@PORT")
    return call.instance.port
