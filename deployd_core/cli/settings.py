"""Where things are: a flag, else the environment, else agent.toml, else the default. And the options that many commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deployd_core.cli.groups import COMMANDS
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.config import AgentConfig
    from deployd_core.plugins import Plugins
    from deployd_core.zookeeper.address import Identity

AGENT_FILE = Path("/etc/deployd/agent.toml")
PLUGIN_DIRECTORY = Path("/etc/deployd/plugins.d")
DEFAULT_ZOOKEEPER = "127.0.0.1:2181/deployd"

F = TypeVar("F", bound=Callable[..., Any])


class Settings:
    """What the environment and the flags say, and what follows from it. The context's object; the options below fill it in.

    The environment is read here and not by click, so that a flag before the command beats it, and help knows it as well.
    """

    def __init__(self) -> None:
        self.debug = bool(os.environ.get("DEPLOYD_DEBUG"))
        self.config = _path("DEPLOYD_CONFIG")
        self.plugins_directory = _path("DEPLOYD_PLUGINS_DIR")
        self.zookeeper = os.environ.get("DEPLOYD_ZOOKEEPER") or None
        self.connect_timeout = Duration("10s")
        if os.environ.get("DEPLOYD_TRACE_PLUGINS"):
            from deployd_core import boundary

            boundary.trace(lambda line: click.echo(f"deployd: trace: {line}", err=True))
        self._plugins: Plugins | None = None

    @cached_property
    def agent_config(self) -> AgentConfig | None:
        """agent.toml; None when nobody named one and the default is not there.

        Raises:
            ConfigError: It is wrong, or the one that was named is missing.
        """
        path = self.config or AGENT_FILE
        if self.config is None and not path.is_file():
            return None
        from deployd_core.config import load_agent_config

        return load_agent_config(path)

    @property
    def plugin_directory(self) -> Path:
        """Where single-file plugins are.

        Raises:
            ConfigError: agent.toml is wrong.
        """
        if self.plugins_directory is not None:
            return self.plugins_directory
        return Path(self.agent_config.plugins.directory) if self.agent_config else PLUGIN_DIRECTORY

    def plugins(self) -> Plugins:
        """The plugins, loaded once.

        Raises:
            ConfigError: agent.toml is wrong.
        """
        if self._plugins is None:
            self._plugins = self.plugin_loader()()
        return self._plugins

    def plugin_loader(self) -> Callable[[], Plugins]:
        """What loads the plugins anew, also in another process.

        Raises:
            ConfigError: agent.toml is wrong.
        """
        from deployd_core.plugins import Plugins

        disabled = self.agent_config.plugins.disabled if self.agent_config else ()
        return partial(Plugins.load, directory=self.plugin_directory, disabled=disabled, reserved_commands=tuple(COMMANDS))

    @property
    def zookeeper_address(self) -> str:
        """Where ZooKeeper is: ``host:port,…/chroot``.

        Raises:
            ConfigError: agent.toml is wrong.
        """
        if self.zookeeper is None and self.agent_config is not None:
            return self.agent_config.zookeeper.hosts + self.agent_config.zookeeper.chroot
        return self.zookeeper or DEFAULT_ZOOKEEPER

    @property
    def zookeeper_identity(self) -> Identity:
        """Who we are to ZooKeeper, wherever that is.

        Raises:
            ConfigError: agent.toml is wrong, or a file that it names.
        """
        from deployd_core.zookeeper.access import identity_of
        from deployd_core.zookeeper.address import Identity

        if self.agent_config is None:
            return Identity()
        return identity_of(self.agent_config.zookeeper, str(self.config or AGENT_FILE))

    @property
    def zookeeper_origin(self) -> str:
        """Who says so: for the message when nobody answers there."""
        if self.zookeeper is not None:
            return "from DEPLOYD_ZOOKEEPER" if self.zookeeper == os.environ.get("DEPLOYD_ZOOKEEPER") else "from --zookeeper"
        return f"from {self.config or AGENT_FILE}" if self.agent_config is not None else "the default"

    def flags(self, *, zookeeper: bool) -> tuple[str, ...]:
        """What a command has to repeat to find the same plugins, and the same ZooKeeper where it asked one."""
        flags: dict[str, object] = {"--config": self.config, "--plugins-dir": self.plugins_directory}
        flags |= {"--zookeeper": self.zookeeper} if zookeeper else {}
        return tuple(str(word) for flag, value in flags.items() if value is not None for word in (flag, value))


def duration(text: str) -> Duration:
    """Read a length of time from the command line.

    Raises:
        click.BadParameter: It has no unit, or is none.
    """
    try:
        return Duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def moment(text: str) -> datetime:
    """Read a time from the command line: RFC 3339; without a time zone it is this machine's.

    Raises:
        click.BadParameter: It is none.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no time such as 2026-12-27T08:00Z") from error


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _store(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Settings), attribute, value)

    return callback


def config_options(command: F) -> F:
    """``--config``, ``--plugins-dir`` and ``--debug``."""
    for option in reversed(
        (
            click.option(
                "--config",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help=f"agent.toml to take defaults from. [default: {AGENT_FILE}, if there is one]  [env var: DEPLOYD_CONFIG]",
                is_eager=True,
                callback=_store("config"),
                expose_value=False,
            ),
            click.option(
                "--plugins-dir",
                type=click.Path(path_type=Path),
                metavar="DIR",
                help=f"Single-file plugins. [default: agent.toml's, else {PLUGIN_DIRECTORY}]  [env var: DEPLOYD_PLUGINS_DIR]",
                is_eager=True,
                callback=_store("plugins_directory"),
                expose_value=False,
            ),
            debug_option,
        )
    ):
        command = option(command)
    return command


def zookeeper_options(command: F) -> F:
    """``--zookeeper`` and ``--connect-timeout``, and those of `config_options`."""
    command = config_options(command)
    for option in (
        click.option(
            "--connect-timeout",
            type=duration,
            metavar="DURATION",
            help="How long to try. [default: 10s]",
            callback=_store("connect_timeout"),
            expose_value=False,
        ),
        click.option(
            "--zookeeper",
            metavar="HOSTS[/CHROOT]",
            help=f"Where ZooKeeper is. [default: agent.toml's, else {DEFAULT_ZOOKEEPER}]  [env var: DEPLOYD_ZOOKEEPER]",
            callback=_store("zookeeper"),
            expose_value=False,
        ),
    ):
        command = option(command)
    return command


debug_option = click.option(
    "--debug",
    is_flag=True,
    default=None,
    help="Show the traceback of an error.  [env var: DEPLOYD_DEBUG]",
    callback=_store("debug"),
    expose_value=False,
)


def complete_plugins(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """For the shell: the names of the plugins of the kind that was typed before, strategies when there is none."""
    wanted = ctx.params.get("kind", "strategy")
    names = (row.name for row in ctx.ensure_object(Settings).plugins().rows if row.kind == wanted)
    return sorted(name for name in names if name.startswith(incomplete))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

pass_settings = click.make_pass_decorator(Settings, ensure=True)
