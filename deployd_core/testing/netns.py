"""Network namespaces of one's own: a host's firewall, ports and interfaces for one test. Needs root.

`run` calls a function in a child process with a network of its own, loopback up, and a `/run` of its own, so that not even the lock
of iptables is shared with the machine; `isolated` makes that of a test. `NetNamespace` is one that several processes share.

    @isolated
    def test_a_rule_is_there():
        subprocess.run(["iptables-legacy", "-A", "INPUT", "-j", "ACCEPT"], check=True)
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from deployd_core.errors import ConfigError
from deployd_core.testing.child import run_in_child

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

    def inside() -> R:
        enter()
        return function()

    inside.__qualname__ = getattr(function, "__qualname__", repr(function))
    return run_in_child(inside, timeout=timeout)


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
