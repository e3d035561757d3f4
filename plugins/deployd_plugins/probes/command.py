"""The `command` probe: runs a command that knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from deployd_core.api import ConfigError, InstanceCall, Meta, Probe, ProbeOptions, Unavailable, Verdict, hookimpl
from deployd_plugins import commands


class CommandProbeOptions(ProbeOptions, frozen=True, kw_only=True):
    """What to run: a list of words, without a shell, in ``<root>/current``."""

    argv: Annotated[tuple[str, ...], Meta(min_length=1, description="command and arguments; {port} and the like are filled in")]
    env: Annotated[Mapping[str, str], Meta(description="added to the environment of the command")] = {}


class CommandProbe(Probe[CommandProbeOptions]):
    """Call an instance healthy when a command exits with 0."""

    name = "command"

    def check(self, call: InstanceCall) -> Verdict:
        """Run it once."""
        current = call.root / "current"
        try:
            outcome = commands.run(
                [call.expand(word) for word in self.options.argv],
                timeout=min(self.options.timeout, call.timeout),
                env={name: call.expand(value) for name, value in self.options.env.items()},
                cwd=current if current.is_dir() else call.root,
            )
        except (ConfigError, Unavailable) as error:
            return Verdict.unknown(str(error))
        words = outcome.describe(self.options.argv[0])
        return Verdict.healthy(words) if outcome.code == 0 else Verdict.unhealthy(words)


@hookimpl
def deployd_probes() -> list[type]:
    """The probe of this module."""
    return [CommandProbe]
