"""`deployd agent`: the daemon of a host, in the foreground."""

from __future__ import annotations

import click

from deployd_core.cli.groups import Command
from deployd_core.cli.settings import AGENT_FILE, Settings, config_options, pass_settings


@click.command("agent", cls=Command, examples=["deployd agent", "deployd agent --config ./agent.toml"])
@config_options
@pass_settings
def command(settings: Settings) -> int:
    """Run the agent of this host, in the foreground.

    One engine per service follows ZooKeeper. SIGTERM stops at the next safe point, SIGHUP reads agent.toml and plugins
    again.
    """
    from deployd_core.agent import run

    return run(settings.config or AGENT_FILE, settings.plugins_directory)
