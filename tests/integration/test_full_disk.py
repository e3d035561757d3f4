"""A disk that fills up: nothing is half-published, and once there is room it goes on."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployd_core.api import BuildRefused, Download, FetchCall, Unavailable
from deployd_core.fetching import Retry
from deployd_core.model import Build
from deployd_core.releases import ReleaseStore
from deployd_core.tree import Limits
from deployd_plugins.sources.file import FileOptions, FileSource

pytestmark = pytest.mark.root

DISK = 16 << 20


class UnknownSize(FileSource):
    """Keeps to itself how much will come."""

    def fetch(self, call: FetchCall) -> Download:
        download = super().fetch(call)
        return Download(chunks=download.chunks, offset=download.offset, validator=download.validator)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},nr_inodes=200", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def store_on(disk: Path, reserve: int = 0) -> ReleaseStore:
    store = ReleaseStore("web", disk, reserve=reserve, retry=Retry(first_delay=0.001))
    store.prepare()
    return store


def make_build(tmp_path: Path, build_id: str, size: int, *, files: int = 1, zeros: bool = False) -> Build:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for number in range(files):
            info = tarfile.TarInfo(f"d{number % 7}/file{number}")
            info.size = size // files
            content = bytes(info.size) if zeros else random.Random(build_id).randbytes(info.size)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / build_id).write_bytes(buffer.getvalue())
    return Build(id=build_id, digest="sha256:" + hashlib.sha256(buffer.getvalue()).hexdigest())


def fetch(store: ReleaseStore, build: Build, tmp_path: Path, kind: type[FileSource] = FileSource) -> None:
    source = kind(FileOptions(url=f"{tmp_path}/{{build}}"))
    store.fetch(build, source, timeout=5, stop=threading.Event(), progress=lambda _done, _total: None)


def free(disk: Path) -> int:
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


def unpack(store: ReleaseStore, build: Build) -> None:
    store.unpack(build, stop=threading.Event())


def test_archive_that_does_not_fit_is_not_begun(disk: Path, tmp_path: Path) -> None:
    """When the size is known, a lack of room is said before the first byte."""
    build = make_build(tmp_path, "v1", 20_000_000)
    before = free(disk)

    with pytest.raises(Unavailable, match=rf"the disk of {disk}/.deployd/incoming lacks 3\.\d MB: 20.0 MB to come, 0B to keep"):
        fetch(store_on(disk), build, tmp_path)

    assert before - free(disk) < 65536


def test_disk_that_fills_up_during_a_transfer(disk: Path, tmp_path: Path) -> None:
    """When the size is not known the transfer ends at the full disk, gives the room back, and works later."""
    store = store_on(disk)
    build = make_build(tmp_path, "v1", 12_000_000)
    ballast = disk / "shared/ballast"
    ballast.write_bytes(bytes(8_000_000))

    with pytest.raises(Unavailable, match=f"the disk of {disk}/.deployd/incoming is full") as caught:
        fetch(store, build, tmp_path, UnknownSize)

    assert "df -h" in caught.value.hint
    assert free(disk) > 7_000_000
    assert frozenset() == store.look().fetched

    ballast.unlink()
    fetch(store, build, tmp_path, UnknownSize)

    assert {build.digest} == store.look().fetched


@pytest.mark.parametrize("zeros", [True, False])
def test_disk_that_fills_up_during_unpacking(disk: Path, tmp_path: Path, zeros: bool) -> None:
    """A release that does not fit leaves nothing behind, and is published once there is room."""
    store = store_on(disk)
    build = make_build(tmp_path, "v1", 7_000_000, files=5, zeros=zeros)
    fetch(store, build, tmp_path)
    ballast = disk / "shared/ballast"
    ballast.write_bytes(bytes(free(disk) - 3_000_000))
    before = free(disk)

    with pytest.raises(Unavailable, match=f"build v1 of web could not be unpacked: the disk of {disk} (is full|lacks)"):
        unpack(store, build)

    assert {} == store.look().releases
    assert [] == [*(disk / "releases").iterdir(), *(disk / ".deployd/unpacking").iterdir()]
    assert before == free(disk)

    ballast.unlink()
    unpack(store, build)

    assert 7_000_000 == store.look().releases["v1"].size


def test_disk_without_inodes(disk: Path, tmp_path: Path) -> None:
    """Running out of inodes is a full disk too, and the hint says where to look."""
    store = store_on(disk)
    build = make_build(tmp_path, "v1", 4000, files=400)
    fetch(store, build, tmp_path)

    with pytest.raises(Unavailable, match="is full") as caught:
        unpack(store, build)

    assert "df -i" in caught.value.hint
    assert [] == list((disk / ".deployd/unpacking").iterdir())


def test_bomb_ends_at_the_reserve(disk: Path, tmp_path: Path) -> None:
    """An archive that unpacks to far more than the disk holds is stopped, and the room is given back."""
    store = store_on(disk, reserve=1_000_000)
    build = make_build(tmp_path, "v1", 200_000_000, zeros=True)
    fetch(store, build, tmp_path)
    before = free(disk)

    with pytest.raises(Unavailable, match="is full|lacks"):
        unpack(store, build)

    assert before == free(disk)

    strict = ReleaseStore("web", disk, limits=Limits(size=10_000_000))

    with pytest.raises(BuildRefused, match="unpacks to more than 10MB"):
        unpack(strict, build)


def test_flip_and_history_survive_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """With no room for another byte the old release stays current, and what was remembered stays readable."""
    store = store_on(disk)
    for build_id in ("v1", "v2"):
        build = make_build(tmp_path, build_id, 10_000)
        fetch(store, build, tmp_path)
        unpack(store, build)
    store.flip("v1")
    store.mark_good("v1")
    before = store.look()
    with (disk / "shared/ballast").open("wb", buffering=0) as ballast:
        while free(disk):
            ballast.write(bytes(4096))

    for act in (store.flip, store.mark_good):
        with pytest.raises(Unavailable, match="is full"):
            act("v2")

    assert before == store.look()
    assert "releases/v1" == str((disk / "current").readlink())

    (disk / "shared/ballast").unlink()
    store.flip("v2")
    store.mark_good("v2")

    assert ("v2", ("v2", "v1")) == (store.look().current, store.look().good)


def test_pruning_works_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """Making room needs no room."""
    store = store_on(disk)
    for build_id in ("v1", "v2", "v3"):
        build = make_build(tmp_path, build_id, 1_000_000)
        fetch(store, build, tmp_path)
        unpack(store, build)
    store.flip("v3")
    with (disk / "shared/ballast").open("wb", buffering=0) as ballast:
        while free(disk):
            ballast.write(bytes(4096))

    assert ("v1", "v2") == store.prune(keep=0, keep_bytes=None, protect=frozenset())
    assert free(disk) > 3_900_000


def test_forbidden_disk_is_for_a_person(disk: Path, tmp_path: Path) -> None:
    """A read-only disk is not worth trying again and again."""
    store = store_on(disk)
    build = make_build(tmp_path, "v1", 1000)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    with pytest.raises(Exception, match="Read-only file system") as caught:
        fetch(store, build, tmp_path)

    assert "ConfigError" == type(caught.value).__name__
