"""Sets up the agent's log: key=value lines on a terminal, one JSON object a line elsewhere, no time stamps under journald."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("kazoo").setLevel(logging.WARNING)
