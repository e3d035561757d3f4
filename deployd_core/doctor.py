"""Checks of a host: what is in order, what is not, and what to do about it. Changes nothing."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path

from msgspec import Struct

from deployd_core import drains, rollouts
from deployd_core.config import AgentConfig
from deployd_core.coordination import Membership, Snapshot
from deployd_core.errors import ConfigError, DeploydError
from deployd_core.plugins import Plugins, PluginState
from deployd_core.spec import ServiceSpec
from deployd_core.survey import Here, find
from deployd_core.zookeeper.session import Refused, Session

_XTABLES_LOCK = Path("/run/xtables.lock")
_LEGACY_TABLES = (("IPv4", Path("/proc/net/ip_tables_names")), ("IPv6", Path("/proc/net/ip6_tables_names")))
_UNSYNCHRONISED = 0x40
"""STA_UNSYNC of `adjtimex`."""
_NO_VERSION = 2**31 - 1
"""That no node has: a write that demands it is refused, for want of permission or, where there is that, for the version."""


class Verdict(Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"  # it works, and could be better
    FAIL = "fail"  # it does not work


class Check(Struct, frozen=True, kw_only=True):
    """One check."""

    name: str
    verdict: Verdict
    says: str
    hint: str = ""
    """What to do."""


class Host(Struct, frozen=True, kw_only=True):
    """What there is to check."""

    config: AgentConfig
    plugins: Plugins
    connect: Callable[[], AbstractContextManager[Session]]
    """Connects to ZooKeeper."""
    connect_root: str
    """Where that is, for messages."""


def examine(host: Host) -> Iterator[Check]:
    """Every check of a host, in the order in which things are needed."""
    yield from _plugins(host.plugins)
    yield _privileges()
    yield _clock()
    yield _firewall()
    yield from _xtables_lock(_XTABLES_LOCK)
    yield _agent(host.config)
    yield from _leases(host)
    if not host.config.services:
        yield Check(name="services", verdict=Verdict.WARN, says="agent.toml names no service", hint='services = ["web"]')
    yield from _zookeeper(host)


def _ok(name: str, says: str) -> Check:
    return Check(name=name, verdict=Verdict.OK, says=says)


def _failed(name: str, error: DeploydError) -> Check:
    return Check(name=name, verdict=Verdict.FAIL, says=error.message, hint=error.hint)


def _plugins(plugins: Plugins) -> Iterator[Check]:
    bad = [row for row in plugins.rows if row.state not in (PluginState.OK, PluginState.DISABLED)]
    for row in bad:
        hint = "deployd plugins list (a service that names it is blocked until it is mended)"
        yield Check(name="plugins", verdict=Verdict.FAIL, says=row.reason or f"{row.provider} is {row.state.value}", hint=hint)
    if not bad:
        yield _ok("plugins", f"all {len(plugins.rows)} can be used")


def _privileges() -> Check:
    if os.geteuid() == 0:
        return _ok("privileges", "run as root, as the agent is")
    return Check(
        name="privileges",
        verdict=Verdict.WARN,
        says="not run as root: firewalls and other users' processes are hidden from this check",
        hint="run it as the agent's user: sudo deployd doctor",
    )


def _clock() -> Check:
    """Whether the kernel's clock is kept right: leases of gates, times of status and history hang on it."""
    # struct timex, zeroed, for modes = 0 only asks; status is the int after modes, offset, freq, maxerror and esterror.
    buffer = (ctypes.c_byte * 256)()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except AttributeError:
        return Check(name="clock", verdict=Verdict.WARN, says="this system does not tell whether its clock is kept right")
    word = ctypes.sizeof(ctypes.c_long)
    status = ctypes.c_int.from_buffer(buffer, 5 * word).value
    if state < 0 or not status & _UNSYNCHRONISED:
        return _ok("clock", "synchronised" if state >= 0 else "may not be asked here")
    return Check(
        name="clock",
        verdict=Verdict.WARN,
        says="nothing keeps it right: leases of closed gates and times in ZooKeeper may be off",
        hint="run chrony or systemd-timesyncd",
    )


def _firewall() -> Check:
    tables = []
    for family, path in _LEGACY_TABLES:
        try:
            names = path.read_text(encoding="ascii").split()
        except PermissionError:
            tables.append(f"{family} hidden from this user")
            continue
        except OSError:
            continue
        tables.append(f"{family} {' '.join(sorted(names)) or 'no table loaded'}")
    legacy = f"legacy tables: {'; '.join(tables)}" if tables else "no legacy tables"
    nft = shutil.which("nft")
    iptables = shutil.which("iptables")
    kind = f"iptables is {Path(iptables).resolve().name}" if iptables else "no command iptables"
    return _ok("firewall", f"{legacy}; {kind}; {f'nft is {nft}' if nft else 'no command nft'}")


def _xtables_lock(path: Path) -> Iterator[Check]:
    """Whether somebody holds the lock that every writer of iptables takes."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield Check(
            name="xtables lock",
            verdict=Verdict.WARN,
            says=f"{path} is held by another program: gates of iptables wait for it",
            hint=f"who it is: fuser -v {path}",
        )
    except FileNotFoundError:
        return
    except OSError as error:
        yield Check(name="xtables lock", verdict=Verdict.WARN, says=f"{path} cannot be opened: {error.strerror}")
    else:
        yield _ok("xtables lock", f"{path} is free")


def _agent(config: AgentConfig) -> Check:
    path = Path(config.state_directory) / f"agent-{config.host}.lock"
    stopped = Check(
        name="agent",
        verdict=Verdict.WARN,
        says=f"no agent runs for host {config.host}",
        hint="start it: systemctl start deployd-agent",
    )
    pid = ""
    try:
        with path.open(encoding="utf-8") as file:
            pid = file.read().strip()
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _ok("agent", f"runs as pid {pid}")
    except FileNotFoundError:
        return stopped
    except OSError as error:
        return Check(name="agent", verdict=Verdict.WARN, says=f"{path} cannot be read: {error.strerror}")
    return stopped


def _leases(host: Host) -> Iterator[Check]:
    try:
        found = drains.list_closed(drains.gates(host.plugins, Path(host.config.state_directory)))
    except DeploydError as error:
        yield Check(name="closed gates", verdict=Verdict.WARN, says=f"cannot be listed: {error.message}", hint=error.hint)
        return
    stray = [one for one in found.closed if one.state is not drains.Lease.HELD]
    if stray:
        names = ", ".join(f"{one.lease.instance} ({one.state.value})" for one in stray)
        yield Check(name="closed gates", verdict=Verdict.WARN, says=f"no process stands for {names}", hint="deployd drains reap")
    elif found.problems:
        # Nothing closed was found, where it could be looked for: that is no good news.
        yield Check(name="closed gates", verdict=Verdict.WARN, says="; ".join(found.problems), hint="deployd drains list")
    else:
        held = ", ".join(one.lease.instance for one in found.closed)
        yield _ok("closed gates", f"{held}: held by a process that lives" if held else "none")


def _zookeeper(host: Host) -> Iterator[Check]:
    try:
        with host.connect() as session:
            yield _ok("zookeeper", f"answers at {host.connect_root}{', over TLS' if session.identity.ca else ', in plain text'}")
            yield _access(session)
            specs = {service: _spec_of(session, service) for service in host.config.services}
    except DeploydError as error:
        yield _failed("zookeeper", error)
        return
    for service, spec in specs.items():
        if isinstance(spec, Check):
            yield spec
        else:
            yield from _service(host, service, spec)


def _access(session: Session) -> Check:
    """Whether we may write, and whether others may who should not: asked of the chroot, since the nodes below are made alike."""
    name, identity, top = "access", session.identity, session.where("/")
    try:
        session.set("/", b"", _NO_VERSION)
    except Refused:
        pass  # for its version: so we may
    except ConfigError as error:
        return _failed(name, error)
    if identity.digest and session.open_to_all("/"):
        hint = "it was made without a user: see 'Users and TLS' in docs/agent.md"
        return Check(name=name, verdict=Verdict.WARN, says=f"{identity} may write {top}, and so may anybody", hint=hint)
    return _ok(name, f"{identity} may write {top}")


def _spec_of(session: Session, service: str) -> ServiceSpec | Check:
    name = f"service {service}"
    try:
        record = rollouts.read_service(session, service)
    except DeploydError as error:
        return _failed(name, error)
    if record.spec is None:
        return Check(
            name=name, verdict=Verdict.FAIL, says=record.problem or "has no spec", hint=f"deployd services apply {service}.toml"
        )
    return record.spec


def _service(host: Host, service: str, spec: ServiceSpec) -> Iterator[Check]:
    """Whether a spec can be carried out here."""
    name, config = f"service {service}", host.config
    membership = Membership(zone=config.zone)
    snapshot = Snapshot(service=service, host=config.host, spec=spec, membership=membership, enabled=None)
    try:
        here = find(service, snapshot, host.plugins, config)
    except DeploydError as error:
        yield _failed(name, error)
        return
    yield _ok(name, f"{len(here.setup.instances)} instances, strategy {spec.restart.strategy}, serves from {here.root}")
    yield _disk(name, here)
    yield from _gate(name, here)


def _disk(name: str, here: Here) -> Check:
    place = next(path for path in (here.root, *here.root.parents) if path.exists())
    free, reserve = shutil.disk_usage(place).free, here.setup.spec.service.reserve
    if here.disk.problem:
        return Check(name=f"{name}: disk", verdict=Verdict.FAIL, says=here.disk.problem)
    if not os.access(place, os.W_OK):
        return Check(name=f"{name}: disk", verdict=Verdict.FAIL, says=f"{place} cannot be written", hint="run the agent as root")
    if free < reserve:
        says = f"{free / 1e6:.0f} MB are free on {place}, less than the reserve of {reserve}"
        return Check(name=f"{name}: disk", verdict=Verdict.FAIL, says=says, hint="make room, or lower [service] reserve")
    return _ok(f"{name}: disk", f"{free / 1e9:.1f} GB are free on {place}")


def _gate(name: str, here: Here) -> Iterator[Check]:
    if here.setup.gate is None:
        return
    gate = here.setup.gate
    try:
        said = gate.call("explaining itself", lambda it: it.explain(here.host_call()))
    except DeploydError as error:
        # Without root it cannot look, which says nothing about the agent.
        verdict = Verdict.FAIL if os.geteuid() == 0 else Verdict.WARN
        yield Check(name=f"{name}: gate", verdict=verdict, says=f"{gate.name}: {error.message}", hint=error.hint)
    else:
        yield _ok(f"{name}: gate", said or gate.name)
