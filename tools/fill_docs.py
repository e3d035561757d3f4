"""Write what the code knows into the documents: tables of keys, and what commands print. tests/unit/test_docs.py checks it.

    .venv/bin/python tools/fill_docs.py

Between ``<!-- filled: table MODULE:CLASS -->`` and ``<!-- end -->`` stands one row per key of that class, and between
``<!-- filled: run deployd ... -->`` and ``<!-- end -->`` that command with its output. tools/walk.py fills in what needs a fleet.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

from deployd_core.cli.describe import describe_options
from deployd_core.units import Share

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- filled: (\w+) (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Every page."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def filled(text: str) -> str:
    """A page with its blocks as they should be."""
    makers = {"table": _table, "run": _run, "rounding": _rounding}
    return BLOCK.sub(lambda match: f"{match[1]}\n{makers[match[2]](match[3])}\n\n{match[4]}", text)


def _table(what: str) -> str:
    module, _, name = what.partition(":")
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for option in describe_options(getattr(importlib.import_module(module), name)):
        default = "required" if option.required else _default(option.default)
        meaning = option.meaning or "see below"
        rows.append(f"| `{option.name}` | {option.type} | {default} | {meaning} |")
    return "\n".join(rows)


def _rounding(counts: str) -> str:
    hosts = [int(count) for count in counts.split()]
    rows = [
        ('`limit = "10%"`: rounds down, at least 1', [Share("10%").at_most(count) for count in hosts]),
        ('`limit = "25%"`', [Share("25%").at_most(count) for count in hosts]),
        ("`limit = 3`", [Share(3).at_most(count) for count in hosts]),
        ('`budget = "5%"`: rounds down', [Share("5%").part_of(count) for count in hosts]),
        ('`budget = "10%"`', [Share("10%").part_of(count) for count in hosts]),
        ('`min_available = "90%"`: rounds up', [Share("90%").at_least(count) for count in hosts]),
        ('`min_available = "50%"`', [Share("50%").at_least(count) for count in hosts]),
    ]
    lines = ["| of so many hosts: |" + "".join(f" {count} |" for count in hosts), "| --- |" + " --- |" * len(hosts)]
    return "\n".join([*lines, *(f"| {name} |" + "".join(f" {value} |" for value in values) for name, values in rows)])


def _default(value: object) -> str:
    if value in (None, "", (), [], {}) or isinstance(value, dict):
        return "-"
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
    return f"`{text}`"


def _run(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "deployd", command
    call = [sys.executable, "-P", "-m", "deployd_core", "--plugins-dir", "/nonexistent", *arguments]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    return f"```console\n$ {command}\n{lines}\n```"


if __name__ == "__main__":
    for path in documents():
        old = path.read_text(encoding="utf-8")
        if (new := filled(old)) != old:
            path.write_text(new, encoding="utf-8")
            print(f"filled {path.relative_to(ROOT)}")
