"""Makes a build: an archive of a directory, the same bytes for the same content, with its digest beside it.

Names are sorted, every time is the same and there are no owners, so that packing a directory twice gives one digest. What the
unpacker would refuse on every host is refused here. The archive appears whole, by rename, and never changes under its name.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import stat
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, cast

from msgspec import Struct

from deployd_core.errors import BuildRefused, Conflict, Unavailable
from deployd_core.tree import OWN_NAME, Limits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENDINGS = {"gz": ".tar.gz", "zst": ".tar.zst", "xz": ".tar.xz", "zip": ".zip"}
"""File name endings by format."""

MODIFIED = 315_532_800
"""The time of every file, 1980-01-01: the earliest that zip can hold."""

_CHUNK = 1 << 20


class Packed(Struct, frozen=True, kw_only=True):
    """An archive that was made."""

    path: Path
    digest: str
    """``sha256:…``"""
    size: int
    members: int
    fresh: bool
    """False when the very same archive was there already."""


class _Member(Struct, frozen=True):
    name: str
    path: Path
    mode: int
    target: str = ""


def pack(directory: Path, archive: Path, *, form: str = "gz", modified: int = MODIFIED, replace: bool = False) -> Packed:
    """Make an archive of a directory, and ``<archive>.sha256`` in the format of sha256sum.

    Args:
        directory: Its content becomes the release.
        archive: The file to make; its directory, too, when that is missing.
        form: A key of `ENDINGS`.
        modified: The time of every file in it, in seconds since the epoch.
        replace: Whether another archive of this name may be overwritten.

    Raises:
        BuildRefused: The directory holds what no host would unpack, or cannot be read.
        Conflict: There is another archive of this name.
        Unavailable: The archive cannot be written.
    """
    if archive.absolute().is_relative_to(directory.absolute()):
        raise BuildRefused(f"{archive} lies in {directory}, which is to be packed", hint="write it elsewhere: --out DIR")
    members = list(_members(directory))
    if not members:
        raise BuildRefused(f"{directory} is empty: there is nothing to pack")
    part = archive.with_name(f".{archive.name}.{os.getpid()}.part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with _removed_after(part):
            _write(members, part, form, max(modified, MODIFIED))
            digest = _digest(part)
            fresh = not archive.exists() or _digest(archive) != digest
            if fresh and archive.exists() and not replace:
                raise Conflict(
                    f"{archive} exists and holds something else; builds never change under their name",
                    hint="choose another --build, or --replace it if no host has fetched it",
                )
            if fresh:
                # Between the two renames the digest is missing rather than wrong.
                _sidecar(archive).unlink(missing_ok=True)
                part.replace(archive)
            _write_sidecar(archive, digest)
    except OSError as error:
        raise Unavailable(f"{archive} cannot be written: {error.strerror or error}") from error
    return Packed(path=archive, digest=f"sha256:{digest}", size=archive.stat().st_size, members=len(members), fresh=fresh)


def _sidecar(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.sha256")


def _write_sidecar(archive: Path, digest: str) -> None:
    sidecar = _sidecar(archive)
    part = sidecar.with_name(f".{sidecar.name}.{os.getpid()}.part")
    with _removed_after(part):
        part.write_text(f"{digest}  {archive.name}\n", encoding="utf-8")
        part.replace(sidecar)


@contextmanager
def _removed_after(part: Path) -> Iterator[None]:
    try:
        yield
    finally:
        part.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _members(directory: Path) -> Iterator[_Member]:
    """Everything below a directory, parents first, in the order of the names' bytes."""
    if not directory.is_dir():
        raise BuildRefused(f"{directory} is no directory", hint="name the directory whose content is the build")
    waiting = [(directory, "")]
    limits = Limits()
    count = 0
    while waiting:
        path, name = waiting.pop()
        found = _member(path, name, limits) if name else None
        if found is not None:
            count += 1
            yield found
        if count > limits.members:
            raise BuildRefused(f"{directory} holds more than {limits.members} files, which no host would unpack")
        if found is None or stat.S_ISDIR(found.mode):
            waiting += [(path / child, f"{name}/{child}" if name else child) for child in sorted(_listing(path), reverse=True)]


def _listing(path: Path) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208 - names alone are wanted
    except OSError as error:
        raise BuildRefused(f"{path} cannot be read: {error.strerror}") from error


def _member(path: Path, name: str, limits: Limits) -> _Member:
    try:
        found = path.lstat()
        target = str(path.readlink()) if stat.S_ISLNK(found.st_mode) else ""
    except OSError as error:
        raise BuildRefused(f"{path} cannot be read: {error.strerror}") from error
    if not any(kind(found.st_mode) for kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)):
        raise BuildRefused(f"{path} is a device, a pipe or a socket; a build holds files, directories and links")
    try:
        length = max(len(name.encode()), len(target.encode()))
    except UnicodeEncodeError:
        raise BuildRefused(f"{str(path)!a} has a name that is not UTF-8") from None
    if name.partition("/")[0] == OWN_NAME:
        raise BuildRefused(f"{path} has the name that the agent keeps for itself", hint="rename it")
    if length > limits.path or name.count("/") >= limits.depth:
        raise BuildRefused(f"{path} is deeper or longer than a host would unpack")
    if target:
        _check_link(path, name, target)
    return _Member(name, path, found.st_mode, target)


def _check_link(path: Path, name: str, target: str) -> None:
    """Hold a link to the unpacker's rule: relative, leading ``..`` stay inside, and no ``..`` behind a name."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    if target.startswith("/"):
        raise BuildRefused(f"{path} is a link with an absolute target, {target}", hint="make it relative: ln -sr")
    if climbs > name.count("/") or ".." in parts[climbs:]:
        raise BuildRefused(f"{path} is a link that leads out of the build, to {target}", hint="copy what it points at")


def _write(members: list[_Member], part: Path, form: str, modified: int) -> None:
    with part.open("wb") as file:
        if form == "zip":
            _write_zip(members, file, modified)
        else:
            _write_tar(members, file, form, modified)
        file.flush()
        os.fsync(file.fileno())


def _write_tar(members: list[_Member], file: IO[bytes], form: str, modified: int) -> None:
    with (
        _compressor(file, form) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK, encoding="utf-8") as tar,
    ):
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.mtime = modified
            entry.mode = member.mode & 0o755
            if stat.S_ISREG(member.mode):
                with _opened(member) as content:
                    entry.size = os.fstat(content.fileno()).st_size
                    tar.addfile(entry, content)
                continue
            entry.type = tarfile.DIRTYPE if stat.S_ISDIR(member.mode) else tarfile.SYMTYPE
            entry.linkname = member.target
            tar.addfile(entry)


def _compressor(file: IO[bytes], form: str) -> AbstractContextManager[IO[bytes]]:
    stream: object
    if form == "gz":
        # zlib, not isal as for reading: what isal writes depends on the machine.
        stream = gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0)
    elif form == "xz":
        stream = lzma.LZMAFile(file, "wb", preset=6)  # noqa: SIM115
    else:
        stream = zstd.ZstdFile(file, "wb", level=6)
    return cast("AbstractContextManager[IO[bytes]]", stream)


def _write_zip(members: list[_Member], file: IO[bytes], modified: int) -> None:
    moment = time.gmtime(modified)[:6]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for member in members:
            folder = stat.S_ISDIR(member.mode)
            entry = zipfile.ZipInfo(f"{member.name}/" if folder else member.name, date_time=moment)
            entry.create_system = 3  # Unix: the attributes hold a mode
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFMT(member.mode) | (member.mode & 0o755)) << 16
            if stat.S_ISREG(member.mode):
                with _opened(member) as content, archive.open(entry, "w", force_zip64=True) as stream:
                    while chunk := content.read(_CHUNK):
                        stream.write(chunk)
            else:
                archive.writestr(entry, member.target)


@contextmanager
def _opened(member: _Member) -> Iterator[IO[bytes]]:
    """A file's content; not if it has become a link meanwhile, which might lead anywhere."""
    try:
        descriptor = os.open(member.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BuildRefused(f"{member.path} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor is no path
        yield file
