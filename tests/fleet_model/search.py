"""Breadth-first search through every interleaving, so that the first counterexample is a shortest one.

Hosts of a zone are interchangeable: a state is a sorted tuple of hosts, which leaves one of every set of states that differ in the
names of hosts alone. Hosts are numbered as they turn up, and what a move does to its host depends on little of the others, so most
moves are looked up, not made.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import factorial
from typing import NamedTuple

from fleet_model.judge import judge
from fleet_model.protocol import GRANT, granted, may_hold, of_fleet, of_host
from fleet_model.world import Build, Event, Fleet, Host, Read, Rules, Violation, touched

State = tuple[int, tuple[int, ...]]
"""The fleet and the hosts by their numbers, the hosts sorted."""


@dataclass(kw_only=True)
class Found:
    """What a search found."""

    states: int
    """States, hosts of a zone being interchangeable."""
    named_states: int
    """How many they are when hosts have names."""
    moves: int
    violation: Violation | None = None
    trace: list[str] = field(default_factory=list)
    """The shortest way to the violation, one move a line."""
    stuck: int = 0
    seen: frozenset[str] = frozenset()
    """What happened in some interleaving."""

    def __str__(self) -> str:
        if self.violation is None:
            return f"{self.states} states ({self.named_states} with named hosts), {self.moves} moves: every promise is kept"
        count = f" (and {self.stuck - 1} more such states)" if self.stuck > 1 else ""
        lines = "".join(f"\n  {line}" for line in self.trace)
        return f"{self.violation.value}{count}, after {self.states} states:{lines}"


class _Move(NamedTuple):
    """A move of one host, with hosts by their numbers."""

    label: str
    fleet: int
    me: int
    event: dict[int, int]
    """What becomes of each of the others: filled in as they turn up."""
    means: Event
    violation: Violation | None
    supersedes: bool


_Step = tuple[tuple[int, ...], tuple[int, ...], _Move, tuple[int, ...]]


class _Way(NamedTuple):
    """From which state another was first reached, and how."""

    before: int
    places: tuple[int, ...]
    """Of the hosts that moved: one, two when one was admitted with another, or none."""
    move: _Move | None
    moved: tuple[int, ...]
    """What became of them, by their numbers."""


class Search:
    """One search through the fleets that some rules allow."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._fleets: list[Fleet] = []
        self._fleet_numbers: dict[Fleet, int] = {}
        self._hosts: list[Host] = []
        self._briefs: list[int] = []
        self._host_numbers: dict[Host, int] = {}
        self._states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._ways: list[_Way] = []
        self._leads_to: list[list[int]] = []
        """Of every state: those that lead to it without a newer build being enabled."""
        self._moves_of: dict[tuple[int, int, tuple[int, ...]], list[_Move]] = {}
        self._moves_of_all: dict[tuple[int, tuple[tuple[bool, bool], ...]], list[_Move]] = {}
        self._events: dict[Event, dict[int, int]] = {}
        self._moves = 0

    def run(self) -> Found:
        """Search until a promise is broken, or everything is seen; then see that nothing is stuck."""
        # Millions of tuples that never form a cycle: looking for cycles takes longer than the search.
        collects = gc.isenabled()
        gc.disable()
        try:
            return self._run()
        finally:
            if collects:
                gc.enable()

    def _run(self) -> Found:
        fleet, hosts = self._rules.start()
        self._add((self._fleet(fleet), tuple(sorted(map(self._number, hosts)))), _Way(0, (), None, ()))
        number = 0
        while number < len(self._states):
            for places, moved, move, others in self._next(*self._states[number]):
                self._moves += 1
                after = (move.fleet, self._sorted(move, moved, others))
                way = _Way(number, places, move, moved)
                if move.violation is not None:
                    return self._found(move.violation, way)
                target = self._add(after, way)
                if not move.supersedes:
                    self._leads_to[target].append(number)
            number += 1
        stuck = self._stuck()
        if stuck:
            return self._found(Violation.STUCK, self._ways[stuck[0]], stuck=len(stuck))
        return self._found(None, None)

    def _add(self, state: State, way: _Way) -> int:
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            self._ways.append(way)
            self._leads_to.append([])
        return number

    def _fleet(self, fleet: Fleet) -> int:
        number = self._fleet_numbers.setdefault(fleet, len(self._fleets))
        if number == len(self._fleets):
            self._fleets.append(fleet)
        return number

    def _number(self, host: Host) -> int:
        number = self._host_numbers.get(host)
        if number is None:
            number = self._host_numbers[host] = len(self._hosts)
            self._hosts.append(host)
            done = host.build == host.good == Build.WANTED
            bits = (host.out, host.counts_as_down, host.excused, host.failed, host.alive, done, host.canary, host.baked)
            self._briefs.append(sum(bool(bit) << place for place, bit in enumerate(bits)) + 256 * (host.permit + 3 * host.zone))
        return number

    def _next(self, fleet: int, hosts: tuple[int, ...]) -> Iterator[_Step]:
        """Which hosts move, what becomes of them, by what move, and who the others are."""
        for place, me in enumerate(hosts):
            if place and hosts[place - 1] == me:
                continue
            others = hosts[:place] + hosts[place + 1 :]
            for move in self._of_host(fleet, me, others):
                yield (place,), (move.me,), move, others
            alone = bool(self._rules.policy.stagger) and not self._rules.batches_staggered
            if "batch" in self._rules.may and self._hosts[me].read and not alone:
                yield from self._batches(self._fleets[fleet], place, me, others)
        for move in self._of_fleet(fleet, hosts):
            yield (), (), move, hosts

    def _of_host(self, number: int, me: int, others: tuple[int, ...]) -> list[_Move]:
        key = (number, me, tuple(sorted([self._briefs[host] for host in others])))
        found = self._moves_of.get(key)
        if found is None:
            fleet, host, rest = self._fleets[number], self._hosts[me], [self._hosts[other] for other in others]
            found = self._moves_of[key] = []
            for label, fleet_after, me_after, event in of_host(self._rules, fleet, host, rest):
                broken = judge(self._rules, label, fleet, fleet_after, host, me_after, rest)
                after = touched(me_after, event._replace(written=Read.NOT), self._rules)
                found.append(self._move(label, fleet_after, after, event, next(broken, None)))
        return found

    def _of_fleet(self, number: int, hosts: tuple[int, ...]) -> list[_Move]:
        known = [self._hosts[host] for host in hosts]
        key = (number, tuple(sorted([(host.failed, host.canary) for host in known])))
        found = self._moves_of_all.get(key)
        if found is None:
            found = self._moves_of_all[key] = [
                self._move(label, after, None, event, None)
                for label, after, event in of_fleet(self._rules, self._fleets[number], known)
            ]
        return found

    def _move(self, label: str, fleet: Fleet, me: Host | None, event: Event, violation: Violation | None) -> _Move:
        number = -1 if me is None else self._number(me)
        supersedes = event.supersedes and not event.goes_back
        return _Move(label, self._fleet(fleet), number, self._events.setdefault(event, {}), event, violation, supersedes)

    def _batches(self, fleet: Fleet, place: int, me: int, others: tuple[int, ...]) -> Iterator[_Step]:
        """The head of the queue admits one of those behind it in the same transaction."""
        head = self._hosts[me]
        first = granted(head)
        counted = first if self._rules.batch_counts_all else head
        for behind, number in enumerate(others):
            other, rest = self._hosts[number], others[:behind] + others[behind + 1 :]
            known = [self._hosts[host] for host in rest]
            if not other.wants or not may_hold(self._rules, fleet, other, (counted, *known)):
                continue
            asked = other._replace(read=head.read)
            once = fleet.with_grant(self._rules)
            both = once.with_grant(self._rules)
            broken = [
                *judge(self._rules, "", fleet, once, head, first, (other, *known)),
                *judge(self._rules, "", once, both, asked, granted(other), (first, *known)),
            ]
            move = self._move("are granted permits at once", both, first, GRANT, next(iter(broken), None))
            second = behind + (behind >= place)
            yield (place, second), (move.me, self._number(granted(other))), move, rest

    def _sorted(self, move: _Move, moved: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
        known = move.event
        try:
            return tuple(sorted([*moved, *[known[host] for host in others]]))
        except KeyError:
            known.update({host: self._number(touched(self._hosts[host], move.means, self._rules)) for host in others})
            return tuple(sorted([*moved, *[known[host] for host in others]]))

    def _stuck(self) -> list[int]:
        """States from which no good one can be reached, the nearest to the beginning first."""
        finished = [host.finished for host in self._hosts]
        reached = [all(finished[host] for host in hosts) for _, hosts in self._states]
        todo = [number for number, good in enumerate(reached) if good]
        while todo:
            for before in self._leads_to[todo.pop()]:
                if not reached[before]:
                    reached[before] = True
                    todo.append(before)
        return [number for number, good in enumerate(reached) if not good]

    def _found(self, violation: Violation | None, last: _Way | None, *, stuck: int = 0) -> Found:
        return Found(
            states=len(self._states),
            named_states=sum(self._namings(hosts) for _, hosts in self._states),
            moves=self._moves,
            violation=violation,
            trace=self._trace(last) if last is not None else [],
            stuck=stuck,
            seen=frozenset(move.label for moves in (*self._moves_of.values(), *self._moves_of_all.values()) for move in moves),
        )

    def _trace(self, last: _Way) -> list[str]:
        """The way to a state, with every host called by the same name all along."""
        ways = [last]
        while ways[-1].move is not None:
            ways.append(self._ways[ways[-1].before])
        names, lines = [f"h{number}" for number in range(self._rules.hosts)], []
        for way in reversed(ways):
            if way.move is None:
                continue
            lines.append(" and ".join(names[place] for place in way.places) + f" {way.move.label}")
            _, hosts = self._states[way.before]
            others = [place for place in range(len(hosts)) if place not in way.places]
            named = [(way.move.event[hosts[place]], names[place]) for place in others]
            named += zip(way.moved, (names[place] for place in way.places), strict=True)
            names = [name for _, name in sorted(named)]
        return [line.strip() for line in lines]

    def _namings(self, hosts: tuple[int, ...]) -> int:
        """In how many ways the hosts of a state can be named, within their zones."""
        count = 1
        for size in Counter((self._hosts[host].zone, self._hosts[host].canary) for host in hosts).values():
            count *= factorial(size)
        for same in Counter(hosts).values():
            count //= factorial(same)
        return count
