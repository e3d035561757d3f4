"""Tells systemd how the agent is doing, by the protocol of sd_notify(3). Without systemd it says nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """The socket that systemd named, if it did."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog: float | None = int(microseconds) / 1e6 if microseconds.isdigit() and mine else None
        """Seconds within which systemd wants a sign of life; None when it does not watch."""

    def send(self, *assignments: str) -> None:
        """Send ``READY=1`` and the like; a socket that is gone, or cannot be had, is no reason to fail."""
        if not self._address:
            return
        # An abstract socket is written with @ and begins with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.sendto("\n".join(assignments).encode(), address)
