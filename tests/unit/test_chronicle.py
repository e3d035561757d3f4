"""What became of the rollouts of a service, from its history."""

import pytest

from deployd_core.chronicle import Chapter, Outcome, chronicle, last_completed
from deployd_core.coordination import Enabled, HistoryEntry, Verb
from deployd_core.model import Role


def history(*lines):
    """A history: ``verb [build] [key=value…]``, a minute apart."""
    entries = []
    for number, line in enumerate(lines):
        verb, *words = line.split()
        more = dict(word.split("=") for word in words if "=" in word)
        build = next((word for word in words if "=" not in word), "")
        role = Role(more.pop("role", "fleet"))
        entries.append(HistoryEntry(verb=Verb(verb), build=build, role=role, at=f"2026-11-23T12:{number:02d}:00+00:00", **more))
    return entries


@pytest.mark.parametrize(
    ("lines", "outcomes"),
    [
        ([], []),
        (["enable v1"], [(Outcome.GOING, None)]),
        (["enable v1", "complete v1"], [(Outcome.COMPLETED, 60)]),
        (["enable v1", "enable v2"], [(Outcome.SUPERSEDED, 60), (Outcome.GOING, None)]),
        (["enable v1", "complete v1", "enable v2"], [(Outcome.COMPLETED, 60), (Outcome.GOING, None)]),
        (["enable v1", "halt rollout=v1-a"], [(Outcome.HALTED, 60), None]),
        (["enable v1", "halt rollout=v1-a", "enable v2"], [(Outcome.HALTED, 60), None, (Outcome.GOING, None)]),
        (["enable v1", "halt rollout=v1-a", "retry"], [(Outcome.GOING, None), None, None]),
        (["enable v1", "halt rollout=v1-a", "retry", "complete v1"], [(Outcome.COMPLETED, 180), None, None]),
        (["enable v1", "halt rollout=v1-a", "rollback v0"], [(Outcome.ROLLED_BACK, 120), None, (Outcome.GOING, None)]),
        (["enable v1", "rollback v0 rollout=v1-a by=h1"], [(Outcome.ROLLED_BACK, 60), (Outcome.GOING, None)]),
        (["enable v1", "complete v1", "rollback v0"], [(Outcome.COMPLETED, 60), (Outcome.GOING, None)]),
        (["enable v1", "pause"], [(Outcome.PAUSED, None), None]),
        (["enable v1", "pause", "resume"], [(Outcome.GOING, None), None, None]),
        (["enable v1", "pause", "halt"], [(Outcome.HALTED, 120), None, None]),
        (["enable v1", "halt", "resume"], [(Outcome.HALTED, 60), None, None]),
        (["enable v1", "pause", "enable v2"], [(Outcome.SUPERSEDED, 120), None, (Outcome.GOING, None)]),
        (["enable v1", "lost host=h3", "complete v1"], [(Outcome.COMPLETED, 120), None]),
        (["restart v1", "complete v1"], [(Outcome.COMPLETED, 60)]),
        (["enable v2", "promote v2 rollout=v2-b", "complete v2"], [(Outcome.COMPLETED, 120), None]),
        (
            ["enable v1", "enable v2 role=canary", "complete v2 role=canary", "promote v2", "complete v2"],
            [(Outcome.SUPERSEDED, 180), (Outcome.COMPLETED, 60), (Outcome.COMPLETED, 60)],
        ),
        (["enable v2", "enable v2 role=canary", "complete v2 role=canary"], [(Outcome.GOING, None), (Outcome.COMPLETED, 60)]),
        (["enable v2 role=canary", "promote v2"], [(Outcome.SUPERSEDED, 60), (Outcome.GOING, None)]),
        (["enable v1", "enable v2 role=canary", "complete v1"], [(Outcome.COMPLETED, 120), (Outcome.GOING, None)]),
        (["enable v2 role=canary", "halt role=canary", "complete v1"], [(Outcome.HALTED, 60), None]),
    ],
    ids=lambda value: ", ".join(value) if value and isinstance(value[0], str) else None,
)
def test_outcome_of_a_rollout_follows_from_what_was_done_after_it(lines, outcomes):
    """Every rollout has one outcome and, once it is over, a length; what begins none has neither."""
    told = [(chapter.outcome, chapter.seconds) if chapter.outcome is not None else None for chapter in chronicle(history(*lines))]

    assert outcomes == told


def test_times_that_cannot_be_read_leave_the_length_out():
    """A history of a hand that wrote no times is told all the same."""
    begun, done = HistoryEntry(build="v1", at="long ago"), HistoryEntry(verb=Verb.COMPLETE, build="v1", at="later")

    assert (Chapter(entry=begun, outcome=Outcome.COMPLETED, ended="later"),) == chronicle([begun, done])


@pytest.mark.parametrize(
    ("lines", "known", "build"),
    [
        ([], None, ""),
        (["enable v1", "enable v2"], None, ""),
        (["enable v1", "complete v1", "enable v2"], "v1", "v1"),
        (["enable v1", "complete v1", "enable v2", "complete v2"], "v2", "v1"),
        (["complete v1", "complete v2 role=canary"], None, "v1"),
        (["complete v0", "complete v1", "complete v2"], None, "v1"),
        (["enable v3", "complete v3", "rollback v2"], None, ""),
        (["enable v3", "complete v3", "rollback v2"], "v3", ""),
        (["enable v1", "complete v1", "enable v3", "complete v3", "rollback v2 rollout=v3-a by=h1"], "v3", "v1"),
        (["enable v3", "complete v3", "rollback v2", "enable v3", "complete v3", "enable v2"], "v3", "v3"),
        (["enable v3", "complete v3", "rollback v2", "enable v3", "enable v2"], None, ""),
        (["enable v3", "complete v3", "enable v4 role=canary", "rollback v2", "complete v3 role=canary"], None, ""),
    ],
)
def test_way_back_leads_to_the_build_that_was_completed_before(lines, known, build):
    """A rollback from v2 goes to the last other build that the whole fleet served, and to none that a rollback left since."""
    assert build == last_completed(history(*lines), "v2", Enabled(build=known) if known else None)
