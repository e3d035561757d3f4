"""Archives: which kind one is, and unpacking it into a directory that it cannot leave.

Reading is left to `tarfile`, `zipfile` and the decompressors; creating is `deployd_core.tree`'s. Decompression runs one or two
chunks ahead on a thread of its own: the decompressors release the GIL, so it overlaps with the writing of files.

Whatever is wrong with an archive is `BuildRefused`; it may have been unpacked in part by then, so unpack into a directory that
nobody looks at. Problems of the disk stay an OSError.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import stat
import sys
import tarfile
import zipfile
import zlib
from calendar import timegm
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, cast

from msgspec import Struct

from deployd_core.errors import BuildRefused
from deployd_core.tree import Limits, Tree

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    from isal.igzip import IGzipFile as GzipFile
    from isal.isal_zlib import error as gzip_error
except ImportError:  # no wheel for this machine: slower, not different
    from gzip import GzipFile  # type: ignore[assignment]
    from zlib import error as gzip_error  # type: ignore[assignment]

_CHUNK = 1 << 20
_AHEAD = 3
_METADATA_MAX = 1 << 20
_WINDOW_LOG_MAX = 27  # zstd: 128 MiB, what `zstd -d` accepts without --long
_XZ_MEMORY_MAX = 256 << 20  # `xz -9` needs 65 MiB
_MAGIC = (
    (b"\x1f\x8b", "tar.gz"),
    (b"\x28\xb5\x2f\xfd", "tar.zst"),
    (b"\xfd7zXZ\x00", "tar.xz"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
_TAR_MAGIC = (257, b"ustar")
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    cast("type[Exception]", gzip_error),  # its stub says that it is an instance
    lzma.LZMAError,
    zstd.ZstdError,
    NotImplementedError,  # zipfile: a compression method it does not know
    RecursionError,  # tarfile: a header of a header of a header…
    ValueError,  # both, now and then, for numbers and text that are nonsense
)


class Unpacked(Struct, frozen=True, kw_only=True):
    """What an archive was found to be."""

    format: str
    members: int
    size: int
    """Bytes of its files."""


def detect(archive: Path) -> str:
    """Say which format an archive is in, by its first bytes: ``tar.gz``, ``tar.zst``, ``tar.xz``, ``tar`` or ``zip``.

    Raises:
        BuildRefused: None of them.
    """
    with archive.open("rb") as file:
        head = file.read(512)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    offset, magic = _TAR_MAGIC
    if head[offset:].startswith(magic):
        return "tar"
    raise BuildRefused(
        f"{archive.name} is no archive that deployd knows: it begins with {head[:8]!r}" if head else f"{archive.name} is empty",
        hint="pack builds as .tar.gz, .tar.zst, .tar.xz, .tar or .zip: deployd builds pack DIR",
    )


def unpack(
    archive: Path, directory: Path, *, limits: Limits | None = None, check: Callable[[int], None] = lambda _size: None
) -> Unpacked:
    """Unpack an archive into an empty directory.

    Args:
        archive: The file.
        directory: Exists and is empty.
        limits: How much the archive may hold.
        check: Called before each member with 0, and before each piece of a file with its size; what it raises ends the unpacking.

    Raises:
        BuildRefused: It is damaged, cut off, too big, or tries to write anywhere else.
        OSError: The disk is full or broken.
    """
    form = detect(archive)
    with closing(Tree(directory, limits or Limits())) as tree:
        try:
            if form == "zip":
                _unpack_zip(archive, tree, check)
            else:
                _unpack_tar(archive, form, tree, check)
        except _DAMAGED as error:
            raise _damaged(form, error) from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # zipfile seeks wherever the archive says, to before its beginning as well
                raise _damaged(form, error) from error
            raise
        return Unpacked(format=form, members=tree.members, size=tree.size)


def _damaged(form: str, error: Exception) -> BuildRefused:
    reason = str(error) or type(error).__name__
    return BuildRefused(f"the {form} archive is damaged or cut off: {reason}", hint="publish the build again, under a new id")


def _unpack_tar(archive: Path, form: str, tree: Tree, check: Callable[[int], None]) -> None:
    with archive.open("rb", buffering=0) as file, _Ahead(_decompressed(file, form)) as stream:
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", stream), mode="r", encoding="utf-8", errors="surrogateescape")
        try:
            while (member := tar.next()) is not None:
                check(0)
                _add_tar_member(member, stream, tree, check)
                tar.members = []  # type: ignore[attr-defined]  # else it remembers them all
            stream.expect_end()
        finally:
            tar.close()


def _add_tar_member(member: tarfile.TarInfo, stream: _Ahead, tree: Tree, check: Callable[[int], None]) -> None:
    if member.issparse():
        raise BuildRefused(f"the archive holds a sparse file: {member.name!a}", hint="pack it without tar's --sparse")
    if member.isdir():
        tree.directory(member.name, member.mode)
    elif member.isreg():
        with tree.file(member.name, size=member.size, mode=member.mode, modified=member.mtime) as descriptor:
            stream.copy(descriptor, member.size, check)
    elif member.issym():
        tree.symlink(member.name, member.linkname)
    elif member.islnk():
        tree.hardlink(member.name, member.linkname)
    else:
        raise BuildRefused(f"the archive holds a device, a pipe or the like (type {member.type!r}): {member.name!a}")


def _unpack_zip(archive: Path, tree: Tree, check: Callable[[int], None]) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            check(0)
            _add_zip_member(opened, member, tree, check)


def _add_zip_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, tree: Tree, check: Callable[[int], None]) -> None:
    name = member.orig_filename  # `filename` ends at a NUL
    mode = member.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if member.flag_bits & 0x1:
        raise BuildRefused(f"the archive holds an encrypted file: {name!a}")
    if not (name.isascii() or member.flag_bits & 0x800):
        raise BuildRefused(f"the archive holds a path that is not UTF-8: {name!a}")
    if name.endswith("/") or kind == stat.S_IFDIR:
        tree.directory(name, mode or 0o755)
    elif kind in (0, stat.S_IFREG):
        modified = _zip_time(member)
        with (
            opened.open(member) as stream,
            tree.file(name, size=member.file_size, mode=mode or 0o644, modified=modified) as descriptor,
        ):
            while chunk := stream.read(_CHUNK):
                check(len(chunk))
                _write(descriptor, memoryview(chunk))
    elif kind == stat.S_IFLNK:
        if member.file_size > _METADATA_MAX:
            raise BuildRefused(f"the archive holds a link with a target of {member.file_size} bytes: {name!a}")
        tree.symlink(name, opened.read(member).decode())
    else:
        raise BuildRefused(f"the archive holds a device, a pipe or the like: {name!a}")


def _zip_time(member: zipfile.ZipInfo) -> float:
    """The time of a member, which has no zone: taken as UTC, so that every host makes the same of it."""
    try:
        return float(max(0, timegm((*member.date_time, 0, 0, 0))))
    except ValueError:
        return 0.0  # its month is none: Go, for one, writes zeros where it was told no time


def _write(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Frames:
    """The decompressed bytes of a file of one or more frames (zstd) or streams (xz), in bounded memory."""

    def __init__(self, file: IO[bytes], make: Callable[[], _Decompressor]) -> None:
        self._file = file
        self._make = make
        self._decompressor = make()

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, or none at the end."""
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0") or self._file.read(_CHUNK).lstrip(b"\0")  # xz pads streams
                if not data:
                    return b""
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                data = self._file.read(_CHUNK)
                if not data:
                    raise EOFError("it ends too early")
            chunk = self._decompressor.decompress(data, size)
            if chunk:
                return chunk


def _decompressed(file: IO[bytes], form: str) -> _Readable:
    if form == "tar.gz":
        return cast("_Readable", GzipFile(fileobj=file, mode="rb"))  # type: ignore[no-untyped-call]
    if form == "tar.zst":
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        return _Frames(file, lambda: zstd.ZstdDecompressor(options=options))
    if form == "tar.xz":
        return _Frames(file, lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_MAX))
    return file


class _Ahead:
    """A stream that is read ahead on another thread, with as much of a file's methods as `tarfile` needs to read headers.

    It only goes forward, and refuses what a made-up header may ask for: to go back, or to hold a name of gigabytes in memory.
    """

    def __init__(self, stream: _Readable) -> None:
        self._stream = stream
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="unpack")
        self._coming: deque[Future[bytes]] = deque()
        self._chunk = memoryview(b"")
        self._position = 0
        self._last = b""

    def __enter__(self) -> _Ahead:
        self._coming.extend(self._pool.submit(self._stream.read, _CHUNK) for _ in range(_AHEAD))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def tell(self) -> int:
        """The position in the decompressed stream."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip forward."""
        if position < self._position:
            raise tarfile.ReadError("a header points backwards")
        for _ in self._pieces(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        """Return `size` bytes of metadata, fewer at the end."""
        if not 0 <= size <= _METADATA_MAX:
            raise tarfile.ReadError(f"a header of {size} bytes")
        if size <= len(self._chunk):
            self._last = bytes(self._chunk[:size])
            self._chunk = self._chunk[size:]
            self._position += size
        else:
            self._last = b"".join(self._pieces(size, whole=False))
        return self._last

    def copy(self, descriptor: int, size: int, check: Callable[[int], None]) -> None:
        """Write the next `size` bytes to a file."""
        for piece in self._pieces(size):
            check(len(piece))
            _write(descriptor, piece)

    def expect_end(self) -> None:
        """Read what is left, so that the checksum at the end of a compressed stream is looked at; it must be nothing but zeros.

        `tarfile` takes a header that is cut off, or nonsense, for the end of the archive.
        """
        if len(self._last) != tarfile.BLOCKSIZE or any(self._last):
            raise EOFError("it ends too early")
        while self._chunk or self._fill():
            if any(self._chunk):
                raise tarfile.ReadError("something follows its end")
            self._chunk = memoryview(b"")

    def _pieces(self, size: int, *, whole: bool = True) -> Iterator[memoryview]:
        while size:
            if not self._chunk and not self._fill():
                if whole:
                    raise EOFError("it ends too early")
                return
            piece = self._chunk[:size]
            self._chunk = self._chunk[size:]
            self._position += len(piece)
            size -= len(piece)
            yield piece

    def _fill(self) -> bool:
        self._chunk = memoryview(self._coming.popleft().result())
        self._coming.append(self._pool.submit(self._stream.read, _CHUNK))
        return bool(self._chunk)


__all__ = ["Limits", "Unpacked", "detect", "unpack"]
