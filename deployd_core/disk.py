"""Small things done to a disk so that a crash, or a full disk, leaves either the old or the new, and an error that says where."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.units import Size

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def disk_error(what: str, where: Path, error: OSError) -> DeploydError:
    """Say what could not be done where, as the error the agent acts on: a full disk may be freed, a permission must be changed."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    path = error.filename if isinstance(error.filename, str) and error.filename.startswith("/") else str(where)
    if error.errno in _FULL:
        return Unavailable(f"{what}: the disk of {where} is full ({reason})", hint=f"free some space: df -h {where}; df -i {where}")
    if error.errno in _FORBIDDEN:
        return ConfigError(f"{what}: {path}: {reason}", hint=f"give the agent's user (uid {os.geteuid()}) the right to write there")
    return Unavailable(f"{what}: {path}: {reason}")


@contextmanager
def disk_errors(what: str, where: Path) -> Iterator[None]:
    """Turn an OSError of the body into one of ours.

    Raises:
        Unavailable: The disk is full or broken.
        ConfigError: The agent may not write there.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(what, where, error) from error


def require_free(where: Path, needed: int, reserve: int, what: str) -> None:
    """Check that the file system of `where` holds `needed` more bytes and still has `reserve` left.

    Raises:
        Unavailable: It does not; the message says how much is missing.
    """
    stat = os.statvfs(where)
    free = stat.f_bavail * stat.f_frsize
    missing = needed + reserve - free
    if missing > 0:
        raise Unavailable(
            f"{what}: the disk of {where} lacks {_rounded(missing)}: "
            f"{_rounded(needed)} to come, {_rounded(reserve)} to keep in reserve, {_rounded(free)} free",
            hint="free some space, or lower [service] keep_releases or reserve",
        )


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(directory: Path) -> None:
    """Make everything written to the file system of `directory` survive a power cut.

    One syncfs(2) instead of an fsync for each of thousands of files, each of which waits for the disk (`bench/build_sync.py`
    shows both). It also reports a write that failed in the background, which an fsync of another file would not.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a small file so that every reader, and a crash, sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directory(path: Path, mode: int) -> None:
    """Make a directory that is missing, of this mode whatever the umask, and what is missing above it, open to read for everybody.

    Raises:
        ConfigError: A file is where it should be.
        OSError: It cannot be made.
    """
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_directory(path.parent, 0o755)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise ConfigError(f"{path} is no directory", hint=f"move it away: mv {path} {path}.old") from None
    else:
        path.chmod(mode)


def remove_all(paths: Iterable[Path]) -> OSError | None:
    """Remove files, and directories with all that is in them, as many as can be; the first error."""
    problem: OSError | None = None
    for path in paths:
        try:
            _remove(path)
        except OSError as error:
            problem = problem or error
    return problem


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        # Some tools make the directories of what they have fetched read-only, and only root can remove what is in those.
        _make_writable(path)
        shutil.rmtree(path)


def _make_writable(top: Path) -> None:
    top.chmod(0o700)
    for directory, names, _ in os.walk(top):
        for path in (Path(directory, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o700)


def claim(path: Path, name: str) -> str:
    """Write a name into a file unless there is one already; the name that stands there now, whoever else claims it."""
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    aside = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    write_atomically(aside, f"{name}\n".encode())
    with suppress(FileExistsError):
        path.hardlink_to(aside)  # a rename would replace what another has written meanwhile
    aside.unlink()
    return path.read_text().strip()


def names_in(directory: Path) -> tuple[str, ...]:
    """The names in a directory; none when there is no such directory."""
    try:
        return tuple(os.listdir(directory))  # noqa: PTH208  # names are all that is wanted
    except (FileNotFoundError, NotADirectoryError):
        return ()


def link_target(path: Path) -> str | None:
    """Where a symbolic link points; None when it is missing, or no link."""
    try:
        return str(path.readlink())
    except OSError:
        return None


def space_taken(path: Path) -> int:
    """Bytes that a file, or all files of a directory, take on the disk; what vanishes meanwhile takes none."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    blocks = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                blocks += os.lstat(f"{directory}/{name}").st_blocks
    return blocks * 512


def _rounded(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return str(Size(size))
