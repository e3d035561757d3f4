"""Calls a function in a child process: for what cannot be undone (a namespace, an audit hook), or may hang."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from deployd_core.errors import Unavailable

R = TypeVar("R")


def run_in_child(function: Callable[[], R], *, timeout: float) -> R:
    """Call a function in a fork of this process; returns what it returns, which must be picklable.

    Raises:
        AssertionError: It raised something; the message ends with its traceback.
        Unavailable: It did not return in time.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # A thread that some earlier test has left behind does no harm: the child takes none of its locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        _live(function, writing)
    os.close(writing)
    try:
        answer = _read_all(reading, timeout)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it may not have come to lead its group yet
        os.waitpid(pid, 0)
    if answer is None:
        raise Unavailable(f"{_name(function)} did not return within {timeout:g} s")
    if not answer:
        raise AssertionError(f"{_name(function)} ended without an answer")
    good, value = pickle.loads(answer)  # noqa: S301 - our own child's
    if not good:
        raise AssertionError(value)
    result: R = value
    return result


def _live(function: Callable[[], Any], writing: int) -> None:
    """The whole life of the child: whatever happens in it ends here, and crosses to the parent as text."""
    try:
        os.setpgid(0, 0)  # so that what it starts ends with it
        outcome = _Outcome()
        with outcome:
            outcome.answer = pickle.dumps((True, function()))
        with open(writing, "wb", closefd=False) as pipe:
            pipe.write(outcome.answer)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Outcome:
    """What the child tells its parent."""

    answer = b""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: Any) -> bool:
        if value is not None:
            self.answer = pickle.dumps((False, "".join(traceback.format_exception(value))))
        return True


def _read_all(descriptor: int, timeout: float) -> bytes | None:
    """What comes until the end; None when that takes too long."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    found = b""
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return found
        found += chunk


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))
