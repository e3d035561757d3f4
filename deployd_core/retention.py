"""What lies on a disk, as values, and which of it may go."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from deployd_core.model import Build, Flip


class ReleaseInfo(Struct, frozen=True, kw_only=True):
    """One complete release."""

    build: Build
    steps: frozenset[str]
    """Markers of the steps that have run."""
    size: int
    """Bytes of its files when it was unpacked."""
    published_at: str
    """RFC 3339, UTC."""


class Disk(Struct, frozen=True, kw_only=True):
    """What lies on the disk for one service, read at one moment."""

    releases: Mapping[str, ReleaseInfo]
    """Complete releases by build id: those with a manifest. Nothing else counts."""
    current: str | None
    """The build that `current` points at, if that is a complete release."""
    fetched: frozenset[str]
    """Digests of the verified archives that are kept."""
    good: tuple[str, ...]
    """Builds that were marked good here, newest first, bounded."""
    flips: tuple[Flip, ...]
    """Oldest first, bounded. One that a crash kept from happening may be among them: look for the last of a build."""
    problem: str
    """Why a flip would be refused; empty when it would not."""

    @property
    def previous_good(self) -> str | None:
        """What a rollback goes back to: the newest build that was marked good here, is not current, and is still a release."""
        return next((build for build in self.good if build != self.current and build in self.releases), None)


def to_remove(
    disk: Disk, sizes: Mapping[str, int], *, keep: int, keep_bytes: int | None, protect: frozenset[str]
) -> tuple[str, ...]:
    """Choose the releases to remove, the longest unused first.

    Args:
        disk: What is there.
        sizes: Bytes of each release; needed only with `keep_bytes`.
        keep: How many to keep beside those in use.
        keep_bytes: What all that stay may take; those in use stay even so.
        protect: Builds in use, beside the current and the previous good one.
    """
    in_use = protect | {disk.current, disk.previous_good}
    last_flip = {flip.build: flip.at for flip in disk.flips}
    others = sorted(
        (build for build in disk.releases if build not in in_use),
        key=lambda build: (max(disk.releases[build].published_at, last_flip.get(build, "")), build),
    )
    removed = others[: max(0, len(others) - keep)]
    if keep_bytes is not None:
        left = others[len(removed) :]
        total = sum(sizes[build] for build in disk.releases if build not in removed)
        while left and total > keep_bytes:
            total -= sizes[left[0]]
            removed.append(left.pop(0))
    return tuple(removed)
