"""What can go wrong, by what the agent does about it.

    DeploydError
    ├── ConfigError          a file, a spec or an option is wrong: a person must change it
    ├── Unavailable          the world outside is not there now: retried with backoff, never a failure of the build
    ├── BuildRefused         the build itself is wrong (digest, hostile archive): retrying cannot help
    ├── StepFailed           a post-install step said no
    ├── RestartFailed        a manager could not bring an instance up
    ├── PluginError          a plugin raised what it may not raise, or did not answer in time
    ├── UnknownPlugin        no plugin of that kind and name
    ├── Conflict             somebody else changed the same node first
    └── NotFound             no such service, host or build

The message says what happened and why, `hint` what to type or change next: a command of ours that can be typed as it stands, or
advice in words. A hint begins with a small letter and has no full stop. Several commands are joined by ``; or``, and each may have
a remark in brackets behind it: ``deployd retry web (tries the failed hosts again); or deployd rollback web``. Programmer errors are
not in this tree: they are caught only at the two boundaries (the call of a plugin, the cycle of a service) and reported with their
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DeploydError(Exception):
    """An error that has a message for a person, and often a next step."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class ConfigError(DeploydError):
    """A file, a service spec or an option is wrong."""


class Unavailable(DeploydError):
    """Something outside (a source, a disk, ZooKeeper) cannot be used now; it is worth trying again."""


class BuildRefused(DeploydError):
    """The build must not be used: its digest differs, or its archive is broken or hostile."""


class StepFailed(DeploydError):
    """A post-install step failed; the message holds the tail of its output."""


class RestartFailed(DeploydError):
    """A manager could not start, stop, restart or reload an instance."""


class PluginError(DeploydError):
    """A plugin broke its contract: it raised something else, returned nonsense, or did not answer in time."""


class UnknownPlugin(DeploydError):
    """No usable plugin of that kind and name."""


class Conflict(DeploydError):
    """A node changed between reading and writing it."""


class NotFound(DeploydError):
    """No such service, host, build or node."""


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many there are beside them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint for a name that is not there: the closest one, and all that there are."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known) or 'none'}"
