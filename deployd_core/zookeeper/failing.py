"""Failures, and what becomes of a rollout in which too many hosts fail: it halts, or goes back, in the very write that says so."""

from __future__ import annotations

from datetime import datetime

from deployd_core.advancing import with_failure
from deployd_core.coordination import Enabled, Failure, Snapshot, Verb
from deployd_core.spec import RolloutTable
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.services import ATTEMPTS, assemble, commit_or_look_again, ensure_scaffold, gave_up, record_paths
from deployd_core.zookeeper.session import Session

_REASON_LIMIT = 500


def record_failure(session: Session, snapshot: Snapshot, reason: str, now: datetime) -> None:
    """Enter a host's failure, halting the rollout or taking it back in the same write when it exceeds the budget.

    Nothing happens when it is entered already, or when a newer rollout has begun: that one has failures of its own.
    """
    paths, host = ServicePaths(snapshot.service), snapshot.host
    failure = Failure(rollout=snapshot.rollout_id, reason=reason[:_REASON_LIMIT], at=now.isoformat(timespec="microseconds"))
    policy = snapshot.spec.rollout if snapshot.spec else RolloutTable()
    for _ in range(ATTEMPTS):
        nodes = session.get_many(record_paths(paths))
        record = assemble(session, snapshot.service, nodes)
        if snapshot.rollout_id not in (record.fleet_rollout, record.canary_rollout):
            return
        if host in record.rollout.failed_in(snapshot.rollout_id):
            return
        decider = paths.canary if record.canary and snapshot.rollout_id == record.canary_rollout else paths.enabled
        gate, deciding = nodes[paths.rollout], nodes[decider]
        if gate is None or deciding is None:
            ensure_scaffold(session, snapshot.service)
            continue
        after, entry = with_failure(record.rollout, host, failure, record.now, policy)
        transaction = session.transaction()
        if entry is not None and entry.verb is Verb.ROLLBACK:
            back = Enabled(build=entry.build, digest=entry.digest, by=host, at=entry.at)
            transaction.set(decider, layout.encode(back), deciding.stat.version)
        else:
            transaction.check(decider, deciding.stat.version)
        transaction.set(paths.rollout, layout.encode_rollout(after), gate.stat.version)
        if entry is not None:
            transaction.create(paths.history_entry, layout.encode(entry), sequence=True)
        if commit_or_look_again(session, transaction.commit):
            return
    raise gave_up(session, paths.rollout)
