"""Which connections count as idle: told by what the kernel knows of them."""

from __future__ import annotations

import pytest

from deployd_plugins.gates.sockets import Connection

ESTABLISHED, SYN_RECV, CLOSE_WAIT = 1, 3, 8


def connection(*, state=ESTABLISHED, queued=0, sent=300, received=500, acknowledged=260, amount=100, answers=1):
    """A connection whose last event was an answer, 300 ms ago."""
    return Connection(2, b"", state, 0, queued, sent, received, acknowledged, amount, answers)


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        (True, {}),
        (True, {"amount": 0, "answers": 0, "sent": 500}),
        (True, {"amount": 0, "answers": 1}),
        (False, {"state": SYN_RECV}),
        (False, {"state": CLOSE_WAIT}),
        (False, {"queued": 1}),
        (False, {"sent": 500, "received": 300}),
        (False, {"answers": 0}),
        (False, {"answers": 0, "sent": 500}),
    ],
    ids=["answered", "unused", "greeted", "opening", "closing", "queued", "asked", "unanswered", "asked at once"],
)
def test_idle_is_what_is_proven_to_be(expected, what):
    """A connection is idle when its last event was our answer, nothing is queued, or no request ever came."""
    assert expected is connection(**what).idle(1000)


def test_a_lost_order_is_settled_by_a_later_acknowledgement():
    """Request and answer in one tick of the kernel's clock: an acknowledgement that came later shows that the answer was last."""
    assert connection(sent=500, received=500, acknowledged=460).idle(1000)
    assert not connection(sent=500, received=500, acknowledged=500).idle(1000)


def test_a_lost_order_is_settled_by_long_silence():
    """Without such an acknowledgement it takes five times the silence."""
    assert not connection(sent=4996, received=4996, acknowledged=4996).idle(1000)
    assert connection(sent=5000, received=5000, acknowledged=5000).idle(1000)
