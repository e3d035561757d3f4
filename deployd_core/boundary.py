"""The one place where a plugin's code is called.

Whatever a plugin raises comes out as an error of our own that names the plugin, its distribution and its version; the original
with its traceback is the cause. Deadlines are the caller's: the engine runs each call as a task and abandons one that is late.
Only a strategy is asked in the middle of a round: `Bound.call_within` is for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from deployd_core.decoding import convert
from deployd_core.errors import DeploydError, PluginError, Unavailable

T = TypeVar("T")
R = TypeVar("R")

_SHOWN = 100
"""Characters of what a plugin returned, in a message."""


class Provider(Struct, frozen=True, kw_only=True):
    """Where a plugin comes from."""

    entry: str
    """The name of its entry point, or of its file without the ending."""
    distribution: str
    version: str
    origin: str
    """``module`` or ``/path/to/file.py``."""

    def __str__(self) -> str:
        return f"{self.entry} ({self.distribution} {self.version})" if self.version else f"{self.entry} ({self.origin})"


class _Tracer:
    """Where each call is told of; nowhere until `trace` says so."""

    write: Callable[[str], None] | None = None


def trace(write: Callable[[str], None] | None) -> None:
    """Have every call of a plugin told in a line: how long it took, whose it was, what for, and what it raised. None ends that."""
    _Tracer.write = write


def call_plugin(provider: Provider, doing: str, function: Callable[[], R]) -> R:
    """Call into a plugin.

    Args:
        provider: Whose code it is.
        doing: What it is asked for, for the message: ``restarting web@8001``.
        function: The call.

    Raises:
        DeploydError: The plugin raised it on purpose.
        PluginError: The plugin raised anything else, an ``asyncio.CancelledError`` as well as a ValueError.
    """
    began = time.perf_counter()
    outcome = ""
    try:
        return function()
    except DeploydError as error:
        outcome = f", raised {type(error).__name__}: {error}"
        raise
    except BaseException as error:
        if not isinstance(error, Exception | SystemExit) and threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, which comes to this thread alone: on any other it is the plugin's own
        outcome = f", raised {type(error).__name__}: {error}"
        raise PluginError(f"plugin {provider} failed {doing}: {type(error).__name__}: {error}") from error
    finally:
        if _Tracer.write is not None:
            _Tracer.write(f"{(time.perf_counter() - began) * 1000:.2f} ms: {provider} {doing}{outcome}")


def checked(provider: Provider, kind: type[R], doing: str, answer: object) -> R:
    """What a plugin returned, as a value of one of our types.

    Raises:
        PluginError: It is none, at the latest in one of its fields.
    """
    try:
        return convert(msgspec.to_builtins(answer), kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise PluginError(f"plugin {provider} failed {doing}: it returned {repr(answer)[:_SHOWN]}: {error}") from error


class Bound(Generic[T]):
    """A plugin object with the options of one service, and who provides it."""

    def __init__(self, plugin: T, name: str, provider: Provider) -> None:
        self.plugin = plugin
        self.name = name
        self.provider = provider
        self._late: threading.Thread | None = None

    def call(self, doing: str, use: Callable[[T], R]) -> R:
        """Call into it; see `call_plugin`."""
        return call_plugin(self.provider, doing, lambda: use(self.plugin))

    def ask(self, kind: type[R], doing: str, use: Callable[[T], object]) -> R:
        """Call into it for a value of one of our types, and have nothing else; see `call_plugin`.

        Raises:
            PluginError: What it returned is none, at the latest in one of its fields.
        """
        return checked(self.provider, kind, doing, self.call(doing, use))

    def call_within(self, seconds: float, doing: str, use: Callable[[T], R]) -> R:
        """Call into it on a thread of its own, and wait no longer than so many seconds.

        Raises:
            DeploydError: See `call_plugin`.
            PluginError: It has not answered, or an earlier call of this kind still has not; the thread is left to itself.
            Unavailable: There is no thread to be had.
        """
        if self._late is not None and self._late.is_alive():
            raise PluginError(f"plugin {self.provider} failed {doing}: an earlier call still hangs")
        answers: list[R] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                answers.append(self.call(doing, use))
            except BaseException as error:  # noqa: BLE001 - carried to the caller
                errors.append(error)

        thread = threading.Thread(target=call, name=f"deployd-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"{doing} with plugin {self.provider} could not begin: {error}") from error
        thread.join(seconds)
        if errors:
            raise errors[0]
        if not answers:
            self._late = thread
            raise PluginError(f"plugin {self.provider} failed {doing}: no answer within {seconds:g} s")
        return answers[0]
