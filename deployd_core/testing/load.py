"""Clients that notice everything: a load generator in a process of its own.

It runs until its standard input ends, lets what is under way come to an end, and writes what it saw to standard output. Anything
but a 2xx is a failure; nothing is tried twice, except a connection that was refused where there are several servers to choose from.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import msgspec
from msgspec import Struct

from deployd_core.errors import Unavailable

_REQUEST_TIMEOUT = 20.0
_LONG_SHARE, _LONG_MS = 0.02, 2000
_SHORTEST_MS, _LONGEST_MS = 20, 200


class Request(Struct, frozen=True, array_like=True):
    """One request, as its client saw it."""

    at: float
    """When it was sent, on the monotonic clock."""
    milliseconds: int
    """How long the server was asked to take."""
    seconds: float
    """How long it took."""
    error: str = ""
    """Empty for a 2xx."""
    build: str = ""
    """What the server said it serves."""
    port: int = 0
    """Which instance answered."""
    kind: str = ""
    """``GET`` or ``POST``, and ``keep-alive`` or ``close``."""


class Load(Struct, frozen=True):
    """What all clients saw."""

    requests: list[Request]

    @property
    def failures(self) -> list[Request]:
        """Requests that were not answered by a 2xx."""
        return [request for request in self.requests if request.error]

    def between(self, begin: float, end: float) -> Load:
        """The requests sent from one moment to another."""
        return Load([request for request in self.requests if begin <= request.at < end])

    @property
    def quick(self) -> Load:
        """Without those that were asked to take seconds, which would hide what happens to the others."""
        return Load([request for request in self.requests if request.milliseconds <= _LONGEST_MS])

    def latency(self, percent: float) -> float:
        """Seconds within which so many percent of the requests were answered; not a number when there were none."""
        ordered = sorted(request.seconds for request in self.requests)
        return math.nan if not ordered else ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    @property
    def builds(self) -> dict[str, int]:
        """How many requests each build answered."""
        found: dict[str, int] = {}
        for request in self.requests:
            if request.build:
                found[request.build] = found.get(request.build, 0) + 1
        return found


class LoadGenerator:
    """The process of the clients; a context manager that ends it, whatever happens."""

    def __init__(self, servers: Sequence[str], *, clients: int = 40, keep_alive: bool = True, before: Sequence[str] = ()) -> None:
        """Lay it out.

        Args:
            servers: ``host:port``; with several, each connection goes to one of them at random.
            clients: How many, each with one request at a time.
            keep_alive: Every other client keeps its connection, else none does.
            before: Words before the command, such as ``nsenter …``.
        """
        self._command = [*before, sys.executable, "-m", __name__, *servers, "--clients", str(clients)]
        self._command += ["--keep-alive"] if keep_alive else []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have the clients begin."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def finish(self) -> Load:
        """Have the clients end, and say what they saw.

        Raises:
            Unavailable: The generator itself broke.
        """
        if self._process is None:
            raise Unavailable("the load generator was not started")
        output, _ = self._process.communicate(timeout=2 * _REQUEST_TIMEOUT)
        if self._process.returncode:
            raise Unavailable(f"the load generator ended with {self._process.returncode}")
        return msgspec.json.decode(output, type=Load)

    def __enter__(self) -> LoadGenerator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class _Client:
    """One client: a request, a moment's thought, the next."""

    def __init__(self, number: int, servers: Sequence[tuple[str, int]], *, keep_alive: bool) -> None:
        self._random = random.Random(number)  # noqa: S311 - the same load in every run
        self._servers = servers
        self._keep_alive = keep_alive
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, stop: asyncio.Event, seen: list[Request]) -> None:
        """Until told to stop."""
        while not stop.is_set():
            await asyncio.sleep(self._random.uniform(0.0, 0.04))
            seen.append(await self._request())
        self._close()

    async def _request(self) -> Request:
        chance = self._random
        method = chance.choice(("GET", "POST"))
        milliseconds = _LONG_MS if chance.random() < _LONG_SHARE else chance.randint(_SHORTEST_MS, _LONGEST_MS)
        kind = f"{method} {'keep-alive' if self._keep_alive else 'close'}"
        at, error, build, port = time.monotonic(), "", "", 0
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                status, text = await self._exchange(method, milliseconds, kind)
            if 200 <= status < 300:
                build, port = text.split()[0], int(text.split()[1])
            else:
                error = f"answered {status}"
        except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        if error or not self._keep_alive:
            self._close()
        seconds = time.monotonic() - at
        return Request(at, milliseconds, seconds, error, build, port, kind)

    async def _exchange(self, method: str, milliseconds: int, kind: str) -> tuple[int, str]:
        """Send one request and read its answer: the status and the body."""
        reader, writer = await self._connected()
        body = b"x" * 500 if method == "POST" else b""
        head = [
            f"{method} /work?ms={milliseconds} HTTP/1.1",
            "Host: web",
            f"Connection: {kind.partition(' ')[2]}",
            f"Content-Length: {len(body)}",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in answer[1:] if line)
        text = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self._close()
        return int(answer[0].split(" ")[1]), text.decode(errors="replace")

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that is open already, or a new one."""
        if self._stream is not None and not self._stream[0].at_eof():
            return self._stream
        self._close()
        choices = self._random.sample(self._servers, len(self._servers))
        for host, port in choices[:-1]:
            with suppress(ConnectionRefusedError):
                self._stream = await asyncio.open_connection(host, port)
                return self._stream
        self._stream = await asyncio.open_connection(*choices[-1])
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


async def _run(servers: Sequence[tuple[str, int]], clients: int, *, keep_alive: bool, until: IO[bytes]) -> Load:
    stop, seen = asyncio.Event(), list[Request]()
    loop = asyncio.get_running_loop()
    loop.add_reader(until, stop.set)  # it is never written to: readable means ended
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            client = _Client(number, servers, keep_alive=keep_alive and number % 2 == 0)
            group.create_task(client.run(stop, seen))
    loop.remove_reader(until)
    return Load(seen)


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="+")
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--keep-alive", action="store_true")
    arguments = parser.parse_args()
    servers = [(server.rpartition(":")[0], int(server.rpartition(":")[2])) for server in arguments.servers]
    load = asyncio.run(_run(servers, arguments.clients, keep_alive=arguments.keep_alive, until=sys.stdin.buffer))
    sys.stdout.buffer.write(msgspec.json.encode(load))


if __name__ == "__main__":
    main()
