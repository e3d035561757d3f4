"""The one place where a plugin's code is called.

Whatever a plugin raises comes out as an error of our own that names the plugin, its distribution and its version; the original
with its traceback is the cause. Deadlines are the caller's: the engine runs each call as a task and abandons one that is late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

from deployd_core.errors import DeploydError, PluginError

T = TypeVar("T")
R = TypeVar("R")


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


def call_plugin(provider: Provider, doing: str, function: Callable[[], R]) -> R:
    """Call into a plugin.

    Args:
        provider: Whose code it is.
        doing: What it is asked for, for the message: ``restarting web@8001``.
        function: The call.

    Raises:
        DeploydError: The plugin raised it on purpose.
        PluginError: The plugin raised anything else.
    """
    try:
        return function()
    except DeploydError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {provider} failed {doing}: {type(error).__name__}: {error}") from error


class Bound(Generic[T]):
    """A plugin object with the options of one service, and who provides it."""

    def __init__(self, plugin: T, name: str, provider: Provider) -> None:
        self.plugin = plugin
        self.name = name
        self.provider = provider

    def call(self, doing: str, use: Callable[[T], R]) -> R:
        """Call into it; see `call_plugin`."""
        return call_plugin(self.provider, doing, lambda: use(self.plugin))
