"""Writes and checks that happen together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Operation(NamedTuple):
    """One part of a transaction, in kazoo's words."""

    verb: str
    path: str
    arguments: dict[str, Any]

    def add_to(self, batch: Any) -> None:
        """Make it part of kazoo's transaction."""
        getattr(batch, self.verb)(self.path, **self.arguments)


class Transaction:
    """Collects writes and checks; nothing is sent before `commit` or `send`."""

    def __init__(self, send: Callable[[Sequence[Operation]], Callable[[], None]]) -> None:
        self._send = send
        self._operations: list[Operation] = []

    def check(self, path: str, version: int) -> Transaction:
        """Demand that the node has this version."""
        return self._add("check", path, version=version)

    def absent(self, path: str) -> Transaction:
        """Demand that the node is not there, and its parent is: no check can say so, but what is there cannot be created."""
        return self.create(path).delete(path)

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequence: bool = False) -> Transaction:
        """Create a node below one that exists."""
        return self._add("create", path, value=data, ephemeral=ephemeral, sequence=sequence)

    def set(self, path: str, data: bytes, version: int = -1) -> Transaction:
        """Write a node, if it still has that version (-1 is any)."""
        return self._add("set_data", path, value=data, version=version)

    def delete(self, path: str, version: int = -1) -> Transaction:
        """Delete a node without children."""
        return self._add("delete", path, version=version)

    def commit(self) -> None:
        """Send it and wait for the answer.

        Raises:
            Refused: Nothing of it happened; `path` says which node was in the way.
            OutcomeUnknown: All or nothing of it happened.
            Unavailable: It was not sent.
        """
        self.send()()

    def send(self) -> Callable[[], None]:
        """Send it, and wait for the answer by calling what is returned: what is asked meanwhile is answered after it.

        Raises:
            Unavailable: It was not sent. The rest is raised by what is returned, as by `commit`.
        """
        return self._send(self._operations)

    def _add(self, verb: str, path: str, **arguments: Any) -> Transaction:
        self._operations.append(Operation(verb, path, arguments))
        return self
