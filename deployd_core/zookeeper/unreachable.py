"""Why nobody answers: what each server says when it is spoken to as a session speaks to it."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

from deployd_core.zookeeper.access import tls_context
from deployd_core.zookeeper.address import Identity, host_and_port

_PATIENCE = 0.5
_QUESTION = b"srvr"  # the one word of four letters that every server answers, were it to say that it may not
_SILENT = "accepts connections but does not answer"


class Trouble(NamedTuple):
    """What is the matter, and what to change; the latter is empty where that is not known."""

    why: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.why}; {self.hint}" if self.hint else self.why


def why_unreachable(hosts: str, identity: Identity) -> Trouble:
    """Try each host and say what is the matter with it."""
    found = {entry.strip(): _trouble(entry, identity) for entry in hosts.split(",")}
    return Trouble(
        why="; ".join(f"{entry}: {trouble.why}" for entry, trouble in found.items()),
        hint=next((trouble.hint for trouble in found.values() if trouble.hint), ""),
    )


def _trouble(entry: str, identity: Identity) -> Trouble:
    place = host_and_port(entry)
    if place is None:
        return Trouble("is no host:port")
    try:
        socket.create_connection(place, timeout=_PATIENCE).close()
        return _over_tls(place, identity) if identity.ca else _in_plain_text(place)
    except OSError as error:
        return Trouble(error.strerror or str(error))


def _in_plain_text(place: tuple[str, int]) -> Trouble:
    if _speaks_plain(place):
        return Trouble(_SILENT)
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # whether it speaks TLS is the question, and not who it is
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        _ask(place, anybody)
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return Trouble(_SILENT)
    except OSError:
        return Trouble(_SILENT)
    return Trouble("speaks TLS, and was spoken to in plain text", "name its ca in [zookeeper] of agent.toml")


def _over_tls(place: tuple[str, int], identity: Identity) -> Trouble:
    try:
        _ask(place, tls_context(identity))
    except ssl.SSLCertVerificationError as error:
        hint = "ca in [zookeeper] of agent.toml is who signs the servers' certificates, and hosts are the names in them"
        return Trouble(f"its certificate is not accepted: {error.verify_message.rstrip('.')}", hint)
    except ssl.SSLError as error:
        return _no_tls(place, identity, error.reason or str(error))
    except (TimeoutError, ConnectionError):
        return _no_tls(place, identity, "")
    return Trouble(_SILENT)


def _no_tls(place: tuple[str, int], identity: Identity, reason: str) -> Trouble:
    """TLS was begun and refused, or nothing came of it."""
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        if identity.certificate:
            return Trouble(f"does not accept {identity.certificate}", "is it signed by who the servers trust?")
        return Trouble("demands a certificate of its clients", "name certificate and key in [zookeeper] of agent.toml")
    if _speaks_plain(place):
        hint = "name the port that its secureClientPort is, or no ca in [zookeeper] of agent.toml"
        return Trouble("was spoken to in TLS, and speaks plain text", hint)
    return Trouble(f"TLS fails: {reason.replace('_', ' ').lower()}" if reason else _SILENT)


def _speaks_plain(place: tuple[str, int]) -> bool:
    try:
        answer = _ask(place).lower()
    except OSError:
        return False
    return _QUESTION in answer or b"zookeeper" in answer


def _ask(place: tuple[str, int], context: ssl.SSLContext | None = None) -> bytes:
    """What it says to a question; with TLS 1.3 a server refuses a client only after that."""
    with socket.create_connection(place, timeout=_PATIENCE) as plain:
        connection = context.wrap_socket(plain, server_hostname=place[0]) if context else plain
        with connection:
            connection.sendall(_QUESTION)
            return connection.recv(1024)
