"""What every source guarantees: inherit `SourceContract`, say how to make yours, and pytest runs it.

    class TestMySource(SourceContract):
        def make_source(self, directory):
            return MySource(MyOptions(url=f"file://{directory}/{{build}}.tar.gz"))

Builds are files in `directory`; a source of another kind overrides `publish`, and `started` when it needs a server.
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployd_core.api import BuildCall, FetchCall, NotFound, Source
from deployd_core.testing.instances import refusal

CONTENT = bytes(range(256)) * 1024


class SourceContract(ABC):
    """What every source guarantees."""

    @abstractmethod
    def make_source(self, directory: Path) -> Source[Any]:
        """The source to test."""

    def publish(self, directory: Path, build: str, content: bytes) -> None:
        """Put a build where the source finds it, over an older one of its name."""
        (directory / f"{build}.tar.gz").write_bytes(content)

    @contextlib.contextmanager
    def started(self) -> Iterator[tuple[Source[Any], Path]]:
        """The source, with a build ``v1`` of `CONTENT`."""
        with tempfile.TemporaryDirectory(prefix="deployd-source-") as name:
            directory = Path(name)
            self.publish(directory, "v1", CONTENT)
            yield self.make_source(directory), directory

    def build(self, build: str = "v1") -> BuildCall:
        """A question about a build."""
        return BuildCall(service="web", build=build, timeout=10.0)

    def fetching(self, build: str = "v1", offset: int = 0, validator: str | None = None) -> FetchCall:
        """A request for a build."""
        return FetchCall(service="web", build=build, timeout=10.0, offset=offset, validator=validator)

    def test_what_is_told_of_a_build_is_true(self) -> None:
        """Size and digest are those of the artifact, if they are told at all; the location can be shown and names the format."""
        with self.started() as (source, _):
            artifact = source.resolve(self.build())

            assert artifact.size in (None, len(CONTENT))
            assert artifact.digest in (None, "sha256:" + hashlib.sha256(CONTENT).hexdigest())
            assert "v1" in artifact.location

    def test_a_build_is_fetched_whole(self) -> None:
        """Byte by byte, from the beginning."""
        with self.started() as (source, _):
            download = source.fetch(self.fetching())

            assert 0 == download.offset
            assert download.size in (None, len(CONTENT))
            assert CONTENT == _all(download.chunks)

    def test_a_broken_transfer_is_resumed_or_begun_again(self) -> None:
        """Asked for the rest, it begins there or at 0, says which, and the bytes are the right ones."""
        with self.started() as (source, _):
            first = source.fetch(self.fetching())
            _all(first.chunks)

            rest = source.fetch(self.fetching(offset=1000, validator=first.validator))

            assert rest.offset in (0, 1000)
            assert rest.size in (None, len(CONTENT)), f"`size` is of the whole artifact, {len(CONTENT)}, and not of the rest"
            assert CONTENT[rest.offset :] == _all(rest.chunks)

    def test_the_rest_of_another_artifact_is_not_taken_for_the_rest_of_this_one(self) -> None:
        """When the artifact has changed since the first part was fetched, be it as long as before, it begins at 0."""
        with self.started() as (source, directory):
            for changed in (CONTENT[::-1], CONTENT + b"more"):
                first = source.fetch(self.fetching())
                _all(first.chunks)
                time.sleep(1.1)  # a validator may be a time, which some know to the second alone
                self.publish(directory, "v1", changed)

                rest = source.fetch(self.fetching(offset=1000, validator=first.validator))

                assert 0 == rest.offset, "the artifact is another since the first part was fetched, and `validator` does not tell"
                assert changed == _all(rest.chunks)

    def test_a_build_that_is_not_there_is_not_found(self) -> None:
        """Asking for it and fetching it raise NotFound, with its name."""
        with self.started() as (source, _):
            for call in (lambda: source.resolve(self.build("v9")), lambda: _all(source.fetch(self.fetching("v9")).chunks)):
                assert "v9" in refusal(NotFound, call).message


def _all(chunks: Iterator[bytes | memoryview]) -> bytes:
    return b"".join(bytes(chunk) for chunk in chunks)
