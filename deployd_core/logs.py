"""Sets up the agent's log: key=value lines on a terminal, one JSON object a line elsewhere, no time stamps under journald."""

from __future__ import annotations

import logging
import sys
from time import monotonic
from typing import Any

import structlog

_SAID_AGAIN = 60.0
"""Seconds until a warning that comes again and again is written again."""


class _Repeats(logging.Filter):
    """Keeps back what was said a moment ago: while ZooKeeper is away, every engine finds so once a second, for as long as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Let through what is no warning, or a new one."""
        now, what = monotonic(), (record.name, record.getMessage())
        if record.levelno < logging.WARNING:
            return True
        self._said = {known: at for known, at in self._said.items() if now - at < _SAID_AGAIN}
        return self._said.setdefault(what, now) == now


def set_up_logging(*, host: str, journal: bool) -> None:
    """Send everything that is logged in this process to standard error.

    Args:
        host: Goes into every record.
        journal: Standard error is the journal, which adds its own time.
    """
    terminal = sys.stderr.isatty()
    shared: list[Any] = [structlog.stdlib.add_log_level, structlog.processors.format_exc_info]
    if not journal:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    if not terminal:
        shared.append(lambda _logger, _method, record: {**record, "host": host})
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    handler.addFilter(_Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("kazoo").setLevel(logging.WARNING)
