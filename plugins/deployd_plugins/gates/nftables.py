"""The `nftables` gate: elements of sets in a table of our own, which the kernel takes out when their time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from deployd_core.api import ClosedGate, DeploydError, GateCall, HostCall, InstanceCall, Unavailable, hookimpl
from deployd_plugins.gates import leases
from deployd_plugins.gates.firewall import IPV4, FirewallGate, FirewallOptions, port_of

TABLE = "inet deployd"

_LONGEST_COMMENT = 127
_TRIES = 5
_KEYS = {
    "port": ("nf_proto . inet_service", "meta nfproto . tcp dport"),
    "address4": ("ipv4_addr . inet_service", "ip daddr . tcp dport"),
    "address6": ("ipv6_addr . inet_service", "ip6 daddr . tcp dport"),
    "source": ("ipv4_addr . inet_service", "ip saddr . tcp dport"),
    "source_address4": ("ipv4_addr . ipv4_addr . inet_service", "ip saddr . ip daddr . tcp dport"),
    "mark": ("mark . inet_service", "meta mark . tcp dport"),
    "mark_address4": ("mark . ipv4_addr . inet_service", "meta mark . ip daddr . tcp dport"),
    "mark_address6": ("mark . ipv6_addr . inet_service", "meta mark . ip6 daddr . tcp dport"),
}
"""What a set holds, and what of a packet is looked up in it."""
_VERDICTS = {"pass": "return", "reject": "reject with tcp reset", "hold": "drop"}
_SETS = (
    *(f"pass_{key}" for key in ("source", "source_address4", "mark", "mark_address4", "mark_address6")),
    *(f"{verdict}_{key}" for verdict in ("reject", "hold") for key in ("port", "address4", "address6")),
)


class NftablesOptions(FirewallOptions, frozen=True, kw_only=True):
    """Who passes."""


class NftablesGate(FirewallGate[NftablesOptions]):
    """Turn the traffic of an instance off by an element in a set of nftables, with a timeout of its own.

    The table `inet deployd` hooks into input shortly before the filters of others and looks at SYNs alone: established connections
    go on. New ones are reset, or with `hold` dropped, so that clients try again a second later. Needs root, and libnftables.
    """

    name = "nftables"

    def close(self, call: GateCall) -> None:
        """Add the element, or replace it in one transaction, so that the gate is never open in between."""
        same, wanted = _is(call), list(self._elements(call))
        for _ in range(_TRIES):
            state = _State.read()
            old = [element for element in state.elements if same(element.lease)]
            parts = [] if state.whole else [_SETUP]
            parts += [element.removed() for element in {*old, *wanted}]
            parts += [element.added(leases.ends_at(call)) for element in wanted]
            _run("".join(parts))
            state = _State.read()
            if state.whole and set(wanted) <= set(state.elements):
                return
        raise Unavailable(
            f"table {TABLE} of nftables was changed by somebody else {_TRIES} times while we changed it",
            hint="`nft monitor` shows who does",
        )

    def open(self, call: InstanceCall) -> None:
        """Remove the element."""
        _remove(_is(call))

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """List what is in the sets; a gate that is closed in one family alone is said to end now, so that it is closed again."""
        now, state = time.time(), _State.read()
        if not state.whole:
            return ()
        keys: dict[str, list[_Element]] = {}
        for element in state.elements:
            if element.lease.service == call.service and not element.set.startswith("pass"):
                keys.setdefault(element.lease.instance, []).append(element)
        expected = len(self._families(self._address(call)))
        return tuple(
            found[0].lease
            if len(found) >= expected
            else ClosedGate(service=call.service, instance=name, owner=found[0].lease.owner, until=now)
            for name, found in keys.items()
        )

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """Every lease of any service; the kernel has taken out those that have run out."""
        return _leases(_State.read().elements)

    def clear(
        self, service: str | None = None, instance: str | None = None, *, expired_only: bool = False
    ) -> tuple[ClosedGate, ...]:
        """Remove elements of ours; all of them with the whole table."""
        if expired_only:
            return ()
        if service is None and instance is None:
            state = _State.read()
            if state.exists:
                _run(f"add table {TABLE}\ndelete table {TABLE}\n")
            return _leases(state.elements)
        now = time.time()
        return _leases(_remove(lambda lease: leases.selected(lease, service, instance, expired_only=False, now=now)))

    def explain(self, call: HostCall) -> str:
        """Say how, after a look at the tables."""
        _State.read()
        which = " and ".join(f"IPv{family}" for family in sorted(self._families(self._address(call))))
        passing = f"{self.options.bypass_source} and mark {self.options.mark:#x} pass"
        return f"nftables, table {TABLE}, {which}: new connections are reset; {passing}"

    def preview(self, call: GateCall) -> tuple[str, ...]:
        """The commands that would do the same, once the table is there."""
        return tuple(f"nft {element.added(leases.ends_at(call)).strip()!r}" for element in self._elements(call))

    def _elements(self, call: GateCall) -> Iterator[_Element]:
        port, address, verdict = port_of(call), self._address(call), "hold" if call.hold else "reject"
        lease = leases.parse(leases.comment_for(call, _LONGEST_COMMENT))
        assert lease is not None
        source, mark = self.options.bypass_source, f"{self.options.mark:#010x}"
        if address:
            # Another service may listen on that port of another address: what passes must not go when its gate opens.
            [family] = self._families(address)
            if family == IPV4:
                yield _Element("pass_source_address4", f"{source} . {address} . {port}", lease)
            yield _Element(f"pass_mark_address{family}", f"{mark} . {address} . {port}", lease)
            yield _Element(f"{verdict}_address{family}", f"{address} . {port}", lease)
            return
        yield _Element("pass_source", f"{source} . {port}", lease)
        yield _Element("pass_mark", f"{mark} . {port}", lease)
        for family in self._families(address):
            yield _Element(f"{verdict}_port", f"ipv{family} . {port}", lease)


def usable() -> str:
    """Why nftables cannot be used on this host; empty when it can."""
    try:
        _State.read()
    except DeploydError as error:
        return error.message
    return ""


def in_use() -> bool:
    """Whether somebody else has tables in nftables; the command `iptables` of most systems makes some."""
    from deployd_plugins.gates import libnftables

    listed = [item["table"] for item in libnftables.run("list tables\n")]
    return any(f"{table['family']} {table['name']}" != TABLE for table in listed)


class _Element(NamedTuple):
    """An element of one of our sets."""

    set: str
    key: str
    lease: ClosedGate

    def removed(self) -> str:
        """Commands that take it out, whether it is there or its time has just run out."""
        named = f"element {TABLE} {self.set} {{ {self.key} }}\n"
        return f"add {named}delete {named}"

    def added(self, until: int) -> str:
        """The command that puts it in."""
        left = max(1, round((until - time.time()) * 1000))
        comment = leases.comment_of(self.lease)
        return f'add element {TABLE} {self.set} {{ {self.key} timeout {left}ms comment "{comment}" }}\n'


class _State(NamedTuple):
    """Our table as it is now."""

    exists: bool
    whole: bool
    """Whether it has all its rules: somebody may have flushed them."""
    elements: list[_Element]

    @classmethod
    def read(cls) -> _State:
        from deployd_plugins.gates import libnftables

        try:
            listed = libnftables.run(f"list table {TABLE}\n")
        except libnftables.NoSuchTable:
            return cls(exists=False, whole=False, elements=[])
        rules = sum("rule" in item for item in listed)
        elements = [element for item in listed if "set" in item for element in _elements_of(item["set"])]
        return cls(exists=True, whole=rules == _RULES, elements=elements)


def _elements_of(found: dict[str, Any]) -> Iterator[_Element]:
    for item in found.get("elem", []):
        element = item.get("elem") if isinstance(item, dict) else None
        lease = leases.parse(element.get("comment", "")) if element else None
        if element and lease is not None:
            key = element["val"]["concat"] if isinstance(element["val"], dict) else [element["val"]]
            if found["name"].startswith("pass_mark"):
                key[0] = f"{int(key[0]):#010x}"
            yield _Element(found["name"], " . ".join(map(str, key)), lease)


def _remove(chosen: Callable[[ClosedGate], bool]) -> list[_Element]:
    found = [element for element in _State.read().elements if chosen(element.lease)]
    if found:
        _run("".join(element.removed() for element in found))
    return found


def _leases(elements: Iterable[_Element]) -> tuple[ClosedGate, ...]:
    return tuple({(element.lease.service, element.lease.instance): element.lease for element in elements}.values())


def _is(call: InstanceCall) -> Callable[[ClosedGate], bool]:
    return lambda lease: (lease.service, lease.instance) == (call.service, call.instance.name)


def _run(commands: str) -> None:
    from deployd_plugins.gates import libnftables

    try:
        libnftables.run(commands)
    except libnftables.NoSuchTable as error:
        raise Unavailable(f"somebody else has just removed table {TABLE}: {error}", hint="it is made again next time") from error


def _setup() -> str:
    """Commands that make the table, whatever of it is there, without touching the elements of its sets."""
    syn = "tcp flags & (fin|syn|rst|ack) == syn"
    lines = [f"add table {TABLE}"]
    lines += [f"add set {TABLE} {name} {{ type {_KEYS[name.partition('_')[2]][0]}; flags timeout; }}" for name in _SETS]
    lines += [
        f"add chain {TABLE} input {{ type filter hook input priority filter - 5; policy accept; }}",
        f"add chain {TABLE} new",
        f"flush chain {TABLE} input",
        f"flush chain {TABLE} new",
        f"add rule {TABLE} input {syn} jump new",
    ]
    for name in _SETS:
        verdict, _, key = name.partition("_")
        lines.append(f"add rule {TABLE} new {_KEYS[key][1]} @{name} {_VERDICTS[verdict]}")
    return "\n".join(lines) + "\n"


_SETUP = _setup()
_RULES = 1 + len(_SETS)


@hookimpl
def deployd_gates() -> list[type]:
    """The gate of this module."""
    return [NftablesGate]
