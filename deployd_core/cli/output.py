"""What commands print: tables, JSON, times; colour only where a person looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import click

_GAP = "  "


def use_colour(stream: TextIO | None = None) -> bool:
    """Whether to colour what goes to a stream (standard output by default): see no-color.org and force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream."""
    return (stream or sys.stdout).isatty()


def print_json(schema: str, body: Mapping[str, Any]) -> None:
    """Print an object, its shape named first.

    Args:
        schema: Such as ``deployd.strategies.list/1``; the number is raised when a key goes or changes its meaning.
        body: The rest.
    """
    import msgspec

    from deployd_core.units import encode_unit

    text = msgspec.json.encode({"schema": schema, **body}, enc_hook=encode_unit)
    click.echo(msgspec.json.format(text, indent=2).decode())


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, shorten: int | None = None, colours: Mapping[str, str] | None = None
) -> None:
    """Print rows in columns; see `format_table`."""
    for line in format_table(header, rows, shorten=shorten, colours=colours):
        click.echo(line)


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, shorten: int | None = None, colours: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Put rows in columns: one line each, the same in a pipe whatever the width of a terminal.

    Args:
        header: Column names, upper case.
        rows: Cells; line breaks in them become spaces, an empty one a dash.
        shorten: The column to cut when a terminal is too narrow; none is cut in a pipe.
        colours: Colour of a cell by its first word.
    """
    cells = [list(header), *([" ".join(cell.split()) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    if shorten is not None and is_terminal():
        import shutil

        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - shutil.get_terminal_size().columns
        widths[shorten] = max(min(20, widths[shorten]), widths[shorten] - max(0, excess))
    for number, row in enumerate(cells):
        line = _GAP.join(_cell(text, width, colours if number else None) for text, width in zip(row, widths, strict=True))
        yield line.rstrip()


def _cell(text: str, width: int, colours: Mapping[str, str] | None) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    padded = text.ljust(width)
    colour = (colours or {}).get(text.partition(" ")[0].rstrip(":,"))
    return click.style(text, fg=colour) + padded[len(text) :] if colour and use_colour() else padded


def complain(what: str, hint: str = "") -> None:
    """Print an error and what to do about it: a command of ours after ``Try:``, or advice as a sentence.

    Args:
        what: What happened, and why.
        hint: As `deployd_core.errors` has it.
    """
    message(f"deployd: error: {_with_hint(what.rstrip('.'), hint)}")


def _with_hint(what: str, hint: str) -> str:
    if not hint:
        return what
    more = f"Try: {hint}" if hint.startswith("deployd ") else f"{hint[0].upper()}{hint[1:]}"
    return f"{what}{'' if what.endswith(('?', '!')) else '.'} {more}"


def message(text: str) -> None:
    """Tell the person something that is not the result."""
    click.echo(text, err=True)
