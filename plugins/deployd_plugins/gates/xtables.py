"""Tables of iptables as libiptc shows them, and changes to them that one commit makes. Not a gate itself.

Never autocommit: one refresh, edits, one commit. Rules are handed over as raw entries, for `Chain.insert_rule` swaps file
descriptor 1 for a moment. The tables that exist are pinned, else asking for the target of one rule opens, and so registers, every
table. Foreign rules are never parsed: libiptc gives them back to the kernel as it got them.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from errno import EAGAIN
from typing import Any, NamedTuple

from deployd_core.api import ClosedGate
from deployd_plugins.gates import leases
from deployd_plugins.gates.firewall import IPV4, IPV6

CHAIN = "deployd"
PROGRAMS = {IPV4: "iptables", IPV6: "ip6tables"}

_JUMPS = {"filter": ("INPUT",), "nat": ("PREROUTING", "OUTPUT")}
_PORTS_GIVEN = 2
_SYN = ("FIN,SYN,RST,ACK", "SYN")
_DATE_STOP = 32 + 4
"""Where in a match of `time` its last second stands: behind its header and the first second."""

Chosen = Callable[[ClosedGate], bool]


def table_of(mode: str) -> str:
    """The table in which a rule of that mode stands."""
    return "nat" if mode == "redirect" else "filter"


class Rule(NamedTuple):
    """What closes one instance, in one family."""

    family: int
    mode: str
    port: int
    address: str
    source: str
    mark: int
    until: int
    comment: str
    unused_port: int

    def in_words(self) -> list[str]:
        """As iptables would be told."""
        program, table = f"{PROGRAMS[self.family]}-legacy", table_of(self.mode)
        prefix = program if table == "filter" else f"{program} -t {table}"
        local = " -m addrtype --dst-type LOCAL" if table == "nat" else ""
        jumps = [f"{prefix} -I {chain} -p tcp{local} -m tcp --tcp-flags {' '.join(_SYN)} -j {CHAIN}" for chain in _JUMPS[table]]
        target = {
            "reject": "REJECT --reject-with tcp-reset",
            "redirect": f"REDIRECT --to-ports {self.unused_port}",
            "hold": "DROP",
        }[self.mode]
        passing = (f"! -s {self.source}/32 " if self.source else "") + (f"-d {self.address} " if self.address else "")
        rule = (
            f"{prefix} -A {CHAIN} {passing}-p tcp -m tcp --dport {self.port} --tcp-flags {' '.join(_SYN)} "
            f"-m mark ! --mark {self.mark:#x} -m time --datestop {self.last_second} "
            f'-m comment --comment "{self.comment}" -j {target}'
        )
        return [f"{prefix} -N {CHAIN}", *jumps, rule]

    @property
    def last_second(self) -> str:
        """The last second of the lease, as a date of UTC: the kernel matches until its end."""
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.until - 1))

    def raw(self, iptc: Any) -> Any:
        """The entry that the kernel is given."""
        rule = _syn_rule(iptc, self.family, dport=str(self.port))
        if self.source:
            rule.src = f"!{self.source}"
        if self.address:
            rule.dst = self.address
        rule.create_match("mark").mark = f"!{self.mark:#x}"
        # Not by its option, which libxtables reads after it has put this whole process into UTC, for good.
        struct.pack_into("=I", rule.create_match("time").match_buf, _DATE_STOP, self.until - 1)
        rule.create_match("comment").comment = self.comment
        if self.mode == "redirect":
            return _redirected(rule, self.family, self.unused_port)
        if self.mode == "hold":
            rule.create_target("DROP")
        else:
            rule.create_target("REJECT").reject_with = "tcp-reset"
        return rule.rule


class Found(NamedTuple):
    """A rule of ours."""

    number: int
    lease: ClosedGate
    family: int
    jump: int
    """Where the jump to it stands in its chain: 1 is the top, 0 is nowhere, 2 is further down."""


class Table:
    """One table as it is now, and changes to it that one commit makes. Only under the locks."""

    def __init__(self, iptc: Any, family: int, name: str) -> None:
        kind = iptc.Table if family == IPV4 else iptc.Table6
        for known in kind.ALL:
            kind.existing_table_names[known] = known == name
        self._iptc, self._family, self._name = iptc, family, name
        self._table = kind(name, False)
        self._table.refresh()

    def found(self) -> list[Found]:
        """Our rules. Other people's are not looked at."""
        if not self._table.is_chain(CHAIN):
            return []
        jump = max((self._jump(chain) for chain in _JUMPS[self._name]), key=lambda place: (place == 0, place))
        rules = []
        for number, entry in enumerate(self._entries(CHAIN)):
            raw = ctypes.string_at(ctypes.addressof(entry), entry.target_offset)
            lease = leases.parse(_comment(raw[ctypes.sizeof(type(entry)) :]))
            if lease is not None:
                rules.append(Found(number, lease, self._family, jump))
        return rules

    def edit(self, drop: Chosen, rule: Rule | None) -> tuple[ClosedGate, ...]:
        """Take rules out and put one in; the chain and its jump come with the first and go with the last."""
        rules = self.found()
        dropped = [found for found in rules if drop(found.lease)]
        for found in reversed(dropped):
            self._delete(CHAIN, found.number)
        if rule is not None:
            self._ensure_jumps()
            self._table.append_entry(CHAIN, rule.raw(self._iptc))
        elif self._table.is_chain(CHAIN) and not any(self._entries(CHAIN)):
            self._remove_jumps()
            self._table.delete_chain(CHAIN)
        return tuple(found.lease for found in dropped)

    def commit(self) -> bool:
        """Swap the table for the edited one; False when somebody changed it since it was read."""
        try:
            self._table.commit()
        except self._iptc.IPTCError as error:
            if os.strerror(EAGAIN) in str(error):
                return False
            raise
        return True

    def has(self, rule: Rule | None, drop: Chosen) -> bool:
        """Whether the kernel really has the rule, and none that was to go."""
        rules = self.found()
        if rule is None:
            return not any(drop(found.lease) for found in rules)
        return [found.jump for found in rules if found.lease == leases.parse(rule.comment)] == [1]

    def has_others(self) -> bool:
        """Whether there is a chain or a rule that is not ours."""
        for chain in self._table.chains:
            if chain.name == CHAIN:
                continue
            if not self._table.builtin_chain(chain.name):
                return True
            if any(self._table.get_target(entry) != CHAIN.encode() for entry in self._entries(chain.name)):
                return True
        return False

    def _entries(self, chain: str) -> Iterator[Any]:
        entry = self._table.first_rule(chain)
        while entry:
            yield entry
            entry = self._table.next_rule(entry)

    def _jump(self, chain: str) -> int:
        """Where the jump stands in a chain: 1 at its top, 2 further down, 0 nowhere."""
        first = self._table.first_rule(chain)
        if first and self._table.get_target(first) == CHAIN.encode():
            return 1
        if not self._references():
            return 0
        return 2 if any(self._table.get_target(entry) == CHAIN.encode() for entry in self._entries(chain)) else 0

    def _jump_to_us(self) -> Any:
        rule = _syn_rule(self._iptc, self._family)
        if self._name == "nat":
            # A connection from here to that port of another host is none of our business.
            rule.create_match("addrtype").dst_type = "LOCAL"
        rule.create_target(CHAIN)
        return rule.rule

    def _ensure_jumps(self) -> None:
        """Have every packet that opens a connection meet our chain before anything else."""
        if not self._table.is_chain(CHAIN):
            self._table.create_chain(CHAIN)
        elif all(self._jump(chain) == 1 for chain in _JUMPS[self._name]):
            return
        else:
            self._remove_jumps()
        for chain in _JUMPS[self._name]:
            self._table.insert_entry(chain, self._jump_to_us(), 0)

    def _remove_jumps(self) -> None:
        """Remove every jump to our chain; where all stand at the top, without a walk through the rules of others."""
        target = CHAIN.encode()
        for chain in _JUMPS[self._name]:
            first = self._table.first_rule(chain)
            if first and self._table.get_target(first) == target:
                self._delete(chain, 0)
        for chain in _JUMPS[self._name] if self._references() else ():
            numbers = [number for number, entry in enumerate(self._entries(chain)) if self._table.get_target(entry) == target]
            for number in reversed(numbers):
                self._delete(chain, number)

    def _references(self) -> int:
        """How many jumps to our chain there are."""
        count, table = ctypes.c_uint(), self._table
        table._iptc.iptc_get_references(ctypes.byref(count), CHAIN.encode(), table._handle)  # noqa: SLF001
        return count.value

    def _delete(self, chain: str, number: int) -> None:
        # iptc deletes by comparing rules only; a rule that was read and appended again would lose its DROP.
        table = self._table
        if table._iptc.iptc_delete_num_entry(chain.encode(), number, table._handle) != 1:  # noqa: SLF001
            raise self._iptc.IPTCError(f"can't delete rule {number + 1} of chain {chain}: {table.strerror()}")


def _syn_rule(iptc: Any, family: int, **options: str) -> Any:
    """A rule about packets that open a connection."""
    rule = iptc.Rule() if family == IPV4 else iptc.Rule6()
    rule.protocol = "tcp"
    match = rule.create_match("tcp")
    for name, value in options.items():
        match.set_parameter(name, value)
    match.set_parameter("tcp-flags", _SYN)
    return rule


def _redirected(rule: Any, family: int, port: int) -> Any:
    """The entry of a rule, with REDIRECT for its target.

    Not by iptc: the library of REDIRECT registers its targets for the family alone that is in use when it is loaded, and ends the
    process when it is told to register them again.
    """
    rule.create_target("DROP")
    plain = bytes(rule.rule)[: rule.entry.target_offset]
    ports = struct.pack("!HH", port, port)
    if family == IPV4:  # nf_nat_ipv4_multi_range_compat
        data = struct.pack("=II8x", 1, _PORTS_GIVEN) + ports + bytes(4)
    else:  # nf_nat_range
        data = struct.pack("=I32x", _PORTS_GIVEN) + ports
    target = struct.pack("=H29sB", 32 + len(data), b"REDIRECT", 0) + data
    entry = (ctypes.c_ubyte * (len(plain) + len(target))).from_buffer_copy(plain + target)
    type(rule.entry).from_buffer(entry).next_offset = len(entry)
    return entry


def _comment(matches: bytes) -> str:
    """The comment among the matches of a raw rule; each begins with its size (2 bytes) and name (29), its data follow byte 32."""
    offset = 0
    while offset + 32 <= len(matches):
        (size,) = struct.unpack_from("=H", matches, offset)
        if matches[offset + 2 : offset + 31].split(b"\0", 1)[0] == b"comment":
            return matches[offset + 32 : offset + size].split(b"\0", 1)[0].decode(errors="replace")
        offset += max(size, 32)
    return ""
