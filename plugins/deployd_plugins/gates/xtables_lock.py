"""The locks of the tables of iptables: between programs that change them, and between threads of this one. Not a gate itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator

from deployd_core.api import ConfigError, Unavailable

THREADS = threading.Lock()
"""libiptc and libxtables keep global state: one thread at a time, for reading too."""

_LOOK_AGAIN = 0.002
"""Seconds. Linux can wait for such a lock, but not for so long and no longer."""


@contextlib.contextmanager
def held(path: str, timeout: float) -> Iterator[None]:
    """Hold the lock that iptables itself takes with ``-w``. It is between threads, too: each has a descriptor of its own.

    Taken before `THREADS`, so that who waits for another program keeps nobody here from reading.

    Raises:
        ConfigError: The file cannot be opened.
        Unavailable: Another program has held it for `timeout` seconds.
    """
    descriptor = _open(path)
    try:
        _lock(descriptor, path, timeout, time.monotonic() + timeout)
        yield
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise ConfigError(f"the lock of iptables, {path}, may not be used", hint="run the agent as root") from error
    except OSError as error:
        raise ConfigError(
            f"the lock of iptables, {path}, cannot be opened: {error.strerror}",
            hint="make its directory, or set `lock` to the file that iptables itself uses here",
        ) from error


def _lock(descriptor: int, path: str, timeout: float, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"another program has held {path} for {timeout:g} s", hint=f"`fuser -v {path}` says which"
                ) from None
            time.sleep(_LOOK_AGAIN)
        else:
            return
