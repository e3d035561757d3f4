"""`deployd doctor`: is this host in order?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import folded, print_json
from deployd_core.cli.settings import AGENT_FILE, Settings, json_option, pass_settings, zookeeper_options
from deployd_core.errors import DeploydError

if TYPE_CHECKING:
    from deployd_core.doctor import Check

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor", cls=Command, examples=["deployd doctor", "deployd doctor --config ./agent.toml", "deployd doctor --json"])
@json_option
@zookeeper_options
@pass_settings
def command(settings: Settings, *, as_json: bool) -> int:
    """Check this host, and say what to do about what is wrong.

    agent.toml, plugins, privileges, clock, firewall, agent, closed gates, ZooKeeper; and of each service of this host its spec, its
    disk, and how its traffic is turned off and why so. Exit code 1 when something does not work.
    """
    checks = []
    for check in _checks(settings):
        checks.append(check)
        if not as_json:
            verdict = check.verdict.value
            text = folded(f"{verdict:4}  {check.name}: {check.says}", indent=6)
            click.echo(click.style(verdict, fg=_COLOURS[verdict]) + text.removeprefix(verdict))
            if check.hint:
                click.echo(folded(f"{'':6}{check.hint}", indent=6))
    if as_json:
        print_json("deployd.doctor/1", {"checks": checks})
    return Exit.FAILED if any(check.verdict.value == "fail" for check in checks) else Exit.DONE


def _checks(settings: Settings) -> Iterator[Check]:
    from deployd_core.cli.here import this_host
    from deployd_core.cli.store import connected
    from deployd_core.doctor import Check, Host, Verdict, examine

    try:
        config = this_host(settings)
        plugins = settings.plugins()
    except DeploydError as error:
        yield Check(name="agent.toml", verdict=Verdict.FAIL, says=error.message, hint=error.hint)
        return
    path = settings.config or AGENT_FILE
    if settings.agent_config is None:
        says = f"{path} does not exist: the defaults are checked"
        yield Check(name="agent.toml", verdict=Verdict.WARN, says=says, hint="write one: see docs/agent.md")
    else:
        yield Check(name="agent.toml", verdict=Verdict.OK, says=f"{path}: host {config.host}, zone {config.zone}")
    address = settings.zookeeper_address
    yield from examine(Host(config=config, plugins=plugins, connect=lambda: connected(settings), connect_root=address))
