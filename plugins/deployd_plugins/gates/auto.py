"""The `auto` gate: iptables or nftables, whichever this host really uses."""

from __future__ import annotations

from typing import Any

from deployd_core.api import (
    ClosedGate,
    ConfigError,
    Connections,
    Gate,
    GateCall,
    HostCall,
    InstanceCall,
    Passing,
    hookimpl,
)
from deployd_plugins.gates import iptables, nftables
from deployd_plugins.gates.firewall import FirewallOptions, has_ipv6
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions


class AutoOptions(FirewallOptions, frozen=True, kw_only=True):
    """What both gates understand."""


class AutoGate(Gate[AutoOptions]):
    """Turn traffic off by iptables or by nftables: by what the host already uses, as `deployd doctor` explains.

    Whichever holds leases of ours; else the one that has rules of others; where both or neither have, the one that the host's
    `iptables` command is; else the one that works. Chosen once per service and agent. Both take effect beside each other, so the
    choice is about where people look.
    """

    name = "auto"

    def __init__(self, options: AutoOptions) -> None:
        super().__init__(options)
        self._choice: tuple[Gate[Any], str] | None = None

    def close(self, call: GateCall) -> None:
        """See the gate that was chosen."""
        self._chosen()[0].close(call)

    def open(self, call: InstanceCall) -> None:
        """See the gate that was chosen."""
        self._chosen()[0].open(call)

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """See the gate that was chosen."""
        return self._chosen()[0].closed(call)

    def passing(self) -> Passing:
        """By the source and the mark that the rules let through."""
        return Passing(source=self.options.bypass_source, mark=self.options.mark)

    def connections(self, call: InstanceCall) -> Connections:
        """Counted in the kernel, whichever was chosen."""
        return self._chosen()[0].connections(call)

    def close_idle(self, call: InstanceCall) -> int:
        """Closed by the kernel, whichever was chosen."""
        return self._chosen()[0].close_idle(call)

    def explain(self, call: HostCall) -> str:
        """Say which was chosen, why, and how it works."""
        gate, why = self._chosen()
        return f"{gate.name}, because {why}. {gate.explain(call)}"

    def preview(self, call: GateCall) -> tuple[str, ...]:
        """See the gate that was chosen."""
        return self._chosen()[0].preview(call)

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """What either has closed; each has a name of its own, is asked by it too, and says itself why it cannot be used."""
        try:
            return self._chosen()[0].closed_everywhere()
        except ConfigError:
            return ()

    def clear(
        self, service: str | None = None, instance: str | None = None, *, expired_only: bool = False
    ) -> tuple[ClosedGate, ...]:
        """See the gate that was chosen."""
        return self._chosen()[0].clear(service, instance, expired_only=expired_only)

    def _chosen(self) -> tuple[Gate[Any], str]:
        if self._choice is None:
            self._choice = self._choose()
        return self._choice

    def _choose(self) -> tuple[Gate[Any], str]:
        """The gate and why.

        Raises:
            ConfigError: Neither works here.
        """
        fields = {name: getattr(self.options, name) for name in self.options.__struct_fields__}
        legacy, modern = IptablesGate(IptablesOptions(**fields)), NftablesGate(NftablesOptions(**fields))
        no_legacy, no_modern = iptables.usable(ipv6=self.options.ipv6 == "auto" and has_ipv6()), nftables.usable()
        if no_legacy and no_modern:
            raise ConfigError(
                f"neither iptables nor nftables can be used on this host: {no_legacy}; {no_modern}",
                hint="run the agent as root, and apt install nftables; or use another gate, such as haproxy",
            )
        if no_legacy or no_modern:
            gate: Gate[Any] = modern if no_legacy else legacy
            return gate, f"{'iptables' if no_legacy else 'nftables'} cannot be used here ({no_legacy or no_modern})"
        for gate in (legacy, modern):
            if gate.closed_everywhere():
                return gate, "it holds leases of ours already"
        return _by_use(legacy, modern)


def _by_use(legacy: Gate[Any], modern: Gate[Any]) -> tuple[Gate[Any], str]:
    in_legacy, in_modern = iptables.in_use(), nftables.in_use()
    if in_legacy != in_modern:
        if in_legacy:
            return legacy, "the legacy tables of iptables have rules, and nftables has none"
        return modern, "nftables has tables, and the legacy tables of iptables have no rules"
    both = "both iptables (legacy) and nftables have rules" if in_legacy else "neither iptables (legacy) nor nftables has rules"
    command = iptables.command()
    if command == "legacy":
        return legacy, f"{both}, and the command iptables works on the legacy tables"
    return modern, f"{both}, and " + (
        "the command iptables works on nftables" if command == "nft" else "there is no command iptables"
    )


@hookimpl
def deployd_gates() -> list[type]:
    """The gate of this module."""
    return [AutoGate]
