"""`deployd demo`: a fleet on this machine."""

from __future__ import annotations

import click

from deployd_core.cli.groups import Command
from deployd_core.cli.settings import debug_option


@click.command("demo", cls=Command, examples=["deployd demo", "deployd demo --hosts 5 --keep"])
@click.option("--hosts", type=click.IntRange(1, 20), default=3, show_default=True, help="How many agents to start.")
@click.option("--keep", is_flag=True, help="Leave it running, and say how to talk to it.")
@debug_option
def command(*, hosts: int, keep: bool) -> int:
    """Roll a small fleet on this machine from one build to the next.

    Starts a ZooKeeper of its own, some agents and a small HTTP service under supervisor, all below a temporary directory and on
    loopback; enables one build, then the next, and takes everything down. Needs no root.
    """
    from deployd_core.demo import run_demo

    return run_demo(keep=keep, hosts=hosts)
