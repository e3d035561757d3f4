"""What commands print: tables, JSON, times; colour only where a person looks."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TextIO

import click

_GAP = "  "
_NARROWEST = 20
"""Letters that are left of a column which is folded."""
_USUAL = 80
"""Columns of a terminal that does not know."""
NO_SERVICE = "There is no service yet. Make one: deployd services apply FILE"
_OURS = "deployd "
"""What a hint begins with that is a command."""


def use_colour(stream: TextIO | None = None) -> bool:
    """Whether to colour what goes to a stream (standard output by default): see no-color.org and force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream."""
    stream = stream or sys.stdout
    return stream is not None and stream.isatty()  # there is no standard output when a shell has closed it: >&-


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
    header: Sequence[str], rows: Iterable[Sequence[str]], *, fold: Sequence[int] = (-1,), colours: Mapping[str, str] | None = None
) -> None:
    """Print rows in columns; see `format_table`."""
    for row in format_table(header, rows, fold=fold, colours=colours):
        click.echo(row)


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, fold: Sequence[int] = (-1,), colours: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Put rows in columns: one line each, the same in a pipe whatever the width of a terminal.

    Args:
        header: Column names, upper case.
        rows: Cells; line breaks in them become spaces, an empty one a dash.
        fold: The columns that become narrower, and their cells several lines, when a terminal is too narrow.
        colours: Colour of a cell by its first word.

    Returns:
        A text per row, that of the header first.
    """
    cells = [list(header), *([" ".join(cell.split()) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    screen, below = columns_of(), False
    if screen is not None:
        below = _narrow(widths, [range(len(widths))[column] for column in fold], screen)
    for number, row in enumerate(cells):
        paint = [_colour(text, colours) if number else None for text in row]
        shown = len(row) - below
        yield "\n".join([*_lines(row[:shown], widths, paint), *(folded(f"  {text}") for text in row[shown:] if text != "-")])


def _narrow(widths: list[int], fold: Sequence[int], screen: int) -> bool:
    """Take the widest of some columns down, letter by letter, until all fit or none of them has one to spare.

    Returns:
        Whether the last column, which may be folded, has no room even so, and must go below the others.
    """
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - screen
    while excess > 0 and (spare := [column for column in fold if widths[column] > _NARROWEST]):
        widths[max(spare, key=widths.__getitem__)] -= 1
        excess -= 1
    return excess > 0 and len(widths) - 1 in fold


def _lines(row: Sequence[str], widths: Sequence[int], paint: Sequence[str | None]) -> Iterator[str]:
    """The lines of a row: as many as its tallest cell has."""
    *others, last = zip(row, widths, strict=False)
    cells = [*(_wrapped(*cell) for cell in others), _wrapped(*last, break_words=False)]  # there is nothing behind the last
    for line in zip_longest(*cells, fillvalue=""):
        yield _GAP.join(map(_cell, line, widths, paint)).rstrip()


def _wrapped(text: str, width: int, *, break_words: bool = True) -> list[str]:
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=break_words, break_on_hyphens=False)


def _colour(text: str, colours: Mapping[str, str] | None) -> str | None:
    return (colours or {}).get(text.partition(" ")[0].rstrip(":,")) if use_colour() else None


def _cell(text: str, width: int, colour: str | None) -> str:
    return (click.style(text, fg=colour) if colour and text else text) + " " * (width - len(text))


def columns_of(stream: TextIO | None = None) -> int | None:
    """How wide the terminal is that a stream goes to (standard output by default); None when nobody looks at it."""
    stream = stream or sys.stdout
    if not is_terminal(stream):
        return None
    said = os.environ.get("COLUMNS", "")
    return (int(said) if said.isdecimal() else os.get_terminal_size(stream.fileno()).columns) or _USUAL


def folded(text: str, *, indent: int = 2, stream: TextIO | None = None) -> str:
    """On a terminal: each line with what would run over its edge below, indented. Anywhere else as it is.

    Args:
        text: Without colours, which have a width only for the program.
        indent: By how many spaces.
        stream: Where it goes to, standard output by default.
    """
    columns = columns_of(stream)
    if columns is None:
        return text
    edge = " " * indent
    wrapper = textwrap.TextWrapper(columns, subsequent_indent=edge, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def complain(what: str, hint: str = "") -> None:
    """Print an error and what to do about it: a command of ours after ``Try:``, or advice as a sentence.

    Args:
        what: What happened, and why.
        hint: As `deployd_core.errors` has it.
    """
    text = f"deployd: error: {_with_hint(what.rstrip('.'), hint)}"
    columns = columns_of(sys.stderr)
    if columns is not None and len(text) > columns and hint.startswith(_OURS):
        first, *others = hint.split("; or ")  # each in a line of its own, to be copied
        text = folded(text.removesuffix(f" Try: {hint}"), stream=sys.stderr)
        text = "\n".join([text, f"  Try: {first}", *(f"   or: {other}" for other in others)])
        click.echo(text, err=True)
        return
    click.echo(folded(text, stream=sys.stderr), err=True)


def _with_hint(what: str, hint: str) -> str:
    if not hint:
        return what
    more = f"Try: {hint}" if hint.startswith(_OURS) else f"{hint[0].upper()}{hint[1:]}"
    return f"{what}{'' if what.endswith(('?', '!')) else '.'} {more}"


def message(text: str) -> None:
    """Tell the person something that is not the result: in a line, or with a line for each of its parts where those fit."""
    columns = columns_of(sys.stderr)
    indent = len(text) - len(text.lstrip()) + 2
    parts = text.replace("; ", f";\n{'':{indent}}")
    if columns is None or len(text) <= columns or max(map(len, parts.splitlines())) > columns:
        parts = folded(text, indent=indent, stream=sys.stderr)
    click.echo(parts, err=True)
