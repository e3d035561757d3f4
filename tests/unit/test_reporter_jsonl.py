from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployd_core.api import Duration, Event, Size, Unavailable
from deployd_plugins.reporters.jsonl import JsonlOptions, JsonlReporter


def event(name: str = "host.restarting", **detail: object) -> Event:
    return Event(name=name, service="web", host="a1", at="2026-11-23T12:00:00Z", build="v2", detail=detail)


def reporter(path: Path, max_bytes: str | None = None) -> JsonlReporter:
    return JsonlReporter(JsonlOptions(path=str(path), max_bytes=Size(max_bytes) if max_bytes else None))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_event_is_one_line(tmp_path: Path) -> None:
    """Events are appended in order, one JSON object a line, values without a JSON type as their text."""
    path = tmp_path / "events.jsonl"
    reporter(path).report(event("host.restarting"))
    reporter(path).report(event("host.failed", reason="two\nlines", waited=Duration("1m30s"), release=Path("/srv/web")))
    assert ["host.restarting", "host.failed"] == [line["name"] for line in lines(path)]
    assert {"reason": "two\nlines", "waited": "1m30s", "release": "/srv/web"} == lines(path)[1]["detail"]


def test_file_is_rotated_once_before_it_grows_too_large(tmp_path: Path) -> None:
    """The file and the one before it stay below the limit, and hold the latest events."""
    path = tmp_path / "events.jsonl"
    for number in range(50):
        reporter(path, "1kB").report(event(number=number))
    kept = [line["detail"]["number"] for line in lines(tmp_path / "events.jsonl.1") + lines(path)]  # type: ignore[index]
    assert list(range(50))[-len(kept) :] == kept
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    assert {"events.jsonl", "events.jsonl.1"} == {file.name for file in tmp_path.iterdir()}


def test_event_larger_than_the_limit_is_kept_whole(tmp_path: Path) -> None:
    """A limit never cuts an event."""
    path = tmp_path / "events.jsonl"
    reporter(path, "10B").report(event(text="x" * 100))
    assert "x" * 100 in path.read_text(encoding="utf-8")


def test_services_may_share_a_file_while_it_rotates(tmp_path: Path) -> None:
    """Reporters on several threads lose nothing to each other's rotation."""
    path = tmp_path / "events.jsonl"
    each = 40

    def work(worker: int) -> None:
        for number in range(each):
            reporter(path, "9kB").report(event(worker=worker, number=number))  # two files hold all, one does not

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(work, worker) for worker in range(3)]:
            done.result()
    files = [file for file in (tmp_path / "events.jsonl.1", path) if file.exists()]
    assert 3 * each == len({json.dumps(line["detail"]) for file in files for line in lines(file)})


@pytest.mark.parametrize("path", ["missing/events.jsonl", "."])
def test_file_that_cannot_be_written_is_unavailable(tmp_path: Path, path: str) -> None:
    """A missing directory, or a directory in the way, is reported under the name of the file."""
    with pytest.raises(Unavailable, match="cannot write"):
        reporter(tmp_path / path).report(event())
