"""What ZooKeeper answers: nodes, events, and refusals. What kazoo returns or raises becomes a type of ours here."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from kazoo import exceptions as kazoo_errors
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import EventType

from deployd_core.errors import Conflict, Unavailable

CREATED, DELETED = EventType.CREATED, EventType.DELETED

UNREADABLE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error)
"""What kazoo trips over in an answer that it cannot read: one out of order, or one to a create that names no node."""
NO_ANSWER = (kazoo_errors.KazooException, KazooTimeoutError, *UNREADABLE)
"""What kazoo raises in place of an answer."""
NOT_ACCEPTED = (kazoo_errors.AuthFailedError, kazoo_errors.SessionClosedRequireSaslError)
"""The latter says that the ensemble demands that clients say who they are, by SASL or not."""


class OutcomeUnknown(Unavailable):
    """A write was sent and its answer did not come: it may have happened."""


class Refused(Conflict):
    """A write was refused, and nothing of it happened: a version differs, or a node is or is not there.

    `path` is the node that was in the way.
    """

    def __init__(self, message: str, *, path: str, exists: bool = False, missing: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.exists = exists
        """It was to be created and is there already."""
        self.missing = missing
        """It is not there."""


class Stat(NamedTuple):
    """What ZooKeeper knows of a node beside its data."""

    czxid: int
    mzxid: int
    version: int
    owner: int
    children: int
    mtime: float
    """When it was last written, by ZooKeeper's clock: seconds since the epoch."""


class Node(NamedTuple):
    """A node's data and stat, read at one moment."""

    data: bytes
    stat: Stat


class Children(NamedTuple):
    """The names below a node and the node's own stat, read at one moment."""

    names: tuple[str, ...]
    stat: Stat


class WatchEvent(Protocol):
    """What a watch is told. `path` is None when the connection broke: then every watch is gone."""

    @property
    def path(self) -> str | None:
        """The node that changed, below the chroot."""
        ...

    @property
    def type(self) -> str:
        """What happened to it: `CREATED`, `DELETED`, or something else."""
        ...


Watch = Callable[[WatchEvent], object]
"""Called on kazoo's one thread: it may set an event or fill a queue, and nothing else.

Pass the same object each time, or they pile up."""


def stat_of(stat: Any) -> Stat:
    """What kazoo says of a node."""
    return Stat(
        czxid=stat.czxid,
        mzxid=stat.mzxid,
        version=stat.version,
        owner=stat.ephemeralOwner or 0,
        children=stat.numChildren,
        mtime=stat.mtime / 1000,
    )


def node_of(answer: Any) -> Node | None:
    """What kazoo read of a node; None of one that does not exist."""
    return None if answer is None else Node(answer[0] or b"", stat_of(answer[1]))


def children_of(answer: Any) -> Children | None:
    """What kazoo listed below a node; None of one that does not exist."""
    return None if answer is None else Children(tuple(sorted(answer[0])), stat_of(answer[1]))


def refusal_of(error: Exception, path: str, where: str) -> Refused | None:
    """What kazoo's error means for the node, or None when it is no refusal."""
    if isinstance(error, kazoo_errors.BadVersionError):
        return Refused(f"{where} was changed meanwhile", path=path)
    if isinstance(error, kazoo_errors.NodeExistsError):
        return Refused(f"{where} exists already", path=path, exists=True)
    if isinstance(error, kazoo_errors.NoNodeError):
        return Refused(f"{where} or the node above it does not exist", path=path, missing=True)
    if isinstance(error, kazoo_errors.NotEmptyError):
        return Refused(f"{where} has nodes below it", path=path)
    return None
