"""The state of the connection: what kazoo says, and what a long silence means."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from kazoo.protocol.states import KazooState

from deployd_core.coordination import Link

_LINKS = {KazooState.CONNECTED: Link.CONNECTED, KazooState.SUSPENDED: Link.SUSPENDED, KazooState.LOST: Link.LOST}


class LinkMonitor:
    """Knows the link, and tells others about it on a thread of its own.

    ZooKeeper says that a session is lost only once it answers again. So a link that is suspended for longer than the session lives
    counts as lost before that.
    """

    def __init__(self, session_timeout: float) -> None:
        self.connected = threading.Event()
        self._session_timeout = session_timeout
        self._lock = threading.Lock()
        self._link = Link.LOST
        self._suspended_at = 0.0
        self._generation = 0
        self._changes: queue.SimpleQueue[Link | None] = queue.SimpleQueue()
        self._listeners: list[Callable[[Link], object]] = []
        self._thread: threading.Thread | None = None

    @property
    def link(self) -> Link:
        """The state of the connection."""
        with self._lock:
            silent = self._link is Link.SUSPENDED and time.monotonic() - self._suspended_at > self._session_timeout
            return Link.LOST if silent else self._link

    @property
    def generation(self) -> int:
        """How often the connection broke."""
        with self._lock:
            return self._generation

    def listen(self, listener: Callable[[Link], object]) -> None:
        """Have `listener` called with each change, and with CONNECTED after every break."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to tell listeners."""
        self._thread = threading.Thread(target=self._tell_listeners, name="deployd-zookeeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell listeners nothing more."""
        if self._thread is not None:
            self._changes.put(None)
            self._thread.join()
            self._thread = None

    def tell(self, state: str) -> None:
        """Take a state from kazoo. This is its connection thread, where an operation would never complete: note it and go."""
        link = _LINKS[state]
        with self._lock:
            self._link = link
            if link is Link.SUSPENDED:
                self._suspended_at = time.monotonic()
            if link is not Link.CONNECTED:
                self._generation += 1
        if link is Link.CONNECTED:
            self.connected.set()
        else:
            self.connected.clear()
        self._changes.put(link)

    def _tell_listeners(self) -> None:
        said = Link.LOST
        patience: float | None = None
        while True:
            try:
                change = self._changes.get(timeout=patience)
            except queue.Empty:
                change = Link.LOST
            if change is None:
                return
            patience = self._session_timeout if change is Link.SUSPENDED else None
            if change is not said or change is Link.CONNECTED:
                said = change
                for listener in self._listeners:
                    listener(change)


class Renewal:
    """Has kazoo begin a new session when the old one is over and kazoo does not know.

    It happens that a server goes on to answer on the connection of a session that has ended while it was being moved there: to
    everything but writes, and for ever.
    """

    def __init__(self, client: Any, monitor: LinkMonitor) -> None:
        self._client = client
        self._monitor = monitor
        self._lock = threading.Lock()
        self._ended = False

    def begin(self, generation: int) -> None:
        """Begin a new session on a thread of its own, unless the connection broke since that generation."""
        threading.Thread(target=self._renew, args=(generation,), name="deployd-new-session", daemon=True).start()

    def end(self) -> None:
        """Begin no session any more."""
        with self._lock:
            self._ended = True

    def _renew(self, generation: int) -> None:
        with self._lock:
            if not self._ended and generation == self._monitor.generation:
                self._client.stop()
                self._client.start_async()
