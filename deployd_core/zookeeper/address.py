"""Where ZooKeeper is, who we are to it, and why it cannot be reached."""

from __future__ import annotations

import socket
from typing import Any

from msgspec import Struct

from deployd_core.errors import ConfigError

_DEFAULT_PORT = 2181


class Identity(Struct, frozen=True, kw_only=True):
    """Who we are to ZooKeeper. Without a digest or certificate: anybody."""

    digest: str = ""
    """``user:password`` of the digest scheme."""
    ca: str = ""
    """A PEM file; naming one switches TLS on, with the host name checked."""
    certificate: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"user {self.digest.partition(':')[0]!r}" if self.digest else "an anonymous client"


def client_options(identity: Identity) -> dict[str, Any]:
    """The identity as options of kazoo's client."""
    options: dict[str, Any] = {"auth_data": [("digest", identity.digest)]} if identity.digest else {}
    if identity.ca:
        options |= {"use_ssl": True, "ca": identity.ca, "check_hostname": True}
        options |= {"certfile": identity.certificate or None, "keyfile": identity.key or None}
    return options


def split_address(address: str, default_chroot: str = "/deployd") -> tuple[str, str]:
    """Split ``host:port,host:port/chroot`` into hosts and chroot.

    Raises:
        ConfigError: There is no host in it, or a port that is no number.
    """
    hosts, _, chroot = address.partition("/")
    for entry in hosts.split(","):
        if _host_and_port(entry) is None:
            raise ConfigError(
                f"ZooKeeper address {address!r} is not host:port[,host:port...][/chroot]", hint="such as zk1:2181,zk2:2181/deployd"
            )
    return hosts, f"/{chroot.strip('/')}" if chroot.strip("/") else default_chroot


def why_unreachable(hosts: str) -> str:
    """Try each host and say what is the matter with it."""
    return "; ".join(f"{entry.strip()}: {_reason(entry)}" for entry in hosts.split(","))


def _reason(entry: str) -> str:
    found = _host_and_port(entry)
    if found is None:
        return "is no host:port"
    try:
        socket.create_connection(found, timeout=0.5).close()
    except OSError as error:
        return error.strerror or str(error)
    return "accepts connections but does not answer"


def _host_and_port(entry: str) -> tuple[str, int] | None:
    host, port = entry.strip(), str(_DEFAULT_PORT)
    if ":" in host.rpartition("]")[2]:  # an IPv6 address stands in brackets
        host, _, port = host.rpartition(":")
    return (host.strip("[]"), int(port)) if host.strip("[]") and port.isdigit() and int(port) < 65536 else None
