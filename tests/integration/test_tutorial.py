"""The tutorial, followed literally: every file written, every command run, every output compared, in a fresh environment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plugins" / "tutorial.md"
FINISHED = ROOT / "examples" / "by-halves"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    """A line that begins with a dollar, and what must come after it."""

    line: str
    output: str


def commands(text: str) -> list[Command]:
    """The commands of a block, each with its output."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        found.append(Command(line, output))
    return found


def matches(expected: str, actual: str) -> bool:
    """Whether an output is as the page says, which may leave out what differs with ``...``, and how wide a table is."""
    pattern = r"\s+".join(re.escape(word).replace(r"\.\.\.", ".*") for word in expected.split())
    return re.fullmatch(pattern, actual.strip()) is not None


def test_the_tutorial_works_literally(environment: Any) -> None:
    """Nobody who follows it is told anything that is not so."""
    here = environment.home
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            name, _, body = text.partition("\n")
            (here / name.removeprefix("# ")).write_text(body, encoding="utf-8")
            continue
        for line, output in commands(text):
            if line.startswith("cd "):
                here /= line.removeprefix("cd ")
                continue
            failing = re.search(r"^\[exit code (\d+)\]\n", output, re.MULTILINE)
            expected = output[: failing.start()] if failing else output
            printed = environment.run(f"cd {shlex.quote(str(here))} && {line}", expect=int(failing[1]) if failing else 0)
            assert matches(expected, printed), f"$ {line}\n{printed}"

    for path in ("by_halves.py", "tests/test_by_halves.py", "pyproject.toml"):
        assert (FINISHED / path).read_text(encoding="utf-8") == (here / path).read_text(encoding="utf-8"), path


def test_every_command_of_the_page_is_looked_at() -> None:
    """The page has a good dozen commands, and files to write between them."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))

    assert ["by_halves.py", "tests/test_by_halves.py"] == [
        text.partition("\n")[0].removeprefix("# ") for language, text in blocks if language == "python"
    ]
    assert 11 <= sum(len(commands(text)) for language, text in blocks if language == "console")


def test_an_output_that_differs_is_noticed() -> None:
    """The comparison overlooks widths and what is left out, and nothing else."""
    assert matches("a  b ...\nc\n", "a b 17 words\nc")
    assert not matches("a b\n", "a c\n")
    assert not matches("a b\n", "a b c\n")
    assert not matches("", "something\n")
