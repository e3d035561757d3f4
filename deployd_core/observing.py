"""Puts together what was read from ZooKeeper, the disk and the instances into one `Observation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from deployd_core.config import ServiceSetup
from deployd_core.coordination import Enabled, Snapshot
from deployd_core.model import FleetView, PermitView
from deployd_core.observation import InstanceFacts, Observation, Setback, Staging
from deployd_core.retention import Disk


def observe(
    standing: Observation,
    instances: Sequence[InstanceFacts],
    *,
    tidy: bool,
    busy: frozenset[str],
    setbacks: Mapping[str, Setback],
    waits: Mapping[str, float],
    facts: Mapping[str, object] | None,
    connected: bool,
    advanced: bool,
    now: float,
) -> Observation:
    """Make the observation, of what `stand` says and what changes from round to round."""
    return replace(
        standing,
        now=now,
        tidy=tidy,
        instances=tuple(instances),
        connected=connected,
        advanced=advanced,
        busy=busy,
        setbacks=setbacks,
        waits=waits,
        facts=facts,
    )


def stand(snapshot: Snapshot, setup: ServiceSetup, disk: Disk, *, digest: str | None) -> Observation:
    """How a service stands on a host by what ZooKeeper and the disk say, which holds until one of them says something else.

    Args:
        snapshot: What ZooKeeper says.
        setup: What the spec names.
        disk: What is on the disk.
        digest: What the source said of a build that was enabled without one.
    """
    build = snapshot.enabled.build if snapshot.enabled else None
    digest = pinned_digest(snapshot, disk, digest)
    failed, permit = snapshot.rollout.failed_in(snapshot.rollout_id), snapshot.permit
    return Observation(
        now=0.0,
        service=snapshot.service,
        host=snapshot.host,
        zone=snapshot.membership.zone,
        role=snapshot.membership.role,
        build=build,
        digest=digest,
        staging=_staging(build, digest, disk),
        steps=setup.step_markers,
        current=disk.current,
        restart=snapshot.rollout_id if snapshot.enabled and snapshot.enabled.restart else "",
        flipped_for=disk.flips[-1].rollout if disk.flips else "",
        flip_problem=disk.problem,
        good=build is not None and disk.good[:1] == (build,),
        last_good=_last_good(snapshot.enabled, disk, setup.step_markers),
        rules=setup.rules,
        permit=PermitView(held=permit is not None, token=permit.token if permit else 0),
        queued=snapshot.queued,
        fleet=FleetView(hosts=snapshot.hosts, permits=snapshot.permits, failed=len(failed)),
        failure=failed[snapshot.host].reason if snapshot.host in failed else None,
    )


def pinned_digest(snapshot: Snapshot, disk: Disk, resolved: str | None) -> str | None:
    """The digest to hold the wanted build to: the one that was enabled, else that of the release on disk, else the source's."""
    if snapshot.enabled is None:
        return None
    release = disk.releases.get(snapshot.enabled.build)
    return snapshot.enabled.digest or (release.build.digest if release else None) or resolved


def _last_good(wanted: Enabled | None, disk: Disk, steps: tuple[str, ...]) -> str | None:
    """What a host goes back to when the wanted build fails on it.

    Not from a restart of the build that it has served well: no other build was in play, and none is brought in by surprise.
    """
    if wanted is None or (wanted.restart and wanted.build in disk.good):
        return None
    for good in disk.good:
        if good != wanted.build and _complete(good, disk, steps):
            return good
    return None


def _complete(build: str, disk: Disk, steps: tuple[str, ...]) -> bool:
    """Whether a release can be flipped to at once: its steps have run, if not those of this spec then those of its own time."""
    release = disk.releases.get(build)
    if release is None:
        return False
    return release.steps.issuperset(steps) or any(flip.build == build and flip.at >= release.published_at for flip in disk.flips)


def _staging(build: str | None, digest: str | None, disk: Disk) -> Staging:
    release = disk.releases.get(build) if build else None
    return Staging(
        fetched=digest in disk.fetched,
        unpacked=release is not None,
        steps_done=release.steps if release else frozenset(),
        on_disk_digest=release.build.digest if release else None,
    )
