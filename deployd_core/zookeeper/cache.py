"""Nodes that are read once and again only after their watch fired."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from deployd_core.errors import DeploydError
from deployd_core.zookeeper.session import Children, Node, Session, WatchEvent


class NodeCache:
    """What was read of some nodes, with a watch on each.

    Level-triggered: a fired watch only marks its node, the next `read` looks at what is there now. After the connection broke
    nothing that was read before holds, since watches die with it.
    """

    def __init__(self, session: Session, changed: Callable[[], object]) -> None:
        """Call `changed` (on kazoo's thread: it may set an event or fill a queue) when a node that was read has changed."""
        self._session = session
        self._changed = changed
        self._lock = threading.Lock()
        self._nodes: dict[str, tuple[int, Node | None]] = {}
        self._children: dict[str, tuple[int, Children | None]] = {}
        self._marked: set[str] = set()
        self._generation = -1
        # One object for every watch: kazoo keeps watches in sets, so that arming the same one twice is arming it once.
        self.watch = self._fired

    @property
    def stale(self) -> bool:
        """Whether anything must be read again."""
        with self._lock:
            return bool(self._marked) or self._generation != self._session.generation

    def read(self, paths: Iterable[str]) -> dict[str, Node | None]:
        """The nodes as they are now, reading those that changed."""
        wanted = list(paths)
        generation, needed = self._claim(wanted, self._nodes)
        if needed:
            try:
                fresh = self._session.get_many(needed, self.watch)
            except DeploydError:
                self._mark(needed)
                raise
            with self._lock:
                self._nodes.update({path: (generation, node) for path, node in fresh.items()})
        return {path: self._nodes[path][1] for path in wanted}

    def children(self, path: str) -> Children | None:
        """The names below a node as they are now; a node that does not exist is looked for each time."""
        generation, needed = self._claim([path], self._children)
        if needed or self._children[path][1] is None:
            try:
                fresh = self._session.children(path, self.watch)
            except DeploydError:
                self._mark([path])
                raise
            with self._lock:
                self._children[path] = (generation, fresh)
        return self._children[path][1]

    def forget(self) -> None:
        """Read everything again next time."""
        with self._lock:
            self._marked.update(self._nodes, self._children)

    def _claim(self, paths: list[str], known: Mapping[str, tuple[int, object]]) -> tuple[int, list[str]]:
        # The marks go before the reading begins: a watch that fires during it marks the node again.
        with self._lock:
            generation = self._generation = self._session.generation
            needed = [path for path in paths if path in self._marked or known.get(path, (-1, None))[0] != generation]
            self._marked.difference_update(needed)
        return generation, needed

    def _mark(self, paths: list[str]) -> None:
        with self._lock:
            self._marked.update(paths)

    def _fired(self, event: WatchEvent) -> None:
        with self._lock:
            if event.path is None:
                self._marked.update(self._nodes, self._children)
            else:
                self._marked.add(event.path)
        self._changed()
