"""What lies on the disk for one service: archives, releases, `current`, and what was once good.

::

    <root>/current -> releases/<build>            relative, replaced by rename
    <root>/releases/<build>/                      complete when .deployd/manifest.json is in it
    <root>/releases/<build>/.deployd/steps/       one marker for each step that has run
    <root>/shared/                                outlives releases
    <root>/.deployd/incoming/                     see `deployd_core.fetching`
    <root>/.deployd/unpacking/, trash/            on the way in, and out: nobody looks here
    <root>/.deployd/logs/                         output of steps, see `deployd_core.performing`
    <root>/.deployd/history.json                  builds that were good, and flips
    <root>/.deployd/service                       whose root it is

Every change is made aside and renamed into place, after what it depends on is on the disk: a crash, of the agent or of the
machine, leaves the old or the new, and leftovers that `ReleaseStore.prepare` clears.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from msgspec import DecodeError, Struct, json

from deployd_core.api import Source
from deployd_core.archive import unpack
from deployd_core.clock import rfc3339
from deployd_core.decoding import decode_json
from deployd_core.disk import (
    claim,
    disk_errors,
    link_target,
    make_directory,
    names_in,
    remove_all,
    require_free,
    space_taken,
    sync_directory,
    sync_filesystem,
    write_atomically,
)
from deployd_core.errors import BuildRefused, ConfigError, NotFound, Unavailable
from deployd_core.fetching import Fetch, Progress, Retry, archive_of, read_about
from deployd_core.history import HistoryFile
from deployd_core.model import Build, Release, check_build_id, check_digest
from deployd_core.retention import Disk, ReleaseInfo, to_remove
from deployd_core.tree import OWN_NAME, Limits

_LOG = logging.getLogger("deployd.releases")

_CHECK_EVERY = 4 << 20
_MARKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,199}")
_MAX_ARCHIVE = 50 * 1024**3


class _Manifest(Struct, frozen=True, kw_only=True):
    build: str
    digest: str
    size: int
    published_at: str
    format: str


class ReleaseStore:
    """The disk of one service. One thread at a time may change it; `look` may be called from any."""

    def __init__(
        self,
        service: str,
        root: Path,
        *,
        reserve: int = 0,
        max_archive: int = _MAX_ARCHIVE,
        limits: Limits | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.service = service
        self.root = root
        self.releases = root / "releases"
        self.shared = root / "shared"
        self.current = root / "current"
        self._own = root / OWN_NAME
        self._incoming = self._own / "incoming"
        self._unpacking = self._own / "unpacking"
        self._trash = self._own / "trash"
        self._history = HistoryFile(self._own / "history.json")
        self._reserve = reserve
        self._max_archive = max_archive
        self._limits = limits or Limits()
        self._retry = retry or Retry()

    def prepare(self) -> None:
        """Make the directories, and clear what a crash left: half-unpacked and half-deleted releases, temporary links.

        Raises:
            ConfigError: The agent may not write there, a file is where a directory should be, or it is another service's root.
            Unavailable: The disk is full or broken.
        """
        with self._changing(f"the directories of {self.service} cannot be prepared"):
            owner = claim(self._own / "service", self.service)
            if owner != self.service:
                hint = f"give {self.service} a root of its own; if {owner} is no more: rm {self._own / 'service'}"
                raise ConfigError(f"{self.root} is the root of service {owner}: each would remove what the other serves", hint=hint)
            left = (*self._unpacking.iterdir(), *self._trash.iterdir(), *self._own.glob(".*"), *self._incoming.glob(".*"))
        if problem := remove_all(left):
            _LOG.warning("%s: what a crash has left cannot be removed: %s", self.service, problem)

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """Have the directories there: they may have been removed since, or a disk have been mounted over them."""
        with disk_errors(what, self.root):
            for directory in (self.root, self.releases, self.shared, self._own, self._incoming, self._unpacking, self._trash):
                # Archives may hold secrets, and only the agent has business in its own directory.
                make_directory(directory, 0o700 if self._own in (directory, directory.parent) else 0o755)
            yield

    def look(self) -> Disk:
        """Read what is there. Changes nothing, and needs no directory to exist.

        Raises:
            ConfigError: The agent may not read it.
            Unavailable: The disk is broken.
        """
        with disk_errors(f"the releases of {self.service} cannot be read", self.root):
            history, damage = self._history.read()
            releases = {info.build.id: info for info in map(self._info, names_in(self.releases)) if info is not None}
            current = self._current()
            return Disk(
                releases=releases,
                current=current if current in releases else None,
                fetched=frozenset(f"sha256:{name[:-8]}" for name in names_in(self._incoming) if name.endswith(".archive")),
                good=history.good,
                flips=history.happened(current),
                problem=self._in_the_way() or damage,
            )

    def fetch(self, build: Build, source: Source[Any], *, timeout: float, stop: Event, progress: Progress) -> None:
        """Bring the archive of a build here, verified; nothing happens when it, or the release, is here.

        Args:
            build: With the pinned digest.
            source: Where from.
            timeout: Seconds without a byte before a transfer is given up.
            stop: When set, the fetch ends within a moment (`Unavailable`); what has come is kept.
            progress: Told the bytes that are here, and those there will be, if known.

        Raises:
            NotFound: The source has no such build.
            Unavailable: The source or the disk cannot be used now.
            BuildRefused: The digest differs, or a release of that id has another.
        """
        if self._published(build) or archive_of(self._incoming, build.digest).exists():
            return
        with self._changing(f"build {build.id} of {self.service} could not be fetched"):
            transfer = Fetch(
                self._incoming,
                build,
                service=self.service,
                reserve=self._reserve,
                max_size=self._max_archive,
                retry=self._retry,
                stop=stop,
                progress=progress,
            )
        transfer.run(source, timeout)

    def unpack(self, build: Build, *, stop: Event) -> None:
        """Make a release of a fetched archive; nothing happens when it is there. It appears whole or not at all.

        Raises:
            NotFound: The archive has not been fetched.
            Unavailable: The disk is full or broken, or `stop` was set.
            BuildRefused: The archive is damaged, hostile or too big, or a release of that id has another digest.
            ConfigError: Something that deployd did not make lies where the release belongs.
        """
        if self._published(build):
            return
        final = self.releases / build.id
        if os.path.lexists(final):
            raise ConfigError(f"{final} is there, but deployd did not make it", hint=f"move it away: mv {final} {self.root}/")
        archive = archive_of(self._incoming, build.digest)
        if not archive.exists():
            raise NotFound(f"the archive of build {build.id} of {self.service} has not been fetched")
        what = f"build {build.id} of {self.service} could not be unpacked"
        temporary = self._unpacking / f"{build.id}.{secrets.token_hex(4)}"
        published = False
        try:
            with self._changing(what):
                make_directory(temporary, 0o755)
                unpacked = unpack(archive, temporary, limits=self._limits, check=self._watch(what, stop))
                self._write_manifest(temporary, build, unpacked.format, unpacked.size)
                sync_filesystem(temporary)
                temporary.rename(final)
                published = True
                sync_directory(self.releases)
        except BuildRefused as error:
            raise BuildRefused(f"build {build.id} of {self.service}: {error.message}", hint=error.hint) from error
        finally:
            if not published:
                remove_all((temporary,))  # else `prepare` does it

    def release(self, build_id: str) -> Release:
        """The release of a build.

        Raises:
            NotFound: There is no complete one.
        """
        info = self._info(check_build_id(build_id))
        if info is None:
            raise NotFound(f"there is no complete release of build {build_id} in {self.releases}")
        return Release(service=self.service, build=info.build, path=self.releases / build_id, root=self.root)

    def mark_step(self, build_id: str, marker: str) -> None:
        """Leave evidence in the release that a step has run, after what the step wrote is on the disk.

        Raises:
            NotFound: There is no such release.
            Unavailable: The disk is full or broken.
        """
        if not _MARKER.fullmatch(marker):
            raise ConfigError(f"a step's marker must be letters, digits or one of ._@+-, not {marker!r}")
        directory = self.release(build_id).path / OWN_NAME / "steps"
        with disk_errors(f"a step of build {build_id} of {self.service} could not be marked as done", directory):
            sync_filesystem(directory)
            (directory / marker).touch()
            sync_directory(directory)

    def flip(self, build_id: str, *, rollout: str = "") -> None:
        """Point `current` at a release; nothing happens when it points there, and did so for this rollout if one is named.

        There is no moment without `current`: readers see the old release or the new one. The flip is written down first, so that
        a process which started after it can be told from one that started before; for a restart that is all there is to it.

        Raises:
            NotFound: There is no complete release of that build.
            ConfigError: Something is in the way; the message says what to do.
            Unavailable: The disk is full or broken, or somebody else changed `current` at the same moment.
        """
        self.release(build_id)
        target = f"releases/{build_id}"
        with self._changing(f"current of {self.service} could not be flipped to build {build_id}"):
            history, damage = self._history.read()
            problem = self._in_the_way() or damage
            if problem:
                raise ConfigError(
                    f"{self.service} cannot be flipped to build {build_id}: {problem}", hint="then it goes on by itself"
                )
            if self._current() == build_id and history.at(build_id, rollout):
                return
            self._history.write(history.flipped(build_id, rollout=rollout))
            temporary = self._own / f".current.{secrets.token_hex(8)}"
            temporary.symlink_to(target)
            try:
                temporary.replace(self.current)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            sync_directory(self.root)
            found = link_target(self.current)
        if found != target:
            raise Unavailable(
                f"{self.current} was flipped to {target}, but now points at {found}", hint="does something else write it?"
            )

    def mark_good(self, build_id: str) -> None:
        """Remember that a build served well here: what a rollback goes back to.

        Raises:
            ConfigError: The history is damaged.
            Unavailable: The disk is full or broken.
        """
        check_build_id(build_id)
        with self._changing(f"build {build_id} of {self.service} could not be marked good"):
            history, damage = self._history.read()
            if damage:
                raise ConfigError(damage)
            if history.good[:1] != (build_id,):
                self._history.write(history.marked_good(build_id))

    def prune(self, *, keep: int, keep_bytes: int | None, protect: frozenset[str]) -> tuple[str, ...]:
        """Remove releases, archives and unfinished transfers that are no longer needed, oldest first.

        Args:
            keep: Releases to keep beside those in use.
            keep_bytes: Bytes that all releases and their archives may take; those in use stay even so.
            protect: Builds in use: running somewhere, wanted, or being fetched. `current` and the previous good one always are.

        Returns:
            The builds whose releases were removed.

        Raises:
            Unavailable: The disk is broken.
            ConfigError: The agent may not write there.
        """
        with self._changing(f"old releases of {self.service} could not be removed"):
            disk = self.look()
            sizes = {} if keep_bytes is None else {build: self._size(info) for build, info in disk.releases.items()}
            removed = to_remove(disk, sizes, keep=keep, keep_bytes=keep_bytes, protect=protect)
            for build_id in removed:
                self._discard(self.releases / build_id)
            digests = {info.build.digest for build_id, info in disk.releases.items() if build_id not in removed}
            self._prune_incoming(digests, protect)
            self._prune_logs(protect | (disk.releases.keys() - set(removed)))
            if problem := remove_all(tuple(self._trash.iterdir())):
                raise problem
        return removed

    def _prune_incoming(self, digests: set[str], protect: frozenset[str]) -> None:
        for path in self._incoming.iterdir():
            about = read_about(path.with_suffix(".json"))
            if f"sha256:{path.stem}" not in digests and not (about is not None and about.build in protect):
                path.unlink(missing_ok=True)

    def _prune_logs(self, builds: Set[str]) -> None:
        """The logs of steps begin with the build and a dash."""
        logs = self._own / "logs"
        for name in names_in(logs):
            if not any(name.startswith(f"{build}-") for build in builds):
                (logs / name).unlink(missing_ok=True)

    def _discard(self, directory: Path) -> None:
        """Put a release into the trash, from where it goes when all have been put there."""
        directory.rename(self._trash / f"{directory.name}.{secrets.token_hex(4)}")
        sync_directory(directory.parent)

    def _size(self, info: ReleaseInfo) -> int:
        """Bytes that a release takes with its archive, whatever its steps have added."""
        archive = archive_of(self._incoming, info.build.digest)
        return space_taken(self.releases / info.build.id) + (space_taken(archive) if archive.exists() else 0)

    def _published(self, build: Build) -> bool:
        check_digest(build.digest)
        info = self._info(check_build_id(build.id))
        if info is not None and info.build.digest != build.digest:
            raise BuildRefused(
                f"build {build.id} of {self.service} is on this host with digest {info.build.digest}, "
                f"but {build.digest} is pinned in `enabled`",
                hint="build ids are immutable: publish under a new id and enable that",
            )
        return info is not None

    def _info(self, build_id: str) -> ReleaseInfo | None:
        own = self.releases / build_id / OWN_NAME
        try:
            manifest = decode_json((own / "manifest.json").read_bytes(), _Manifest)
        except (FileNotFoundError, NotADirectoryError, DecodeError):
            return None
        if manifest.build != build_id:  # somebody has copied a release
            return None
        return ReleaseInfo(
            build=Build(id=build_id, digest=manifest.digest),
            steps=frozenset(names_in(own / "steps")),
            size=manifest.size,
            published_at=manifest.published_at,
        )

    def _write_manifest(self, directory: Path, build: Build, form: str, size: int) -> None:
        own = directory / OWN_NAME
        own.mkdir(mode=0o755)
        (own / "steps").mkdir(mode=0o755)
        manifest = _Manifest(build=build.id, digest=build.digest, size=size, published_at=rfc3339(time.time()), format=form)
        write_atomically(own / "manifest.json", json.encode(manifest))

    def _watch(self, what: str, stop: Event) -> Callable[[int], None]:
        """What is looked at while an archive is unpacked: whether to stop, and now and then the disk."""
        left = 0

        def check(coming: int) -> None:
            nonlocal left
            if stop.is_set():
                raise Unavailable(f"{what}: the agent was told to stop")
            left -= coming
            if left < 0:
                left = _CHECK_EVERY
                require_free(self.root, coming, self._reserve, what)

        return check

    def _current(self) -> str | None:
        """The name that `current` leads to in `releases`, however the link is written."""
        target = link_target(self.current)
        if target is None:
            return None
        path = Path(os.path.normpath(self.root / target))
        return path.name if path.parent == Path(os.path.normpath(self.releases)) else None

    def _in_the_way(self) -> str:
        if os.path.lexists(self.current) and not self.current.is_symlink():
            kind = "directory" if self.current.is_dir() else "file"
            return f"{self.current} is a {kind}, where deployd needs a link; move it away: mv {self.current} {self.current}.old"
        return ""
