"""`deployd history`: who did what to a service, why, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import message, print_json, print_table
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options

if TYPE_CHECKING:
    from deployd_core.chronicle import Chapter

_COLOURS = {"completed": "green", "halted": "red", "rolled": "red", "going": "cyan", "paused": "yellow"}


@click.command(
    "history", cls=Command, examples=["deployd history web", "deployd history web --last 100", "deployd history web --json"]
)
@click.argument("service")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many entries to show.")
@json_option
@zookeeper_options
@pass_settings
def command(settings: Settings, *, service: str, last: int, as_json: bool) -> int:
    """Tell who did what to a service, why, and how it ended.

    The oldest first. A rollout is `completed` by its last host, `halted` over its budget, `rolled back`, or `superseded` by the
    next.
    """
    from deployd_core import rollouts
    from deployd_core.chronicle import chronicle
    from deployd_core.cli.store import connected

    with connected(settings) as session:
        chapters = chronicle(rollouts.history(session, service))
    shown = chapters[-last:]
    if as_json:
        print_json("deployd.history/1", {"service": service, "entries": [_as_object(chapter) for chapter in shown]})
    elif not shown:
        click.echo(f"Nothing was done to {service} yet. Enable a build: deployd enable {service} BUILD")
    else:
        header = ("WHEN", "WHO", "WHAT", "OUTCOME", "TOOK", "WHY")
        print_table(header, map(_cells, shown), colours=_COLOURS)
        if len(shown) < len(chapters):
            message(f"and {len(chapters) - len(shown)} before: deployd history {service} --last {len(chapters)}")
    return Exit.DONE


def _cells(chapter: Chapter) -> tuple[str, ...]:
    from deployd_core.units import Duration

    entry = chapter.entry
    took = "" if chapter.seconds is None else str(Duration(round(chapter.seconds, 1 if chapter.seconds < 60 else 0)))
    outcome = chapter.outcome.value if chapter.outcome is not None else ""
    return _to_the_second(entry.at), entry.by, what(chapter), outcome, took, entry.why


def _to_the_second(at: str) -> str:
    """A time in UTC, as it is written in history."""
    return at.partition(".")[0].removesuffix("+00:00") + "Z"


def what(chapter: Chapter) -> str:
    """What was done, in a few words: ``enable v2 (canary)``, ``lost h3``, ``halt``."""
    from deployd_core.model import Role

    entry = chapter.entry
    about = entry.host or (entry.build if entry.verb.begins else "")
    canary = " (canary)" if entry.role is Role.CANARY else ""
    return " ".join(word for word in (entry.verb.value, about) if word) + canary


def _as_object(chapter: Chapter) -> dict[str, Any]:
    entry = chapter.entry
    return {
        "at": entry.at,
        "by": entry.by,
        "verb": entry.verb.value,
        "build": entry.build,
        "digest": entry.digest,
        "role": entry.role.value,
        "host": entry.host,
        "why": entry.why,
        "rollout": entry.rollout,
        "outcome": chapter.outcome.value if chapter.outcome is not None else None,
        "ended": chapter.ended or None,
        "seconds": chapter.seconds,
    }
