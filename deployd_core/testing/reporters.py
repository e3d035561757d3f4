"""What every reporter guarantees: inherit `ReporterContract`, say how to make yours and what has arrived, and pytest runs it.

class TestMyReporter(ReporterContract):
    @contextlib.contextmanager
    def started(self):
        with Receiver() as receiver:
            yield MyReporter(MyOptions(url=receiver.url)), lambda: receiver.names

`WholeReporterContract` is for reporters that pass on all that an event says.
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deployd_core.api import Event, Reporter


def event(name: str = "host.converged", **changes: Any) -> Event:
    """An event as the agent sends it."""
    fields = {"service": "web", "host": "h1.example.com", "at": "2026-11-23T12:00:00Z", "build": "v2", "detail": {}, **changes}
    return Event(name=name, **fields)


class ReporterContract(ABC):
    """What every reporter guarantees."""

    @abstractmethod
    def started(self) -> contextlib.AbstractContextManager[tuple[Reporter[Any], Callable[[], Sequence[str]]]]:
        """A reporter that works, and a function that tells the names of the events that have arrived, in order."""

    def test_events_arrive_in_order(self) -> None:
        """Each once, in the order in which they happened."""
        names = ["host.fetching", "host.restarting", "instance.cut", "host.failed", "host.converged"]
        with self.started() as (reporter, arrived):
            for name in names:
                reporter.report(event(name))

            assert names == list(arrived())

    def test_any_detail_is_taken(self) -> None:
        """Whatever an event says of itself (nested, in any script, with line breaks, nothing at all) it arrives."""
        details: list[dict[str, Any]] = [
            {},
            {"reason": "première\nligne « née » 你好 \u2028"},
            {"nested": {"numbers": [1, 2.5, None, True]}},
            {"long": "x" * 100_000},
        ]
        with self.started() as (reporter, arrived):
            for detail in details:
                reporter.report(event("host.waiting", detail=detail))

            assert ["host.waiting"] * len(details) == list(arrived())

    def test_an_event_without_a_build_is_taken(self) -> None:
        """Nothing need be enabled for something to happen."""
        with self.started() as (reporter, arrived):
            reporter.report(event("host.idle", build=""))

            assert ["host.idle"] == list(arrived())


class WholeReporterContract(ReporterContract):
    """For reporters that pass on all that an event says, and not just that something happened."""

    @abstractmethod
    def passed_on(self) -> Sequence[Mapping[str, Any]]:
        """What has arrived since `started`, in order: of each event the fields of `Event`, by their names."""

    def test_nothing_of_an_event_is_lost(self) -> None:
        """Build and detail arrive as they were, and no key of the detail is taken for a field of the event."""
        events = [
            event("instance.cut", detail={"instance": "web@8001", "connections": 3}),
            event("host.waiting", detail={"reason": "x" * 10_000}),
            event("host.failed", detail={"name": "not the event's", "host": "nor the host's", "build": "v9", "at": "later"}),
        ]
        with self.started() as (reporter, _):
            for sent in events:
                reporter.report(sent)

            for sent, found in zip(events, self.passed_on(), strict=True):
                for field in sent.__struct_fields__:
                    assert found.get(field) == getattr(sent, field), f"`{field}` of {sent.name} arrived as {found.get(field)!r:.80}"
