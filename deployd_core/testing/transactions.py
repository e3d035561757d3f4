"""What a ZooKeeper server has put on record: every transaction in the order of its zxid, read from the server's own log.

Nothing tells more exactly what was true at which moment: a client sees states, and may miss one; the log is what made them. The
format is that of ZooKeeper's `FileTxnLog`: a header, then for each transaction a checksum, its length, and jute records.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_MAGIC = b"ZKLG"
_HEADER = 16
_CREATES = (1, 15, 19, 21)  # create, create2, createContainer, createTTL
_DELETES = (2, 20)
_SET = 5
_MULTI = 14
_ERROR = -1


class Change(NamedTuple):
    """One node that a transaction wrote."""

    verb: str
    """``create``, ``set`` or ``delete``."""
    path: str
    data: bytes = b""


class Committed(NamedTuple):
    """One transaction that succeeded; what one that was refused would have changed is not there."""

    zxid: int
    session: int
    changes: tuple[Change, ...]


class Incomplete(Exception):
    """The logs lack transactions: a server that was behind took a snapshot instead."""


def read_transactions(directories: Iterable[Path]) -> list[Committed]:
    """All that the servers with these data directories have committed, in its order.

    Pass those that live: a server that died may have logged a last proposal that nobody else ever heard of.

    Raises:
        Incomplete: Together they do not have every transaction.
    """
    found: dict[int, Committed] = {}
    for directory in directories:
        for path in sorted(directory.glob("version-2/log.*")):
            found |= {committed.zxid: committed for committed in _read(path.read_bytes())}
    ordered = [found[zxid] for zxid in sorted(found)]
    for before, after in itertools.pairwise([0, *sorted(found)]):
        # A new leader counts from 1 in the lower half, under an epoch of its own in the upper.
        if after not in (before + 1, (after >> 32 << 32) + 1):
            raise Incomplete(f"nothing between {before:#x} and {after:#x}")
    return ordered


def _read(log: bytes) -> Iterator[Committed]:
    if log[:4] != _MAGIC:
        return
    place = _HEADER
    while place + 12 <= len(log):
        (length,) = struct.unpack_from(">i", log, place + 8)
        end = place + 12 + length
        # The file is allocated ahead and filled with zeros; the last record of a killed server may be cut short.
        if length == 0 or end >= len(log) or log[end : end + 1] != b"B":
            return
        record = _Record(log[place + 12 : end])
        session, _, zxid, _, kind = record.eight(), record.four(), record.eight(), record.eight(), record.four()
        yield Committed(zxid, session, tuple(_changes(kind, record)))
        place = end + 1


def _changes(kind: int, record: _Record) -> Iterator[Change]:
    if kind in _CREATES:
        yield Change("create", record.text(), record.buffer())
    elif kind in _DELETES:
        yield Change("delete", record.text())
    elif kind == _SET:
        yield Change("set", record.text(), record.buffer())
    elif kind == _MULTI:
        parts = [(record.four(), _Record(record.buffer())) for _ in range(record.four())]
        # One that was refused is on record, too: what comes before the part that failed as it was asked for.
        if all(part != _ERROR for part, _ in parts):
            for part, inner in parts:
                yield from _changes(part, inner)


class _Record:
    """Reads jute's values one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def four(self) -> int:
        return self._number(">i", 4)

    def eight(self) -> int:
        return self._number(">q", 8)

    def buffer(self) -> bytes:
        length = max(0, self._number(">i", 4))  # -1 is no buffer
        self._place += length
        return self._data[self._place - length : self._place]

    def text(self) -> str:
        return self.buffer().decode()

    def _number(self, form: str, size: int) -> int:
        self._place += size
        number: int = struct.unpack_from(form, self._data, self._place - size)[0]
        return number
