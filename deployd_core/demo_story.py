"""PURE: what the demo tells of a rollout: who restarts, who is done, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deployd_core.errors import RestartFailed
from deployd_core.rollouts import HostEntry

BEGINS = "restarts its instances"
_FAILED = ("failed", "reverted", "broken", "blocked")
_RESTARTING = ("flipping", "restarting", "checking")


class Story:
    """Turns one reading of the fleet after the other into news.

    A reading says what is, and of two things that came between two readings not which came first. But a host that is done gives its
    permit back, and only then the next one gets it: so ends are told before beginnings. And a reading takes its time: when somebody
    seems to begin while another is at it, the next reading, which has everything that came before, tells whether that one was done.
    """

    def __init__(self, rollout: str, build: str) -> None:
        self._rollout = rollout
        self._build = build
        self._at_it: set[str] = set()
        self._done: set[str] = set()
        self._doubtful: set[str] = set()
        """Seemed to begin while another was at it; not told yet."""

    def news(self, hosts: Sequence[HostEntry]) -> Iterator[tuple[str, str]]:
        """Hosts, and what is to be said of each.

        Raises:
            RestartFailed: A host has failed.
        """
        mine = [entry for entry in hosts if entry.status is not None and entry.status.rollout == self._rollout]
        for entry in mine:
            if entry.status is not None and entry.status.step in _FAILED:
                raise RestartFailed(f"{entry.host} {entry.status.step}: {entry.status.reason or entry.status.last_error}")
        done = [entry.host for entry in mine if entry.converged and entry.host not in self._done]
        for host in sorted(done, key=self._doubtful.__contains__):
            if host in self._doubtful:
                yield host, BEGINS
            yield host, f"serves {self._build}"
        self._done |= {*done}
        self._at_it -= self._done
        begun = [entry.host for entry in mine if not entry.converged and entry.status and entry.status.step in _RESTARTING]
        doubtful = set()
        for host in sorted({*begun} - self._at_it - self._done):
            if self._at_it and host not in self._doubtful:
                doubtful.add(host)
            else:
                self._at_it.add(host)
                yield host, BEGINS
        self._doubtful = doubtful

    def ended(self, hosts: Sequence[HostEntry]) -> bool:
        """Whether every host has been told to be done."""
        return {entry.host for entry in hosts} <= self._done
