"""Packing a directory: the same bytes for the same content, and nothing that a host would refuse."""

import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from deployd_core.archive import unpack
from deployd_core.errors import BuildRefused, Conflict, Unavailable
from deployd_core.packing import ENDINGS, pack


@pytest.fixture
def content(tmp_path):
    """A directory with files, a program, an empty directory and links."""
    directory = tmp_path / "content"
    (directory / "bin").mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "bin" / "serve").write_bytes(b"#!/bin/sh\n" * 1000)
    (directory / "bin" / "serve").chmod(0o755)
    (directory / "ünï.txt").write_text("text")
    (directory / "zero").write_bytes(b"")
    (directory / "latest").symlink_to("bin/serve")
    (directory / "bin" / "up").symlink_to("../ünï.txt")
    return directory


def shape(directory):
    """Everything in a directory: modes, contents, targets."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = (stat.S_IMODE(path.stat().st_mode), path.read_bytes() if path.is_file() else None)
    return found


@pytest.mark.parametrize("form", ENDINGS)
def test_what_was_packed_unpacks_to_the_same(content, tmp_path, form):
    """The agent's own extractor makes of every format what was packed."""
    packed = pack(content, tmp_path / f"v1{ENDINGS[form]}", form=form)
    release = tmp_path / "release"
    release.mkdir()

    unpack(packed.path, release)

    assert shape(content) == shape(release)
    assert 7 == packed.members


@pytest.mark.parametrize("form", ENDINGS)
def test_packing_twice_gives_one_digest(content, tmp_path, form):
    """Times, owners and the order of creation do not change a single byte."""
    first = pack(content, tmp_path / f"a{ENDINGS[form]}", form=form)
    os.utime(content / "zero", (1, 1))
    (content / "ünï.txt").rename(tmp_path / "aside")
    (tmp_path / "aside").rename(content / "ünï.txt")

    second = pack(content, tmp_path / f"b{ENDINGS[form]}", form=form)

    assert first.digest == second.digest
    assert first.path.read_bytes() == second.path.read_bytes()


def test_digest_lies_beside_the_archive(content, tmp_path):
    """The sidecar is what `sha256sum -c` reads, and nothing else is left behind."""
    packed = pack(content, tmp_path / "v1.tar.gz")

    digest = hashlib.sha256(packed.path.read_bytes()).hexdigest()
    assert f"sha256:{digest}" == packed.digest
    assert f"{digest}  v1.tar.gz\n" == (tmp_path / "v1.tar.gz.sha256").read_text()
    assert ["content", "v1.tar.gz", "v1.tar.gz.sha256"] == sorted(path.name for path in tmp_path.iterdir())


def test_build_never_changes_under_its_name(content, tmp_path):
    """Other content under a name that is taken is refused, and what was there stays."""
    before = pack(content, tmp_path / "v1.tar.gz")
    (content / "zero").write_text("no longer")

    with pytest.raises(Conflict, match="exists and holds something else"):
        pack(content, tmp_path / "v1.tar.gz")

    assert before.digest == f"sha256:{hashlib.sha256(before.path.read_bytes()).hexdigest()}"
    assert (tmp_path / "v1.tar.gz.sha256").read_text().startswith(before.digest.removeprefix("sha256:"))


def test_repeated_packing_mends_a_lost_sidecar(content, tmp_path):
    """Packing the same again writes nothing but the digest file that was missing."""
    first = pack(content, tmp_path / "v1.tar.gz")
    identity = first.path.stat().st_ino
    (tmp_path / "v1.tar.gz.sha256").unlink()

    again = pack(content, tmp_path / "v1.tar.gz")

    assert (True, False) == (first.fresh, again.fresh)
    assert identity == again.path.stat().st_ino
    assert (tmp_path / "v1.tar.gz.sha256").is_file()


def test_archive_can_be_replaced_on_demand(content, tmp_path):
    """With `replace`, the archive and its digest change together."""
    pack(content, tmp_path / "v1.tar.gz")
    (content / "zero").write_text("no longer")

    packed = pack(content, tmp_path / "v1.tar.gz", replace=True)

    assert packed.fresh
    assert (tmp_path / "v1.tar.gz.sha256").read_text().startswith(packed.digest.removeprefix("sha256:"))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/etc/passwd", "absolute target"),
        ("../outside", "leads out of the build"),
        ("bin/../../outside", "leads out of the build"),
        ("bin/../zero", "leads out of the build"),
    ],
)
def test_link_that_hosts_refuse_is_refused(content, tmp_path, target, reason):
    """A link that the extractor would not make is named, and no archive is written."""
    (content / "link").symlink_to(target)

    with pytest.raises(BuildRefused, match=reason):
        pack(content, tmp_path / "v1.tar.gz")

    assert ["content"] == [path.name for path in tmp_path.iterdir()]


def test_pipe_is_refused(content, tmp_path):
    """A named pipe is no part of a build, and packing does not wait for its other end."""
    os.mkfifo(content / "pipe")

    with pytest.raises(BuildRefused, match="a device, a pipe or a socket"):
        pack(content, tmp_path / "v1.tar.gz")


def test_socket_is_refused(content, tmp_path):
    """A socket that a server left behind is no part of a build."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(content / "s"))

        with pytest.raises(BuildRefused, match="a device, a pipe or a socket"):
            pack(content, tmp_path / "v1.tar.gz")


@pytest.mark.parametrize("name", [b"\xff", b".deployd"])
def test_name_that_hosts_refuse_is_refused(content, tmp_path, name):
    """A name that is not UTF-8, or is the agent's own, is refused."""
    Path(os.fsdecode(bytes(content) + b"/" + name)).write_text("")

    with pytest.raises(BuildRefused):
        pack(content, tmp_path / "v1.tar.gz")


def test_archive_within_itself_is_refused(content):
    """An archive is not written into the directory that it packs."""
    with pytest.raises(BuildRefused, match="which is to be packed"):
        pack(content, content / "v1.tar.gz")


def test_empty_directory_is_refused(tmp_path):
    """Nothing is no build."""
    (tmp_path / "content").mkdir()

    with pytest.raises(BuildRefused, match="is empty"):
        pack(tmp_path / "content", tmp_path / "v1.tar.gz")


def test_missing_directory_is_refused(tmp_path):
    """A directory that is not there is named."""
    with pytest.raises(BuildRefused, match="is no directory"):
        pack(tmp_path / "absent", tmp_path / "v1.tar.gz")


def test_output_that_cannot_be_written_is_reported(content, tmp_path):
    """What can be no directory is an error with the archive's name."""
    (tmp_path / "file").touch()

    with pytest.raises(Unavailable, match=r"v1\.tar\.gz cannot be written"):
        pack(content, tmp_path / "file" / "v1.tar.gz")


def test_the_directory_of_the_archive_is_made(content, tmp_path):
    """Those above it, too; but not for a build that cannot be packed."""
    with pytest.raises(BuildRefused):
        pack(tmp_path / "absent", tmp_path / "never" / "v1.tar.gz")

    packed = pack(content, tmp_path / "srv" / "builds" / "v1.tar.gz")

    assert packed.path.is_file()
    assert not (tmp_path / "never").exists()


def test_set_uid_and_foreign_write_permission_are_dropped(content, tmp_path):
    """Two people with other umasks pack one build; set-uid is not carried to any host."""
    (content / "zero").chmod(0o644)
    first = pack(content, tmp_path / "a.tar.gz")
    (content / "zero").chmod(0o4664)

    second = pack(content, tmp_path / "b.tar.gz")

    assert first.digest == second.digest
