"""docs/cli.md is complete: every command, every exit code, every shape of JSON."""

import json
import re
from pathlib import Path

import pytest

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import COMMANDS, EXIT_CODES, Group
from deployd_core.cli.main import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "deployd_core/cli").glob("*.py")}


def test_every_command_has_a_section():
    """Each command that can run has a section that begins with its name."""
    sections = set(re.findall(r"^## `deployd ([a-z ]+)`$", PAGE, re.MULTILINE))
    words = {section.split()[0] for section in sections}

    assert set(COMMANDS) == words
    for name, entry in COMMANDS.items():
        command = entry.load()
        subcommands = set(command.commands) if isinstance(command, Group) else set()
        assert subcommands == {section.split()[1] for section in sections if section.split()[0] == name and " " in section}


@pytest.mark.parametrize("code", Exit)
def test_every_exit_code_is_documented(code):
    """The table of exit codes has each, with its number and name; so has the help."""
    assert f"| {code.value} | `{code.name}` |" in PAGE
    assert f"{code.value} " in EXIT_CODES


def test_every_shape_of_json_is_documented():
    """The table of schemas has exactly those that commands print."""
    literal = {name for text in SOURCES.values() for name in re.findall(r'print_json\(\s*"(deployd\.[a-z./0-9]+)"', text)}
    of_listings = {f"deployd.{group}.{verb}/1" for group in ("strategies", "plugins") for verb in ("list", "show")}

    assert literal | of_listings == set(re.findall(r"^\| `(deployd\.[a-z./0-9]+)` \|", PAGE, re.MULTILINE))


@pytest.mark.parametrize(
    "words",
    [
        ["strategies", "list"],
        ["strategies", "show", "concurrency"],
        ["strategies", "check", "concurrency", "--seeds", "1"],
        ["strategies", "simulate", "concurrency", "--hosts", "2"],
        ["plugins", "list"],
        ["plugins", "show", "probe", "tcp"],
    ],
    ids=" ".join,
)
def test_the_keys_of_json_are_documented(capsys, words):
    """The table names every key of what is printed; that of a plugin is said to be as that of a strategy."""
    run([*words, "--json"])

    printed = json.loads(capsys.readouterr().out)
    schema = printed.pop("schema").replace("plugins.show", "strategies.show")
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{schema}` |"))
    assert set(printed) <= set(re.findall(r"[a-z_]+", row.rsplit(" | ", 1)[1]))
