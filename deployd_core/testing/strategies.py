"""What every strategy guarantees: inherit `StrategyContract`, say how to make yours, and pytest runs it on the real planner.

    class TestMine(StrategyContract):
        strategy = Mine

Each property of `deployd strategies check` is a test of its own; a failure names the seed that shows it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from deployd_core.api import Options, Strategy
from deployd_core.boundary import Provider
from deployd_core.conformance import SEEDS
from deployd_core.conformance.findings import Check, Findings
from deployd_core.conformance.guard import ANSWERS, PURE
from deployd_core.conformance.looking import FACTS
from deployd_core.conformance.questions import LIMITS, MEMORY, PLANS, VIEW
from deployd_core.conformance.strategies import CRASHES, FINISHES, Subject, check_strategy
from deployd_core.conformance.world import RULES


class StrategyContract:
    """What every strategy guarantees."""

    strategy: ClassVar[type[Strategy[Any]]]
    """The class to test."""
    seeds: ClassVar[int] = SEEDS
    """How many hosts it is tried on; ``$DEPLOYD_SEED`` has the first one, 0 unless it is set."""

    def options(self) -> Options:
        """The options to test it with; those of them that are shares are varied."""
        return self.strategy.options_type()

    def facts(self, instances: Sequence[str]) -> Mapping[str, object]:  # noqa: ARG002 - for those that look
        """What its own `facts` would find on a host with these instances; nothing is what it does find on the model of one."""
        return {}

    @classmethod
    def _findings(cls) -> Findings:
        """Everything at once, for all the tests of the class."""
        if "_found" not in vars(cls):
            case = cls()
            subject = Subject(
                name=cls.strategy.name,
                provider=Provider(entry=cls.strategy.name, distribution="test", version="", origin=cls.strategy.__module__),
                plugin=cls.strategy,
                options=case.options(),
                facts=case.facts,
            )
            cls._found = check_strategy(subject, seed=int(os.environ.get("DEPLOYD_SEED", "0")), seeds=cls.seeds)
        return cls._found

    _found: ClassVar[Findings]

    def test_it_always_has_a_plan(self) -> None:
        """Whatever the view, it returns a valid plan, or an error that it means."""
        self._expect(PLANS)

    def test_it_is_pure(self) -> None:
        """The same view gives the same plan, and nothing else is looked at."""
        self._expect(PURE)

    def test_it_has_no_memory(self) -> None:
        """A new object answers as an old one does, in whatever order it is asked."""
        self._expect(MEMORY)

    def test_it_leaves_its_view_alone(self) -> None:
        """What it is shown it does not change."""
        self._expect(VIEW)

    def test_it_answers_at_once(self) -> None:
        """It never hangs."""
        self._expect(ANSWERS)

    def test_it_keeps_to_its_own_limits(self) -> None:
        """Its plans are no wider than its options say."""
        self._expect(LIMITS)

    def test_it_brings_every_host_to_an_end(self) -> None:
        """A host converges, or fails with a reason."""
        self._expect(FINISHES)

    def test_its_look_at_a_host_is_sound(self) -> None:
        """What it finds are facts, found in time; a strategy that does not look has nothing to find."""
        self._expect(FACTS)

    def test_it_goes_on_after_any_crash(self) -> None:
        """Wherever the agent dies, the next one finds its way."""
        self._expect(CRASHES)

    def test_the_rules_hold(self) -> None:
        """Whatever it plans, the core's rules are kept."""
        self._expect(RULES)

    def _expect(self, name: str) -> None:
        checks: dict[str, Check] = {check.name: check for check in self._findings().checks}
        check = checks.get(name, Check(name=name, promise=""))
        again = "" if check.seed is None else f" (again with DEPLOYD_SEED={check.seed})"

        assert not check.problem, f"{check.promise} But: {check.problem}{again}"
