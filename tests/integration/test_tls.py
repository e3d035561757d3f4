"""An ensemble that is spoken to in TLS: by people, by agents, and by who has something wrong in agent.toml."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deployd_core
from deployd_core.cli.main import run
from deployd_core.packing import pack
from deployd_core.testing.fleet import Fleet
from deployd_core.testing.zookeeper import ZooKeeperServer, free_ports, home_from_environment

# kazoo leaves it to the garbage collector to close the socket of an attempt that failed.
pytestmark = [pytest.mark.zookeeper, pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")]

SERVER = """\
secureClientPort={port}
secureClientPortAddress=127.0.0.1
serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory
ssl.keyStore.location={files}/server.pem
ssl.keyStore.type=PEM
ssl.trustStore.location={files}/ca.pem
ssl.trustStore.type=PEM
ssl.clientAuth=need
ssl.protocol={protocol}
ssl.ciphersuites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
"""
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

Type = Callable[..., tuple[int, str]]


class SecureServer(ZooKeeperServer):
    """One that demands a certificate of its clients at its secure port; its other port is as ever."""

    def __init__(self, directory: Path, files: Path, protocol: str) -> None:
        super().__init__(directory, home=home_from_environment())
        self.files, self.protocol = files, protocol
        self.secure_port = 0

    def _settings(self) -> str:
        self.secure_port = self.secure_port or free_ports(1)[0]
        return super()._settings() + SERVER.format(port=self.secure_port, files=self.files, protocol=self.protocol)


def openssl(directory: Path, *words: str) -> None:
    """Have it make a file."""
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=60)


def authority(directory: Path, name: str) -> None:
    """Make who signs certificates."""
    files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
    openssl(directory, "req", "-x509", *NEW_KEY, *files, "-days", "2", "-subj", f"/CN={name}")


def certificate(directory: Path, name: str, signed_by: str) -> None:
    """Make a key, a certificate for who listens at 127.0.0.1, and a file with both."""
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    signer = ("-CA", f"{signed_by}.pem", "-CAkey", f"{signed_by}.key", "-CAcreateserial", "-extfile", "extensions", "-days", "2")
    openssl(directory, "req", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.crt")
    (directory / f"{name}.pem").write_bytes((directory / f"{name}.key").read_bytes() + (directory / f"{name}.crt").read_bytes())
    (directory / f"{name}.pem").chmod(0o600)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and certificates: of the ensemble's authority, and of a stranger's."""
    directory = tmp_path_factory.mktemp("tls")
    for name in ("ca", "strange-ca"):
        authority(directory, name)
    for name, signed_by in (("server", "ca"), ("h1", "ca"), ("strange", "strange-ca")):
        certificate(directory, name, signed_by)
    (directory / "password").touch(mode=0o600)
    (directory / "password").write_text("s3cret\n")
    return directory


@pytest.fixture(scope="module", params=["TLSv1.2", "TLSv1.3"])
def server(request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """A server for each version of TLS: with 1.3 a client is refused only after it has taken itself for connected."""
    with SecureServer(tmp_path_factory.mktemp("zookeeper"), files, request.param) as started:
        yield started


@pytest.fixture
def typed(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Type:
    """Type a command with an agent.toml of these keys; its exit code, and what it says."""

    def type_(*words: str, **keys: str) -> tuple[int, str]:
        config = tmp_path / "agent.toml"
        config.write_text("[zookeeper]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
        code = run([*words, "--config", str(config), "--plugins-dir", str(tmp_path / "none")])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return type_


def whole(files: Path) -> dict[str, str]:
    """All keys that this ensemble wants."""
    user = {"user": "ops", "password_file": f"{files}/password"}
    return {**user, "ca": f"{files}/ca.pem", "certificate": f"{files}/h1.crt", "key": f"{files}/h1.key"}


def test_a_fleet_rolls_over_tls(server: SecureServer, files: Path, typed: Type, tmp_path: Path) -> None:
    """Agents and people find each other over TLS, as a user; what they leave there is that user's."""
    address, chroot = f"127.0.0.1:{server.secure_port}", f"/t-{time.time_ns()}"
    access = whole(files)
    builds = tmp_path / "builds"
    builds.mkdir()
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "VERSION").write_text("v1")
    program = Path(deployd_core.__file__).parent / "demo_app" / "server.py"
    (tmp_path / "content" / "server.py").write_text(program.read_text())
    pack(tmp_path / "content", builds / "web-v1.tar.gz")
    with (
        tempfile.TemporaryDirectory(prefix="deployd-tls-") as short,  # sockets lie in it, whose paths have a limit
        Fleet(Path(short), address + chroot, {"web": [8001]}, hosts=2, network="127.0.251") as fleet,
    ):
        for host in fleet.hosts.values():
            lines = "".join(f'{key} = "{value}"\n' for key, value in access.items())
            host.config.write_text(host.config.read_text().replace("[zookeeper]\n", f"[zookeeper]\n{lines}"))
        (tmp_path / "web.toml").write_text(fleet.spec("web", builds))
        person = {"hosts": address, "chroot": chroot, **access}
        assert 0 == typed("services", "apply", str(tmp_path / "web.toml"), **person)[0]
        fleet.start()

        code, said = typed("enable", "web", "v1", "--wait", "--timeout", "60s", **person)

        assert 0 == code, said
        assert "anonymous client" in typed("restart", "web", hosts=server.address, chroot=chroot)[1]


@pytest.mark.parametrize(
    ("keys", "why", "hint"),
    [
        ((), "speaks TLS, and was spoken to in plain text", "Name its ca in [zookeeper] of agent.toml"),
        (("ca",), "demands a certificate of its clients", "Name certificate and key in [zookeeper] of agent.toml"),
        (("strange-ca",), "its certificate is not accepted: ", "Ca in [zookeeper] of agent.toml is who signs"),
        (("ca", "strange"), "does not accept {files}/strange.pem", "Is it signed by who the servers trust?"),
    ],
)
def test_a_connection_that_fails_says_why(
    server: SecureServer, files: Path, typed: Type, keys: tuple[str, ...], why: str, hint: str
) -> None:
    """What is wrong on our side, and which key it is."""
    names = dict(zip(("ca", "certificate"), (f"{files}/{key}.pem" for key in keys), strict=False))

    code, said = typed("status", "--connect-timeout", "1s", hosts=f"127.0.0.1:{server.secure_port}", **names)

    assert 1 == code
    assert why.format(files=files) in said
    assert hint in said


def test_a_plain_port_that_is_spoken_to_in_tls_says_so(server: SecureServer, files: Path, typed: Type) -> None:
    """As when the ensemble has a secure port, and the other one is named."""
    code, said = typed("status", "--connect-timeout", "1s", hosts=server.address, ca=f"{files}/ca.pem")

    assert 1 == code
    assert f"{server.address}: was spoken to in TLS, and speaks plain text" in said
    assert "Name the port that its secureClientPort is, or no ca in [zookeeper] of agent.toml" in said


def test_a_name_that_is_not_in_the_certificate_is_said(server: SecureServer, files: Path, typed: Type) -> None:
    """Whoever has another's certificate is not taken for it."""
    hosts = f"localhost:{server.secure_port}"

    code, said = typed("status", "--connect-timeout", "1s", **{**whole(files), "hosts": hosts})

    assert 1 == code
    assert "its certificate is not accepted: Hostname mismatch, certificate is not valid for 'localhost'" in said
    assert "and hosts are the names in them" in said


def test_the_doctor_says_that_it_is_tls(server: SecureServer, files: Path, typed: Type) -> None:
    """A certificate may hold its key, and is who we are where there is no user."""
    hosts, names = f"127.0.0.1:{server.secure_port}", {"ca": f"{files}/ca.pem", "certificate": f"{files}/h1.pem"}

    said = " ".join(typed("doctor", hosts=hosts, chroot="/zookeeper", **names)[1].split())

    assert f"ok zookeeper: answers at {hosts}/zookeeper, over TLS" in said
    assert f"the holder of {files}/h1.pem may write /zookeeper" in said


@pytest.mark.parametrize(
    ("certificate", "key", "wrong"),
    [
        ("h1.crt", "strange.key", "zookeeper.key {files}/strange.key with {files}/h1.crt cannot be used: key values mismatch"),
        ("h1.crt", "locked.key", "zookeeper.key {files}/locked.key has a passphrase, and nobody is there to type it"),
        (
            "h1.crt",
            "open.key",
            "zookeeper.key {files}/open.key can be read or written by anybody. Forbid it: chmod o-rw {files}/open.key",
        ),
        ("h1.crt", "h1.crt", "zookeeper.key {files}/h1.crt is not PEM with a private key"),
        ("h1.key", "h1.key", "zookeeper.certificate {files}/h1.key is not PEM with a certificate"),
        ("h1.crt", "gone.key", "zookeeper.key {files}/gone.key cannot be read: No such file or directory"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(files: Path, typed: Type, certificate: str, key: str, wrong: str) -> None:
    """Before anybody is spoken to."""
    openssl(files, "pkey", "-in", "h1.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    (files / "open.key").write_bytes((files / "h1.key").read_bytes())
    (files / "open.key").chmod(0o644)
    (files / "h1.crt").chmod(0o600)

    names = {"ca": f"{files}/ca.pem", "certificate": f"{files}/{certificate}", "key": f"{files}/{key}"}
    code, said = typed("status", hosts="127.0.0.1:1", **names)

    assert 1 == code
    assert wrong.format(files=files) in said
    assert "agent.toml: zookeeper." in said
