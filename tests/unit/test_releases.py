"""The disk of a service: fetch, unpack, flip, history, retention, and what a crash leaves."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployd_core.api import Artifact, BuildCall, Download, FetchCall, Options, Source
from deployd_core.disk import disk_error
from deployd_core.errors import BuildRefused, ConfigError, DeploydError, NotFound, PluginError, Unavailable
from deployd_core.fetching import Retry
from deployd_core.model import Build, Flip
from deployd_core.releases import ReleaseStore
from deployd_core.retention import Disk, ReleaseInfo, to_remove
from deployd_core.tree import Limits

QUICK = Retry(first_delay=0.001)


class Memory(Source[Options]):
    """Serves builds from a dictionary, and breaks off where it is told to."""

    name = "memory"

    def __init__(
        self, builds: dict[str, bytes], *, breaks: list[int] | None = None, validator: str | None = "v", size: bool = True
    ) -> None:
        super().__init__(Options())
        self.builds = builds
        self.breaks = breaks or []
        self.validator = validator
        self.size = size
        self.calls: list[tuple[int, str | None]] = []

    def resolve(self, call: BuildCall) -> Artifact:
        return Artifact(location=f"memory:{call.build}")

    def fetch(self, call: FetchCall) -> Download:
        self.calls.append((call.offset, call.validator))
        if call.build not in self.builds:
            raise NotFound(f"no build {call.build}")
        data = self.builds[call.build]
        offset = call.offset if call.validator == self.validator else 0
        size = len(data) if self.size else None
        return Download(chunks=self._chunks(data, offset), offset=offset, size=size, validator=self.validator)

    def _chunks(self, data: bytes, offset: int) -> Iterator[bytes]:
        end = self.breaks.pop(0) if self.breaks else len(data)
        for start in range(offset, end, 1000):
            yield data[start : min(end, start + 1000)]
        if end < len(data):
            raise Unavailable("the line went dead")


def packed(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("app/version")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def build_of(build_id: str, data: bytes) -> Build:
    return Build(id=build_id, digest="sha256:" + hashlib.sha256(data).hexdigest())


def fetch(
    store: ReleaseStore, build: Build, source: Source[Options], stop: threading.Event | None = None
) -> list[tuple[int, int | None]]:
    seen: list[tuple[int, int | None]] = []
    store.fetch(build, source, timeout=1, stop=stop or threading.Event(), progress=lambda done, total: seen.append((done, total)))
    return seen


def publish(store: ReleaseStore, build_id: str) -> Build:
    data = packed(build_id)
    build = build_of(build_id, data)
    fetch(store, build, Memory({build_id: data}))
    store.unpack(build, stop=threading.Event())
    return build


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    made = ReleaseStore("web", tmp_path / "web", retry=QUICK)
    made.prepare()
    return made


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_release_from_fetch_to_flip(store: ReleaseStore) -> None:
    """A fetched build is unpacked, published with a manifest, and served through `current`."""
    build = publish(store, "v1")
    store.mark_step("v1", "0-pip-abc")
    store.flip("v1")
    store.mark_good("v1")

    disk = store.look()

    assert "v1" == (store.root / "current/app/version").read_text()
    assert "releases/v1" == str((store.root / "current").readlink())
    assert build == disk.releases["v1"].build
    assert frozenset({"0-pip-abc"}) == disk.releases["v1"].steps
    assert 2 == disk.releases["v1"].size
    assert "v1" == disk.current
    assert frozenset({build.digest}) == disk.fetched
    assert ("v1",) == disk.good
    assert ["v1"] == [flip.build for flip in disk.flips]
    assert "" == disk.problem
    assert store.root / "releases/v1" == store.release("v1").path


def test_look_at_nothing(tmp_path: Path) -> None:
    """A host that never saw the service has an empty disk, and looking does not make directories."""
    disk = ReleaseStore("web", tmp_path / "web").look()

    assert Disk(releases={}, current=None, fetched=frozenset(), good=(), flips=(), problem="") == disk
    assert not (tmp_path / "web").exists()


def test_own_directory_is_private_and_releases_are_not(store: ReleaseStore) -> None:
    """Archives are for the agent alone; a service under another user can read its release."""
    publish(store, "v1")

    assert 0o700 == stat.S_IMODE((store.root / ".deployd").stat().st_mode)
    assert 0o755 == stat.S_IMODE((store.root / "releases/v1").stat().st_mode)


def test_everything_can_be_repeated(store: ReleaseStore) -> None:
    """Fetching, unpacking, flipping and marking again changes nothing."""
    build = publish(store, "v1")
    store.flip("v1")
    store.mark_good("v1")
    before = store.look()
    silent = Memory({})

    fetch(store, build, silent)
    store.unpack(build, stop=threading.Event())
    store.flip("v1")
    store.mark_good("v1")
    store.prepare()

    assert before == store.look()
    assert [] == silent.calls


def test_progress_says_done_and_total(store: ReleaseStore) -> None:
    """Progress grows to the announced size."""
    data = os.urandom(2500)

    assert [(1000, 2500), (2000, 2500), (2500, 2500)] == fetch(store, build_of("v1", data), Memory({"v1": data}))


def test_broken_transfer_goes_on_where_it_broke(store: ReleaseStore) -> None:
    """After a break the rest is asked for, with the validator of the first part."""
    data = os.urandom(5000)
    source = Memory({"v1": data}, breaks=[2000, 3500])

    fetch(store, build_of("v1", data), source)

    assert [(0, None), (2000, "v"), (3500, "v")] == source.calls
    assert {build_of("v1", data).digest} == store.look().fetched


class Stalling(Memory):
    """Brings one piece, and the rest when it is let go on."""

    def __init__(self, builds: dict[str, bytes]) -> None:
        super().__init__(builds)
        self.stalls, self.goes_on = threading.Event(), threading.Event()

    def _chunks(self, data: bytes, offset: int) -> Iterator[bytes]:
        first, *rest = super()._chunks(data, offset)
        yield first
        self.stalls.set()
        assert self.goes_on.wait(10)
        yield from rest


def test_one_archive_is_brought_once_at_a_time(store: ReleaseStore) -> None:
    """A transfer that was given up on and goes on after all must not write into the one that was begun after it."""
    data = packed("v1")
    source = Stalling({"v1": data})
    first = threading.Thread(target=fetch, args=(store, build_of("v1", data), source))
    first.start()
    assert source.stalls.wait(10)

    # Of another id, and the same bytes: a build that was packed again.
    again = build_of("v1-again", data)
    with pytest.raises(Unavailable, match="build v1-again of web could not be fetched: an earlier transfer of it has not ended"):
        fetch(store, again, Memory({"v1-again": data}))
    source.goes_on.set()
    first.join(10)
    fetch(store, again, Memory({}))
    store.unpack(again, stop=threading.Event())

    assert data == next((store.root / ".deployd/incoming").glob("*.archive")).read_bytes()


def test_transfer_without_announced_size_is_whole_at_its_end(store: ReleaseStore) -> None:
    """A source that does not know the size beforehand is held to the digest."""
    data = os.urandom(5000)

    fetch(store, build_of("v1", data), Memory({"v1": data}, size=False))

    assert {build_of("v1", data).digest} == store.look().fetched


def test_cut_body_is_a_break(store: ReleaseStore) -> None:
    """A transfer that just ends before the announced size is continued."""

    class Cutting(Memory):
        def _chunks(self, data: bytes, offset: int) -> Iterator[bytes]:
            yield data[offset : offset + 2000]

    data = os.urandom(5000)
    source = Cutting({"v1": data})

    fetch(store, build_of("v1", data), source)

    assert [(0, None), (2000, "v"), (4000, "v")] == source.calls


def test_fetch_gives_up_after_tries_that_bring_nothing(store: ReleaseStore) -> None:
    """A source that breaks at the same byte again and again is unavailable, and what came is kept."""
    data = os.urandom(5000)
    source = Memory({"v1": data}, breaks=[2000] * 10)

    with pytest.raises(
        Unavailable, match=r"build v1 of web could not be fetched: the line went dead \(tried 4 times from byte 2000\)"
    ):
        fetch(store, build_of("v1", data), source)

    assert 2000 == next((store.root / ".deployd/incoming").glob("*.part")).stat().st_size


def test_a_root_is_for_one_service(store: ReleaseStore) -> None:
    """Another service is refused there, with what to do, and clears nothing away; the one it belongs to goes on."""
    half = store.root / ".deployd/unpacking/v1-half"
    half.mkdir()

    with pytest.raises(ConfigError, match=r"is the root of service web: .*") as refused:
        ReleaseStore("api", store.root).prepare()

    assert f"give api a root of its own; if web is no more: rm {store.root}/.deployd/service" == refused.value.hint
    assert half.is_dir()
    store.prepare()
    assert not half.exists()


def test_fetch_resumes_what_a_crash_left(store: ReleaseStore) -> None:
    """A part left by an agent that died is hashed again and continued by the next one."""
    data = os.urandom(5000)
    build = build_of("v1", data)
    with pytest.raises(Unavailable):
        fetch(store, build, Memory({"v1": data}, breaks=[3000] * 4))
    again = ReleaseStore("web", store.root, retry=QUICK)
    again.prepare()
    source = Memory({"v1": data})

    fetch(again, build, source)

    assert [(3000, "v")] == source.calls
    assert {build.digest} == again.look().fetched


def test_whole_part_is_verified_without_the_source(store: ReleaseStore) -> None:
    """A crash between the last byte and the rename costs no transfer."""
    data = os.urandom(5000)
    build = build_of("v1", data)
    stem = store.root / ".deployd/incoming" / build.digest.removeprefix("sha256:")
    stem.with_suffix(".part").write_bytes(data)
    stem.with_suffix(".json").write_text(json.dumps({"build": "v1", "validator": "v", "size": 5000}))
    source = Memory({})

    fetch(store, build, source)

    assert [] == source.calls
    assert {build.digest} == store.look().fetched


@pytest.mark.parametrize("about", ["", "{", '{"build": "v1"}', '{"build": "v1", "validator": "v", "size": 100}'])
def test_part_that_cannot_be_continued_is_fetched_anew(store: ReleaseStore, about: str) -> None:
    """A part of which nothing usable is known is thrown away."""
    data = os.urandom(5000)
    build = build_of("v1", data)
    stem = store.root / ".deployd/incoming" / build.digest.removeprefix("sha256:")
    stem.with_suffix(".part").write_bytes(b"x" * 2000)
    stem.with_suffix(".json").write_text(about)
    source = Memory({"v1": data})

    fetch(store, build, source)

    assert [(0, None)] == source.calls
    assert {build.digest} == store.look().fetched


def test_changed_artifact_starts_from_nothing(store: ReleaseStore) -> None:
    """A source that begins at 0 although the rest was asked for replaces what was there."""
    data = os.urandom(5000)
    build = build_of("v1", data)
    with pytest.raises(Unavailable):
        fetch(store, build, Memory({"v1": os.urandom(5000)}, breaks=[3000] * 4, validator="old"))

    fetch(store, build, Memory({"v1": data}, validator="new"))

    assert {build.digest} == store.look().fetched


def test_mixed_artifact_gets_a_second_look(store: ReleaseStore) -> None:
    """A resumed transfer of the wrong digest is fetched anew once: its halves may be of two artifacts."""
    data = os.urandom(5000)
    build = build_of("v1", data)
    with pytest.raises(Unavailable):
        fetch(store, build, Memory({"v1": os.urandom(5000)}, breaks=[3000] * 4))
    source = Memory({"v1": data})

    fetch(store, build, source)

    assert [(3000, "v"), (0, None)] == source.calls
    assert {build.digest} == store.look().fetched


def test_wrong_digest_is_refused_with_both(store: ReleaseStore) -> None:
    """A build of another digest is refused, both digests are named, and nothing of it is kept."""
    data, other = os.urandom(3000), os.urandom(3000)
    pinned, found = build_of("v1", data).digest, build_of("v1", other).digest

    with pytest.raises(BuildRefused, match=found) as caught:
        fetch(store, build_of("v1", data), Memory({"v1": other}))

    assert pinned in caught.value.message
    assert [] == files(store.root / ".deployd/incoming")


def test_missing_build_is_not_found(store: ReleaseStore) -> None:
    """A build that the source does not have is not tried again."""
    source = Memory({})

    with pytest.raises(NotFound, match="no build v1"):
        fetch(store, build_of("v1", b""), source)

    assert 1 == len(source.calls)


@pytest.mark.parametrize("size", [True, False])
def test_too_big_is_refused(tmp_path: Path, size: bool) -> None:
    """A build over the bound is refused, announced or not."""
    store = ReleaseStore("web", tmp_path, max_archive=2000)
    store.prepare()
    data = os.urandom(5000)

    with pytest.raises(BuildRefused, match="bigger than 2kB"):
        fetch(store, build_of("v1", data), Memory({"v1": data}, size=size))

    assert [] == files(tmp_path / ".deployd/incoming")


def test_no_room_for_the_archive_is_said_before_the_first_byte(tmp_path: Path) -> None:
    """A disk that cannot hold the build and the reserve is reported with what is missing, and nothing is transferred."""
    store = ReleaseStore("web", tmp_path, reserve=1 << 60)
    store.prepare()
    data = os.urandom(5000)

    with pytest.raises(Unavailable, match=rf"the disk of {tmp_path}/.deployd/incoming lacks .* GB: 5.0 kB to come"):
        fetch(store, build_of("v1", data), Memory({"v1": data}))

    assert [] == list((tmp_path / ".deployd/incoming").glob("*.part"))


def test_source_that_begins_elsewhere_breaks_its_contract(store: ReleaseStore) -> None:
    """A source that skips bytes is named."""

    class Skipping(Memory):
        def fetch(self, call: FetchCall) -> Download:
            return Download(chunks=iter([]), offset=77)

    with pytest.raises(PluginError, match="source memory was asked for byte 0 and began at byte 77"):
        fetch(store, build_of("v1", b"x"), Skipping({}))


def test_stop_ends_a_fetch_and_its_waits(tmp_path: Path) -> None:
    """A stop ends the fetch in the middle of a transfer, and does not sit out the wait between tries."""
    stop = threading.Event()
    data = os.urandom(5000)
    store = ReleaseStore("web", tmp_path, retry=Retry(first_delay=3600, longest_delay=3600))
    store.prepare()

    class Stopping(Memory):
        def _chunks(self, data: bytes, offset: int) -> Iterator[bytes]:
            yield data[:1000]
            stop.set()
            yield from super()._chunks(data, 1000)

    for source in (Stopping({"v1": data}), Memory({"v1": data}, breaks=[2000])):
        with pytest.raises(Unavailable, match="told to stop"):
            fetch(store, build_of("v1", data), source, stop)

    assert 1000 <= next((tmp_path / ".deployd/incoming").glob("*.part")).stat().st_size


def test_build_id_with_another_digest_is_refused(store: ReleaseStore) -> None:
    """A release on disk is never taken for a build of the same id and another digest; both are named."""
    published = publish(store, "v1")
    other = build_of("v1", b"other")

    for act in (lambda: fetch(store, other, Memory({})), lambda: store.unpack(other, stop=threading.Event())):
        with pytest.raises(BuildRefused, match=other.digest) as caught:
            act()
        assert published.digest in caught.value.message
        assert "immutable" in caught.value.hint


def test_unpacking_what_was_not_fetched(store: ReleaseStore) -> None:
    """Without an archive there is nothing to unpack."""
    with pytest.raises(NotFound, match="has not been fetched"):
        store.unpack(build_of("v1", b"x"), stop=threading.Event())


def test_hostile_archive_leaves_nothing(store: ReleaseStore) -> None:
    """An archive that is refused leaves neither a release nor a half-unpacked directory, and the build is named."""
    data = packed("x").replace(b"app/version", b"../../../ev")
    header = bytearray(data[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + data[512:]
    build = build_of("v1", data)
    fetch(store, build, Memory({"v1": data}))

    with pytest.raises(BuildRefused, match="build v1 of web: the archive holds a path that leads out"):
        store.unpack(build, stop=threading.Event())

    assert [] == files(store.root / "releases")
    assert [] == files(store.root / ".deployd/unpacking")


def test_limits_hold_for_releases(tmp_path: Path) -> None:
    """The store passes its limits on."""
    store = ReleaseStore("web", tmp_path, limits=Limits(size=1))
    store.prepare()

    with pytest.raises(BuildRefused, match="unpacks to more than 1B"):
        publish(store, "v1")


def test_stop_ends_the_unpacking(store: ReleaseStore) -> None:
    """A stop leaves no half-unpacked directory."""
    data = packed("v1")
    build = build_of("v1", data)
    fetch(store, build, Memory({"v1": data}))
    stop = threading.Event()
    stop.set()

    with pytest.raises(Unavailable, match="told to stop"):
        store.unpack(build, stop=stop)

    assert [] == files(store.root / ".deployd/unpacking")
    assert {} == store.look().releases


def test_foreign_directory_in_the_place_of_a_release(store: ReleaseStore) -> None:
    """What deployd did not make does not count as a release and is not overwritten."""
    (store.root / "releases/v1").mkdir()
    (store.root / "releases/v1/precious").write_text("data")

    with pytest.raises(ConfigError, match="deployd did not make it"):
        publish(store, "v1")

    assert {} == store.look().releases
    assert "data" == (store.root / "releases/v1/precious").read_text()


@pytest.mark.parametrize("manifest", [None, b"", b"{", b'{"build": "v9"}'])
def test_incomplete_release_does_not_count(store: ReleaseStore, manifest: bytes | None) -> None:
    """A directory without a whole manifest is no release: not shown, not flipped to."""
    own = store.root / "releases/v1/.deployd"
    own.mkdir(parents=True)
    if manifest is not None:
        (own / "manifest.json").write_bytes(manifest)

    with pytest.raises(NotFound, match="no complete release of build v1"):
        store.flip("v1")

    assert {} == store.look().releases
    assert not os.path.lexists(store.root / "current")


def test_copied_release_does_not_count(store: ReleaseStore) -> None:
    """A release that somebody copied to another name does not pass for another build."""
    publish(store, "v1")
    (store.root / "releases/v1").rename(store.root / "releases/v2")

    assert {} == store.look().releases


def test_leftovers_of_a_crash_are_cleared(store: ReleaseStore) -> None:
    """Half-unpacked and half-deleted releases and temporary files go at the start; parts stay, to be continued."""
    own = store.root / ".deployd"
    (own / "unpacking/v1.abc/deep").mkdir(parents=True)
    (own / "unpacking/v1.abc/deep/file").write_text("x")
    (own / "trash/v0.abc").mkdir()
    (own / "trash/link").symlink_to("/etc")
    (own / ".current.abc").symlink_to("releases/v7")
    (own / ".history.json.abc").write_text("{")
    (own / "incoming/.abc.json.abc").write_text("{")
    (own / "incoming/abc.part").write_text("half")

    store.prepare()

    assert ["incoming", "service", "trash", "unpacking"] == files(own)
    assert [] == files(own / "unpacking")
    assert [] == files(own / "trash")
    assert ["abc.part"] == files(own / "incoming")


def no_rights_to(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[Path], OSError | None]) -> None:
    """Have the removal of a directory fail for what is in it, whoever runs the test."""
    inner = shutil.rmtree

    def rmtree(top: Path) -> None:
        for directory, _, _ in os.walk(top):
            if error := refuses(Path(directory)):
                raise error
        inner(top)

    monkeypatch.setattr(shutil, "rmtree", rmtree)


def busy(directory: Path) -> OSError | None:
    """What the kernel says when something is mounted there."""
    return OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(directory)) if directory.name == "mounted" else None


def read_only(directory: Path) -> OSError | None:
    """What it says to anybody but root."""
    writable = directory.stat().st_mode & stat.S_IWUSR
    return None if writable else PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def test_what_cannot_be_removed_does_not_stop_a_service(
    store: ReleaseStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Leftovers are in nobody's way: one that resists is told of, and the others go."""
    trash = store.root / ".deployd/trash"
    for name in ("v0/mounted", "v1/app", "v2/mounted", "v3/app"):
        (trash / name).mkdir(parents=True)
    no_rights_to(monkeypatch, busy)

    store.prepare()

    assert ["v0", "v2"] == files(trash)
    assert "web: what a crash has left cannot be removed: [Errno 16]" in caplog.text


def test_a_release_that_cannot_be_removed_keeps_no_other(store: ReleaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What resists is said, when everything else has gone, and tried again the next time."""
    for build_id in ("v1", "v2", "v3"):
        publish(store, build_id)
    (store.root / "releases/v1/mounted").mkdir()
    with monkeypatch.context() as patch:
        no_rights_to(patch, busy)

        with pytest.raises(Unavailable, match=r"old releases of web could not be removed: /.*/mounted: Device or resource busy"):
            store.prune(keep=0, keep_bytes=None, protect=frozenset({"v3"}))

    assert ["v3"] == files(store.root / "releases")
    assert ["v1"] == [name.partition(".")[0] for name in files(store.root / ".deployd/trash")]
    assert 1 == len(list((store.root / ".deployd/incoming").glob("*.archive")))

    store.prune(keep=0, keep_bytes=None, protect=frozenset({"v3"}))
    assert [] == files(store.root / ".deployd/trash")


def test_what_a_step_made_read_only_can_be_removed(store: ReleaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is not root removes it too; what a link in it leads to is left as it is."""
    publish(store, "v1")
    publish(store, "v2")
    outside = store.root / "shared/outside"
    outside.mkdir(mode=0o500)
    module = store.root / "releases/v1/modules/one"
    module.mkdir(parents=True)
    (module / "link").symlink_to(outside)
    module.chmod(0o500)
    module.parent.chmod(0o500)
    no_rights_to(monkeypatch, read_only)

    store.prune(keep=0, keep_bytes=None, protect=frozenset({"v2"}))

    assert [] == files(store.root / ".deployd/trash")
    assert 0o500 == stat.S_IMODE(outside.stat().st_mode)


@pytest.mark.parametrize("gone", ["", "releases", ".deployd"])
def test_what_vanished_under_a_running_agent_is_made_again(store: ReleaseStore, gone: str) -> None:
    """Somebody clears a directory, or mounts a disk over it, after the agent was started: the next deploy goes on."""
    publish(store, "v1")
    store.flip("v1")
    shutil.rmtree(store.root / gone)

    publish(store, "v2")
    store.flip("v2")
    store.mark_good("v2")
    store.prune(keep=0, keep_bytes=None, protect=frozenset())

    assert "v2" == (store.root / "current/app/version").read_text()
    assert 0o700 == stat.S_IMODE((store.root / ".deployd").stat().st_mode)


def test_users_of_a_service_get_in_whatever_the_umask(tmp_path: Path) -> None:
    """An agent that was started with a strict umask makes no releases that only it can read; its own directory stays its own."""
    before = os.umask(0o077)
    try:
        made = ReleaseStore("web", tmp_path / "srv/web")
        made.prepare()
        publish(made, "v1")
    finally:
        os.umask(before)

    open_to_all = [tmp_path / "srv", made.root, made.releases, made.shared, made.releases / "v1"]
    assert {0o755} == {stat.S_IMODE(path.stat().st_mode) for path in open_to_all}
    assert 0o700 == stat.S_IMODE((made.root / ".deployd").stat().st_mode)


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """A directory that somebody made is his."""
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases").chmod(0o750)

    ReleaseStore("web", tmp_path).prepare()

    assert 0o750 == stat.S_IMODE((tmp_path / "releases").stat().st_mode)


def test_file_where_a_directory_should_be(tmp_path: Path) -> None:
    """A file in the place of a directory is named, with the way out."""
    (tmp_path / "releases").write_text("")

    with pytest.raises(ConfigError, match=f"{tmp_path}/releases is no directory") as caught:
        ReleaseStore("web", tmp_path).prepare()

    assert "mv " in caught.value.hint


def test_dangling_current_is_replaced(store: ReleaseStore) -> None:
    """A link to a release that is gone counts as no link, and the next flip replaces it."""
    (store.root / "current").symlink_to("releases/gone")
    publish(store, "v1")

    assert store.look().current is None
    assert "" == store.look().problem

    store.flip("v1")

    assert "v1" == store.look().current


def test_absolute_current_is_understood(store: ReleaseStore) -> None:
    """A link that another tool wrote with an absolute path is read, and not flipped to where it already points."""
    publish(store, "v1")
    (store.root / "current").symlink_to(store.root / "releases" / "v1")

    store.flip("v1")

    assert "v1" == store.look().current
    assert () == store.look().flips


def test_current_elsewhere_is_no_release(store: ReleaseStore) -> None:
    """A link out of `releases` is no release of ours, and may be replaced."""
    publish(store, "v1")
    (store.root / "current").symlink_to("/")

    assert store.look().current is None

    store.flip("v1")

    assert "v1" == store.look().current


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_real_thing_in_the_place_of_current(store: ReleaseStore, kind: str) -> None:
    """A real directory or file at `current` is left alone, shown as the problem, and refused with the way out."""
    publish(store, "v1")
    current = store.root / "current"
    if kind == "directory":
        current.mkdir()
        (current / "precious").write_text("data")
    else:
        current.write_text("data")
    problem = store.look().problem

    with pytest.raises(ConfigError, match=f"current is a {kind}") as caught:
        store.flip("v1")

    assert f"move it away: mv {current} {current}.old" in problem
    assert problem in caught.value.message
    assert () == store.look().flips
    assert not current.is_symlink()


def test_damaged_history_is_a_problem_and_no_empty_past(store: ReleaseStore) -> None:
    """A history that cannot be read stops flips and good marks instead of being overwritten."""
    publish(store, "v1")
    history = store.root / ".deployd/history.json"
    history.write_text("")

    for act in (lambda: store.flip("v1"), lambda: store.mark_good("v1")):
        with pytest.raises(ConfigError, match=r"history\.json is damaged"):
            act()

    assert "history.json is damaged" in store.look().problem
    assert "" == history.read_text()


def test_a_flip_for_a_restart_is_put_on_record_once(store: ReleaseStore) -> None:
    """`current` stays where it is; the flip log says for which rollout it was set anew, and repeating it changes nothing."""
    publish(store, "v1")
    store.flip("v1")
    for rollout in ("v1-7", "v1-7", "", "v1-9"):
        store.flip("v1", rollout=rollout)

    assert [("v1", ""), ("v1", "v1-7"), ("v1", "v1-9")] == [(flip.build, flip.rollout) for flip in store.look().flips]
    assert "v1" == store.look().current


def test_a_flip_log_of_an_older_agent_is_read(store: ReleaseStore) -> None:
    """It names no rollouts: none of its flips was for a restart."""
    publish(store, "v1")
    store.flip("v1")
    history = store.root / ".deployd/history.json"
    [flip] = json.loads(history.read_text())["flips"]
    del flip["rollout"]
    history.write_text(json.dumps({"good": ["v1"], "flips": [flip]}))

    assert ("", ("v1",), "") == (store.look().flips[0].rollout, store.look().good, store.look().problem)


def test_history_is_bounded_and_ordered(store: ReleaseStore) -> None:
    """Good builds are listed newest first and once each, flips oldest first, and neither grows without end."""
    for build in ("a", "b", "c"):
        publish(store, build)
    for _ in range(30):
        for build in ("a", "b", "c", "a"):
            store.flip(build)
            store.mark_good(build)

    disk = store.look()

    assert ("a", "c", "b") == disk.good
    assert 50 == len(disk.flips)
    assert ["b", "c", "a"] == [flip.build for flip in disk.flips[-3:]]
    assert sorted(flip.boot_time for flip in disk.flips) == [flip.boot_time for flip in disk.flips]


def test_no_reader_misses_current_while_it_is_flipped(store: ReleaseStore) -> None:
    """Whoever reads through `current` in a tight loop always finds a release."""
    for build in ("v1", "v2"):
        publish(store, build)
    store.flip("v1")
    done = threading.Event()
    found: set[str] = set()

    def read() -> None:
        while not done.is_set():
            found.add((store.root / "current/app/version").read_text())

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(200):
        store.flip("v1" if number % 2 else "v2")
    done.set()
    for reader in readers:
        reader.join()

    assert {"v1", "v2"} == found
    assert [] == list((store.root / ".deployd").glob(".current*"))


@pytest.mark.parametrize("marker", ["", "../x", "a/b", ".hidden", "a\0"])
def test_marker_that_is_no_file_name(store: ReleaseStore, marker: str) -> None:
    """A marker cannot lead out of its directory."""
    publish(store, "v1")

    with pytest.raises(ConfigError, match="marker"):
        store.mark_step("v1", marker)


@pytest.mark.parametrize("build_id", ["../x", "", "a/b"])
def test_build_id_that_is_no_directory_name(store: ReleaseStore, build_id: str) -> None:
    """A build id cannot lead out of `releases`."""
    for act in (store.flip, store.release, store.mark_good):
        with pytest.raises(ConfigError, match="build id"):
            act(build_id)


def test_prune_keeps_what_is_in_use(store: ReleaseStore) -> None:
    """The current, the previous good and protected releases stay, with their archives; the rest goes but for `keep`."""
    for number in range(1, 8):
        publish(store, f"v{number}")
        store.flip(f"v{number}")
    store.mark_good("v1")

    removed = store.prune(keep=1, keep_bytes=None, protect=frozenset({"v3"}))

    assert ("v2", "v4", "v5") == removed
    assert ["v1", "v3", "v6", "v7"] == files(store.root / "releases")
    assert {build_of(build, packed(build)).digest for build in ("v1", "v3", "v6", "v7")} == store.look().fetched
    assert [] == files(store.root / ".deployd/trash")


def test_prune_by_bytes_counts_what_is_on_the_disk(store: ReleaseStore) -> None:
    """Bytes that steps have added count, and releases in use stay even when they alone are too big."""
    for number in range(1, 5):
        publish(store, f"v{number}")
        (store.root / f"releases/v{number}/added").write_bytes(bytes(100_000))
    store.flip("v4")

    assert ("v1",) == store.prune(keep=9, keep_bytes=390_000, protect=frozenset())
    assert ("v2", "v3") == store.prune(keep=9, keep_bytes=10, protect=frozenset())


def test_prune_clears_orphaned_archives_and_parts(store: ReleaseStore) -> None:
    """Archives without a release and broken transfers go, unless they are of a protected build."""
    data, other = os.urandom(5000), os.urandom(5000)
    for build, content in (("v1", data), ("v2", other)):
        with pytest.raises(Unavailable):
            fetch(store, build_of(build, content), Memory({build: content}, breaks=[3000] * 4))
    fetch(store, build_of("v3", b"abc"), Memory({"v3": b"abc"}))

    store.prune(keep=1, keep_bytes=None, protect=frozenset({"v2"}))

    stem = build_of("v2", other).digest.removeprefix("sha256:")
    assert [f"{stem}.json", f"{stem}.part"] == files(store.root / ".deployd/incoming")


def test_prune_clears_the_logs_of_what_is_gone(store: ReleaseStore) -> None:
    """Logs of steps live as long as their release, or as long as their build is in use."""
    for build in ("v1", "v2"):
        publish(store, build)
    store.flip("v2")
    logs = store.root / ".deployd/logs"
    logs.mkdir()
    for name in ("v1-01-pip.log", "v2-01-pip.log", "v3-01-pip.log", "v4-01-pip.log"):
        (logs / name).write_text("")

    store.prune(keep=0, keep_bytes=None, protect=frozenset({"v3"}))

    assert ["v2-01-pip.log", "v3-01-pip.log"] == files(logs)


def test_prune_leaves_what_deployd_did_not_make(store: ReleaseStore) -> None:
    """Directories without a manifest are somebody else's."""
    (store.root / "releases/old-tool").mkdir()

    store.prune(keep=2, keep_bytes=None, protect=frozenset())

    assert ["old-tool"] == files(store.root / "releases")


names = st.sampled_from([f"v{number}" for number in range(8)])


@given(
    releases=st.dictionaries(names, st.integers(0, 1000), max_size=8),
    current=st.none() | names,
    good=st.lists(names, unique=True).map(tuple),
    flips=st.lists(names).map(tuple),
    keep=st.integers(0, 4),
    keep_bytes=st.none() | st.integers(0, 4000),
    protect=st.frozensets(names),
)
def test_retention_never_takes_what_is_in_use(
    releases: dict[str, int],
    current: str | None,
    good: tuple[str, ...],
    flips: tuple[str, ...],
    keep: int,
    keep_bytes: int | None,
    protect: frozenset[str],
) -> None:
    """Whatever lies there, what is in use stays, and what stays beside it is within the bounds."""
    disk = Disk(
        releases={
            build: ReleaseInfo(build=Build(build, ""), steps=frozenset(), size=size, published_at=f"2026-01-0{build[1:]}T00:00:00Z")
            for build, size in releases.items()
        },
        current=current,
        fetched=frozenset(),
        good=good,
        flips=tuple(Flip(build=build, boot="", boot_time=0, at=f"2026-02-{day:02}") for day, build in enumerate(flips)),
        problem="",
    )

    removed = to_remove(disk, releases, keep=keep, keep_bytes=keep_bytes, protect=protect)

    stays = set(releases) - set(removed)
    beside = stays - protect - {current, disk.previous_good}
    assert set(removed) <= set(releases)
    assert not {current, disk.previous_good, *protect} & set(removed)
    assert len(beside) <= keep
    assert keep_bytes is None or not beside or sum(releases[build] for build in stays) <= keep_bytes


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, Unavailable, "is full"),
        (errno.EDQUOT, Unavailable, "is full"),
        (errno.EACCES, ConfigError, "Permission denied"),
        (errno.EROFS, ConfigError, "Read-only"),
        (errno.EIO, Unavailable, "Input/output error"),
    ],
)
def test_errors_of_the_disk_say_what_to_do(number: int, kind: type[DeploydError], text: str) -> None:
    """A full or broken disk is worth another try, a permission is for a person; each says where."""
    error = disk_error("build v1 could not be unpacked", Path("/srv/web"), OSError(number, os.strerror(number), "file"))

    assert isinstance(error, kind)
    assert text in error.message
    assert "/srv/web" in error.message
