"""What errors tell people to do: a command that can be typed, or advice that reads like a sentence."""

import ast
import re
from pathlib import Path

import click
import pytest

from deployd_core.cli.main import command, run
from deployd_core.cli.output import complain

ROOT = Path(__file__).parents[2]
FILES = [path for part in ("deployd_core", "strategies", "plugins", "examples") for path in sorted((ROOT / part).rglob("*.py"))]
PROGRAMS = {"apt", "apt-get", "chmod", "fuser", "kill", "modprobe", "mount", "pip", "sudo", "systemctl", "zkCli"}
"""What a hint might begin with as if it were a command; those of ours alone are printed as such."""


def texts(node):
    """What an expression may say, with x for what is filled in."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts(value)]
    return []


def hints():
    """Every hint that is written somewhere, with where that is as its test id."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_hint = isinstance(node, ast.keyword) and node.arg == "hint"
            is_hint |= isinstance(node, ast.Assign) and any(isinstance(it, ast.Name) and it.id == "hint" for it in node.targets)
            if is_hint:
                for text in texts(node.value):
                    yield pytest.param(text, id=f"{path.relative_to(ROOT)}:{node.value.lineno}")


HINTS = [hint for hint in hints() if hint.values[0]]
COMMANDS = [hint for hint in HINTS if hint.values[0].startswith("deployd ")]


def mistakes(words):
    """What is wrong with a command line of ours."""
    found, context = command, click.Context(command)
    while isinstance(found, click.Group):
        found = found.get_command(context, words.pop(0)) if words else None
    if found is None:
        return "no such command"
    values, rest, _ = found.make_parser(click.Context(found)).parse_args(list(words))
    lacking = [it.name for it in found.params if isinstance(it, click.Argument) and it.required and values.get(it.name) is None]
    return rest + lacking


def test_there_are_hints_of_both_kinds():
    """What follows looks at something."""
    assert len(HINTS) > len(COMMANDS) > 10


@pytest.mark.parametrize("text", COMMANDS)
def test_a_hint_that_begins_with_our_name_can_be_typed(text):
    """Each of its commands exists, with these options and so many arguments; remarks stand in brackets."""
    for one in text.split("; or "):
        line = re.sub(r" \([^)]+\)$", "", one)

        assert line.startswith("deployd "), f"{line!r} is no command"
        assert [] == mistakes(line.removeprefix("deployd ").split(" ")), line


@pytest.mark.parametrize("text", [hint for hint in HINTS if hint not in COMMANDS])
def test_other_advice_is_made_of_words(text):
    """It reads like the second half of a sentence, and the program it names is introduced."""
    assert not text.endswith("."), text
    assert text.split(" ")[0] not in PROGRAMS, text


@pytest.mark.parametrize(
    ("what", "hint", "printed"),
    [
        ("no such thing", "", "no such thing"),
        ("no such thing.", "", "no such thing"),
        ("it failed", "deployd why web", "it failed. Try: deployd why web"),
        ("it failed", "is it running?", "it failed. Is it running?"),
        ("it failed", "did you mean 'web'? known: api, web", "it failed. Did you mean 'web'? known: api, web"),
        ("did you mean 'web'?", "deployd why --help", "did you mean 'web'? Try: deployd why --help"),
        ("it failed", "`ls` says more", "it failed. `ls` says more"),
        ("it failed", "deployds are many", "it failed. Deployds are many"),
    ],
)
def test_an_error_ends_with_what_to_do(capsys, what, hint, printed):
    """Commands follow ``Try:``, advice is a sentence, and there is one mark between two sentences."""
    complain(what, hint)

    assert ("", f"deployd: error: {printed}\n") == tuple(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        (["strategies", "show", "concurency"], "there is no strategy 'concurency'. Did you mean 'concurrency'? known: "),
        (["plugins", "list", "--kind", "prob"], "there is no kind 'prob'; did you mean 'probe'? known: "),
        (["strategies", "list", "--jsn"], "No such option '--jsn'. Did you mean '--json'? Try: deployd strategies list --help"),
    ],
)
def test_a_question_is_not_followed_by_a_full_stop(capsys, arguments, ending):
    """Be it ours or that of the parser of the command line."""
    run([*arguments, "--plugins-dir", "none"])

    error = capsys.readouterr().err
    assert ending in error
    assert "?." not in error
