"""Fetching a build: streamed into a ``.part``, hashed on the way, resumed after a break or a crash, kept when its digest is right.

In the `incoming` directory of a service, ``<hex>`` being the pinned sha256 digest::

    <hex>.json      what is being fetched: build, validator and size, as the source said
    <hex>.part      its first bytes
    <hex>.archive   all of it, verified

The prefix of a ``.part`` is hashed again before it is continued, so no more than these files has to survive a crash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from threading import Event, Lock
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core.api import Download, FetchCall, Source
from deployd_core.decoding import decode_json
from deployd_core.disk import disk_error, disk_errors, require_free, sync_directory, write_atomically
from deployd_core.errors import BuildRefused, PluginError, Unavailable
from deployd_core.model import Build
from deployd_core.units import Size

_CHUNK = 1 << 20
_CHECK_EVERY = 4 << 20

_LOCK = Lock()
_under_way: set[Path] = set()
"""The parts that threads of this process write to."""

Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and how many there will be, if that is known."""


class Retry(Struct, frozen=True, kw_only=True):
    """How often a transfer is tried that brings nothing new, and how long to wait between: doubling, with jitter."""

    tries: int = 4
    first_delay: float = 0.5
    longest_delay: float = 10.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures: between half and all of the full delay, so that a fleet spreads out."""
        full = min(self.longest_delay, self.first_delay * 2 ** (failures - 1))
        return SystemRandom().uniform(full / 2, full)


class Incoming(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of an archive that is being fetched, or was: the ``<hex>.json`` file."""

    build: str
    validator: str | None = None
    size: int | None = None


class _BreakError(Exception):
    """A transfer ended early; worth another try."""

    def __init__(self, error: Unavailable) -> None:
        super().__init__(error.message)
        self.error = error


class Fetch:
    """One build on its way into the `incoming` directory."""

    def __init__(
        self,
        incoming: Path,
        build: Build,
        *,
        service: str,
        reserve: int,
        max_size: int,
        retry: Retry,
        stop: Event,
        progress: Progress,
    ) -> None:
        self._build = build
        self._service = service
        self._reserve = reserve
        self._max_size = max_size
        self._retry = retry
        self._stop = stop
        self._progress = progress
        self._what = f"build {build.id} of {service} could not be fetched"
        self._incoming = incoming
        self._part = part_of(incoming, build.digest)
        self._about = about_of(incoming, build.digest)
        self._hash = hashlib.sha256()
        self._done = 0
        self._known = Incoming(build=build.id)
        self._resumed = False
        self._until_check = 0

    def run(self, source: Source[Any], timeout: float) -> None:
        """Fetch until the archive is whole and verified.

        Raises:
            NotFound: The source has no such build.
            Unavailable: The source, or the disk, cannot be used now; what has come is kept, unless the disk is full.
            BuildRefused: What came is not what was pinned, or is too big.
        """
        with _alone(self._part, self._what):
            self._recall()
            self._bring(source, timeout)
            if not self._matches and self._resumed:
                # The two parts may be of two artifacts. Once, and only once, is a mismatch worth another look.
                self._forget()
                self._bring(source, timeout)
            if not self._matches:
                self._refuse()
            self._keep()

    @property
    def _matches(self) -> bool:
        return self._hash.hexdigest() == _hex(self._build.digest)

    def _bring(self, source: Source[Any], timeout: float) -> None:
        """Have transfers tried until one reaches the end; only those that bring nothing new count as failures."""
        failures, furthest = 0, self._done
        while True:
            try:
                self._transfer(source, timeout)
            except _BreakError as broken:
                failures = 1 if self._done > furthest else failures + 1
                furthest = max(furthest, self._done)
                if failures >= self._retry.tries:
                    reason = f"{broken.error.message} (tried {failures} times from byte {furthest})"
                    raise Unavailable(f"{self._what}: {reason}", hint=broken.error.hint) from broken.error
            else:
                return
            self._check_stop(self._retry.delay(failures))

    def _recall(self) -> None:
        """Take up what an earlier attempt left, if it can be continued."""
        known = read_about(self._about)
        with disk_errors(self._what, self._incoming):
            size = self._part.stat().st_size if self._part.exists() else 0
            whole = known is not None and known.size == size
            if known is None or not size or not (known.validator or whole) or (known.size is not None and size > known.size):
                self._forget()
                return
            with self._part.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK):
                    self._check_stop()
                    self._hash.update(chunk)
        self._done, self._known, self._resumed = size, known, True

    def _transfer(self, source: Source[Any], timeout: float) -> None:
        """Bring what is missing; returns when the part is whole.

        Raises:
            _BreakError: The source failed, or the body was cut.
        """
        if self._known.size is not None and self._done == self._known.size:
            return
        call = FetchCall(
            service=self._service, build=self._build.id, timeout=timeout, offset=self._done, validator=self._known.validator
        )
        try:
            download = source.fetch(call)
        except Unavailable as error:
            raise _BreakError(error) from error
        try:
            self._begin(source, download)
            self._receive(download.chunks)
        finally:
            close = getattr(download.chunks, "close", None)
            if close is not None:
                close()
        if self._known.size is not None and self._done < self._known.size:
            raise _BreakError(Unavailable(f"the transfer was cut off at byte {self._done} of {self._known.size}"))

    def _begin(self, source: Source[Any], download: Download) -> None:
        """Look at what the source said before the first byte, and write it down for whoever continues after a crash."""
        if download.offset not in (0, self._done):
            raise PluginError(f"source {source.name} was asked for byte {self._done} and began at byte {download.offset}")
        if download.offset != self._done:
            self._forget()
        elif self._done:
            self._resumed = True
        self._known = Incoming(build=self._build.id, validator=download.validator, size=download.size)
        self._check_size(download.size or 0)
        with disk_errors(self._what, self._incoming):
            if download.size is not None:
                require_free(self._incoming, download.size - self._done, self._reserve, self._what)
            write_atomically(self._about, msgspec.json.encode(self._known))

    def _receive(self, chunks: Iterator[bytes | memoryview]) -> None:
        try:
            with self._part.open("ab", buffering=0) as file:
                for chunk in _breaking(chunks):
                    self._check_stop()
                    self._check_size(self._done + len(chunk))
                    self._check_disk(len(chunk))
                    self._hash.update(chunk)
                    written = 0
                    while written < len(chunk):
                        written += os.write(file.fileno(), memoryview(chunk)[written:])
                    self._done += len(chunk)
                    self._progress(self._done, self._known.size)
        except OSError as error:
            # Even a part that could be continued is better given up than left to fill the disk of everybody else.
            with suppress(OSError):
                self._forget()
            raise disk_error(self._what, self._incoming, error) from error

    def _keep(self) -> None:
        with disk_errors(self._what, self._incoming):
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            self._part.replace(archive_of(self._incoming, self._build.digest))
            sync_directory(self._incoming)

    def _refuse(self) -> None:
        found = f"sha256:{self._hash.hexdigest()}"
        with disk_errors(self._what, self._incoming):
            self._forget()
        raise BuildRefused(
            f"build {self._build.id} of {self._service} has digest {found}, but {self._build.digest} is pinned in `enabled`",
            hint="a build id names one artifact for ever: publish under a new id and enable that",
        )

    def _forget(self) -> None:
        """Start from nothing."""
        self._part.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)
        self._hash = hashlib.sha256()
        self._done, self._resumed = 0, False
        self._known = Incoming(build=self._build.id)

    def _check_size(self, size: int) -> None:
        announced = self._known.size
        if size > self._max_size:
            self._forget()
            raise BuildRefused(f"build {self._build.id} of {self._service} is bigger than {Size(self._max_size)}")
        if announced is not None and size > announced:
            self._forget()
            raise _BreakError(Unavailable(f"more than the {announced} bytes came that were announced"))

    def _check_disk(self, coming: int) -> None:
        """Look at the disk now and then: others write to it, too, and not every source knows the size beforehand."""
        self._until_check -= coming
        if self._until_check < 0:
            self._until_check = _CHECK_EVERY
            require_free(self._incoming, coming, self._reserve, self._what)

    def _check_stop(self, wait: float = 0) -> None:
        if self._stop.wait(wait) if wait else self._stop.is_set():
            raise Unavailable(f"{self._what}: the agent was told to stop")


@contextmanager
def _alone(part: Path, what: str) -> Iterator[None]:
    """Have no other transfer write to a part: each knows the digest of its own bytes, and not of what lies between them.

    Raises:
        Unavailable: One does: it was given up on, and waits for its source, or it is of another build of the same bytes.
    """
    with _LOCK:
        if part in _under_way:
            raise Unavailable(f"{what}: an earlier transfer of it has not ended")
        _under_way.add(part)
    try:
        yield
    finally:
        with _LOCK:
            _under_way.remove(part)


def part_of(incoming: Path, digest: str) -> Path:
    """The file that holds the first bytes of an archive."""
    return incoming / f"{_hex(digest)}.part"


def about_of(incoming: Path, digest: str) -> Path:
    """The file that says what is being fetched."""
    return incoming / f"{_hex(digest)}.json"


def archive_of(incoming: Path, digest: str) -> Path:
    """The verified archive."""
    return incoming / f"{_hex(digest)}.archive"


def read_about(path: Path) -> Incoming | None:
    """What is known of an archive; None when nothing is."""
    try:
        return decode_json(path.read_bytes(), Incoming)
    except (OSError, msgspec.DecodeError):  # ValidationError is one, too
        return None


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _breaking(chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The chunks; a source that gives up in the middle is a break."""
    while True:
        try:
            chunk = next(chunks, None)
        except Unavailable as error:
            raise _BreakError(error) from error
        if chunk is None:
            return
        yield chunk
