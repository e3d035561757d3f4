"""What the agent tells systemd, and what it makes of a systemd that does not listen."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from deployd_core.notify import Notifier


def test_what_is_said_is_heard(tmp_path: Path) -> None:
    """Assignments go in one datagram, a line each."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))

        Notifier({"NOTIFY_SOCKET": str(path)}).send("READY=1", "STATUS=following web")

        assert listener.recv(100) == b"READY=1\nSTATUS=following web"


def test_a_socket_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """The agent goes on."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("WATCHDOG=1")


def test_an_agent_without_a_file_descriptor_to_spare_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has worse to see to: a beat that cannot be told must not end it, in the middle of a restart maybe."""

    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", exhausted)

    Notifier({"NOTIFY_SOCKET": "/run/systemd/notify"}).send("WATCHDOG=1")
