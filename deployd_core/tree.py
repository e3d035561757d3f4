"""A directory being filled with files that a stranger named: nothing is created outside it, and no link is ever followed.

Every name is created relative to a file descriptor of its parent directory, which was itself opened one component at a time
without following links; files are created with O_EXCL. So what counts is what the kernel finds, not what a path looks like, and
a link that lies in the way is an error instead of a way out. (The filters of `tarfile` compare paths; several were escapable.)
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from deployd_core.errors import BuildRefused
from deployd_core.units import Size

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORIES_KEPT_OPEN = 64
_NAME_MAX = 255
_TIME_MAX = 2**33  # the year 2242: an archive may say anything, file systems cannot hold it

OWN_NAME = ".deployd"
"""The directory in a release that is the agent's own; no archive may bring one."""


class Limits(Struct, frozen=True, kw_only=True):
    """How much an archive may hold before it is taken for an attack or a mistake."""

    members: int = 500_000
    size: int = 100 * 1024**3
    """Bytes of all files, unpacked."""
    path: int = 1024
    """Bytes of one path, or of the target of a link."""
    depth: int = 64
    """Directories within directories."""


class Tree:
    """Creates directories, files and links under one directory, and nothing anywhere else.

    Modes lose set-uid, set-gid, the sticky bit and write permission for group and others; owners are never set. Every method
    raises `BuildRefused` for a name that leaves the directory, is there already, or lies behind a link.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[str, int] = {"": os.open(directory, _OPEN_DIRECTORY)}
        self.members = 0
        self.size = 0

    def close(self) -> None:
        """Close the directories that are open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def directory(self, name: str, mode: int) -> None:
        """Make a directory; one that is there is given the mode (archives name a directory after files in it, too)."""
        path = self._begin(name)
        if path:
            os.fchmod(self._descend(path, name), (mode & 0o755) | 0o700)

    @contextmanager
    def file(self, name: str, *, size: int, mode: int, modified: float) -> Iterator[int]:
        """Create a file and yield its descriptor, to be written `size` bytes."""
        path = self._begin(name)
        self.grow(size)
        parent, last = self._parent(path, name)
        try:
            descriptor = os.open(last, _CREATE_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            raise BuildRefused(f"the archive holds {_shown(name)} twice") from None
        try:
            yield descriptor
            os.fchmod(descriptor, (mode & 0o755) | 0o600)
            # Python compares the time of a source with the one in its .pyc: an archive may bring both.
            nanoseconds = int(modified * 1e9) if 0 <= modified < _TIME_MAX else 0
            os.utime(descriptor, ns=(nanoseconds, nanoseconds))
        finally:
            os.close(descriptor)

    def symlink(self, name: str, target: str) -> None:
        """Make a symbolic link; its target must be relative and lie in the tree, whatever other links lead through it.

        Leading ``..`` climb from a real directory, since no parent here is a link. A ``..`` behind a name could climb from
        wherever that name leads, so it is refused.
        """
        path = self._begin(name)
        parts = _parts(target, f"the target of link {_shown(name)}", self._limits)
        climbs = 0
        while climbs < len(parts) and parts[climbs] == "..":
            climbs += 1
        if target.startswith("/"):
            raise BuildRefused(f"the archive holds a link with an absolute target: {_shown(name)} -> {_shown(target)}")
        if climbs > path.count("/") or ".." in parts[climbs:] or not target:
            raise BuildRefused(f"the archive holds a link that leads out of its directory: {_shown(name)} -> {_shown(target)}")
        parent, last = self._parent(path, name)
        try:
            os.symlink(target, last, dir_fd=parent)
        except FileExistsError:
            raise BuildRefused(f"the archive holds {_shown(name)} twice") from None

    def hardlink(self, name: str, target: str) -> None:
        """Make a second name of a file that was created before; `target` is a path in the tree."""
        path = self._begin(name)
        found = self._checked(target)
        message = f"the archive holds a hard link to what is no file of it: {_shown(name)} -> {_shown(target)}"
        if not found:
            raise BuildRefused(message)
        source, source_last = self._parent(found, target)
        parent, last = self._parent(path, name)
        try:
            if not stat.S_ISREG(os.stat(source_last, dir_fd=source, follow_symlinks=False).st_mode):
                raise BuildRefused(message)
            os.link(source_last, last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise BuildRefused(message) from None
        except FileExistsError:
            raise BuildRefused(f"the archive holds {_shown(name)} twice") from None

    def grow(self, size: int) -> None:
        """Count bytes that are about to be written."""
        self.size += size
        if size < 0 or self.size > self._limits.size:
            raise BuildRefused(f"the archive unpacks to more than {Size(self._limits.size)}")

    def _begin(self, name: str) -> str:
        self.members += 1
        if self.members > self._limits.members:
            raise BuildRefused(f"the archive holds more than {self._limits.members} members")
        if len(self._open) > _DIRECTORIES_KEPT_OPEN:
            for path in [path for path in self._open if path]:
                os.close(self._open.pop(path))
        return self._checked(name)

    def _checked(self, name: str) -> str:
        """The name as ``a/b/c``; empty for the directory itself."""
        if name.startswith("/"):
            raise BuildRefused(f"the archive holds an absolute path: {_shown(name)}")
        parts = _parts(name, "a path", self._limits)
        if ".." in parts:
            raise BuildRefused(f"the archive holds a path that leads out of its directory: {_shown(name)}")
        if parts and parts[0] == OWN_NAME:
            raise BuildRefused(f"the archive holds {OWN_NAME}, which is the agent's own", hint=f"pack the build without {OWN_NAME}")
        return "/".join(parts)

    def _parent(self, path: str, name: str) -> tuple[int, str]:
        parent, _, last = path.rpartition("/")
        if not last:
            raise BuildRefused(f"the archive holds a file or link where its directory is: {_shown(name)}")
        return self._descend(parent, name), last

    def _descend(self, path: str, name: str) -> int:
        """Open a directory of the tree, making what is missing, one component at a time."""
        known = self._open.get(path)
        if known is not None:
            return known
        parent, _, last = path.rpartition("/")
        above = self._descend(parent, name)
        new = True
        try:
            os.mkdir(last, 0o755, dir_fd=above)
        except FileExistsError:
            new = False
        try:
            descriptor = os.open(last, _OPEN_DIRECTORY, dir_fd=above)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise BuildRefused(f"the archive writes {_shown(name)} through {_shown(path)}, which is a link or a file") from None
        self._open[path] = descriptor
        if new:
            os.fchmod(descriptor, 0o755)  # whatever the umask
        return descriptor


def _parts(text: str, what: str, limits: Limits) -> list[str]:
    """The components of a path from an archive."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise BuildRefused(f"the archive holds {what} that is not UTF-8: {_shown(text)}") from None
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if "\0" in text:
        raise BuildRefused(f"the archive holds {what} with a NUL character: {_shown(text)}")
    if (
        length > limits.path
        or len(parts) > limits.depth
        or (length > _NAME_MAX and max(map(len, map(str.encode, parts))) > _NAME_MAX)
    ):
        raise BuildRefused(f"the archive holds {what} that is too long: {_shown(text)}")
    return parts


def _shown(name: str) -> str:
    """A hostile name, fit for a log line."""
    return ascii(name if len(name) <= 200 else name[:200] + "…")
