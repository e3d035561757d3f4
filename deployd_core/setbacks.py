"""Remembers which acts failed, and when each may be tried again."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from deployd_core.errors import BuildRefused, ConfigError, DeploydError, Unavailable, UnknownPlugin
from deployd_core.observation import Setback

_FIRST, _MAX = 1.0, 60.0
_BLOCKING = (BuildRefused, ConfigError, UnknownPlugin)
"""Errors that a person has to do something about."""


class Setbacks:
    """Exponential backoff with jitter, for each act by its key."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self._attempts: dict[str, int] = {}
        self._setbacks: dict[str, Setback] = {}

    @property
    def by_key(self) -> Mapping[str, Setback]:
        """As the planner is shown them."""
        return dict(self._setbacks)

    def failed(self, key: str, error: DeploydError, now: float) -> None:
        """An act failed; the next attempt waits twice as long as the last one did."""
        attempt = self._attempts[key] = self._attempts.get(key, 0) + 1
        reason = f"{error.message} ({error.hint})" if error.hint else error.message
        blocking = isinstance(error, _BLOCKING)
        delay = _MAX if blocking else min(_MAX, _FIRST * 2.0 ** min(attempt - 1, 10))
        # The same bytes will not get better: a refused build waits for another one to be enabled.
        retry_at = math.inf if isinstance(error, BuildRefused) else now + delay * self._random.uniform(0.8, 1.2)
        self._setbacks[key] = Setback(
            reason=reason, retry_at=retry_at, blocking=blocking, environment=isinstance(error, Unavailable)
        )

    def refused(self, key: str, reason: str, now: float, *, retry_after: float) -> None:
        """Somebody said no, which is no error: ask again after a while."""
        delay = retry_after * self._random.uniform(0.8, 1.2)
        self._setbacks[key] = Setback(reason=reason, retry_at=now + delay, refused=True)

    def postpone(self, key: str, until: float) -> None:
        """Nothing is wrong, but the act is to wait."""
        self._setbacks[key] = Setback(reason="", retry_at=until)

    def succeeded(self, key: str) -> None:
        """An act was done."""
        self._setbacks.pop(key, None)
        self._attempts.pop(key, None)

    def lift(self, key: str) -> None:
        """Something has changed: the act may be tried at once. The count of its failures stays."""
        self._setbacks.pop(key, None)

    def clear(self) -> None:
        """Another build is wanted: what failed before says nothing now."""
        self._setbacks.clear()
        self._attempts.clear()

    def next_retry(self, now: float) -> float | None:
        """When the next act may be tried again."""
        return min((found.retry_at for found in self._setbacks.values() if now < found.retry_at < math.inf), default=None)
