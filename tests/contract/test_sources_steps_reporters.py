"""Every source, step and reporter that ships keeps its contract."""

from __future__ import annotations

import functools
import http.server
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployd_core.api import Release, Reporter, Source, Step
from deployd_core.testing import RefusingStepContract, SourceContract, WholeReporterContract
from deployd_plugins.reporters.jsonl import JsonlOptions, JsonlReporter
from deployd_plugins.sources.file import FileOptions, FileSource
from deployd_plugins.sources.http import HttpOptions, HttpSource
from deployd_plugins.steps.command import CommandStep, CommandStepOptions
from deployd_plugins.steps.pip import PipOptions, PipStep


class TestFile(SourceContract):
    """A directory."""

    def make_source(self, directory: Path) -> Source[Any]:
        return FileSource(FileOptions(url=f"file://{directory}/{{build}}.tar.gz"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server's answers, without its log. It knows neither ranges nor ETags: each transfer begins at 0."""

    def log_message(self, *arguments: Any) -> None:
        pass


class TestHttp(SourceContract):
    """A web server that can do little."""

    @contextmanager
    def started(self) -> Iterator[tuple[Source[Any], Path]]:
        with super().started() as (_, directory):
            handler = functools.partial(Quiet, directory=str(directory))
            with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
                threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
                url = f"http://127.0.0.1:{server.server_port}/{{build}}.tar.gz"
                yield HttpSource(HttpOptions(url=url)), directory
                server.shutdown()

    def make_source(self, directory: Path) -> Source[Any]:
        return FileSource(FileOptions(url=str(directory)))  # `started` knows the address of the server


class TestCommand(RefusingStepContract):
    """A command that takes a moment."""

    def make_step(self) -> Step[Any]:
        return CommandStep(CommandStepOptions(argv=("sh", "-c", "sleep 0.1; cp input output")))

    def prepare(self, release: Release) -> None:
        (release.path / "input").write_text("text")

    def is_done(self, release: Release) -> bool:
        return (release.path / "output").read_text() == "text"

    def spoil(self, release: Release) -> None:
        (release.path / "input").unlink()


class TestPip(RefusingStepContract):
    """An environment without requirements, which needs no index."""

    def make_step(self) -> Step[Any]:
        return PipStep(PipOptions(no_index=True))

    def prepare(self, release: Release) -> None:
        (release.path / "requirements.txt").write_text("# nothing\n")

    def is_done(self, release: Release) -> bool:
        return (release.path / "venv/bin/python").exists()

    def spoil(self, release: Release) -> None:
        (release.path / "requirements.txt").write_text("no-such-distribution\n")


class TestJsonl(WholeReporterContract):
    """A file of lines of JSON."""

    @contextmanager
    def started(self) -> Iterator[tuple[Reporter[Any], Callable[[], Sequence[str]]]]:
        with tempfile.TemporaryDirectory() as directory:
            self.path = Path(directory) / "events.jsonl"
            yield JsonlReporter(JsonlOptions(path=str(self.path))), lambda: [found["name"] for found in self.passed_on()]

    def passed_on(self) -> Sequence[Mapping[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n") if line]
