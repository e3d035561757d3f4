"""What is remembered on a host of one service: which builds were good, and when `current` was flipped."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from msgspec import Struct

from deployd_core.clock import rfc3339
from deployd_core.decoding import decode_json
from deployd_core.disk import write_atomically
from deployd_core.model import Flip

_GOOD_KEPT = 20
_FLIPS_KEPT = 50


class History(Struct, frozen=True, kw_only=True):
    """What was written down, bounded."""

    good: tuple[str, ...] = ()
    """Newest first."""
    flips: tuple[Flip, ...] = ()
    """Oldest first."""

    def at(self, build: str, rollout: str) -> bool:
        """Whether the last flip was to a build, for this rollout if one is named."""
        last = self.flips[-1] if self.flips else None
        return not rollout or (last is not None and (last.build, last.rollout) == (build, rollout))

    def marked_good(self, build: str) -> History:
        """With a build as the newest good one."""
        good = (build, *(other for other in self.good if other != build))
        return msgspec.structs.replace(self, good=good[:_GOOD_KEPT])

    def happened(self, current: str | None) -> tuple[Flip, ...]:
        """The flips, without those at the end that a crash or the disk kept from happening: they are written down first."""
        last = max((number for number, flip in enumerate(self.flips, start=1) if flip.build == current), default=0)
        return self.flips if current is None else self.flips[:last]

    def flipped(self, build: str, *, rollout: str = "") -> History:
        """With a flip to a build at this moment, maybe for a rollout that asks for a restart."""
        flip = Flip(
            build=build,
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            boot_time=time.clock_gettime(time.CLOCK_BOOTTIME),
            at=rfc3339(time.time()),
            rollout=rollout,
        )
        return msgspec.structs.replace(self, flips=(*self.flips, flip)[-_FLIPS_KEPT:])


class HistoryFile:
    """Keeps a history on disk, through crashes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[History, str]:
        """What was written, and what is wrong with it: damage must not pass for a host that has no past."""
        try:
            return decode_json(self._path.read_bytes(), History), ""
        except FileNotFoundError:
            return History(), ""
        except msgspec.DecodeError as error:
            return History(), f"{self._path} is damaged ({error}); mend it, or move it away to forget what was good"

    def write(self, history: History) -> None:
        """Replace it."""
        write_atomically(self._path, msgspec.json.encode(history))
