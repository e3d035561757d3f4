"""The `iptables` gate: one rule per closed instance in a chain of our own, through libiptc.

This is the one module that imports `iptc`. Every change is: lock (libiptc takes none by itself), refresh, edit, one commit, and a
look at whether the kernel really has it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from deployd_core.api import ClosedGate, ConfigError, DeploydError, GateCall, HostCall, InstanceCall, Meta, Unavailable, hookimpl
from deployd_plugins.gates import leases
from deployd_plugins.gates.firewall import IPV4, IPV6, FirewallGate, FirewallOptions, port_of

if TYPE_CHECKING:
    from deployd_plugins.gates.xtables import Chosen, Found, Rule

_LOADED = {IPV4: Path("/proc/net/ip_tables_names"), IPV6: Path("/proc/net/ip6_tables_names")}
_LONGEST_COMMENT = 255
_TRIES = 5
_TIMEOUT = 10.0
"""Longest to wait for the lock, in seconds: whoever holds it for longer is stuck."""


class IptablesOptions(FirewallOptions, frozen=True, kw_only=True):
    """How traffic is turned off, and who passes."""

    mode: Annotated[
        Literal["auto", "reject", "redirect"],
        Meta(
            description="reject: new connections get a TCP reset; redirect: NAT sends them to a port where nothing listens (needs "
            "conntrack); auto: reject, and redirect only on a host that cannot reject"
        ),
    ] = "auto"
    unused_port: Annotated[int, Meta(ge=1, le=65535, description="port where nothing listens, for redirect")] = 1
    lock: Annotated[str, Meta(description="file that iptables locks while it changes tables")] = "/run/xtables.lock"


class IptablesGate(FirewallGate[IptablesOptions]):
    """Turn the traffic of an instance off by one rule of iptables (legacy tables), which expires by itself.

    The rule stands in the chain `deployd`, which one jump at the top of INPUT enters for SYNs alone: established connections go on
    and cost nothing. New ones are reset, or with `hold` dropped, so that clients try again a second later. Needs root, and the
    libraries of iptables.
    """

    name = "iptables"

    def close(self, call: GateCall) -> None:
        """Add the rule; one that is there is replaced in the same step, so that the gate is never open in between."""
        for family in self._families(self._address(call)):
            table = self._close(family, call)
            for other_family, other in _loaded_tables():
                if (other_family, other) == (family, "nat" if table == "filter" else "filter"):
                    self._change(family, other, call.timeout, _is(call))  # closed in another mode before

    def _close(self, family: int, call: GateCall) -> str:
        """Add the rule in the first mode that works here; says in which table."""
        *preferred, last = self._modes(call)
        for mode in preferred:
            with contextlib.suppress(_Unusable):
                return self._close_by(mode, family, call)
        return self._close_by(last, family, call)

    def _close_by(self, mode: str, family: int, call: GateCall) -> str:
        from deployd_plugins.gates import xtables

        table = xtables.table_of(mode)
        self._change(family, table, call.timeout, _is(call), self._rule(family, mode, call))
        return table

    def open(self, call: InstanceCall) -> None:
        """Remove the rule, and the chain with the last one."""
        for family, table in _loaded_tables():
            self._change(family, table, call.timeout, _is(call))

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """Read the comments of the rules in our chain.

        A gate that holds by half (somebody has flushed the rules of one family, or put others above our jump) is said to end now,
        so that it is closed again.
        """
        now, families = time.time(), set(self._families(self._address(call)))
        holding: dict[str, dict[int, ClosedGate]] = {}
        weak: dict[str, ClosedGate] = {}
        for found in _found():
            lease = found.lease
            if lease.service != call.service or leases.expired(lease, now) or found.jump == 0:
                continue
            if found.jump > 1:
                weak[lease.instance] = lease
            else:
                holding.setdefault(lease.instance, {})[found.family] = lease
        closed = []
        for name in {**weak, **holding}:
            held = holding.get(name, {})
            lease = next(iter(held.values()), None) or weak[name]
            until = min(one.until for one in held.values()) if families <= held.keys() else now
            closed.append(ClosedGate(service=lease.service, instance=name, owner=lease.owner, until=until))
        return tuple(closed)

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """Every rule of ours, of any service, whether its lease has run out or not."""
        return tuple({(found.lease.service, found.lease.instance): found.lease for found in _found()}.values())

    def clear(
        self, service: str | None = None, instance: str | None = None, *, expired_only: bool = False
    ) -> tuple[ClosedGate, ...]:
        """Remove rules of ours."""
        now = time.time()
        removed: dict[tuple[str, str], ClosedGate] = {}

        def chosen(lease: ClosedGate) -> bool:
            return leases.selected(lease, service, instance, expired_only=expired_only, now=now)

        for family, table in _loaded_tables():
            for lease in self._change(family, table, _TIMEOUT, chosen):
                if chosen(lease):
                    removed[lease.service, lease.instance] = lease
        return tuple(removed.values())

    def explain(self, call: HostCall) -> str:
        """Say how, after a look at the tables."""
        from deployd_plugins.gates import xtables

        families = self._families(self._address(call))
        for family in families:
            with _libiptc(family) as iptc:
                xtables.Table(iptc, family, "nat" if self.options.mode == "redirect" else "filter")
        how = "new connections are reset"
        if self.options.mode == "redirect":
            how = f"new connections are redirected to port {self.options.unused_port}, where nothing listens"
        elif self.options.mode == "auto":
            how += " (reject; redirect only where that cannot be)"
        which = " and ".join(f"IPv{family}" for family in sorted(families))
        return f"iptables, legacy tables, {which}: {how}; {self.options.bypass_source} and mark {self.options.mark:#x} pass"

    def preview(self, call: GateCall) -> tuple[str, ...]:
        """The commands that would do the same."""
        lines: list[str] = []
        for family in sorted(self._families(self._address(call))):
            lines += self._rule(family, self._modes(call)[0], call).in_words()
        return tuple(lines)

    def _modes(self, call: GateCall) -> tuple[str, ...]:
        if call.hold:
            return ("hold",)
        return ("reject", "redirect") if self.options.mode == "auto" else (self.options.mode,)

    def _rule(self, family: int, mode: str, call: GateCall) -> Rule:
        from deployd_plugins.gates import xtables

        return xtables.Rule(
            family=family,
            mode=mode,
            port=port_of(call),
            address=self._address(call),
            source=self.options.bypass_source if family == IPV4 else "",
            mark=self.options.mark,
            until=leases.ends_at(call),
            comment=leases.comment_for(call, _LONGEST_COMMENT),
            unused_port=self.options.unused_port,
        )

    def _change(self, family: int, table: str, timeout: float, drop: Chosen, rule: Rule | None = None) -> tuple[ClosedGate, ...]:
        """Drop rules of ours and add one, in one commit; leases that have run out go with them. Returns what was dropped.

        Raises:
            ConfigError: This host or user cannot; `_Unusable` when the rule asks for what the kernel lacks.
            Unavailable: Others keep changing the tables, or hold their lock.
        """
        from deployd_plugins.gates import xtables, xtables_lock

        if rule is not None and rule.mode == "redirect":
            _check_unused(rule.unused_port)
        dropped: tuple[ClosedGate, ...] = ()
        with xtables_lock.held(self.options.lock, min(timeout, _TIMEOUT)), _libiptc(family) as iptc:
            for _ in range(_TRIES):
                now = time.time()
                changing = xtables.Table(iptc, family, table)
                dropped = changing.edit(lambda lease, now=now: drop(lease) or leases.expired(lease, now), rule)  # type: ignore[misc]
                if (not dropped and rule is None) or (changing.commit() and xtables.Table(iptc, family, table).has(rule, drop)):
                    return dropped
        raise Unavailable(
            f"the {table} table of {xtables.PROGRAMS[family]} was changed by somebody else {_TRIES} times while we changed it",
            hint=f"a program rewrites it without taking {self.options.lock}: have it use iptables -w",
        )


def usable(*, ipv6: bool) -> str:
    """Why the legacy tables cannot be used on this host; empty when they can. Looks, and loads nothing."""
    try:
        list(_loaded_tables())
        _import()
    except ConfigError as error:
        return error.message
    for family in (IPV4, IPV6) if ipv6 else (IPV4,):
        if not _LOADED[family].exists():
            return f"this kernel has no legacy tables of iptables for IPv{family}, or has not loaded them"
    return ""


def in_use() -> bool:
    """Whether somebody else has rules in the legacy tables."""
    from deployd_plugins.gates import xtables

    for family, table in _loaded_tables():
        with _libiptc(family) as iptc:
            if xtables.Table(iptc, family, table).has_others():
                return True
    return False


def command() -> str:
    """What the host's command `iptables` works on: ``legacy``, ``nft``, or nothing when there is none."""
    import shutil

    found = shutil.which("iptables", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin")
    if found is None:
        return ""
    return "nft" if "nft" in Path(found).resolve().name else "legacy"


class _Unusable(ConfigError):
    """The kernel or the libraries lack what a rule is made of."""


def _is(call: InstanceCall) -> Chosen:
    return lambda lease: (lease.service, lease.instance) == (call.service, call.instance.name)


def _loaded_tables() -> Iterator[tuple[int, str]]:
    """The legacy tables of this host in which a rule of ours may stand; looking at another would load it."""
    for family, path in _LOADED.items():
        try:
            loaded = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise ConfigError("only root may look at the tables of iptables", hint="run the agent as root") from error
        yield from ((family, table) for table in ("filter", "nat") if table in loaded)


def _found() -> list[Found]:
    from deployd_plugins.gates import xtables

    found = []
    for family, table in _loaded_tables():
        with _libiptc(family) as iptc:
            found += xtables.Table(iptc, family, table).found()
    return found


def _check_unused(port: int) -> None:
    from deployd_plugins.gates import sockets

    if sockets.listens(port):
        raise ConfigError(f"unused_port = {port} is in use: clients would be sent to what listens there", hint="choose another")


@contextlib.contextmanager
def _libiptc(family: int) -> Iterator[Any]:
    """The library, for one thread at a time; what it raises comes out as an error of ours."""
    from deployd_plugins.gates import xtables_lock

    with xtables_lock.THREADS:
        iptc = _import()
        try:
            yield iptc
        except iptc.IPTCError as error:
            raise _refusal(family, str(error)) from error
        except iptc.XTablesError as error:
            raise _Unusable(
                f"a rule for IPv{family} cannot be made: {error}", hint="install the extensions of iptables: apt install iptables"
            ) from error


def _import() -> Any:
    try:
        import iptc
    except (ImportError, OSError, AttributeError) as error:
        # AttributeError: iptc goes on without the libraries that it has not found.
        raise ConfigError(
            f"python-iptables does not work here: {error}",
            hint='install what is missing: apt install iptables, pip install python-iptables; or use gate = "nftables"',
        ) from error
    return iptc


def _refusal(family: int, words: str) -> DeploydError:
    """What libiptc's words mean; it tells no error numbers."""
    if "must be root" in words:
        return ConfigError(
            "only root may change the tables of iptables", hint="run the agent as root, or with CAP_NET_ADMIN and CAP_NET_RAW"
        )
    if "Table does not exist" in words or "do you need to insmod" in words:
        return ConfigError(
            f"this kernel has no legacy tables of iptables for IPv{family}: {words}",
            hint='use gate = "nftables" or "auto"'
            + ('; ipv6 = "off" where instances listen on IPv4 alone' if family == IPV6 else ""),
        )
    if "match by that name" in words:
        return _Unusable(
            f"this kernel lacks something that the rule for IPv{family} needs (mark, time, comment, REJECT): {words}",
            hint='load what is missing with modprobe, or use gate = "nftables"',
        )
    return Unavailable(f"the tables of iptables for IPv{family} cannot be changed: {words}")


@hookimpl
def deployd_gates() -> list[type]:
    """The gate of this module."""
    return [IptablesGate]
