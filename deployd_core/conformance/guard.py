"""Catches a strategy that does more than decide: one that reads a file or a clock, speaks to a network, sleeps or rolls dice.

Two nets, for neither alone is fine enough: a profile function sees every call of a built-in function, however its name was imported
(`time.monotonic` is announced nowhere else), and an audit hook sees what built-in functions do among themselves. An audit hook
stays for the life of a process: use this in a child.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from deployd_core.conformance.findings import Fault

R = TypeVar("R")

PURE = "pure"
ANSWERS = "answers"
PATIENCE = 2.0
"""Seconds that a call may take here. It takes microseconds: this tells one that hangs from one on a busy machine."""

_CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "clock_gettime"}
_CLOCKS |= {"localtime", "gmtime", "ctime", "asctime", "strftime"}
_NOW = {"now", "utcnow", "today"}
_MODULES = ("posix", "io", "_io", "_socket", "_posixsubprocess", "select", "_ctypes", "fcntl", "_signal")
_HARMLESS = {"fspath", "StringIO", "BytesIO"}
_EVENTS = ("open", "os.", "socket.", "subprocess.", "time.sleep", "shutil.", "tempfile.", "ctypes.", "sqlite3.", "glob.", "fcntl.")
_LIBRARY = str(Path(os.__file__).parent)
_ENVIRONMENT = {type(os.environ).__getitem__.__code__, os.getenv.__code__}


class Guard:
    """Watches calls of a strategy. One per process, and not beside other threads."""

    def __init__(self) -> None:
        self._armed = False
        self._seen = ""
        self._doing = "plan"
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, self._late)

    def watch(self, function: Callable[[], R], doing: str = "plan") -> R:
        """Call it.

        Args:
            function: The call.
            doing: Which method of the strategy it is.

        Raises:
            Fault: It did what a strategy may not do, or took too long.
        """
        self._seen, self._doing = "", doing
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        self._armed = True
        gc.disable()  # what others hang into the collector is none of the strategy's doing
        sys.setprofile(self._profile)
        try:
            return function()
        finally:
            sys.setprofile(None)
            gc.enable()
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            if self._seen:
                # Whatever became of the exception: the strategy may have caught it, and gone on.
                raise Fault(PURE, self._seen)

    def _late(self, _number: int, frame: FrameType | None) -> None:
        where = f" (at {_where(frame)})" if frame is not None else ""
        raise Fault(ANSWERS, f"{self._doing} did not return within {PATIENCE:g} s{where}")

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in _ENVIRONMENT:
            self._caught("reads the environment", frame.f_back or frame)
        elif event == "c_call" and (what := _forbidden(argument)):
            self._caught(what, frame)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._armed and event.startswith(_EVENTS):
            what = f"{event} {arguments[0]!r}" if arguments and isinstance(arguments[0], str | int | float) else event
            self._caught(f"looks at the world ({what})", sys._getframe(1))  # noqa: SLF001 - the frame of whoever did it

    def _caught(self, what: str, frame: FrameType) -> None:
        if _importing(frame):
            return  # a module that is imported when it is first needed: once, and the same whatever the view
        self._armed = False
        self._seen = f"{self._doing} {what} at {_where(frame)}"
        raise Fault(PURE, self._seen)


def _forbidden(function: Any) -> str:
    """What is wrong with calling a built-in function; empty when nothing is."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or ""
    if module == "time":
        return "sleeps" if name == "sleep" else "reads the clock" if name in _CLOCKS else ""
    if getattr(owner, "__module__", "") == "datetime" and isinstance(owner, type) and name in _NOW:
        return "reads the clock"
    if owner is random._inst or (module == "_random" and name == "Random"):  # noqa: SLF001 - the dice of everybody
        return "rolls dice (random)"
    if module == "_thread" and name in ("start_new_thread", "start_joinable_thread"):
        return "starts a thread"
    if module in _MODULES and name not in _HARMLESS:
        return f"looks at the world ({module}.{name})"
    return ""


def _where(frame: FrameType) -> str:
    """The line of the plugin: the last one outside of the standard library."""
    found: FrameType | None = frame
    while found is not None and _is_library(found.f_code.co_filename):
        found = found.f_back
    shown = found or frame
    return f"{shown.f_code.co_filename}:{shown.f_lineno}"


def _is_library(name: str) -> bool:
    return name.startswith("<frozen") or (name.startswith(_LIBRARY) and "site-packages" not in name)


def _importing(frame: FrameType) -> bool:
    found: FrameType | None = frame
    while found is not None:
        if found.f_code.co_filename.startswith("<frozen importlib"):
            return True
        found = found.f_back
    return False
