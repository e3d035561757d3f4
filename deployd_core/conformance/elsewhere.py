"""Asks a strategy once more in another process, where the sets of strings have another order.

Python orders them anew in every process: a strategy that takes the first of a set plans differently on every host, and after every
restart of the agent, and no question in the process where it was asked first shows that.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from deployd_core.api import HostView, Options, Plan, Strategy
from deployd_core.errors import DeploydError

_HASH_SEEDS = ("1", "2")
_TIMEOUT = 60.0
"""Seconds for a whole interpreter, on a busy machine."""


class Script(Struct, frozen=True, kw_only=True):
    """What another process needs to ask the same."""

    path: tuple[str, ...]
    """Where modules are found."""
    module: str
    file: str
    """Of the module that defines the strategy, which may be one that no import finds."""
    asked: bytes
    """A strategy's class, its options, and views: pickled, so that they are read only once the module is there."""


def differing(
    plugin: type[Strategy[Any]], options: Options, asked: Sequence[tuple[HostView, Plan]]
) -> tuple[HostView, Plan, Plan] | None:
    """The first view that another process answers differently, with the plan of this one and of that one; None when there is none.

    A class that no other process can get at, because a function has made it or its module cannot be loaded by itself, is not asked.
    """
    module = sys.modules.get(plugin.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    try:
        known = pickle.dumps((plugin, options, [view for view, _ in asked]))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    script = Script(path=tuple(sys.path), module=plugin.__module__, file=file, asked=known)
    for seed in _HASH_SEEDS:
        for (view, plan), other in zip(asked, _ask(script, seed), strict=False):
            if other is not None and other != plan:
                return view, plan, other
    return None


def _ask(script: Script, seed: str) -> list[Plan | None]:
    """The plans of a process of that hash seed; none when the strategy cannot be had there."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=pickle.dumps(script),
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(script.path)},
        capture_output=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        return []
    plans: list[Plan | None] = pickle.loads(done.stdout)  # noqa: S301 - our own child's
    return plans


def _answers(script: Script) -> list[Plan | None]:
    """What the strategy plans here; None where it raises."""
    if script.module not in sys.modules:
        spec = importlib.util.spec_from_file_location(script.module, script.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{script.file} is no module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[script.module] = module
        spec.loader.exec_module(module)
    plugin, options, views = pickle.loads(script.asked)  # noqa: S301 - our own parent's
    strategy = plugin(options)
    return [_plan(strategy, view) for view in views]


def _plan(strategy: Strategy[Any], view: HostView) -> Plan | None:
    try:
        return strategy.plan(view)
    except DeploydError:
        return None


def _main() -> None:
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # a plugin that prints while it is imported does not print into the answer
        answer.write(pickle.dumps(_answers(pickle.load(sys.stdin.buffer))))  # noqa: S301 - our own parent's


if __name__ == "__main__":
    _main()
