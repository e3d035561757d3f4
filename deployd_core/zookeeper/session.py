"""One ZooKeeper session: its link state, and operations that end in time and tell a refusal from an unknown outcome.

Failure: everything raises `Unavailable` while there is no connection. A write whose answer was lost raises `OutcomeUnknown`:
it may or may not have happened, so look before doing it again. What kazoo knows untyped (`Any`) ends in this module.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from kazoo import exceptions as kazoo_errors
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import KeeperState
from kazoo.retry import KazooRetry
from kazoo.security import Permissions

from deployd_core.coordination import Link
from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.zookeeper.access import not_accepted, not_allowed
from deployd_core.zookeeper.address import Identity, client_options, split_address
from deployd_core.zookeeper.answers import (
    CREATED,
    DELETED,
    NO_ANSWER,
    NOT_ACCEPTED,
    UNREADABLE,
    Children,
    Node,
    OutcomeUnknown,
    Refused,
    Stat,
    Watch,
    WatchEvent,
    children_of,
    node_of,
    refusal_of,
    stat_of,
)
from deployd_core.zookeeper.link import LinkMonitor, Renewal
from deployd_core.zookeeper.transaction import Operation, Transaction
from deployd_core.zookeeper.unreachable import why_unreachable

__all__ = [
    "CREATED",
    "DELETED",
    "Children",
    "Identity",
    "Node",
    "OutcomeUnknown",
    "Refused",
    "Session",
    "Stat",
    "Transaction",
    "Watch",
    "WatchEvent",
    "split_address",
]

SESSION_TIMEOUT = 10.0
OPERATION_TIMEOUT = 5.0
_RECONNECT = {"max_tries": -1, "delay": 0.05, "backoff": 2, "max_jitter": 0.4, "max_delay": 2.0}
_CHUNK = 500
_ROLLED_BACK = (kazoo_errors.RolledBackError, kazoo_errors.RuntimeInconsistency)


class Session:
    """A connection to ZooKeeper that outlives what happens to the network and the ensemble.

    Safe to use from several threads. `listen` before `start`; listeners run on a thread of the session's own and may use it.
    """

    def __init__(
        self,
        hosts: str,
        chroot: str = "/deployd",
        *,
        session_timeout: float = SESSION_TIMEOUT,
        operation_timeout: float = OPERATION_TIMEOUT,
        identity: Identity | None = None,
    ) -> None:
        self.hosts = hosts
        self.chroot = chroot.rstrip("/")
        self.session_timeout = session_timeout
        self.operation_timeout = operation_timeout
        self.identity = identity or Identity()
        self._monitor = LinkMonitor(session_timeout)
        self._session_id = 0
        self._client = self._new_client(hosts + self.chroot)
        self._renewal = Renewal(self._client, self._monitor)
        self._monitor.listen(self._forget_what_was_seen)

    # The link

    @property
    def address(self) -> str:
        """Hosts and chroot, for messages and for another session."""
        return self.hosts + self.chroot

    def where(self, path: str) -> str:
        """The path as zkCli wants it, for messages."""
        return (self.chroot + path).rstrip("/") or "/"

    @property
    def link(self) -> Link:
        """The state of the connection; ZooKeeper says LOST only when it answers again, so a long silence counts as that."""
        return self._monitor.link

    @property
    def generation(self) -> int:
        """Grows whenever the connection breaks: watches armed, and what was read, under a lower one no longer hold."""
        return self._monitor.generation

    @property
    def session_id(self) -> int:
        """The id of this session, as the owner of its ephemeral nodes; the last while the link is broken, 0 before the first."""
        identity = self._client.client_id
        self._session_id = int(identity[0]) if identity and identity[0] else self._session_id
        return self._session_id

    def listen(self, listener: Callable[[Link], object]) -> None:
        """Have `listener` called with each change of the link, CONNECTED being said after every break."""
        self._monitor.listen(listener)

    # Beginning and end

    def start(
        self,
        *,
        timeout: float | None = 10.0,
        stop: threading.Event | None = None,
        waiting: Callable[[str], object] | None = None,
        say_every: float = 10.0,
        hint: str = "is it running, and is the address right?",
    ) -> bool:
        """Connect. With `timeout` None it waits for an ensemble that is down until `stop` is set; `waiting` is told why.

        Returns:
            Whether it is connected; False only after `stop`.

        Raises:
            Unavailable: Not connected within `timeout` seconds; with `hint`, unless a better one is known.
            ConfigError: ZooKeeper does not accept who we say we are.
        """
        self._monitor.start()
        self._client.start_async()
        began = time.monotonic()
        say_at = began + 1.0
        while not self._answers():
            now = time.monotonic()
            if stop is not None and stop.is_set():
                self.close()
                return False
            if timeout is not None and now - began > timeout:
                trouble = why_unreachable(self.hosts, self.identity)
                self.close()
                raise Unavailable(f"ZooKeeper at {self.hosts} does not answer: {trouble.why}", hint=trouble.hint or hint)
            if waiting is not None and now > say_at:
                waiting(f"ZooKeeper at {self.hosts} does not answer ({why_unreachable(self.hosts, self.identity)}); waiting for it")
                say_at = time.monotonic() + say_every
        return True

    def close(self) -> None:
        """End the session: its ephemeral nodes go at once. Never call it from a watch or a listener."""
        self._renewal.end()
        self._client.stop()
        self._client.close()
        self._monitor.stop()

    def __enter__(self) -> Session:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def wait_connected(self, timeout: float) -> bool:
        """Wait until the link is CONNECTED; False when it is not within `timeout` seconds."""
        return self._monitor.connected.wait(timeout)

    # Reading

    def get(self, path: str, watch: Watch | None = None) -> Node | None:
        """Read a node, or None when it does not exist; a watch is armed either way."""
        return self.get_many([path], watch)[path]

    def get_many(self, paths: Iterable[str], watch: Watch | None = None) -> dict[str, Node | None]:
        """Read many nodes in one round, and in a second one arm the watches of those that do not exist."""
        found = self._pipelined(paths, lambda path: self._client.get_async(path, watch=watch))
        nodes = {path: node_of(answer) for path, answer in found.items()}
        missing = [path for path, node in nodes.items() if node is None]
        if watch is None or not missing:
            return nodes
        appeared = [path for path, stat in self.stat_many(missing, watch).items() if stat is not None]
        return nodes | self.get_many(appeared, watch) if appeared else nodes

    def stat(self, path: str, watch: Watch | None = None) -> Stat | None:
        """Look at a node without its data; None when it does not exist."""
        return self.stat_many([path], watch)[path]

    def stat_many(self, paths: Iterable[str], watch: Watch | None = None) -> dict[str, Stat | None]:
        """Look at many nodes in one round."""
        found = self._pipelined(paths, lambda path: self._client.exists_async(path, watch=watch))
        return {path: None if answer is None else stat_of(answer) for path, answer in found.items()}

    def open_to_all(self, path: str) -> bool:
        """Whether anybody may write a node, or create and delete below it; False when it does not exist."""
        answer = self._pipelined([path], self._client.get_acls_async)[path]
        entries = answer[0] if answer else ()
        return any(entry.id.scheme == "world" and entry.perms & ~Permissions.READ for entry in entries)

    def children(self, path: str, watch: Watch | None = None) -> Children | None:
        """List the names below a node, sorted; None when it does not exist (then no watch is armed)."""
        return self.children_many([path], watch)[path]

    def children_many(self, paths: Iterable[str], watch: Watch | None = None) -> dict[str, Children | None]:
        """List the names below many nodes in one round."""
        found = self._pipelined(paths, lambda path: self._client.get_children_async(path, watch=watch, include_data=True))
        return {path: children_of(answer) for path, answer in found.items()}

    def node_later(self, path: str, watch: Watch | None = None) -> Callable[[], Node | None]:
        """Ask for a node, and wait for the answer by calling what is returned: other questions may go out meanwhile.

        The answer is of the moment after everything that was sent before it. No watch is armed on a node that does not exist.
        """
        answers = self._ask([path], lambda path: self._client.get_async(path, watch=watch))
        return lambda: node_of(answers()[path])

    def children_later(self, path: str) -> Callable[[], Children | None]:
        """Ask for the names below a node, as `node_later` does."""
        answers = self._ask([path], lambda path: self._client.get_children_async(path, include_data=True))
        return lambda: children_of(answers()[path])

    # Writing

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False) -> None:
        """Create a node below one that exists.

        Raises:
            Refused: It exists, or its parent does not.
        """
        self._write(path, lambda: self._client.create_async(path, data, ephemeral=ephemeral))

    def create_sequential(self, prefix: str, data: bytes) -> str:
        """Create an ephemeral node whose name ZooKeeper ends with the next number of its parent; returns its path.

        Raises:
            Refused: Its parent does not exist.
        """
        created = self._write(prefix, lambda: self._client.create_async(prefix, data, ephemeral=True, sequence=True))
        return str(created)

    def create_if_missing(self, path: str, data: bytes = b"") -> bool:
        """Create a node unless it exists; returns whether it did."""
        try:
            self.create(path, data)
        except Refused as error:
            if error.exists:
                return False
            raise
        return True

    def set(self, path: str, data: bytes, version: int = -1) -> Stat:
        """Write a node, if it still has that version (-1 is any).

        Raises:
            Refused: It has another version, or does not exist.
        """
        return stat_of(self._write(path, lambda: self._client.set_async(path, data, version)))

    def delete(self, path: str, version: int = -1) -> None:
        """Delete a node without children.

        Raises:
            Refused: It has another version, children, or does not exist.
        """
        self._write(path, lambda: self._client.delete_async(path, version))

    def transaction(self) -> Transaction:
        """Begin a transaction; nothing is sent before its `commit`."""
        return Transaction(self._commit)

    # What all of them share

    def _forget_what_was_seen(self, link: Link) -> None:
        # A server that has seen less than its client turns it away, for the sake of the order in which a session sees things. The
        # session is over; and an ensemble that was restored from a copy would turn us away for ever.
        if link is Link.LOST:
            self._client.last_zxid = 0

    def _new_client(self, hosts: str) -> Any:
        reconnect = KazooRetry(**_RECONNECT)
        reconnect.retry_exceptions += UNREADABLE  # or else they end its loop, and with it the session, for good
        client = KazooClient(
            hosts=hosts,
            timeout=self.session_timeout,
            connection_retry=reconnect,
            **client_options(self.identity),
        )
        client.add_listener(self._monitor.tell)
        return client

    def _pipelined(self, paths: Iterable[str], ask: Callable[[str], Any]) -> dict[str, Any]:
        wanted = list(dict.fromkeys(paths))
        answers: dict[str, Any] = {}
        for begin in range(0, len(wanted), _CHUNK):
            answers |= self._ask(wanted[begin : begin + _CHUNK], ask)()
        return answers

    def _ask(self, paths: Sequence[str], ask: Callable[[str], Any]) -> Callable[[], dict[str, Any]]:
        self._require_link(paths[0])
        pending = [(path, ask(path)) for path in paths]
        deadline = time.monotonic() + self.operation_timeout

        def answers() -> dict[str, Any]:
            return {path: self._answer(path, answer, deadline) for path, answer in pending}

        return answers

    def _answer(self, path: str, answer: Any, deadline: float) -> Any:
        try:
            return answer.get(timeout=max(0.001, deadline - time.monotonic()))
        except kazoo_errors.NoNodeError:
            return None
        except NO_ANSWER as error:
            raise self._translate(error, "read", path) from error

    def _write(self, path: str, begin: Callable[[], Any]) -> Any:
        return self._send(path, begin)()

    def _send(self, path: str, begin: Callable[[], Any]) -> Callable[[], Any]:
        self._require_link(path)
        generation, pending = self.generation, begin()

        def answer() -> Any:
            try:
                return pending.get(timeout=self.operation_timeout)
            except NO_ANSWER as error:
                raise self._not_written(error, path, generation) from error

        return answer

    def _answers(self) -> bool:
        if self._client.client_state == KeeperState.AUTH_FAILED:
            self.close()
            raise not_accepted(self.identity, self.hosts)
        if not self._monitor.connected.wait(0.05):
            return False
        try:
            self.stat("/")  # a wrong password shows at the first operation only
        except ConfigError:
            self.close()
            raise
        except Unavailable:
            return False
        return True

    def _commit(self, operations: Sequence[Operation]) -> Callable[[], None]:
        batch = self._client.transaction()
        for operation in operations:
            operation.add_to(batch)
        generation, answer = self.generation, self._send(operations[0].path, batch.commit_async)
        return lambda: self._judge(operations, answer(), generation)

    def _judge(self, operations: Sequence[Operation], results: Sequence[object], generation: int) -> None:
        # kazoo returns the errors. Those before and after the culprit say only that they were rolled back.
        for operation, result in zip(operations, results, strict=False):
            if isinstance(result, Exception) and not isinstance(result, _ROLLED_BACK):
                raise self._not_written(result, operation.path, generation)
        if any(isinstance(result, Exception) for result in results):
            raise Refused(f"ZooKeeper refused a transaction on {self.where(operations[0].path)}", path=operations[0].path)

    def _require_link(self, path: str) -> None:
        # kazoo would queue the operation and carry it out after the connection came back, however stale it is then.
        if not self._monitor.connected.is_set():
            if self._client.client_state == KeeperState.AUTH_FAILED:
                raise not_accepted(self.identity, self.hosts)
            raise Unavailable(f"ZooKeeper at {self.hosts} is not connected: {path} cannot be read or written now")

    def _not_written(self, error: Exception, path: str, generation: int) -> DeploydError:
        if isinstance(error, kazoo_errors.SessionExpiredError):
            self._renewal.begin(generation)
        return self._translate(error, "write", path)

    def _translate(self, error: Exception, verb: str, path: str) -> DeploydError:
        where = self.where(path)
        if isinstance(error, NOT_ACCEPTED):
            return not_accepted(self.identity, self.hosts)
        if isinstance(error, kazoo_errors.NoAuthError):
            return not_allowed(self.identity, verb, where)
        refusal = refusal_of(error, path, where)
        if refusal is not None:
            return refusal
        reason = "no answer in time" if isinstance(error, KazooTimeoutError) else type(error).__name__
        kind = OutcomeUnknown if verb == "write" else Unavailable
        return kind(f"ZooKeeper at {self.hosts} did not {verb} {where}: {reason}")
