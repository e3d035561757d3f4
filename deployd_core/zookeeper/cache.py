"""Nodes that are read once and again only after their watch fired."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from deployd_core.errors import DeploydError
from deployd_core.zookeeper.session import CREATED, Children, Node, Session, Stat, Watch, WatchEvent

_T = TypeVar("_T")


class NodeCache:
    """What was read of some nodes, with a watch on each.

    Level-triggered: a fired watch only marks its node, the next `read` looks at what is there now. After the connection broke
    nothing that was read before holds, since watches die with it.
    """

    def __init__(self, session: Session, changed: Callable[[], object], *, watching: bool = True) -> None:
        """Call `changed` (on kazoo's thread: it may set an event or fill a queue) when a node that was read has changed.

        Without `watching` it reads once, and nothing is watched: a watch lives until its node changes, and its cache with it.
        """
        self._session = session
        self._changed = changed
        self._lock = threading.Lock()
        """Of what is known; held for a moment, by kazoo's thread too."""
        self._reading = threading.RLock()
        """Of asking: an answer that was overtaken must not take the place of a newer one."""
        self._nodes: dict[str, tuple[int, Node | None]] = {}
        self._children: dict[str, tuple[int, Children | None]] = {}
        # Data and children of a node are read apart, so that reading the one must not pass for reading the other.
        self._node_marks = _Marks()
        self._children_marks = _Marks()
        self._created: set[str] = set()
        """Nodes that are there by now, by the word of a watch."""
        self._generation = -1
        self.readings = 0
        """Grows with everything that is read anew: what was made of an earlier reading may not hold."""
        # One object for every watch: kazoo keeps watches in sets, so that arming the same one twice is arming it once.
        self.watch: Watch | None = self.fired if watching else None

    @property
    def stale(self) -> bool:
        """Whether any node must be read again; lists of names are for those who ask for them."""
        with self._lock:
            return bool(self._node_marks.fired) or self._generation != self._session.generation

    def read(self, paths: Iterable[str]) -> dict[str, Node | None]:
        """The nodes as they are now, reading those that changed."""
        wanted = list(paths)
        with self._reading:
            generation, needed = self._claim(wanted, self._nodes, self._node_marks)
            if needed:
                try:
                    fresh = self._look(needed)
                except DeploydError:
                    self._mark(needed, self._node_marks)
                    raise
                with self._lock:
                    self._nodes.update({path: (generation, node) for path, node in fresh.items()})
                    self.readings += 1
            return {path: self._nodes[path][1] for path in wanted}

    def children(self, paths: Iterable[str]) -> dict[str, Children | None]:
        """The names below nodes as they are now; a node that does not exist is looked for each time."""
        wanted = list(paths)
        with self._reading:
            generation, needed = self._claim(wanted, self._children, self._children_marks)
            needed += [path for path in wanted if path not in needed and self._children[path][1] is None]
            if needed:
                try:
                    fresh = self._session.children_many(needed, self.watch)
                except DeploydError:
                    self._mark(needed, self._children_marks)
                    raise
                with self._lock:
                    self._children.update({path: (generation, found) for path, found in fresh.items()})
            return {path: self._children[path][1] for path in wanted}

    def forget(self, path: str | None = None) -> None:
        """Read a node, and what is below it, or (None) everything again next time."""
        with self._lock:
            self._fire(path)

    def deleted(self, path: str) -> None:
        """We have deleted a node: read it again next time, and expect it not to be there, which saves a request."""
        with self._lock:
            self._fire(path)
            if path in self._nodes:
                self._nodes[path] = (-1, None)

    def ask(self, path: str) -> Callable[[], None]:
        """Ask for a node, and take in the answer later, by calling what is returned; until then it is what it was.

        An answer that is doubtful by then is not kept: something has changed meanwhile, or somebody else has read something.
        """
        with self._lock:
            if self._knows(path):
                return lambda: None
            asked = self._session.generation, self._node_marks.news
        answer = self._session.node_later(path, self.watch)

        def take() -> None:
            node = answer()
            with self._lock:
                if node is not None and asked == (self._session.generation, self._node_marks.news):
                    self._nodes[path] = (asked[0], node)
                    self._node_marks.claim((path,))
                    self._created.discard(path)
                    self.readings += 1

        return take

    def _look(self, paths: list[str]) -> dict[str, Node | None]:
        """Read nodes and watch them. For those that were not there it asks first, which also arms the watch."""
        absent = [path for path in paths if path not in self._created and self._nodes.get(path, _NEVER)[1] is None]
        appeared = self._session.stat_many(absent, self.watch) if absent else {}
        fresh: dict[str, Node | None] = {path: None for path, stat in appeared.items() if stat is None}
        with self._lock:
            self._created.difference_update(paths)
        return fresh | self._session.get_many([path for path in paths if path not in fresh], self.watch)

    def _claim(self, paths: list[str], known: dict[str, tuple[int, _T]], marks: _Marks) -> tuple[int, list[str]]:
        # The marks go before the reading begins: a watch that fires during it marks the node again.
        with self._lock:
            generation = self._generation = self._session.generation
            needed = [path for path in paths if path in marks.fired or known.get(path, (-1, None))[0] != generation]
            if needed:
                marks.claim(needed)
                known.update({path: (-1, known[path][1]) for path in needed if path in known})  # not known while it is read
        return generation, needed

    def _mark(self, paths: list[str], marks: _Marks) -> None:
        with self._lock:
            marks.fired.update(paths)

    def _knows(self, path: str) -> bool:
        """Whether a node is known to be there."""
        generation, node = self._nodes.get(path, _NEVER)
        return node is not None and generation == self._session.generation and path not in self._node_marks.fired

    def _fire(self, path: str | None) -> None:
        self._node_marks.fire(path)
        self._children_marks.fire(path)

    def fired(self, event: WatchEvent) -> None:
        """Take the word of a watch."""
        with self._lock:
            if event.type != CREATED or event.path is None:
                self._fire(event.path)
            elif not self._knows(event.path):  # or else it was created before it was read
                self._created.add(event.path)
                self._node_marks.fired.add(event.path)
        self._changed()


_NEVER = (-1, Node(b"", Stat(0, 0, 0, 0, 0, 0.0)))
"""Stands for what was never read: most nodes that are asked for are there."""


class _Marks:
    """The paths that are watched, and those of them that must be read again."""

    def __init__(self) -> None:
        self.watched: set[str] = set()
        self.fired: set[str] = set()
        self.news = 0
        """Grows with whatever is marked or read."""

    def fire(self, path: str | None) -> None:
        """Mark a path if it is watched; None marks all."""
        if path is None or path in self.watched:
            self.fired.update(self.watched if path is None else (path,))
            self.news += 1

    def claim(self, paths: Iterable[str]) -> None:
        """These are about to be read, and watched."""
        self.watched.update(paths)
        self.fired.difference_update(paths)
        self.news += 1
