"""The sources against a real server, and fetching and unpacking by a process that is killed."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deployd_core.api import (
    Artifact,
    BuildCall,
    BuildRefused,
    ConfigError,
    Duration,
    FetchCall,
    NotFound,
    Size,
    Source,
    Unavailable,
)
from deployd_core.fetching import Retry
from deployd_core.model import Build
from deployd_core.releases import ReleaseStore
from deployd_plugins.sources.file import FileOptions, FileSource
from deployd_plugins.sources.http import HttpOptions, HttpSource, HttpsSource

QUICK = Retry(first_delay=0.001)


class Server(ThreadingHTTPServer):
    """A web server that can be told to misbehave, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.etag: str | None = '"1"'
        self.cuts: list[int] = []  # how many bytes of a body to send before hanging up
        self.statuses: list[int] = []  # answers to give instead
        self.redirects: dict[str, str] = {}
        self.announce = True
        self.stall = threading.Event()
        self.pause = 0.0
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((self.path, dict(self.headers)))
        if path in self.server.redirects:
            self.answer(302, {"Location": self.server.redirects[path]})
        elif self.server.statuses:
            self.answer(self.server.statuses.pop(0), {})
        elif path not in self.server.pages:
            self.answer(404, {})
        else:
            self.body(self.server.pages[path])

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes) -> None:
        begin, end, status = 0, len(data), 200
        headers = {"ETag": self.server.etag} if self.server.etag else {}
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range", self.server.etag) == self.server.etag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end, status = int(first), min(end, int(last) + 1 if last else end), 206
            if begin >= len(data):
                self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        if self.server.announce:
            headers["Content-Length"] = str(end - begin)
        self.answer(status, headers)
        if self.server.cuts and end == len(data):
            end = begin + self.server.cuts.pop(0)
        if self.server.stall.is_set():
            end = begin + 10
        for start in range(begin, end, 65536):
            self.wfile.write(data[start : min(end, start + 65536)])
            time.sleep(self.server.pause)
        while self.server.stall.is_set():
            time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.stall.clear()
        made.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    made = ReleaseStore("web", tmp_path / "web", retry=QUICK)
    made.prepare()
    return made


def options(server: Server, **changes: object) -> HttpOptions:
    return HttpOptions(**({"url": server.url + "/{service}/{build}.tar.gz"} | changes))


def packed(size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"app/file{number}")
            info.size = size // 4
            tar.addfile(info, io.BytesIO(random.Random(number).randbytes(size // 4)))
    return gzip.compress(buffer.getvalue(), 1)


def build_of(data: bytes) -> Build:
    return Build(id="v1", digest="sha256:" + hashlib.sha256(data).hexdigest())


def fetch(store: ReleaseStore, data: bytes, source: Source, timeout: float = 5) -> None:
    store.fetch(build_of(data), source, timeout=timeout, stop=threading.Event(), progress=lambda _done, _total: None)


CALL = BuildCall(service="web", build="v1", timeout=5)


@pytest.mark.parametrize("announce", [True, False])
def test_build_comes_over_http(server: Server, store: ReleaseStore, announce: bool) -> None:
    """A build is fetched, verified and unpacked, whether or not the server announces its size."""
    data = packed(1_000_000)
    server.pages["/web/v1.tar.gz"] = data
    server.announce = announce

    fetch(store, data, HttpSource(options(server)))
    store.unpack(build_of(data), stop=threading.Event())

    assert random.Random(2).randbytes(250_000) == (store.root / "releases/v1/app/file2").read_bytes()
    assert 1 == len(server.asked)


def test_connection_that_is_cut_is_continued(server: Server, store: ReleaseStore) -> None:
    """After each cut the rest is asked for by Range and If-Range, and the whole is right."""
    data = packed(2_000_000)
    server.pages["/web/v1.tar.gz"] = data
    server.cuts = [500_000, 300_000]

    fetch(store, data, HttpSource(options(server)))

    asked = [(headers.get("Range"), headers.get("If-Range")) for _, headers in server.asked]
    assert [(None, None), ("bytes=500000-", '"1"'), ("bytes=800000-", '"1"')] == asked


def test_changed_etag_starts_from_nothing(server: Server, store: ReleaseStore) -> None:
    """When the page changed between two parts, the server sends all of it and the first part is dropped."""
    data = packed(2_000_000)
    server.pages["/web/v1.tar.gz"] = os.urandom(2_000_000)
    server.cuts = [500_000, 0, 0, 0]
    with pytest.raises(Unavailable, match="cut off at byte 500000 of 2000000"):
        fetch(store, data, HttpSource(options(server)))
    server.pages["/web/v1.tar.gz"] = data
    server.etag = '"2"'

    fetch(store, data, HttpSource(options(server)))

    assert {build_of(data).digest} == store.look().fetched


def test_server_without_validator_is_asked_anew(server: Server, store: ReleaseStore) -> None:
    """Without an ETag two parts could be of two pages, so a broken transfer begins again."""
    data = packed(1_000_000)
    server.pages["/web/v1.tar.gz"] = data
    server.etag = None
    server.cuts = [500_000]

    fetch(store, data, HttpSource(options(server)))

    assert [None, None] == [headers.get("Range") for _, headers in server.asked]


def test_busy_server_is_tried_again(server: Server, store: ReleaseStore) -> None:
    """Answers that say "later" are not the end."""
    data = packed(1000)
    server.pages["/web/v1.tar.gz"] = data
    server.statuses = [503, 429, 500]

    fetch(store, data, HttpSource(options(server)))

    assert {build_of(data).digest} == store.look().fetched


def test_missing_build_is_not_found(server: Server, store: ReleaseStore) -> None:
    """A build that is not there is named with its page, once."""
    source = HttpSource(options(server))
    for act in (lambda: fetch(store, b"x", source), lambda: source.resolve(CALL)):
        with pytest.raises(NotFound, match=r"no build v1 of web: http://127.0.0.1:\d+/web/v1.tar.gz answers 404"):
            act()

    assert 2 == len(server.asked)


def test_wrong_digest_is_refused(server: Server, store: ReleaseStore) -> None:
    """A page of other content is refused and not kept."""
    server.pages["/web/v1.tar.gz"] = packed(1000)

    with pytest.raises(BuildRefused, match="has digest sha256:"):
        fetch(store, b"something else", HttpSource(options(server)))

    assert [] == list((store.root / ".deployd/incoming").iterdir())


@pytest.mark.parametrize("status", [400, 401, 403])
def test_rejected_request_is_for_a_person(server: Server, status: int) -> None:
    """A server that does not like the request is not asked again and again."""
    server.statuses = [status]

    with pytest.raises(ConfigError, match=f"answers {status}"):
        HttpSource(options(server)).resolve(CALL)


def test_silent_server_is_given_up(server: Server) -> None:
    """A transfer that stalls breaks after the time without a byte, which is not the time for a connection."""
    server.pages["/web/v1.tar.gz"] = packed(10_000)
    server.stall.set()
    call = FetchCall(service="web", build="v1", timeout=0.2)

    with pytest.raises(Unavailable, match="broke: no byte in time"):
        list(HttpSource(options(server, connect_timeout=Duration("60s"))).fetch(call).chunks)


def test_nobody_listening(store: ReleaseStore) -> None:
    """A refused connection is unavailable and says so."""
    with pytest.raises(Unavailable, match="cannot be reached: Connection refused"):
        HttpSource(HttpOptions(url="http://127.0.0.1:9/{build}")).resolve(CALL)


@pytest.mark.parametrize("announce", [True, False])
def test_build_over_max_size_is_refused(server: Server, store: ReleaseStore, announce: bool) -> None:
    """A build bigger than max_size is refused, whether the server says so before or not."""
    data = packed(100_000)
    server.pages["/web/v1.tar.gz"] = data
    server.announce = announce

    with pytest.raises(BuildRefused, match="bigger than max_size"):
        fetch(store, data, HttpSource(options(server, max_size=Size("10kB"))))


@pytest.mark.parametrize("line", ["{hex}  v1.tar.gz\n", "{hex} *./v1.tar.gz\n", "{hex}\n", "0000  other\n{hex}  v1.tar.gz\n"])
def test_digest_beside_the_build_is_found(server: Server, line: str) -> None:
    """A sidecar as sha256sum writes it gives the digest; the size comes with the first byte."""
    data = packed(1000)
    server.pages |= {"/web/v1.tar.gz": data, "/web/v1.tar.gz.sha256": line.format(hex=build_of(data).digest[7:]).encode()}

    artifact = HttpSource(options(server)).resolve(CALL)

    assert Artifact(location=f"{server.url}/web/v1.tar.gz", size=len(data), digest=build_of(data).digest) == artifact


@pytest.mark.parametrize("text", ["", "<html>", "0" * 64 + "  other\n" + "1" * 64 + "  another\n"])
def test_sidecar_of_nonsense_is_an_error(server: Server, text: str) -> None:
    """A sidecar without a digest of this build is not taken for none."""
    server.pages |= {"/web/v1.tar.gz": b"x", "/web/v1.tar.gz.sha256": text.encode()}

    with pytest.raises(ConfigError, match="holds no sha256 digest of v1.tar.gz"):
        HttpSource(options(server)).resolve(CALL)


@pytest.mark.parametrize("missing", [403, 404])
def test_no_digest_beside_the_build(server: Server, missing: int) -> None:
    """Without a sidecar the digest is not known, and that is no error; stores that hide what is missing say 403."""
    server.pages |= {"/web/v1.tar.gz": b""}
    server.announce = missing == 404
    source = HttpSource(options(server))

    artifact = source.resolve(CALL)

    assert (0, None) == (artifact.size, artifact.digest)


def test_redirects_are_followed_without_secrets(server: Server) -> None:
    """Headers stay with the host they were meant for, also on its own redirects, and do not go to another one."""
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        other.pages["/far"] = b"x"
        server.redirects = {"/web/v1.tar.gz": "/near", "/near": f"{other.url}/far"}
        source = HttpSource(options(server, headers={"X-Token": "secret"}))

        artifact = source.resolve(CALL)

        other.shutdown()
        thread.join()
    assert 1 == artifact.size
    assert ["secret", "secret"] == [headers.get("X-Token") for _, headers in server.asked[:2]]
    assert [None] == [headers.get("X-Token") for _, headers in other.asked]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://user:hunter2@127.0.0.1/"])
def test_redirect_out_of_http_is_refused(server: Server, target: str) -> None:
    """A server cannot send the agent to files or other protocols, and what it sends is not quoted with secrets."""
    server.redirects = {"/web/v1.tar.gz": target}

    with pytest.raises(ConfigError, match="which is refused|answers 302") as caught:
        HttpSource(options(server)).resolve(CALL)

    assert "hunter2" not in str(caught.value)


def test_secrets_stay_out_of_messages(server: Server, store: ReleaseStore) -> None:
    """User and password are sent as they should be; neither they nor the query are in any message or location."""
    url = server.url.replace("http://", "http://user:hunter2@") + "/web/v1.tar.gz?signature=abcdef"
    server.pages["/web/v1.tar.gz"] = b"x"
    source = HttpSource(HttpOptions(url=url))
    artifact = source.resolve(CALL)
    server.statuses = [404, 503, 500, 500, 500, 401]
    messages = [artifact.location]
    for _ in range(3):
        with pytest.raises((NotFound, Unavailable, ConfigError)) as caught:
            fetch(store, b"y", source)
        messages.append(str(caught.value) + caught.value.hint)

    assert "Basic dXNlcjpodW50ZXIy" == server.asked[0][1]["Authorization"]
    assert "/web/v1.tar.gz?signature=abcdef" == server.asked[0][0]
    assert not [text for text in messages if "hunter2" in text or "abcdef" in text or "user" in text.replace("user and", "")]


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "http://", "//host/x", "http://[::1/x", "http://host:port/x", "http://user:hunter2@host:x/"]
)
def test_url_that_is_none(url: str) -> None:
    """A malformed url is for a person to change, and is not quoted with its password."""
    with pytest.raises(ConfigError, match="url") as caught:
        HttpSource(HttpOptions(url=url)).resolve(CALL)

    assert "hunter2" not in str(caught.value)


def test_header_that_http_forbids(server: Server) -> None:
    """A line break in a header does not become another header."""
    with pytest.raises(ConfigError, match="characters that HTTP forbids") as caught:
        HttpSource(options(server, headers={"X-Token": "secret\r\nX-Other: 1"})).resolve(CALL)

    assert "secret" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


@pytest.fixture
def secure(server: Server, certificate: tuple[Path, Path]) -> str:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server.url.replace("http", "https")


def test_https_with_an_authority_of_ones_own(
    server: Server, secure: str, certificate: tuple[Path, Path], store: ReleaseStore
) -> None:
    """A certificate is checked against ca_file."""
    data = packed(1000)
    server.pages["/web/v1.tar.gz"] = data
    url = secure + "/{service}/{build}.tar.gz"

    with pytest.raises(Unavailable, match="its certificate is not trusted") as caught:
        HttpsSource(HttpOptions(url=url)).resolve(CALL)

    assert "ca_file" in caught.value.hint

    fetch(store, data, HttpsSource(HttpOptions(url=url, ca_file=str(certificate[1]))))

    assert {build_of(data).digest} == store.look().fetched


def test_redirect_from_https_to_http_is_refused(server: Server, secure: str, certificate: tuple[Path, Path]) -> None:
    """What was asked for over TLS does not come without."""
    server.redirects = {"/v1": "http://127.0.0.1:9/v1"}

    with pytest.raises(ConfigError, match="redirects to http://127.0.0.1:9/v1, which is refused"):
        HttpsSource(HttpOptions(url=secure + "/{build}", ca_file=str(certificate[1]))).resolve(CALL)


def test_ca_file_that_is_missing(tmp_path: Path) -> None:
    """A ca_file that cannot be read is named."""
    with pytest.raises(ConfigError, match=r"ca_file .*nothing\.pem cannot be used"):
        HttpsSource(HttpOptions(url="https://127.0.0.1:9/", ca_file=str(tmp_path / "nothing.pem"))).resolve(CALL)


@pytest.mark.parametrize(
    "form", ["file://{0}/{{service}}/{{build}}.tar.gz", "{0}/{{service}}/{{build}}.tar.gz", "file://localhost{0}/web/v1.tar.gz"]
)
def test_build_comes_from_a_directory(tmp_path: Path, store: ReleaseStore, form: str) -> None:
    """A build is read from a file: URL or a plain path, with the digest beside it."""
    data = packed(3_000_000)
    directory = tmp_path / "builds dir/web"
    directory.mkdir(parents=True)
    (directory / "v1.tar.gz").write_bytes(data)
    (directory / "v1.tar.gz.sha256").write_text(f"{build_of(data).digest[7:]}  v1.tar.gz\n")
    source = FileSource(FileOptions(url=form.format(str(directory.parent).replace(" ", "%20" if form.startswith("file") else " "))))

    artifact = source.resolve(CALL)
    fetch(store, data, source)

    assert Artifact(location=str(directory / "v1.tar.gz"), size=len(data), digest=build_of(data).digest) == artifact
    assert {build_of(data).digest} == store.look().fetched


def test_file_is_continued_unless_it_changed(tmp_path: Path) -> None:
    """The rest of a file is read from the offset, and all of it when it was replaced."""
    path = tmp_path / "v1"
    path.write_bytes(b"0123456789")
    source = FileSource(FileOptions(url=str(path)))
    first = source.fetch(FetchCall(service="web", build="v1", timeout=1))
    rest = source.fetch(FetchCall(service="web", build="v1", timeout=1, offset=4, validator=first.validator))
    read = b"".join(map(bytes, rest.chunks))
    path.write_bytes(b"abcdefghijk")
    anew = source.fetch(FetchCall(service="web", build="v1", timeout=1, offset=4, validator=first.validator))

    assert (4, b"456789") == (rest.offset, read)
    assert (0, b"abcdefghijk") == (anew.offset, b"".join(map(bytes, anew.chunks)))


@pytest.mark.parametrize(
    ("url", "kind", "text"),
    [
        ("/nowhere/{build}", NotFound, "there is no /nowhere/v1"),
        ("/etc/passwd/{build}", NotFound, "there is no"),
        ("/etc", ConfigError, "/etc is no file"),
        ("builds/{build}", ConfigError, "neither file:///"),
        ("file://host/{build}", ConfigError, "names host 'host'"),
        ("/{host}", ConfigError, "has no value for {host}"),
    ],
)
def test_file_that_cannot_be_read(url: str, kind: type[Exception], text: str) -> None:
    """What is wrong with a path is said."""
    with pytest.raises(kind, match=text):
        FileSource(FileOptions(url=url)).resolve(CALL)


WORKER = """
import sys, threading
from pathlib import Path
from deployd_core.model import Build
from deployd_core.releases import ReleaseStore
from deployd_plugins.sources.http import HttpOptions, HttpSource

root, url, digest = sys.argv[1:]
store = ReleaseStore("web", Path(root))
store.prepare()
build = Build(id="v1", digest=digest)
print("begun", flush=True)
store.fetch(build, HttpSource(HttpOptions(url=url)), timeout=5, stop=threading.Event(), progress=lambda done, total: None)
print("fetched", flush=True)
store.unpack(build, stop=threading.Event())
store.flip("v1")
print("done", flush=True)
"""


def test_killed_at_any_moment_it_converges(server: Server, tmp_path: Path) -> None:
    """An agent killed with -9 again and again while it fetches and unpacks never shows half a release, and gets there."""
    data = packed(60_000_000)
    server.pages["/v1"] = data
    server.pause = 0.0005
    root = tmp_path / "web"
    command = [sys.executable, "-c", WORKER, str(root), server.url + "/v1", build_of(data).digest]
    moments = random.Random(7)
    kills, during = 0, set()
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert "begun\n" == worker.stdout.readline()
            if kills % 2:
                worker.stdout.readline()  # fetched, or done
            try:
                worker.wait(moments.uniform(0.02, 0.25))
                assert 0 == worker.returncode
                break
            except subprocess.TimeoutExpired:
                worker.send_signal(signal.SIGKILL)
                kills += 1
        disk = ReleaseStore("web", root).look()
        during.add((len(disk.fetched), len(disk.releases)))
        assert all((root / f"releases/{build}/app/file3").stat().st_size == 15_000_000 for build in disk.releases)
        assert kills < 60

    ReleaseStore("web", root).prepare()

    assert (0, 0) in during
    assert random.Random(3).randbytes(15_000_000) == (root / "current/app/file3").read_bytes()
    assert [] == list((root / ".deployd/unpacking").iterdir())
