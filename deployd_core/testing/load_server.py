"""A service that is hard to restart unnoticed. Standard library only: it is copied into builds and run by itself.

``/health`` answers at once, anything else after ``?ms=…`` milliseconds, GET and POST alike, with the build and the port. It takes
``--start-seconds`` to start, its first requests take ``--cold-seconds`` longer, and SIGTERM ends it on the spot.

Each process counts the requests it has begun and ended in ``shared/PORT.PID.requests``: two native integers that outlive it, so
that a request cut in flight shows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import mmap
import os
import struct
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Counts:
    """Requests begun and ended, in memory that the kernel writes to a file whatever becomes of the process."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(16)
            self._memory = mmap.mmap(file.fileno(), 16)
        self._values = [0, 0]

    def add(self, which: int) -> None:
        """Count a beginning (0) or an end (1)."""
        self._values[which] += 1
        struct.pack_into("qq", self._memory, 0, *self._values)


class Service:
    """What all connections share."""

    def __init__(self, build: str, port: int, counts: Counts, cold_seconds: float) -> None:
        self.build = build
        self._port = port
        self._cold_seconds = cold_seconds
        self.counts = counts
        self._warm_at: float | None = None

    async def answer(self, target: str) -> bytes:
        """The body for a path."""
        parts = urlsplit(target)
        if parts.path == "/health":
            return self.build.encode()
        self.counts.add(0)
        now = time.monotonic()
        if self._warm_at is None:
            self._warm_at = now + self._cold_seconds
        milliseconds = int(parse_qs(parts.query).get("ms", ["0"])[0])
        await asyncio.sleep(milliseconds / 1000 + max(0.0, self._warm_at - now))
        return f"{self.build} {self._port}".encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._serve_one(reader, writer):
                pass
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, target, version = head[0].split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        await reader.readexactly(int(headers.get("content-length", "0")))
        body = await self.answer(target)
        asked = headers.get("connection", "close" if version == "HTTP/1.0" else "keep-alive").lower()
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: {asked}\r\n\r\n".encode()
            + body
        )
        if not target.startswith("/health"):
            self.counts.add(1)
        return asked != "close"


async def serve(port: int, build: str, cold_seconds: float) -> None:
    """Serve for ever, on every address of the host."""
    service = Service(build, port, Counts(Path(f"../../shared/{port}.{os.getpid()}.requests")), cold_seconds)
    server = await asyncio.start_server(service.serve, "0.0.0.0", port, backlog=512)  # noqa: S104 - in a namespace of its own
    await server.serve_forever()


def main() -> None:
    """Run it: server.py PORT [--address IGNORED] [--start-seconds N] [--cold-seconds N], in the directory of a release."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--address")
    parser.add_argument("--start-seconds", type=float, default=1.0)
    parser.add_argument("--cold-seconds", type=float, default=0.6)
    arguments = parser.parse_args()
    build = Path("VERSION").read_text(encoding="utf-8").strip()
    time.sleep(arguments.start_seconds)
    asyncio.run(serve(arguments.port, build, arguments.cold_seconds))


if __name__ == "__main__":
    main()
