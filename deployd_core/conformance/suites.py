"""The conformance of gates and probes, by the suites of the test kit, without pytest.

A gate is closed and opened in a network of its own, never in the machine's. A manager, source, step or reporter touches what only
its author can set up: its tests inherit the contract of its kind instead.
"""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deployd_core.api import Gate, HostCall, Probe
from deployd_core.boundary import Bound
from deployd_core.conformance.findings import Check, Findings
from deployd_core.errors import DeploydError
from deployd_core.plugins import Kind
from deployd_core.testing import netns
from deployd_core.testing.gates import GateContract
from deployd_core.testing.probes import ProbeContract

_NEEDS_HEALTH = ("test_a_healthy_instance_is_healthy", "test_one_object_tells_instances_apart", "test_a_verdict_is_of_now")
"""Tests of a probe that need an instance which is healthy: only its author knows how to make one, if a web server is none."""


def check_gate(make: Callable[[], Bound[Gate[Any]]]) -> Findings:
    """Close and open a gate in front of two throwaway instances.

    Args:
        make: Makes a new object of it.
    """
    if os.geteuid() != 0:
        return Findings(
            checks=(), refused="it is closed for a trial in a network of its own, which only root may make: run it as root"
        )
    obstacle = netns.run(lambda: _obstacle(make))
    if obstacle:
        return Findings(checks=(), refused=f"it cannot work in an empty network: {obstacle}")

    class Case(GateContract):
        def make_gate(self) -> Gate[Any]:
            return make().plugin

    return Findings(checks=tuple(run_suite(Case)))


def check_probe(make: Callable[[], Bound[Probe[Any]]]) -> Findings:
    """Ask a probe about instances that are not there, do not answer, and, if it takes a plain web server for healthy, have ended.

    Args:
        make: Makes a new object of it.
    """

    class Case(ProbeContract):
        def make_probe(self) -> Probe[Any]:
            return make().plugin

    (first, *_) = _NEEDS_HEALTH
    unwell = bool(_problem_of(getattr(Case(), first)))
    return Findings(checks=tuple(run_suite(Case, without=_NEEDS_HEALTH if unwell else ())))


def cannot_check(kind: Kind) -> Findings:
    """Why a plugin of another kind is not checked here."""
    contract = f"{kind.value.capitalize()}Contract"
    return Findings(
        checks=(), refused=f"only the author of a {kind.value} can set up what it works on: have its tests inherit {contract}"
    )


def run_suite(case: Callable[[], Any], *, without: tuple[str, ...] = ()) -> Iterator[Check]:
    """Every test of a contract, on an object of its own, as pytest would run it; those of `without` are not tried."""
    for name in dir(case):
        if name.startswith("test_"):
            test, tried = getattr(case(), name), name not in without
            problem = _problem_of(test) if tried else ""
            yield Check(name=name.removeprefix("test_").replace("_", "-"), promise=test.__doc__, cases=int(tried), problem=problem)


def _problem_of(test: Callable[[], None]) -> str:
    try:
        test()
    except (AssertionError, DeploydError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # What was raised in a network of its own comes as the text of its traceback.
        text = str(error) if "Traceback" in str(error) else "".join(traceback.format_exception(error))
        return _in_a_line(text)
    return ""


def _in_a_line(text: str) -> str:
    """The end of a traceback: what was raised, where, and by which line."""
    places = list(re.finditer(r'File "([^"]+)", line (\d+), in \S+\n\s+(.+)', text))
    if not places:
        return text.strip().splitlines()[-1]
    file, number, line = places[-1].groups()
    # The first line that is not indented: pytest adds more to what an assertion says.
    raised = next((found for found in text[places[-1].end() :].splitlines() if found[:1].strip()), "")
    return f"{raised} at {Path(file).name}:{number}: {line}"


def _obstacle(make: Callable[[], Bound[Gate[Any]]]) -> str:
    """Why a gate cannot be tried at all; empty when it can."""
    with tempfile.TemporaryDirectory() as root:
        call = HostCall(service="web", host="h1.example.com", zone="a", root=Path(root), timeout=10.0)
        try:
            gate = make()
            gate.call("explaining", lambda plugin: plugin.explain(call))
            gate.call("looking for closed gates", lambda plugin: plugin.closed(call))
        except DeploydError as error:
            return error.message
    return ""
