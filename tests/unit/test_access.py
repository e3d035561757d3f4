"""Who agent.toml says that we are to ZooKeeper: its files, and how kazoo is told."""

import re

import pytest

from deployd_core.config import ZooKeeperTable
from deployd_core.errors import ConfigError
from deployd_core.zookeeper.access import identity_of
from deployd_core.zookeeper.address import Identity, client_options


def write(path, text, mode=0o600):
    """A file with this text and mode."""
    path.write_bytes(text)
    path.chmod(mode)
    return str(path)


def test_without_keys_we_are_anybody():
    """Nothing is read, and nothing is said to ZooKeeper."""
    identity = identity_of(ZooKeeperTable(), "agent.toml")

    assert (Identity(), "an anonymous client", {}) == (identity, str(identity), client_options(identity))


def test_a_user_has_the_password_of_the_file(tmp_path):
    """Without the end of its line; and no message or traceback shows it."""
    file = write(tmp_path / "password", b"s3cret: \xc3\xa4\n", 0o640)

    identity = identity_of(ZooKeeperTable(user="ops", password_file=file), "agent.toml")

    assert [("digest", "ops:s3cret: ä")] == client_options(identity)["auth_data"]
    assert ("user 'ops'", "user 'ops'") == (str(identity), repr(identity))


@pytest.mark.parametrize(
    ("text", "mode", "message", "hint"),
    [
        (b"s3cret", 0o644, "can be read or written by anybody", "forbid it: chmod o-rw "),
        (b"s3cret", 0o602, "can be read or written by anybody", "forbid it: chmod o-rw "),
        (b"\n", 0o600, "must hold the password alone", "one line, and nothing else"),
        (b"user: ops\npassword: s3cret\n", 0o600, "must hold the password alone", "one line, and nothing else"),
        (None, 0, "cannot be read: No such file or directory", ""),
    ],
)
def test_a_password_file_that_will_not_do_is_refused(tmp_path, text, mode, message, hint):
    """The error names agent.toml, the key, and the file."""
    file = tmp_path / "password"
    if text is not None:
        write(file, text, mode)

    with pytest.raises(ConfigError, match=re.escape(f"agent.toml: zookeeper.password_file {file} {message}")) as caught:
        identity_of(ZooKeeperTable(user="ops", password_file=str(file)), "agent.toml")

    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not PEM with a certificate"),
        (b"\x30\x82\xff", "is not PEM with a certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used: "),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_ca_that_will_not_do_is_refused(tmp_path, text, message):
    """Before anybody is spoken to."""
    file = write(tmp_path / "ca.pem", text) if text is not None else str(tmp_path)

    with pytest.raises(ConfigError, match=re.escape(f"agent.toml: zookeeper.ca {file} {message}")):
        identity_of(ZooKeeperTable(ca=file), "agent.toml")


def test_a_certificate_may_hold_its_key():
    """kazoo leaves a certificate out that comes without a key."""
    options = client_options(Identity(ca="ca.pem", certificate="host.pem"))

    assert ("host.pem", "host.pem", True, True) == tuple(
        options[key] for key in ("certfile", "keyfile", "use_ssl", "check_hostname")
    )
