"""Who agent.toml says that we are to ZooKeeper: the files it names, read and checked; and what it means not to be allowed."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from deployd_core.config import ZooKeeperTable
from deployd_core.errors import ConfigError
from deployd_core.zookeeper.address import Identity

_OTHERS = stat.S_IROTH | stat.S_IWOTH
_NAME_A_USER = "set user and password_file in [zookeeper] of agent.toml"


def identity_of(table: ZooKeeperTable, where: str) -> Identity:
    """Who we are, by ``[zookeeper]``.

    Args:
        table: The keys, of which each has the others that it needs.
        where: Their file, for messages.

    Raises:
        ConfigError: A file is missing, others may read it, or it does not hold what it should.
    """
    digest = ""
    if table.user:
        digest = f"{table.user}:{_password(table.password_file, f'{where}: zookeeper.password_file {table.password_file}')}"
    identity = Identity(digest=digest, ca=table.ca, certificate=table.certificate, key=table.key)
    if table.ca:
        _check_tls(identity, where)
    return identity


def tls_context(identity: Identity) -> ssl.SSLContext:
    """How kazoo speaks TLS for that identity, to find out why it fails.

    Raises:
        OSError: A file cannot be used.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(identity.ca)
    if identity.certificate:
        context.load_cert_chain(identity.certificate, identity.key or None, password="")
    return context


def not_accepted(identity: Identity, hosts: str) -> ConfigError:
    """The ensemble does not let us in."""
    hint = "check user and password" if identity.digest else _NAME_A_USER
    return ConfigError(f"ZooKeeper at {hosts} does not accept {identity}", hint=hint)


def not_allowed(identity: Identity, verb: str, where: str) -> ConfigError:
    """The access list of a node does not let us read or write it."""
    message = f"ZooKeeper does not allow {identity} to {verb} {where}"
    if identity.digest:  # a wrong password is not refused when it is given
        hint = f"is the password right? another one makes another user; the node's access list: zkCli getAcl {where}"
    else:
        hint = f"{_NAME_A_USER}; the node's access list: zkCli getAcl {where}"
    return ConfigError(message, hint=hint)


def _password(file: str, what: str) -> str:
    password = _read(file, what, secret=True).strip()
    if not password or "\n" in password:
        raise ConfigError(f"{what} must hold the password alone", hint="one line, and nothing else")
    return password


def _check_tls(identity: Identity, where: str) -> None:
    """Name the file that is wrong: what TLS itself says of one names none."""
    ca, certificate = f"{where}: zookeeper.ca {identity.ca}", f"{where}: zookeeper.certificate {identity.certificate}"
    _require("CERTIFICATE", ca, _read(identity.ca, ca))
    _try(Identity(ca=identity.ca), ca)
    if not identity.certificate:
        return
    _require("CERTIFICATE", certificate, _read(identity.certificate, certificate))
    file, what = (identity.key, f"{where}: zookeeper.key {identity.key}") if identity.key else (identity.certificate, certificate)
    key = _read(file, what, secret=True)
    _require("PRIVATE KEY", what, key)
    if "ENCRYPTED" in key:
        raise ConfigError(f"{what} has a passphrase, and nobody is there to type it", hint=f"remove it: openssl pkey -in {file}")
    _try(identity, f"{what} with {identity.certificate}")


def _try(identity: Identity, what: str) -> None:
    try:
        tls_context(identity)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ConfigError(f"{what} cannot be used: {reason}") from error


def _require(kind: str, what: str, text: str) -> None:
    if f"{kind}-----" not in text:
        raise ConfigError(f"{what} is not PEM with a {kind.lower()}", hint=f"it must have a line -----BEGIN {kind}-----")


def _read(file: str, what: str, *, secret: bool = False) -> str:
    try:
        with Path(file).open(encoding="utf-8", errors="replace") as opened:
            if secret and stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & _OTHERS:
                raise ConfigError(f"{what} can be read or written by anybody", hint=f"forbid it: chmod o-rw {file}")
            return opened.read()
    except PermissionError as error:
        hint = "run this as its owner, or name an agent.toml of your own by --config"
        raise ConfigError(f"{what} cannot be read: {error.strerror}", hint=hint) from error
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}") from error
