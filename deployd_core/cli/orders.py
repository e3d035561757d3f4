"""How the verbs that begin a rollout end: what became of a stop, how to watch what follows, and the wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deployd_core.cli.exits import Exit
from deployd_core.cli.output import message
from deployd_core.cli.waiting import wait_for
from deployd_core.coordination import RolloutState
from deployd_core.model import Role
from deployd_core.picture import stopped

if TYPE_CHECKING:
    from deployd_core.units import Duration
    from deployd_core.zookeeper.services import ServiceRecord
    from deployd_core.zookeeper.session import Session

_WAYS_ON = {RolloutState.PAUSED: "resume", RolloutState.HALTED: "retry"}


def end_order(
    session: Session,
    before: ServiceRecord,
    *,
    rollout: str,
    role: Role,
    wait: bool,
    timeout: Duration,
    then: str = "",
) -> int:
    """Say what a person should know after an order, and show its rollout until it is over if they want to wait.

    Args:
        session: The connection.
        before: The service before the order.
        rollout: What the order has begun.
        role: Whose rollout it is.
        wait: Whether to wait.
        timeout: For how long.
        then: What else there is to type: ``stop it: deployd pause web``.

    Returns:
        The exit code.
    """
    from deployd_core import rollouts

    service = before.service
    record = rollouts.read_service(session, service)
    _say_what_became_of_a_stop(before, record)
    warn_of_stop(record)
    message(f"watch it: deployd status {service} --watch{f'; {then}' if then else ''}")
    return wait_for(session, service, build_of(record, role), rollout=rollout, role=role, timeout=timeout) if wait else Exit.DONE


def build_of(record: ServiceRecord, role: Role = Role.FLEET) -> str:
    """The build that is enabled for a role; empty when nothing is."""
    enabled = record.enabled_for(role)
    return enabled.build if enabled is not None else ""


def warn_of_stop(record: ServiceRecord) -> None:
    """Warn when nothing will come of an order for now."""
    stop = stopped(record)
    if stop:
        message(f"deployd: warning: nothing restarts for now: {stop}")


def _say_what_became_of_a_stop(before: ServiceRecord, record: ServiceRecord) -> None:
    was, service = before.rollout.state, record.service
    if was is RolloutState.OPEN:
        return
    if record.rollout.state is RolloutState.OPEN:
        message(f"the rollout was {was.value}, and is open again")
    elif record.rollout.state is was:
        message(f"the rollout stays {was.value}; go on: deployd {_WAYS_ON[was]} {service}")
