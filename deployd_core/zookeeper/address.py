"""Where ZooKeeper is, and who we are to it."""

from __future__ import annotations

from typing import Any

from kazoo.security import make_acl
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
    """A PEM file that says who we are to the servers."""
    key: str = ""
    """The PEM file of its key; the certificate's own when empty."""

    @property
    def user(self) -> str:
        """Whose the digest is; empty without one."""
        return self.digest.partition(":")[0]

    def __str__(self) -> str:
        if self.digest:
            return f"user {self.user!r}"
        return f"the holder of {self.certificate}" if self.certificate else "an anonymous client"

    __repr__ = __str__  # which does not show the password


def client_options(identity: Identity) -> dict[str, Any]:
    """The identity as options of kazoo's client."""
    options: dict[str, Any] = {}
    if identity.digest:
        # What we create is ours, to be read by all; ZooKeeper takes "auth" for who we have proved to be. Without a user it is
        # everybody's: a certificate is one host's, and what one host makes another host or a person has to take away.
        everything, reading = make_acl("auth", "", all=True), make_acl("world", "anyone", read=True)
        options |= {"auth_data": [("digest", identity.digest)], "default_acl": [everything, reading]}
    if identity.ca:
        options |= {"use_ssl": True, "ca": identity.ca, "check_hostname": True}
    if identity.certificate:
        # kazoo leaves out a certificate that comes without a key, and does not say so.
        options |= {"certfile": identity.certificate, "keyfile": identity.key or identity.certificate}
    return options


def split_address(address: str, default_chroot: str = "/deployd") -> tuple[str, str]:
    """Split ``host:port,host:port/chroot`` into hosts and chroot.

    Raises:
        ConfigError: There is no host in it, or a port that is no number.
    """
    hosts, _, chroot = address.partition("/")
    for entry in hosts.split(","):
        if host_and_port(entry) is None:
            raise ConfigError(
                f"ZooKeeper address {address!r} is not host:port[,host:port...][/chroot]", hint="such as zk1:2181,zk2:2181/deployd"
            )
    return hosts, f"/{chroot.strip('/')}" if chroot.strip("/") else default_chroot


def host_and_port(entry: str) -> tuple[str, int] | None:
    """One entry of an address; None when it is none."""
    host, port = entry.strip(), str(_DEFAULT_PORT)
    if ":" in host.rpartition("]")[2]:  # an IPv6 address stands in brackets
        host, _, port = host.rpartition(":")
    return (host.strip("[]"), int(port)) if host.strip("[]") and port.isdigit() and int(port) < 65536 else None
