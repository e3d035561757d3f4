"""Unpacking: what comes out, and everything that is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployd_core import archive
from deployd_core.archive import Limits, detect, unpack
from deployd_core.errors import BuildRefused

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.zst": zstd.compress,
    "tar.xz": lzma.compress,
}
Entry = tuple[tarfile.TarInfo, bytes]


def entry(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644, mtime: float = 0
) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime, info.size = kind, target, mode, mtime, len(content)
    return info, content


def link(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.SYMTYPE, target=target)


def hardlink(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.LNKTYPE, target=target)


def directory(name: str, mode: int = 0o755) -> Entry:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def tar_bytes(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(*entries: tuple[str, bytes, int], patch: tuple[bytes, bytes] = (b"", b"")) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, content)
            info.external_attr = mode << 16  # afterwards: writestr makes a mode where there is none
    data = buffer.getvalue()
    return data.replace(*patch) if patch[0] else data


def unpack_bytes(tmp_path: Path, data: bytes, limits: Limits | None = None) -> Path:
    packed = tmp_path / "build"
    packed.write_bytes(data)
    into = tmp_path / "outer" / "into"
    into.mkdir(parents=True)
    unpack(packed, into, limits=limits)
    return into


def found_outside(tmp_path: Path) -> list[Path]:
    """Everything under tmp_path that neither the test nor a well-behaved extraction puts there."""
    into = tmp_path / "outer" / "into"
    return [
        path for path in tmp_path.rglob("*") if path not in (tmp_path / "build", into.parent, into) and into not in path.parents
    ]


@pytest.mark.parametrize("form", PACKERS)
def test_every_tar_format_unpacks_to_what_was_packed(tmp_path: Path, form: str) -> None:
    """Files, modes, times, directories and links come out of every compression as they went in."""
    data = tar_bytes(
        directory("./"),
        directory("app/empty"),
        entry("app/run", b"#!/bin/sh\n", mode=0o755, mtime=1_600_000_000.5),
        entry("./app/data", b"x" * 3_000_000),
        entry("ünïcode/" + "long" * 40 + "/file", b"deep"),
        entry("zero"),
        link("app/current", "../zero"),
        hardlink("same", "app/data"),
    )

    into = unpack_bytes(tmp_path, PACKERS[form](data))

    assert form == detect(tmp_path / "build")
    assert b"x" * 3_000_000 == (into / "app/data").read_bytes()
    assert 0o755 == stat.S_IMODE((into / "app/run").stat().st_mode)
    assert 1_600_000_000.5 == (into / "app/run").stat().st_mtime
    assert b"deep" == (into / "ünïcode" / ("long" * 40) / "file").read_bytes()
    assert b"" == (into / "zero").read_bytes()
    assert (into / "app/empty").is_dir()
    assert "../zero" == str((into / "app/current").readlink())
    assert (into / "same").samefile(into / "app/data")


def test_zip_unpacks_with_modes_and_links(tmp_path: Path) -> None:
    """Files, executable bits and relative links come out of a zip."""
    data = zip_bytes(
        ("bin/", b"", stat.S_IFDIR | 0o755),
        ("bin/run", b"#!/bin/sh\n", stat.S_IFREG | 0o755),
        ("plain", b"text", 0),
        ("bin/link", b"../plain", stat.S_IFLNK | 0o777),
    )

    into = unpack_bytes(tmp_path, data)

    assert 0o755 == stat.S_IMODE((into / "bin/run").stat().st_mode)
    assert 0o644 == stat.S_IMODE((into / "plain").stat().st_mode)
    assert b"text" == (into / "bin/link").read_bytes()


@pytest.mark.parametrize("date", [b"\0\0\0\0", b"\0\0\xff\xff"], ids=["zeros", "month 15"])
def test_zip_without_a_time_unpacks(tmp_path: Path, date: bytes) -> None:
    """What writes no date, as Go does where it is told none, has made a zip like any other."""
    data = zip_bytes(("a", b"text", 0), patch=(b"\0\0\x21\0", date))

    into = unpack_bytes(tmp_path, data)

    assert b"text" == (into / "a").read_bytes()
    assert 0 == (into / "a").stat().st_mtime


def test_result_counts_members_and_bytes(tmp_path: Path) -> None:
    """The result says how many members and bytes were unpacked, and calls `check` on the way."""
    (tmp_path / "build").write_bytes(tar_bytes(entry("a", b"123"), entry("b/c", b"45")))
    (tmp_path / "into").mkdir()
    checked: list[int] = []

    unpacked = unpack(tmp_path / "build", tmp_path / "into", check=checked.append)

    assert archive.Unpacked(format="tar", members=2, size=5) == unpacked
    assert 5 == sum(checked)


def test_dangerous_mode_bits_are_dropped(tmp_path: Path) -> None:
    """Set-uid, set-gid, sticky and write permission for others do not survive, and the owner can always read and write."""
    into = unpack_bytes(tmp_path, tar_bytes(entry("tool", mode=0o6777), directory("open", 0o1777), entry("locked", mode=0)))

    assert 0o755 == stat.S_IMODE((into / "tool").stat().st_mode)
    assert 0o755 == stat.S_IMODE((into / "open").stat().st_mode)
    assert 0o600 == stat.S_IMODE((into / "locked").stat().st_mode)


def test_directory_may_be_named_after_its_files(tmp_path: Path) -> None:
    """A directory that was made on the way to a file may be named afterwards, and gets the mode that the archive says."""
    into = unpack_bytes(tmp_path, tar_bytes(entry("late/file", b"x"), directory("late", 0o700)))

    assert 0o700 == stat.S_IMODE((into / "late").stat().st_mode)
    assert b"x" == (into / "late/file").read_bytes()


def test_more_directories_than_are_kept_open(tmp_path: Path) -> None:
    """Hundreds of directories, visited in turns, need no more than a bounded number of descriptors."""
    entries = [entry(f"d{number % 150}/e/f{number}", b"x") for number in range(450)]

    into = unpack_bytes(tmp_path, tar_bytes(*entries))

    assert 450 == sum(1 for path in into.rglob("*") if path.is_file())


def test_several_frames_are_one_archive(tmp_path: Path) -> None:
    """Compressors that work in parallel write several frames; all of them are read."""
    data = tar_bytes(entry("a", bytes(range(256)) * 3000))
    half = len(data) // 2
    for number, compress in enumerate((gzip.compress, zstd.compress, lzma.compress)):
        place = tmp_path / str(number)
        place.mkdir()

        into = unpack_bytes(place, compress(data[:half]) + compress(data[half:]))

        assert bytes(range(256)) * 3000 == (into / "a").read_bytes()


HOSTILE = {
    "parent": (entry("../evil"),),
    "parent inside": (entry("a/../../evil"),),
    "absolute": (entry("/tmp/evil"),),
    "absolute directory": (directory("/tmp/evil"),),
    "absolute link": (link("a", "/etc"),),
    "escaping link": (link("a", ".."),),
    "escaping link below": (directory("d"), link("d/a", "../../x")),
    "link that climbs behind a name": (link("up", "d/../../.."),),
    "climbing through another link": (directory("d/e"), link("d/e/up", "../.."), link("out", "d/e/up/../../x")),
    "write through a link": (directory("real"), link("a", "real"), entry("a/file", b"x")),
    "write through a deep link": (directory("r/e"), link("a", "r"), entry("a/e/file", b"x")),
    "directory over a link": (directory("real"), link("a", "real"), directory("a")),
    "file over a link": (link("a", "b"), entry("a", b"x")),
    "link over a file": (entry("a", b"x"), link("a", "b")),
    "link over a directory": (directory("a"), link("a", "b")),
    "file over a directory": (directory("a"), entry("a", b"x")),
    "file through a file": (entry("a", b"x"), entry("a/b", b"x")),
    "file twice": (entry("a", b"1"), entry("./a", b"2")),
    "hard link outside": (hardlink("a", "../build"),),
    "absolute hard link": (hardlink("a", "/etc/passwd"),),
    "hard link to nothing": (hardlink("a", "b"),),
    "hard link to a link": (link("l", "b"), hardlink("a", "l")),
    "hard link to a directory": (directory("d"), hardlink("a", "d")),
    "hard link to the root": (hardlink("a", "."),),
    "hard link twice": (entry("a"), entry("b"), hardlink("b", "a")),
    "hard link through a link": (directory("d"), entry("d/f"), link("l", "d"), hardlink("a", "l/f")),
    "character device": (entry("a", kind=tarfile.CHRTYPE),),
    "block device": (entry("a", kind=tarfile.BLKTYPE),),
    "pipe": (entry("a", kind=tarfile.FIFOTYPE),),
    "own directory": (entry(".deployd/manifest.json", b"{}"),),
    "own directory by another name": (entry("././/.deployd/steps/x"),),
    "own directory as a link": (link(".deployd", "x"),),
    "the directory itself as a file": (entry(".", b"x"),),
    "the directory itself as a link": (link("./", "x"),),
    "empty target": (link("a", ""),),
    "not UTF-8": (entry("caf\udce9"),),
    "target not UTF-8": (link("a", "caf\udce9"),),
    "name too long": (entry("x" * 300),),
    "path too long": (entry("/".join(["x" * 100] * 11)),),
    "path too deep": (entry("/".join("x" * 65)),),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_hostile_tar_is_refused(tmp_path: Path, kind: str, form: int) -> None:
    """A tar that writes elsewhere, links elsewhere, or is ambiguous is refused and leaves nothing outside."""
    with pytest.raises(BuildRefused, match="the archive"):
        unpack_bytes(tmp_path, tar_bytes(*HOSTILE[kind], form=form))

    assert [] == found_outside(tmp_path)


HOSTILE_ZIPS = {
    "parent": zip_bytes(("../evil", b"x", 0)),
    "absolute": zip_bytes(("/evil", b"x", 0)),
    "twice": zip_bytes(("aaaa", b"x", 0), ("bbbb", b"x", 0), patch=(b"bbbb", b"aaaa")),
    "escaping link": zip_bytes(("a", b"../../x", stat.S_IFLNK | 0o777)),
    "absolute link": zip_bytes(("a", b"/etc", stat.S_IFLNK | 0o777)),
    "through a link": zip_bytes(("d/", b"", stat.S_IFDIR | 0o755), ("a", b"d", stat.S_IFLNK | 0o777), ("a/f", b"x", 0)),
    "device": zip_bytes(("a", b"", stat.S_IFCHR | 0o644)),
    "pipe": zip_bytes(("a", b"", stat.S_IFIFO | 0o644)),
    "own directory": zip_bytes((".deployd/x", b"", 0)),
    "NUL": zip_bytes(("good_evil", b"x", 0), patch=(b"good_evil", b"good\0evil")),
    "other character set": zip_bytes(("caf_", b"x", 0), patch=(b"caf_", b"caf\xe9")),
    "link not UTF-8": zip_bytes(("a", b"caf\xe9", stat.S_IFLNK | 0o777)),
}


@pytest.mark.parametrize("kind", HOSTILE_ZIPS)
def test_hostile_zip_is_refused(tmp_path: Path, kind: str) -> None:
    """A zip is held to the same rules as a tar."""
    with pytest.raises(BuildRefused, match="archive"):
        unpack_bytes(tmp_path, HOSTILE_ZIPS[kind])

    assert [] == found_outside(tmp_path)


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    """An encrypted member is refused by name rather than asked a password for."""
    data = bytearray(zip_bytes(("secret", b"x", 0)))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1

    with pytest.raises(BuildRefused, match="encrypted file: 'secret'"):
        unpack_bytes(tmp_path, bytes(data))


def test_sparse_file_is_refused(tmp_path: Path) -> None:
    """A sparse file, which says how big it wants to be, is refused with the way out."""
    info, content = entry("holes", b"")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "1000000000000",
    }

    with pytest.raises(BuildRefused, match="sparse file: 'holes'") as caught:
        unpack_bytes(tmp_path, tar_bytes((info, content)))

    assert "--sparse" in caught.value.hint


@pytest.mark.parametrize("form", [*PACKERS, "zip"])
@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1])
def test_truncated_archive_is_refused(tmp_path: Path, form: str, kept: float) -> None:
    """An archive of any format that ends too early is refused as damaged, wherever it was cut."""
    content = os.urandom(200_000)
    if form == "zip":
        data = zip_bytes(("a", content, 0), ("b", content, 0))
    else:
        data = PACKERS[form](tar_bytes(entry("a", content), entry("b", content)).rstrip(b"\0") + bytes(1024))

    with pytest.raises(BuildRefused, match="damaged or cut off"):
        unpack_bytes(tmp_path, data[: int(len(data) * kept)])


def test_tar_cut_between_members_is_refused(tmp_path: Path) -> None:
    """A tar that stops where a member would begin is damaged, although every member in it is whole."""
    data = tar_bytes(entry("a", b"x" * 512), entry("b", b"y" * 512))

    with pytest.raises(BuildRefused, match="damaged or cut off"):
        unpack_bytes(tmp_path, data[:1024])


def test_nonsense_between_members_is_refused(tmp_path: Path) -> None:
    """A member whose header is nonsense does not pass for the end of the archive."""
    data = bytearray(tar_bytes(entry("a", b"x" * 512), entry("b", b"y" * 512)))
    data[1024:1100] = b"?" * 76

    with pytest.raises(BuildRefused, match="damaged or cut off"):
        unpack_bytes(tmp_path, bytes(data))


def test_data_behind_the_end_is_refused(tmp_path: Path) -> None:
    """A second archive glued to the first would be lost in silence, so it is refused."""
    data = tar_bytes(entry("a"))

    with pytest.raises(BuildRefused, match="something follows its end"):
        unpack_bytes(tmp_path, data + data)


def test_wrong_checksum_is_refused(tmp_path: Path) -> None:
    """The checksum behind the last byte of a gzip is looked at."""
    data = bytearray(gzip.compress(tar_bytes(entry("a", os.urandom(5000)))))
    data[-6] ^= 0xFF

    with pytest.raises(BuildRefused, match="damaged or cut off"):
        unpack_bytes(tmp_path, bytes(data))


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"<html>404</html>" * 100])
def test_unknown_format_is_refused(tmp_path: Path, data: bytes) -> None:
    """What is no archive is refused by what it begins with, and the formats are named."""
    with pytest.raises(BuildRefused, match="no archive|empty") as caught:
        unpack_bytes(tmp_path, data)

    assert ".tar.zst" in caught.value.hint


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, lzma.compress])
def test_bomb_is_refused_before_it_is_written(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """Small archives that unpack to much are refused at the limit."""
    data = compress(tar_bytes(*(entry(f"zeros{number}", bytes(4_000_000)) for number in range(4))))

    with pytest.raises(BuildRefused, match="unpacks to more than 10MB"):
        unpack_bytes(tmp_path, data, Limits(size=10_000_000))

    assert 10_000_000 > sum(path.stat().st_size for path in (tmp_path / "outer").rglob("*") if path.is_file())


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    """The same holds for a zip."""
    with pytest.raises(BuildRefused, match="unpacks to more than 1MB"):
        unpack_bytes(tmp_path, zip_bytes(("zeros", bytes(4_000_000), 0)), Limits(size=1_000_000))


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    """So many empty files that they would use up the inodes are refused."""
    with pytest.raises(BuildRefused, match="more than 10 members"):
        unpack_bytes(tmp_path, tar_bytes(*(entry(f"f{number}") for number in range(11))), Limits(members=10))


def test_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """A name that claims to be huge is not read into memory."""
    info, _ = entry("x", kind=tarfile.GNUTYPE_LONGNAME)
    info.size = 3 << 30

    with pytest.raises(BuildRefused, match="a header of"):
        unpack_bytes(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    """Thousands of headers that each announce another do not exhaust the stack."""
    info, _ = entry("x", kind=tarfile.GNUTYPE_LONGNAME)
    info.size = 2
    header = info.tobuf(tarfile.GNU_FORMAT) + b"y\0".ljust(512, b"\0")

    with pytest.raises(BuildRefused, match="damaged or cut off"):
        unpack_bytes(tmp_path, header * 3000 + bytes(1024))


def test_times_that_no_clock_shows_are_survived(tmp_path: Path) -> None:
    """A modification time of nonsense becomes the epoch."""
    times = ["nan", "inf", "-5", "1e300"]
    entries = [entry(f"f{number}") for number in range(len(times))]
    for (info, _), text in zip(entries, times, strict=True):
        info.pax_headers = {"mtime": text}

    into = unpack_bytes(tmp_path, tar_bytes(*entries))

    assert [0.0] * len(times) == [(into / f"f{number}").stat().st_mtime for number in range(len(times))]


def test_check_ends_the_unpacking(tmp_path: Path) -> None:
    """What `check` raises comes out unchanged."""

    class StopError(Exception):
        pass

    def check(size: int) -> None:
        raise StopError

    (tmp_path / "build").write_bytes(gzip.compress(tar_bytes(entry("a", b"x"))))
    (tmp_path / "into").mkdir()

    with pytest.raises(StopError):
        unpack(tmp_path / "build", tmp_path / "into", check=check)


SEEDS = [
    *(
        pack(tar_bytes(entry("a", b"content"), directory("d"), link("d/l", "../a"), hardlink("h", "a"), entry("ü" * 80)))
        for pack in PACKERS.values()
    ),
    tar_bytes(entry("a" * 150, b"content"), form=tarfile.GNU_FORMAT),
    zip_bytes(("a", b"content" * 100, 0o644), ("d/", b"", stat.S_IFDIR | 0o755), ("d/l", b"../a", stat.S_IFLNK | 0o777)),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=16)), max_size=4),
    data=st.data(),
)
def test_no_damage_escapes_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, changes: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """Whatever bytes are overwritten or cut off, an archive is unpacked or refused, and nothing is written outside."""
    mutated = bytearray(seed)
    for place_in_file, replacement in changes:
        offset = place_in_file % len(mutated)
        mutated[offset : offset + len(replacement)] = replacement
    cut = data.draw(st.integers(0, len(mutated)), label="length")
    place = tmp_path_factory.mktemp("damaged")
    with contextlib.suppress(BuildRefused):
        unpack_bytes(place, bytes(mutated[:cut] if data.draw(st.booleans(), label="cut") else mutated))

    assert [] == found_outside(place)
