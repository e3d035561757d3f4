"""Who does something, and why: options of every command that changes what the fleet does."""

from __future__ import annotations

import getpass
import os
import socket

import click


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
