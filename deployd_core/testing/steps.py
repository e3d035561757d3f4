"""What every step guarantees: inherit `StepContract`, say how to make yours and what it leaves behind, and pytest runs it.

    class TestMyStep(StepContract):
        def make_step(self):
            return MyStep(MyOptions())

        def is_done(self, release):
            return (release.path / "BUILD").read_text() == release.build.id

`RefusingStepContract` is for steps that can say no.
"""

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

    def test_one_that_was_cut_short_runs_again(self) -> None:
        """Out of time it raises StepFailed or Unavailable, or is done already; the next run finds nothing in its way."""
        with self.released() as call:
            hurried = StepCall(release=call.release, host=call.host, log=call.log, timeout=0.001)
            with contextlib.suppress(DeploydError):
                self.make_step().run(hurried)

            self.make_step().run(call)

            assert self.is_done(call.release)


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
