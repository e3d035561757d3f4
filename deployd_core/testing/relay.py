"""A TCP relay in front of a ZooKeeper server that can go down, lose a transaction or the answer to one, or hold it up."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

_MULTI = 14
_Pump = Callable[[socket.socket, socket.socket, threading.Event], None]


class Relay:
    """Passes connections on from a free loopback port to a server.

    A client behind it sees what a broken network shows: refused connections, cut ones, and answers that never come.
    """

    def __init__(self, server: str) -> None:
        """Stand before ``host:port``."""
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._lock = threading.Lock()
        self._down = False
        self._loses = ""
        self._meanwhile: Callable[[], object] = bool
        self._first: Callable[[], object] | None = None
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    @property
    def address(self) -> str:
        """``127.0.0.1:<port>``."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Break all connections; new ones work."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def down(self) -> None:
        """Break all connections and let no new one live, until `up`."""
        self._down = True
        self.cut()

    def up(self) -> None:
        """Pass connections on again."""
        self._down = False

    def lose_next_answer(self, meanwhile: Callable[[], object] = bool) -> None:
        """Let the next transaction reach the server, and cut the connection when its answer comes and `meanwhile` is done."""
        self._loses, self._meanwhile = "answer", meanwhile

    def lose_next_transaction(self, meanwhile: Callable[[], object] = bool) -> None:
        """Let the next transaction not reach the server, and cut the connection when `meanwhile` is done."""
        self._loses, self._meanwhile = "transaction", meanwhile

    def before_next_transaction(self, action: Callable[[], object]) -> None:
        """Do something when the next transaction has been sent, and before the server gets it."""
        self._first = action

    def close(self) -> None:
        """End it."""
        self.down()
        # Closing alone would leave the thread in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._down:
                client.close()
                continue
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small packets would wait 40 ms for each other
            with self._lock:
                self._open |= {client, server}
            lost = threading.Event()
            for source, sink, pump in ((client, server, self._requests), (server, client, self._answers)):
                threading.Thread(target=self._run, args=(pump, source, sink, lost), name="relay", daemon=True).start()

    def _run(
        self,
        pump: Callable[[socket.socket, socket.socket, threading.Event], None],
        source: socket.socket,
        sink: socket.socket,
        lost: threading.Event,
    ) -> None:
        with contextlib.suppress(OSError):
            pump(source, sink, lost)
        with self._lock:
            self._open.discard(source)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        source.close()

    def _requests(self, source: socket.socket, sink: socket.socket, lost: threading.Event) -> None:
        first = True
        while frame := _read_frame(source):
            is_multi = not first and len(frame) >= 12 and struct.unpack_from(">i", frame, 8)[0] == _MULTI
            action, self._first = (self._first, None) if is_multi else (None, self._first)
            if action is not None:
                action()
            if is_multi and self._loses:
                loses, self._loses = self._loses, ""
                if loses == "transaction":
                    self._meanwhile()
                    return
                lost.set()
            sink.sendall(frame)
            first = False

    def _answers(self, source: socket.socket, sink: socket.socket, lost: threading.Event) -> None:
        while (data := source.recv(65536)) and not lost.is_set():
            sink.sendall(data)
        if data:
            self._meanwhile()


def _read_frame(source: socket.socket) -> bytes:
    """One packet of ZooKeeper's protocol, with its length; nothing at the end."""
    head = _read_exactly(source, 4)
    return head + _read_exactly(source, struct.unpack(">i", head)[0]) if head else b""


def _read_exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = source.recv(count - len(data))
        if not chunk:
            return b""
        data += chunk
    return data
