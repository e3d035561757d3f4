"""A small load balancer: ``/via/NAME/…`` goes to the server of that name, and ``/servers`` is its API."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any


@dataclass
class Backend:
    """One server."""

    name: str
    port: int
    state: str = "up"
    note: str = ""
    until: float | None = None
    active: int = 0


class Balancer(http.server.ThreadingHTTPServer):
    """The balancer."""

    def __init__(self, backends: list[Backend]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.backends = {backend.name: backend for backend in backends}
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers, or passes on."""

    server: Balancer

    def do_GET(self) -> None:
        if self.path == "/servers":
            self.answer(200, [{key: getattr(found, key) for key in ("name", "state", "active", "note")} for found in self.all()])
            return
        _, _, name, rest = self.path.split("/", 3)
        backend = {found.name: found for found in self.all()}[urllib.parse.unquote(name)]
        if backend.state != "up":
            self.answer(503, "no server is up")
            return
        with self.server.lock:
            backend.active += 1
        try:
            connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=10)
            connection.request("GET", f"/{rest}")
            passed = connection.getresponse()
            passed.read()
            connection.close()
        finally:
            with self.server.lock:
                backend.active -= 1
        self.answer(passed.status, "passed on")

    def do_PUT(self) -> None:
        backend = self.server.backends.get(urllib.parse.unquote(self.path.rpartition("/")[2]))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if backend is None:
            self.answer(404, "no such server")
            return
        with self.server.lock:
            backend.state, backend.note, backend.until = body["state"], body["note"], body["until"]
        self.answer(200, "done")

    def all(self) -> list[Backend]:
        """Every server, those put back whose drain is over."""
        with self.server.lock:
            for backend in self.server.backends.values():
                if backend.until is not None and time.time() >= backend.until:
                    backend.state, backend.note, backend.until = "up", "", None
            return list(self.server.backends.values())

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass
