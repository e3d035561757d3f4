"""Writes the beginning of a plugin into a new directory, or a new file; what is there already is never touched."""

from __future__ import annotations

import contextlib
import keyword
import re
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from deployd_core import __version__
from deployd_core.errors import ConfigError
from deployd_core.plugins import PLUGIN_NAME, Kind


def next_command(kind: Kind, name: str) -> str:
    """What to type when the plugin is installed."""
    if kind is Kind.STRATEGY:
        return f"deployd strategies check {name}"
    return f"deployd plugins {'check' if kind is Kind.PROBE else 'show'} {kind.value} {name}"


def write_package(kind: Kind, name: str, directory: Path) -> tuple[Path, ...]:
    """Write an installable package with one module and its tests; the paths, in the order in which one would read them.

    Args:
        kind: What kind of plugin.
        name: What a spec will call it.
        directory: Where; made, and empty if it exists.

    Raises:
        ConfigError: The name will not do, or something is in the way.
    """
    module = module_of(name)
    files = {
        f"{module}.py": f"{kind.value}-module.py",
        f"tests/test_{module}.py": f"{kind.value}-tests.py",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
    }
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is there already, and nothing is overwritten", hint="choose another --directory")
    return _write({directory / path: _filled(template, kind, name) for path, template in files.items()})


def write_file(kind: Kind, name: str, directory: Path) -> Path:
    """Write a single-file plugin, for the agent's plugin directory.

    Args:
        kind: What kind of plugin.
        name: What a spec will call it.
        directory: Where; made when it is missing.

    Raises:
        ConfigError: The name will not do, or the file is there already.
    """
    path = directory / f"{module_of(name)}.py"
    return _write({path: _filled(f"{kind.value}-module.py", kind, name)})[0]


def module_of(name: str) -> str:
    """The module of a plugin: a name that Python accepts, and that hides nothing.

    Raises:
        ConfigError: The name is none for a plugin, or its module would be in the way of another.
    """
    if not PLUGIN_NAME.fullmatch(name):
        raise ConfigError(f"a plugin cannot be called {name!r}", hint="use lower-case words joined by dashes: by-night")
    module = name.replace("-", "_")
    return f"{module}_plugin" if keyword.iskeyword(module) or module in sys.stdlib_module_names | {"tests"} else module


def _filled(template: str, kind: Kind, name: str) -> str:
    values: Mapping[str, str] = {
        "MyPlugin": "".join(word.capitalize() for word in name.split("-")),
        "my-plugin": name,
        "my_plugin": module_of(name),
        "MY-KIND": kind.value,
        "DEPLOYD-VERSION": __version__,
        "NEXT-STEP": next_command(kind, name),
    }
    text = resources.files(__package__).joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
    # One pass, so that a plugin whose name is one of these words keeps it.
    return re.sub("|".join(values), lambda match: values[match[0]], text)


def _write(texts: Mapping[Path, str]) -> tuple[Path, ...]:
    """Write files that do not exist, or none of them: what was written before something went wrong is removed."""
    written: list[Path] = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        what = "is there already, and nothing is overwritten" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(f"{error.filename}: {what}", hint="choose another --directory") from error
    return tuple(written)
