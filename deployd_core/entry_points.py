"""The entry points of one group, read from the directories of `sys.path`.

`importlib.metadata` says the same, but importing it brings in email, zipfile and socket and takes a fifth of the time in which
``deployd strategies list`` has to answer. It is still what is asked when something else than directories is searched: zipped
distributions, or a finder that brings its own.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

_METADATA = {".dist-info": "METADATA", ".egg-info": "PKG-INFO"}
_VALUE = re.compile(r"(?P<module>[\w.]+)\s*(?::\s*(?P<attribute>[\w.]+))?\s*(?:\[.*\])?")


class EntryPoint(Struct, frozen=True, kw_only=True):
    """A name that a distribution offers."""

    name: str
    value: str
    """``module`` or ``module:attribute``."""
    distribution: str
    version: str

    def load(self) -> ModuleType | Any:
        """Import what it points at.

        Raises:
            ImportError: The value is malformed, or has no such attribute. The import may raise anything else.
        """
        match = _VALUE.fullmatch(self.value)
        if match is None:
            raise ImportError(f"entry point {self.name} = {self.value!r} is not written module:attribute")
        found: Any = importlib.import_module(match["module"])
        for part in (match["attribute"] or "").split("."):
            if part:
                found = _attribute(found, part)
        return found


def find_entry_points(group: str, path: Sequence[str] | None = None) -> list[EntryPoint]:
    """Every entry point of a group, by name; of a distribution that is there twice the one that would be imported.

    Args:
        group: Its name.
        path: Where to search; `sys.path` unless told.
    """
    searched = sys.path if path is None else path
    if path is None and not _only_directories(searched):
        return sorted(_from_importlib(group), key=_order)
    seen: set[str] = set()
    found: list[EntryPoint] = []
    for entry in searched:
        for directory in _distributions(entry or "."):
            name = re.sub(r"[-_.]+", "-", directory.stem.partition("-")[0]).lower()
            if name not in seen:
                seen.add(name)
                found += _points_of(directory, group)
    return sorted(found, key=_order)


def _order(point: EntryPoint) -> tuple[str, str]:
    return point.name, point.distribution


def _attribute(found: object, name: str) -> Any:
    try:
        return getattr(found, name)
    except AttributeError as error:
        raise ImportError(str(error)) from error


def _only_directories(path: Iterable[str]) -> bool:
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    return len(finders) <= 1 and not any(os.path.isfile(entry) for entry in path)  # noqa: PTH113 - sys.path holds text


def _distributions(entry: str) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(entry))  # noqa: PTH208 - a Path for each of hundreds of names is slow
    except OSError:
        return  # sys.path may name what is not there, or what may not be read: Python skips it too
    for name in names:
        if name.endswith(tuple(_METADATA)):
            yield Path(entry, name)


def _points_of(directory: Path, group: str) -> list[EntryPoint]:
    text = _read(directory / "entry_points.txt")
    if f"[{group}]" not in text:
        return []
    name, version = _name_and_version(_read(directory / _METADATA[directory.suffix]))
    points, section = [], ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif section == group and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            points.append(EntryPoint(name=key.strip(), value=value.strip(), distribution=name, version=version))
    return points


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # a distribution without entry points, or half removed


def _name_and_version(metadata: str) -> tuple[str, str]:
    headers: dict[str, str] = {}
    for line in metadata.splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        headers.setdefault(key.lower(), value.strip())
    return headers.get("name", "?"), headers.get("version", "")


def _from_importlib(group: str) -> Iterator[EntryPoint]:
    import importlib.metadata  # noqa: PLC0415 - see the module's docstring

    for point in importlib.metadata.entry_points(group=group):
        distribution = point.dist
        yield EntryPoint(
            name=point.name,
            value=point.value,
            distribution=distribution.name if distribution else "?",
            version=distribution.version if distribution else "",
        )
