"""The `jsonl` reporter: one line of JSON per event, in a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from deployd_core.api import Event, Meta, Options, Reporter, Size, Unavailable, hookimpl


class JsonlOptions(Options, frozen=True, kw_only=True):
    """Which file, and how large it may grow."""

    path: Annotated[str, Meta(min_length=1, description="file to append to")]
    max_bytes: Annotated[Size | None, Meta(description="past this size the file becomes <path>.1, which is replaced")] = None


class JsonlReporter(Reporter[JsonlOptions]):
    """Append every event to a file, as one line of JSON."""

    name = "jsonl"

    def report(self, event: Event) -> None:
        """Append one event; a reader never sees half a line.

        Raises:
            Unavailable: The file cannot be written.
        """
        import msgspec

        line = msgspec.json.encode(event, enc_hook=str) + b"\n"
        path = Path(self.options.path)
        try:
            with _locked(path) as descriptor:
                size = os.fstat(descriptor).st_size
                limit = self.options.max_bytes
                if limit is None or not size or size + len(line) <= limit:
                    _append(descriptor, line, size)
                    return
                path.replace(f"{path}.1")
                with _locked(path) as fresh:
                    _append(fresh, line, os.fstat(fresh).st_size)
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open the file that has this name now, with nobody else of us in it: other services report to it too."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _append(descriptor: int, line: bytes, size: int) -> None:
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, "no space for a whole line")


@hookimpl
def deployd_reporters() -> list[type]:
    """The reporter of this module."""
    return [JsonlReporter]
