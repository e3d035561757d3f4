"""Has a strategy look at a host as the engine has it look, and holds what it finds to what facts may be."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from deployd_core.api import HostCall, Strategy
from deployd_core.asking import FACTS_GRACE, FACTS_TIMEOUT, ask_facts
from deployd_core.boundary import Bound
from deployd_core.conformance.findings import Fault
from deployd_core.errors import DeploydError, PluginError
from deployd_core.testing.sample import SampleService

FACTS = "facts"


class Look(Struct, frozen=True, kw_only=True):
    """What came of a look."""

    found: dict[str, object] = field(default_factory=dict)
    refused: str = ""
    """Why the strategy could not look, in its own words; empty when it could."""


def look(strategy: Bound[Strategy[Any]]) -> Look:
    """Have it look at a host that serves a build and has nothing in its shared directory.

    Raises:
        Fault: It does not return in time, raises what is no `DeploydError`, or returns what are no facts.
    """
    with tempfile.TemporaryDirectory() as directory:
        service = SampleService(Path(directory) / "web")
        service.add("v1")
        service.flip("v1")
        call = HostCall(service="web", host="h1", zone="a", root=service.root, timeout=FACTS_TIMEOUT)
        try:
            found = ask_facts(strategy, call, within=FACTS_TIMEOUT + FACTS_GRACE)
        except PluginError as error:
            raise Fault(FACTS, error.message) from error
        except DeploydError as error:
            return Look(refused=error.message)
    try:
        msgspec.json.encode(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise Fault(FACTS, f"it finds what JSON cannot say, so that nobody could try it with --facts: {error}") from error
    return Look(found=found)
