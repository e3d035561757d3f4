"""What commands print, on a terminal of 80 columns and in a pipe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deployd_core.cli import output
from deployd_core.cli.main import run
from deployd_core.cli.output import columns_of, complain, folded, format_table, message

WORDS = "the certificate on the load balancers of this site has to be renewed by Monday, and by nobody but ann"
HEADER = ("HOST", "STEP", "REASON")


@pytest.fixture
def terminal(monkeypatch):
    """Somebody looks at standard output and standard error, 80 columns wide, without colours."""
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def words_of(text):
    """The words of a text, wherever its lines break."""
    return text.split()


def test_the_last_column_of_a_table_is_folded(terminal):
    """It becomes narrower and taller, no line is wider than the terminal, and no word is lost or broken."""
    table = list(format_table(HEADER, [("h1", "waiting", WORDS), ("h2", "converged", "")]))

    lines = [line for row in table for line in row.split("\n")]
    assert 3 == len(table)
    assert "HOST  STEP       REASON" == table[0]
    assert table[1].startswith("h1    waiting    the certificate on the load balancers")
    assert "h2    converged  -" == table[2]
    assert max(map(len, lines)) <= 80
    assert ["h1", "waiting", *words_of(WORDS)] == words_of(table[1])
    assert {" " * 17} == {line[:17] for line in table[1].split("\n")[1:]}


def test_several_columns_share_what_has_to_go(terminal):
    """The widest gives first, and each keeps some room."""
    rows = [("a", "b " * 40, "c " * 30, "ok")]

    (header, row) = format_table(("A", "B", "C", "STATE"), rows, fold=(1, 2))

    assert max(map(len, row.split("\n"))) <= 80
    b, c = header.index("C") - header.index("B"), header.index("STATE") - header.index("C")
    assert (True, True) == (min(b, c) > 20, abs(b - c) <= 1), (b, c)
    assert row.split("\n")[0].endswith("ok")


def test_a_last_column_without_room_goes_below(terminal):
    """Where the others fill the terminal it has lines of its own; an empty one has none."""
    rows = [("2026-11-26T10:20:05", "x" * 50, WORDS), ("2026-11-26T10:20:06", "y", "")]

    header, first, second = format_table(("WHEN", "WHAT", "WHY"), rows)

    assert ["WHEN                 WHAT", "  WHY"] == header.split("\n")
    assert [
        f"2026-11-26T10:20:05  {'x' * 50}",
        "  the certificate on the load balancers of this site has to be renewed by",
    ] == first.split("\n")[:2]
    assert words_of(WORDS) == words_of(first)[2:]
    assert "2026-11-26T10:20:06  y" == second


def test_a_table_that_is_not_to_be_folded_is_not(terminal):
    """Whoever draws a screen cuts it."""
    assert f"h1  {WORDS}" == list(format_table(("HOST", "WHY"), [("h1", WORDS)], fold=()))[1].replace("    ", "  ")


def test_what_cannot_be_broken_is_not(terminal):
    """A path at the end of a row is longer than the terminal is wide, and can still be copied."""
    path = "/srv/" + "x" * 90

    assert f"web   {path}" == list(format_table(("NAME", "ROOT"), [("web", path)]))[1]
    assert f"it lies in\n  {path}" == folded(f"it lies in {path}")


def test_a_folded_cell_keeps_its_colour(terminal, monkeypatch):
    """Each line of it is painted, and takes as much room as without."""
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [("h1", f"broken: {WORDS}", "-")]

    row = list(format_table(("HOST", "STATE", "X"), rows, fold=(1,), colours={"broken": "red"}))[1]

    assert len(row.split("\n")) == row.count("\x1b[31m") > 1
    assert max(len(click.unstyle(line)) for line in row.split("\n")) <= 80


def test_in_a_pipe_nothing_is_folded(capsys, monkeypatch):
    """One line per row, error and message, whatever the terminal around is like."""
    monkeypatch.setenv("COLUMNS", "80")
    complain(WORDS, "deployd why web; or deployd retry web")
    message(f"{WORDS}; {WORDS}")

    assert columns_of() is None
    assert f"h1    waiting  {WORDS}" == list(format_table(HEADER, [("h1", "waiting", WORDS)]))[1]
    assert f"{WORDS}\n  x" == folded(f"{WORDS}\n  x", indent=7)
    assert [
        f"deployd: error: {WORDS}. Try: deployd why web; or deployd retry web",
        f"{WORDS}; {WORDS}",
    ] == capsys.readouterr().err.splitlines()


def test_what_is_folded_is_indented(terminal):
    """Each line by itself; those that fit are as they were."""
    first, second, *others = folded(f"  reason  {WORDS}\nshort", indent=10).split("\n")

    assert ("  reason  the certificate on", " " * 10) == (first[:28], second[:10])
    assert ["short"] == others


@pytest.mark.parametrize(
    ("what", "hint", "lines"),
    [
        ("it failed", "deployd why web", ["deployd: error: it failed. Try: deployd why web"]),
        (
            "the rollout of web is halted by h3: 1 host failed in v3-ab, the budget is 0",
            "deployd retry web (tries the failed hosts again); or deployd rollback web (goes back)",
            [
                "deployd: error: the rollout of web is halted by h3: 1 host failed in v3-ab, the",
                "  budget is 0.",
                "  Try: deployd retry web (tries the failed hosts again)",
                "   or: deployd rollback web (goes back)",
            ],
        ),
        (
            "ZooKeeper at 127.0.0.1:2181 does not answer; gave up after 10s",
            "is it running? The address is the default",
            [
                "deployd: error: ZooKeeper at 127.0.0.1:2181 does not answer; gave up after 10s.",
                "  Is it running? The address is the default",
            ],
        ),
    ],
)
def test_a_long_error_has_its_commands_in_lines_of_their_own(terminal, capsys, what, hint, lines):
    """What is to be copied is not broken; advice is folded with the rest."""
    complain(what, hint)

    assert lines == capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("watch it: deployd status web --watch", ["watch it: deployd status web --watch"]),
        (
            "watch it: deployd status web --watch; go back instead: deployd rollback web --to v7",
            ["watch it: deployd status web --watch;", "  go back instead: deployd rollback web --to v7"],
        ),
        (
            f"h1: {WORDS}; x",
            [
                "h1: the certificate on the load balancers of this site has to be renewed by",
                "  Monday, and by nobody but ann; x",
            ],
        ),
    ],
)
def test_a_long_message_has_a_line_for_each_of_its_parts(terminal, capsys, text, lines):
    """A command is not broken in the middle; prose is, at its words."""
    message(text)

    assert lines == capsys.readouterr().err.splitlines()


EXAMPLE = str(Path(__file__).parents[2] / "examples" / "web" / "web.toml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["strategies", "list"],
        ["strategies", "show", "concurrency"],
        ["strategies", "show", "iptables-drain"],
        ["strategies", "plan", "web", "--spec", EXAMPLE, "--build", "v2"],
        ["strategies", "simulate", "concurrency", "--hosts", "12", "--zones", "5", "--faults", "reboot:1,slow-start:1,crash:1"],
        ["plugins", "list"],
        ["plugins", "show", "gate", "haproxy"],
        ["services", "apply", EXAMPLE, "--check"],
        ["strategies", "show", "concurency"],
        ["builds", "pack", "x", "--out", "v1.rar"],
    ],
    ids=" ".join,
)
def test_screens_fit_into_80_columns(terminal, capsys, monkeypatch, arguments):
    """No line is wider than the terminal, which would break it anywhere; every word of a pipe is there, and none is cut."""
    run(arguments)
    shown = "".join(capsys.readouterr())
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: False)
    run(arguments)
    piped = "".join(capsys.readouterr())

    assert [] == [line for line in shown.splitlines() if len(line) > 80]
    assert max(map(len, piped.splitlines())) > 80
    words = [
        sorted(re.findall(r"\b(?!x+\b)[a-z]{4,}", text)) for text in (piped, shown)
    ]  # x is a host that is down, in the picture
    assert words[0] == words[1]


def test_the_width_is_that_of_the_terminal():
    """Of the one that the stream goes to, which may be another than that of standard output; an unknown one is 80 wide."""
    script = "import sys; from deployd_core.cli.output import columns_of; print(columns_of(), columns_of(sys.stderr))"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    measured = []
    for columns in (57, 0):
        ours, theirs = os.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        done = subprocess.run(
            [sys.executable, "-P", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True
        )
        measured.append(done.stdout.split())
        os.close(theirs)
        os.close(ours)

    assert [["None", "57"], ["None", "80"]] == measured
