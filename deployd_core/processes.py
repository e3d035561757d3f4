"""What really runs: which build a process serves, and which process listens on a port.

A process serves a build when it lives in that release (its working directory or its executable resolves into it) and the release
was what `current` pointed at when the process started. Either half alone is fooled: gunicorn re-reads its directory on HUP and,
with ``--preload``, goes on serving the old code; a process that was started twice around a flip has two start times but one path.

Start times come from the kernel in seconds since boot (`CLOCK_BOOTTIME`), as those of flips do, so that a wall clock which is
set moves neither.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import psutil
from msgspec import Struct

from deployd_core.model import Flip, ProcessId

TOLERANCE = 0.05
"""Seconds around a flip in which a start time is taken for either build: the kernel tells it in steps of 10 ms, and a child is
forked a moment before it enters its directory."""

_DELETED = " (deleted)"


class Running(Struct, frozen=True, kw_only=True):
    """A process, and what is known of the build it serves."""

    process: ProcessId
    serves: str | None
    """The id of the build; None when that cannot be told."""
    why: str
    """The evidence, in words."""
    release: str | None = None
    """The build in whose release it lives, whatever it serves: its files are in use."""
    restarted_for: str = ""
    """The rollout that the last flip before it started was for, when that was a restart."""


class Place(Struct, frozen=True, kw_only=True):
    """Where a process lives, as the kernel says it: its working directory and its executable, resolved."""

    cwd: str | None
    """None when it may not be read."""
    exe: str | None
    """None when it may not be read, or there is none (a kernel thread)."""


def boot_id() -> str:
    """The id of this boot of the machine; start times and flips of different boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def inspect(pid: int, root: Path, flips: Sequence[Flip]) -> Running | None:
    """Say which build of the service in `root` a process serves; `flips` begin with the oldest. None: there is no such process."""
    process = process_id(pid)
    if process is None:
        return None
    place = Place(cwd=_link(pid, "cwd"), exe=_link(pid, "exe"))
    if process_id(pid) != process:
        # It ended while we looked, and what was read may be another's.
        return None
    boot = boot_id()
    serves, why = judge(process.started, place, root.resolve(), flips, boot)
    release, _ = _release_of(place, root.resolve())
    rollout = restarted_for(process.started, flips, boot)
    return Running(process=process, serves=serves, why=why, release=release, restarted_for=rollout)


def process_id(pid: int) -> ProcessId | None:
    """Who has this pid now; None when nobody has, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may itself hold blanks and parentheses: what follows the last one is fields 3, 4, ...
    fields = stat.rpartition(")")[2].split()
    state, ticks = fields[0], int(fields[19])
    if state in "ZXx":
        return None
    return ProcessId(pid=pid, started=ticks / os.sysconf("SC_CLK_TCK"))


def owner_here(host: str) -> str:
    """Names this very process, ``host/pid/start time``, so that what it leaves behind can be told from what another one holds."""
    me = process_id(os.getpid())
    return f"{host}/{os.getpid()}/{me.started if me else 0:.2f}"


def same_owner(one: str, other: str) -> bool:
    """Whether two names mean one process: where room is short, the name of the host is cut."""
    if one == other:
        return True
    (host, _, process), (other_host, _, other_process) = one.partition("/"), other.partition("/")
    return process == other_process and (host.startswith(other_host) or other_host.startswith(host))


def owner_lives(owner: str) -> bool:
    """Whether a process that `owner_here` named is still there, on this machine."""
    _, _, rest = owner.partition("/")
    pid, _, started = rest.partition("/")
    if not pid.isdecimal():
        return False
    process = process_id(int(pid))
    return process is not None and f"{process.started:.2f}" == started


def judge(started: float, place: Place, root: Path, flips: Sequence[Flip], boot: str) -> tuple[str | None, str]:
    """Say which build a process serves, and by what evidence. Pure; `root` must be resolved, `started` is of boot `boot`."""
    if place.cwd is None and place.exe is None:
        return None, "its working directory and executable may not be read: run the agent as root or as the user of the service"
    build, where = _release_of(place, root)
    if build is None:
        return None, f"{where}: start it with directory {root / 'current'}"
    if not flips:
        return build, f"{where}; no flip is recorded, so this alone decides"
    possible = _current_around(started, flips, boot)
    if build in possible:
        return build, f"{where}, which was current when it started"
    if None in possible and all(flip.build != build for flip in flips):
        return build, f"{where}; it started before the first recorded flip, and none was to {build}"
    before = " or ".join(sorted(known for known in possible if known)) or "an unrecorded build"
    return None, (
        f"{where}, but {before} was current when it started: "
        f"it moved there without being started again, so nothing shows that it serves {build}"
    )


def restarted_for(started: float, flips: Sequence[Flip], boot: str) -> str:
    """The rollout of the last flip before a process of boot `boot` started; empty when that flip was not for a restart.

    A process that started about the time of the flip counts as started after it: it is fresh either way.
    """
    before = [flip for flip in flips if flip.boot != boot or flip.boot_time <= started + TOLERANCE]
    return before[-1].rollout if before else ""


def listener(port: int) -> int | None:
    """The pid of the process that listens on a TCP port; of a master and its workers, the master.

    None when nobody does, or nobody that may be seen: only root sees the sockets of other users' processes.
    """
    found = [
        (process, f"/proc/{process.pid}/fd/{socket.fd}")
        for socket in psutil.net_connections(kind="tcp")
        if socket.status == psutil.CONN_LISTEN and socket.laddr and socket.laddr.port == port and socket.pid is not None
        if (process := process_id(socket.pid)) is not None
    ]
    if not found:
        return None
    process, descriptor = min(found, key=lambda pair: (pair[0].started, pair[0].pid))
    return _first_holder(process.pid, descriptor)


def _first_holder(pid: int, descriptor: str) -> int:
    """Climb to the ancestor that passed an open socket on. Workers hold it too, and some are replaced now and then."""
    try:
        socket = Path(descriptor).readlink()
        for parent in psutil.Process(pid).parents():
            if socket not in [link.readlink() for link in Path(f"/proc/{parent.pid}/fd").iterdir()]:
                break
            pid = parent.pid
    except (OSError, psutil.Error):
        # Something ended while we looked, or may not be looked at: what was found so far still listens.
        return pid
    return pid


def _link(pid: int, name: str) -> str | None:
    """Read `/proc/<pid>/<name>`; psutil would hide that the target was deleted."""
    try:
        return str(Path(f"/proc/{pid}/{name}").readlink())
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESRCH):
            return None
        raise


def _release_of(place: Place, root: Path) -> tuple[str | None, str]:
    """The build whose release the process lives in, and where that was seen; the working directory comes first.

    The executable of a virtual environment's python is the system's, so that it only counts for what is compiled.
    """
    for name, path in (("cwd", place.cwd), ("exe", place.exe)):
        if path is None:
            continue
        deleted = path.endswith(_DELETED)
        try:
            build, *_ = Path(path.removesuffix(_DELETED)).relative_to(root / "releases").parts
        except ValueError:
            continue
        return build, f"{name} is in releases/{build}" + (", which has been deleted" if deleted else "")
    seen = " and ".join(f"{name} {path or '(not readable)'}" for name, path in (("cwd", place.cwd), ("exe", place.exe)))
    return None, f"{seen} are not in a release of {root}"


def _current_around(started: float, flips: Sequence[Flip], boot: str) -> set[str | None]:
    """What `current` may have pointed at when a process started; None stands for a time before the first recorded flip."""
    at_start: str | None = None
    possible: set[str | None] = set()
    for flip in flips:
        # A flip of another boot happened before any process of this one.
        when = flip.boot_time if flip.boot == boot else float("-inf")
        if when <= started - TOLERANCE:
            at_start = flip.build
        elif when <= started + TOLERANCE:
            possible.add(flip.build)
    return possible | {at_start}
