"""Network namespaces of one's own: a host's firewall, ports and interfaces for one test. Needs root.

`run` calls a function in a child process with a network of its own, loopback up, and a `/run` of its own, so that not even the lock
of iptables is shared with the machine; `isolated` makes that of a test. `NetNamespace` is one that several processes share.

    @isolated
    def test_a_rule_is_there():
        subprocess.run(["iptables-legacy", "-A", "INPUT", "-j", "ACCEPT"], check=True)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from deployd_core.errors import ConfigError, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_TIMEOUT = 120.0


def run(function: Callable[[], R], *, timeout: float = _TIMEOUT) -> R:
    """Call a function in a network of its own, in a child process; returns what it returns, which must be picklable.

    Raises:
        AssertionError: It raised something; the message ends with its traceback.
        ConfigError: Only root may.
        Unavailable: It did not return in time.
    """
    if os.geteuid() != 0:
        raise ConfigError("only root may make network namespaces")
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


def isolated(function: Callable[P, None]) -> Callable[P, None]:
    """Run a test, with its fixtures, in a network of its own."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> None:
        run(lambda: function(*args, **kwargs))

    return inside


def firewall(*, counters: bool = False) -> dict[str, str]:
    """Every firewall rule of the network that this process is in, by the command that tells it: what two looks must find equal.

    Args:
        counters: Compare the packets that rules have counted, too.
    """
    commands = ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save", "nft list ruleset"]
    texts = {}
    for command in commands:
        argv = [*command.split(), *(["-c"] if counters and command.endswith("save") else [])]
        text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        texts[command] = re.sub(r"(?m)^#.*\n" if counters else r"(?m)^#.*\n| \[\d+:\d+\]", "", text)
    return texts


def enter() -> None:
    """Give *this process* a network and a `/run` of its own, for good. For scripts, and children; never in a test's own process.

    Raises:
        ConfigError: Only root may.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) != 0:
        raise ConfigError(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
    libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for command in (
        ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
        ["mount", "-t", "sysfs", "sysfs", "/sys"],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)


class NetNamespace:
    """A network that lives as long as this context; `command` says how to start a program in it."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NetNamespace:
        script = "ip link set lo up && echo ready && exec sleep infinity"
        command = ["unshare", "--net", "sh", "-c", script]
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if self._keeper.stdout is None or self._keeper.stdout.readline() != b"ready\n":
            self.__exit__(None, None, None)
            raise ConfigError("cannot make a network namespace: only root may")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
            if self._keeper.stdout is not None:
                self._keeper.stdout.close()

    @property
    def pid(self) -> int:
        """A process that lives in it."""
        if self._keeper is None:
            raise ConfigError("the namespace has not been entered")
        return self._keeper.pid

    def command(self, argv: Sequence[str]) -> list[str]:
        """The same command, in this network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in this network, to its end; its failure is raised."""
        return subprocess.run(self.command(argv), check=True, capture_output=True, text=True, **options)

    def link(self, other: NetNamespace, here: str, there: str, *, name: str = "veth0") -> None:
        """Lay a cable between two networks, with an address at each end (``10.9.0.1/24``, ``fd09::1/64``)."""
        self.run(["ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", str(other.pid)])
        for space, address in ((self, here), (other, there)):
            six = ["nodad"] if ":" in address else []
            space.run(["ip", "addr", "add", address, "dev", name, *six])
            space.run(["ip", "link", "set", name, "up"])


def _live(function: Callable[[], Any], writing: int) -> None:
    """The whole life of the child: whatever happens in it ends here, and crosses to the parent as text."""
    try:
        os.setpgid(0, 0)  # so that what it starts ends with it
        outcome = _Outcome()
        with outcome:
            enter()
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

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> bool:
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
