"""The node that everything of ours is below: made by a verb that may, waited for by an agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from deployd_core.errors import NotFound
from deployd_core.zookeeper.session import Session

_HINT = "`deployd services apply` creates it; if it exists elsewhere, correct the address"
_SAY_EVERY, _LOOK_EVERY = 10.0, 0.5


def ensure_chroot(session: Session) -> None:
    """Create the chroot when it is missing, all its levels.

    Raises:
        Unavailable: ZooKeeper does not answer.
    """
    if session.stat("/") is not None or not session.chroot:
        return
    # kazoo cannot create its own chroot.
    with Session(session.hosts, "", session_timeout=session.session_timeout, identity=session.identity) as bare:
        path = ""
        for part in session.chroot.strip("/").split("/"):
            path += f"/{part}"
            bare.create_if_missing(path)


def require_chroot(session: Session) -> None:
    """Raise unless the chroot exists.

    Raises:
        NotFound: It does not; the hint says what to type.
        Unavailable: ZooKeeper does not answer.
    """
    if session.stat("/") is None:
        raise NotFound(_missing(session), hint=_HINT)


def wait_for_chroot(session: Session, stop: threading.Event, waiting: Callable[[str], object]) -> bool:
    """Wait until somebody creates the chroot, saying so now and then; False when `stop` was set meanwhile.

    Raises:
        Unavailable: ZooKeeper does not answer.
    """
    say_at = time.monotonic()
    while not stop.is_set():
        if session.stat("/") is not None:
            return True
        if time.monotonic() >= say_at:
            waiting(f"{_missing(session)} yet; waiting for it ({_HINT})")
            say_at = time.monotonic() + _SAY_EVERY
        stop.wait(_LOOK_EVERY)
    return False


def _missing(session: Session) -> str:
    return f"ZooKeeper at {session.hosts} has no node {session.chroot}"
