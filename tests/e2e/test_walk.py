"""docs/rollouts.md is true: its commands, typed one after the other at a real fleet, print what stands there."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.zookeeper

ROOT = Path(__file__).parents[2]


def load_walk() -> ModuleType:
    """The script that walks, and writes the page."""
    spec = importlib.util.spec_from_file_location("walk", ROOT / "tools" / "walk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose name is short enough for the sockets of supervisors."""
    made = Path(tempfile.mkdtemp(prefix="dw-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_the_walk_through_the_verbs_is_as_it_stands_in_the_page(zookeeper: str, directory: Path) -> None:
    """Every command of the page has the output that stands below it, but for times, lengths of time, digests and column widths."""
    walk = load_walk()
    written = {name: walk.normal(text) for _, name, text, _ in walk.BLOCK.findall(walk.PAGE.read_text(encoding="utf-8"))}

    printed = {name: walk.normal(text) for name, text in walk.tell(directory / "fleet", zookeeper).items()}

    assert written == printed
