"""Tells reporters and event hooks what happens, beside the deploy: slow or broken ones do it no harm."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from deployd_core.errors import DeploydError
from deployd_core.model import Event

_LOG = logging.getLogger("deployd.events")
_QUEUE_SIZE = 10_000

Sink = Callable[[Event], None]
"""Takes one event; raises `DeploydError` only."""


class Events:
    """One queue and one thread for each sink, so that one that hangs holds up no other."""

    def __init__(self, sinks: Sequence[tuple[str, Sink]]) -> None:
        self._queues: list[queue.Queue[Event | None]] = []
        self._threads: list[threading.Thread] = []
        for name, sink in sinks:
            waiting: queue.Queue[Event | None] = queue.Queue(_QUEUE_SIZE)
            thread = threading.Thread(target=_deliver, args=(name, sink, waiting), name=f"deployd-events-{name}", daemon=True)
            thread.start()
            self._queues.append(waiting)
            self._threads.append(thread)

    def emit(self, event: Event) -> None:
        """Hand over an event; when a sink is 10,000 behind it loses the newest, and the log says so."""
        for waiting, thread in zip(self._queues, self._threads, strict=True):
            try:
                waiting.put_nowait(event)
            except queue.Full:
                _LOG.error("%s does not keep up: event %s is lost", thread.name, event.name)

    def close(self, timeout: float) -> None:
        """Let the sinks finish what is queued, for `timeout` seconds at most."""
        for waiting, thread in zip(self._queues, self._threads, strict=True):
            try:
                waiting.put_nowait(None)
            except queue.Full:
                continue
            thread.join(timeout)


def _deliver(name: str, sink: Sink, waiting: queue.Queue[Event | None]) -> None:
    while (event := waiting.get()) is not None:
        try:
            sink(event)
        except DeploydError as error:
            _LOG.error("%s did not take event %s: %s", name, event.name, error)
