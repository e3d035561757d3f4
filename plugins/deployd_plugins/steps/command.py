"""The `command` step: runs a command in the release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from deployd_core.api import Meta, Step, StepCall, StepOptions, hookimpl


class CommandStepOptions(StepOptions, frozen=True, kw_only=True):
    """What to run."""

    argv: Annotated[tuple[str, ...], Meta(min_length=1, description="the command, as a list; {release} and the like are filled in")]
    env: Annotated[Mapping[str, str], Meta(description="added to its environment")] = {}
    cwd: Annotated[str, Meta(description="directory to run it in")] = "{release}"
    run_as: Annotated[str, Meta(description="user to run it as; needs an agent that runs as root")] = ""


class CommandStep(Step[CommandStepOptions]):
    """Run a command in the release, such as a migration or a build of assets.

    It is no shell's: write ``["sh", "-c", "…"]`` for one. Its output goes to a log file, its end into the report when it fails. It
    runs in a session of its own and is told DEPLOYD_SERVICE, DEPLOYD_BUILD, DEPLOYD_RELEASE and DEPLOYD_SHARED; out of time, its
    process group gets SIGTERM, and SIGKILL five seconds later. One that was cut off runs again.
    """

    name = "command"

    def run(self, call: StepCall) -> None:
        """Run it."""
        from deployd_plugins.steps.running import Runner

        options = self.options
        env = {name: call.expand(value) for name, value in options.env.items()}
        argv = [call.expand(argument) for argument in options.argv]
        Runner(self.name, call, run_as=options.run_as, env=env).run(argv, cwd=Path(call.expand(options.cwd)))


@hookimpl
def deployd_steps() -> list[type[CommandStep]]:
    """Register the step."""
    return [CommandStep]
