"""Who does something, and why: options of every command that changes what the fleet does, and decisions about hosts."""

from __future__ import annotations

import getpass
import os
import socket
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from deployd_core.cli.settings import Settings
    from deployd_core.zookeeper.session import Session
    from deployd_core.zookeeper.status import HostEntry


class Decision(Protocol):
    """A verb of `deployd_core.rollouts` about one host; returns whether that was news."""

    def __call__(self, session: Session, service: str, host: str, *, by: str, why: str) -> bool:
        """Carry it out."""
        ...


def decide(
    settings: Settings, decision: Decision, service: str, host: str, *, by: str | None, why: str
) -> tuple[bool, HostEntry | None]:
    """Carry a decision about a host out; returns whether it was news, and what is known of the host then."""
    from deployd_core import rollouts
    from deployd_core.cli.store import connected

    with connected(settings) as session:
        news = decision(session, service, host, by=by or person(), why=why)
        return news, next((entry for entry in rollouts.statuses(session, service) if entry.host == host), None)


def person() -> str:
    """Who types this: for the history, and for whoever finds a change and wonders."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container may run us under a number that has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


by_option = click.option("--by", metavar="NAME", help="Who does it, for the history. [default: you]")

why_option = click.option("--why", metavar="TEXT", default="", help="Why: whoever finds it reads that first.")

reason_option = click.option("--why", metavar="TEXT", required=True, help="Why; it is kept in the history.")
