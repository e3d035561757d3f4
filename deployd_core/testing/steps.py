"""What every step guarantees: inherit `StepContract`, say how to make yours and what it leaves behind, and pytest runs it.

    class TestMyStep(StepContract):
        def make_step(self):
            return MyStep(MyOptions())

        def is_done(self, release):
            return (release.path / "BUILD").read_text() == release.build.id

`RefusingStepContract` is for steps that can say no.
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployd_core.api import Build, DeploydError, Release, Step, StepCall, StepFailed
from deployd_core.testing.instances import refusal


class StepContract(ABC):
    """What every step guarantees."""

    @abstractmethod
    def make_step(self) -> Step[Any]:
        """The step to test."""

    @abstractmethod
    def is_done(self, release: Release) -> bool:
        """Whether the step has left what it should."""

    def prepare(self, release: Release) -> None:  # noqa: B027 - for those that need something
        """Put into the release what the step needs: by default nothing."""

    @contextlib.contextmanager
    def released(self) -> Iterator[StepCall]:
        """A release that has just been unpacked, and a call to run a step in it."""
        with tempfile.TemporaryDirectory(prefix="deployd-step-") as name:
            root = Path(name)
            path = root / "releases" / "v1"
            path.mkdir(parents=True)
            (root / "shared").mkdir()
            release = Release(service="web", build=Build(id="v1", digest="sha256:" + "0" * 64), path=path, root=root)
            self.prepare(release)
            yield StepCall(release=release, host="h1.example.com", log=root / "step.log", timeout=120.0)

    def test_it_does_its_work(self) -> None:
        """After a run everything is there."""
        with self.released() as call:
            self.make_step().run(call)

            assert self.is_done(call.release)

    def test_it_bears_repeating(self) -> None:
        """Run once more, in a release where it has run, it ends with the same."""
        with self.released() as call:
            self.make_step().run(call)
            self.make_step().run(call)

            assert self.is_done(call.release)

    def test_it_leaves_the_same_when_it_is_repeated(self) -> None:
        """Run once more, it adds nothing to what it has left, and nothing is longer than it was."""
        with self.released() as call:
            self.make_step().run(call)
            before = _files(call.release.path)
            self.make_step().run(call)

            after = _files(call.release.path)
            changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
            assert [] == changed, (
                f"run once more it left {changed[0]} with {after.get(changed[0])} bytes after {before.get(changed[0])}: one that "
                "was cut off runs again, so write whole files, and do not append"
            )

    def test_it_touches_the_release_alone(self) -> None:
        """Beside its release, and what outlives releases in `shared`, everything is as it was: `current`, other releases."""
        with self.released() as call:
            root, release = call.release.root, call.release.path
            other = root / "releases" / "v0"
            other.mkdir()
            (other / "BUILD").write_text("v0", encoding="utf-8")
            (root / "current").symlink_to(other)
            known = _beside(call)
            self.make_step().run(call)

            found = _beside(call)
            changed = sorted(name for name in {**known, **found} if known.get(name) != found.get(name))
            assert [] == changed, (
                f"it touched {changed[0]} in {root}: a step works in call.release.path, {release.relative_to(root)}"
            )

    def test_one_that_was_cut_short_runs_again(self) -> None:
        """Out of time it raises StepFailed or Unavailable, or is done already; the next run finds nothing in its way."""
        with self.released() as call:
            hurried = StepCall(release=call.release, host=call.host, log=call.log, timeout=0.001)
            with contextlib.suppress(DeploydError):
                self.make_step().run(hurried)

            self.make_step().run(call)

            assert self.is_done(call.release)


def _files(directory: Path) -> dict[str, int]:
    """The size of every file below a directory, but for what Python compiles on the way."""
    return {
        str(path.relative_to(directory)): path.lstat().st_size
        for path in directory.rglob("*")
        if not path.is_dir() and path.parent.name != "__pycache__"
    }


def _beside(call: StepCall) -> dict[str, bytes]:
    """What every file beside the release holds, but for `shared` and the log."""
    release = call.release
    apart = (release.path, release.root / "shared", call.log)
    return {
        str(path.relative_to(release.root)): path.readlink().as_posix().encode() if path.is_symlink() else path.read_bytes()
        for path in release.root.rglob("*")
        if not any(path.is_relative_to(place) for place in apart) and (path.is_symlink() or path.is_file())
    }


class RefusingStepContract(StepContract):
    """For steps that can say no."""

    @abstractmethod
    def spoil(self, release: Release) -> None:
        """Make the step impossible."""

    def test_what_cannot_be_done_is_a_failure_with_a_message(self) -> None:
        """It raises StepFailed, and the message is for a person."""
        with self.released() as call:
            self.spoil(call.release)
            assert refusal(StepFailed, lambda: self.make_step().run(call)).message.strip()
