"""A service on this host, for commands that look at it without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployd_core.cli.output import message
from deployd_core.errors import some_of

if TYPE_CHECKING:
    from deployd_core.cli.settings import Settings
    from deployd_core.config import AgentConfig
    from deployd_core.coordination import Snapshot
    from deployd_core.survey import Here

spec_option = click.option(
    "--spec", "spec_file", metavar="FILE", type=click.Path(path_type=Path), help="Take the spec from a file, and ask no ZooKeeper."
)


def this_host(settings: Settings) -> AgentConfig:
    """What agent.toml says of this host; the defaults when there is none.

    Raises:
        ConfigError: It is wrong.
    """
    import socket

    from deployd_core.config import AgentConfig

    return settings.agent_config or AgentConfig(host=socket.gethostname())


def find_service(settings: Settings, service: str, *, spec_file: Path | None, build: str = "") -> Here:
    """The service as it is on this host.

    Raises:
        DeploydError: There is no such service, its spec is wrong, or ZooKeeper does not answer.
    """
    from deployd_core.config import load_spec
    from deployd_core.coordination import Membership, Snapshot
    from deployd_core.survey import find

    config, plugins = this_host(settings), settings.plugins()
    if spec_file is not None:
        spec = load_spec(spec_file, plugins, service)
        membership = Membership(zone=config.zone)
        snapshot = Snapshot(service=service, host=config.host, spec=spec, membership=membership, enabled=None)
    else:
        snapshot = _read(settings, service, config.host)
    return find(service, snapshot, plugins, config, build=build)


def _read(settings: Settings, service: str, host: str) -> Snapshot:
    from deployd_core import rollouts
    from deployd_core.cli.store import connected
    from deployd_core.zookeeper.coordination import ZooKeeperCoordination
    from deployd_core.zookeeper.members import read_members

    with connected(settings) as session:
        rollouts.read_service(session, service)  # says which services there are when this is none of them
        known = sorted(read_members(session, service))
        if known and host not in known:
            where = "type it there, or name its agent.toml: --config"
            message(f"deployd: warning: {host} is none of the hosts of {service} ({some_of(known)}); {where}")
        return ZooKeeperCoordination(session, host, wake=lambda _: None).snapshot(service)
