"""Whether others could have written a file: what the agent runs, maybe as root, must be root's or its own all the way up.

As sshd's StrictModes has it, with two exceptions. A directory with the sticky bit may stand further up, since nobody can replace an
entry that is not theirs; and a group may write that is root's or the user's own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def weakness(path: Path) -> str:
    """Why what lies in a file cannot be trusted, with what mends it; empty when it can.

    Raises:
        OSError: It is not there, or cannot be looked at.
    """
    # Whoever owns / is root, under whatever number a container shows it.
    owners = {0, os.geteuid(), Path("/").stat().st_uid}
    groups = {0, os.getegid()}
    for place, sticky_will_do in _places(path):
        found = place.stat()
        if found.st_uid not in owners:
            return f"{place} belongs to another user (uid {found.st_uid}): chown {os.geteuid()} {place}"
        excused = sticky_will_do and found.st_mode & stat.S_ISVTX
        if found.st_mode & stat.S_IWOTH and not excused:
            return f"{place} can be written by anybody: chmod o-w {place}"
        if found.st_mode & stat.S_IWGRP and found.st_gid not in groups and not excused:
            return f"{place} can be written by a group (gid {found.st_gid}): chmod g-w {place}"
    return ""


def _places(path: Path) -> Iterator[tuple[Path, bool]]:
    """The file and every directory above it, and what a link leads to likewise; with whether the sticky bit excuses it.

    It does not excuse the file's own directory: whoever may add a file there may add the `__pycache__` that Python reads instead.
    """
    for file in dict.fromkeys((path.resolve(strict=True), path.absolute())):
        yield file, False
        cache = file.parent / "__pycache__"
        if cache.exists():
            yield cache, False
        for number, directory in enumerate(file.parents):
            yield directory, number > 0
