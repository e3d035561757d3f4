"""Setbacks: backoff doubles up to a minute, and what trying again cannot mend is told apart."""

from __future__ import annotations

import random

import pytest

from deployd_core.errors import BuildRefused, ConfigError, DeploydError, RestartFailed, StepFailed, Unavailable
from deployd_core.setbacks import Setbacks


def test_each_failure_doubles_the_wait_up_to_a_minute() -> None:
    """One second, two, four … and never much more than sixty."""
    setbacks = Setbacks(random.Random(1))
    waits = []
    for _ in range(9):
        setbacks.failed("fetch", Unavailable("away"), now=0.0)
        waits.append(setbacks.by_key["fetch"].retry_at)

    for expected, actual in zip([1, 2, 4, 8, 16, 32, 60, 60, 60], waits, strict=True):
        assert expected * 0.8 <= actual <= expected * 1.2


@pytest.mark.parametrize(
    ("error", "blocking"),
    [(BuildRefused("digest"), True), (ConfigError("key"), True), (StepFailed("pip"), False), (Unavailable("disk"), False)],
)
def test_only_what_a_person_must_change_is_blocking(error: DeploydError, blocking: bool) -> None:
    """The environment is retried; a wrong build or a wrong spec is not."""
    setbacks = Setbacks(random.Random(1))

    setbacks.failed("fetch", error, now=0.0)

    assert blocking == setbacks.by_key["fetch"].blocking


def test_what_is_not_there_is_no_fault_of_the_build() -> None:
    """Only what is unavailable is laid to the environment."""
    setbacks = Setbacks(random.Random(1))

    setbacks.failed("restart:a", Unavailable("supervisor does not answer"), now=0.0)
    setbacks.failed("restart:b", RestartFailed("no such file"), now=0.0)

    assert {"restart:a": True, "restart:b": False} == {key: found.environment for key, found in setbacks.by_key.items()}


def test_success_forgets_and_a_change_lets_try_at_once() -> None:
    """After a success the count begins anew; lifting keeps it."""
    setbacks = Setbacks(random.Random(1))
    setbacks.failed("flip", Unavailable("x"), now=0.0)
    setbacks.failed("flip", Unavailable("x"), now=0.0)
    setbacks.lift("flip")
    assert setbacks.by_key == {}
    setbacks.failed("flip", Unavailable("x"), now=0.0)
    assert setbacks.by_key["flip"].retry_at >= 3.2

    setbacks.succeeded("flip")
    setbacks.failed("flip", Unavailable("x"), now=0.0)
    assert setbacks.by_key["flip"].retry_at <= 1.2


def test_the_next_retry_is_the_earliest_that_is_still_to_come() -> None:
    """What may be tried already, and what never may, wakes nobody."""
    setbacks = Setbacks(random.Random(1))
    setbacks.failed("old", Unavailable("x"), now=0.0)
    setbacks.failed("wrong", BuildRefused("x"), now=100.0)
    setbacks.refused("takepermit", "full", now=100.0, retry_after=30)

    assert setbacks.next_retry(100.0) == setbacks.by_key["takepermit"].retry_at
