"""The client of the demo: asks instances which build they serve, and counts the answers that it did not get."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import urlsplit

_TIMEOUT = 2.0
_PAUSE = 0.01
"""Seconds between two requests."""


def ask(url: str) -> str:
    """The build that an instance answers, or in brackets why it does not."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"({getattr(error, 'strerror', None) or type(error).__name__})"
    finally:
        connection.close()
    return text if response.status == http.HTTPStatus.OK else f"({response.status})"


class Client:
    """Asks one instance after the other, without a balancer's health checks and without a second try."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._answers: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-client", daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def failed(self) -> int:
        """How many requests were not answered."""
        return sum(number for answer, number in self._answers.items() if answer.startswith("("))

    def summary(self) -> str:
        """How many requests were answered, by which build, and how many were not."""
        failed = self.failed
        builds = ", ".join(
            f"{number} answered by {answer}" for answer, number in sorted(self._answers.items()) if not answer.startswith("(")
        )
        lost = f"{failed} failed: they met an instance that was restarting" if failed else "none failed"
        return f"{self._answers.total()} requests, {builds}; {lost}"

    def _run(self) -> None:
        while True:
            for url in self._urls:
                self._answers[ask(url)] += 1
                if self._stop.wait(_PAUSE):
                    return
