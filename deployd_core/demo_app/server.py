"""A small HTTP service: `/` and `/health` answer the build it was started from. What the demo and the end-to-end tests deploy.

Start it in a release: ``python server.py PORT [--address 127.0.0.1] [--start-seconds 0.2]``. It reads the file VERSION there, once,
at its start, as a real service reads its code: what it answers is what it serves. SIGTERM lets the requests under way finish.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """The server, and the build it serves."""

    daemon_threads = False  # server_close waits for the requests under way

    def __init__(self, address: str, port: int, build: str) -> None:
        super().__init__((address, port), Handler)
        self.build = build


class Handler(BaseHTTPRequestHandler):
    """Answers with the build."""

    server: Server

    def do_GET(self) -> None:
        """Answer `/` and `/health`; nothing else is here."""
        found = self.path in ("/", "/health")
        body = f"{self.server.build if found else 'not found'}\n".encode()
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep quiet about requests."""


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="Answer the build that this was started from.")
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default="127.0.0.1", help="where to listen")
    parser.add_argument("--start-seconds", type=float, default=0.2, help="how long the start-up takes")
    arguments = parser.parse_args()
    build = Path("VERSION").read_text(encoding="utf-8").strip()
    time.sleep(arguments.start_seconds)
    with Server(arguments.address, arguments.port, build) as server:
        # shutdown() waits for serve_forever(), which the signal has interrupted: so from another thread.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever(poll_interval=0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
