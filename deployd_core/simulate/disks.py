"""The disk of a virtual host: which builds are on it, and what `current` points at."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec.structs import replace

from deployd_core.acts import Act, Fetch, Flip, Resolve, RunStep, Tidy, Unpack
from deployd_core.coordination import Snapshot
from deployd_core.errors import Unavailable
from deployd_core.model import Build
from deployd_core.model import Flip as FlipRecord
from deployd_core.retention import Disk, ReleaseInfo
from deployd_core.simulate.faults import FaultKind

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost

_FULL_FOR = 300.0
_FLIPS = 20
"""Flips that a disk remembers."""


def disk_with(build: str | None) -> Disk:
    """A disk that serves a build; None: an empty one."""
    known = (build,) if build else ()
    flips = tuple(map(_flip, known))
    disk = Disk(releases={}, current=build, fetched=frozenset(), good=known, flips=flips, problem="")
    return _with_release(disk, Build(build, digest_of(build))) if build else disk


def digest_of(build: str) -> str:
    """The digest of an imagined build."""
    return f"sha256:{hashlib.sha256(build.encode()).hexdigest()}"


def change_disk(host: VirtualHost, act: Act, snapshot: Snapshot) -> str | None:
    """What an act does to the disk of a host; a digest when it asks for one.

    Raises:
        Unavailable: The disk is full.
    """
    disk, enabled = host.disk, snapshot.enabled
    if enabled is None:
        return None
    build = Build(enabled.build, enabled.digest or digest_of(enabled.build))
    full = FaultKind.DISK_FULL in host.plagues and host.world.clock.elapsed < _FULL_FOR
    if full and isinstance(act, Fetch | Unpack | RunStep):
        raise Unavailable(f"{host.name}: no space left on the disk")
    match act:
        case Resolve():
            return build.digest
        case Fetch():
            host.disk = replace(disk, fetched=disk.fetched | {build.digest})
        case Unpack():
            host.disk = _with_release(disk, build)
        case RunStep(marker=marker):
            info = disk.releases[build.id]
            host.disk = replace(disk, releases={**disk.releases, build.id: replace(info, steps=info.steps | {marker})})
        case Flip(build=there, rollout=rollout):
            host.disk = replace(disk, current=there, flips=(*disk.flips, _flip(there, rollout))[-_FLIPS:])
        case Tidy():
            kept = {build.id, disk.current, *disk.good[:2]}
            host.disk = replace(disk, releases={name: info for name, info in disk.releases.items() if name in kept})
    return None


def _flip(build: str, rollout: str = "") -> FlipRecord:
    return FlipRecord(build=build, boot="", boot_time=0.0, at="", rollout=rollout)


def _with_release(disk: Disk, build: Build) -> Disk:
    info = ReleaseInfo(build=build, steps=frozenset(), size=0, published_at="")
    return replace(disk, releases={**disk.releases, build.id: info}, fetched=disk.fetched | {build.digest})
