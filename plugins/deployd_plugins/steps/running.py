"""Running the commands of a step: its log, its deadline, and the message when one fails."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployd_core.api import ConfigError, StepCall, StepFailed
from deployd_plugins.commands import as_user, run

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a command that is out of time."""


class Runner:
    """Runs the commands of one step, one after the other, within the time of the step."""

    def __init__(self, step: str, call: StepCall, *, run_as: str = "", env: Mapping[str, str] | None = None) -> None:
        if run_as:
            as_user(run_as)  # a user that cannot be is the fault of the spec, and not of the build
        self._step = step
        self._call = call
        self._run_as = run_as
        self._env = {
            "DEPLOYD_SERVICE": call.release.service,
            "DEPLOYD_BUILD": call.release.build.id,
            "DEPLOYD_RELEASE": str(call.release.path),
            "DEPLOYD_SHARED": str(call.release.shared),
        } | dict(env or {})
        self._deadline = time.monotonic() + call.timeout

    def run(self, argv: Sequence[str], *, cwd: Path | None = None) -> None:
        """Run a command to its end.

        Raises:
            StepFailed: It failed, could not be started or was out of time; the message ends with the tail of its output.
        """
        import shlex

        where = f"step {self._step} of build {self._call.release.build.id}"
        # Who reads the log or the report need not know the passwords of the URLs in it.
        command = _CREDENTIALS.sub("****@", shlex.join(argv))
        with self._call.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {command}\n")
        try:
            outcome = run(
                argv,
                timeout=max(0.0, self._deadline - time.monotonic()),
                env=self._env,
                cwd=cwd or self._call.release.path,
                log=self._call.log,
                alone=True,
                grace=_GRACE,
                run_as=self._run_as,
            )
        except ConfigError as error:
            raise StepFailed(f"{where}: {error.message}", hint=error.hint) from error
        if outcome.code != 0:
            raise StepFailed(f"{where}: {outcome.describe(command)}", hint=f"its whole output: {self._call.log} on this host")
