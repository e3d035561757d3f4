"""The `pip` step: a virtual environment of its own for each release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deployd_core.api import ConfigError, Meta, Step, StepCall, StepFailed, StepOptions, hookimpl

if TYPE_CHECKING:
    from deployd_plugins.steps.running import Runner

_HASH = re.compile(r"(?:^|\s)--hash[=\s]", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)


class PipOptions(StepOptions, frozen=True, kw_only=True):
    """What to install, where, and where from."""

    requirements: Annotated[str, Meta(description="file of requirements, in the release")] = "requirements.txt"
    optional: Annotated[bool, Meta(description="do nothing when the file is missing, instead of failing")] = False
    venv: Annotated[str, Meta(description="directory of the virtual environment, in the release")] = "venv"
    python: Annotated[str, Meta(description="interpreter to make it with")] = "python3"
    index_url: Annotated[str | None, Meta(description="package index, instead of PyPI; may hold user and password")] = None
    find_links: Annotated[tuple[str, ...], Meta(description="directories or pages to look for packages in, too")] = ()
    no_index: Annotated[bool, Meta(description="use find_links alone")] = False
    args: Annotated[tuple[str, ...], Meta(description="more arguments for pip install")] = ()
    env: Annotated[Mapping[str, str], Meta(description="added to the environment of pip")] = {}
    run_as: Annotated[str, Meta(description="user to run it as, who will own the environment; needs an agent of root")] = ""


class PipStep(Step[PipOptions]):
    """Make a virtual environment in the release and install its requirements.txt.

    When the file holds hashes, everything must have one (pip's ``--require-hashes``). An environment that was cut off half-made is
    made anew.
    """

    name = "pip"

    def run(self, call: StepCall) -> None:
        """Make it, and install."""
        from deployd_plugins.steps.running import Runner

        options = self.options
        release = call.release.path
        requirements = _inside(release, options.requirements, "requirements")
        venv = _inside(release, options.venv, "venv")
        if not requirements.is_file():
            if options.optional:
                return
            raise StepFailed(
                f"step pip of build {call.release.build.id}: there is no {options.requirements} in the release",
                hint="pack the file with the build, or say optional = true in the step",
            )
        runner = Runner(self.name, call, run_as=options.run_as, env=self._environment(call))
        self._make(runner, call, venv)
        try:
            text = requirements.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise StepFailed(f"step pip of build {call.release.build.id}: {requirements}: {error.strerror}") from error
        # Isolated (-I), or else a random.py in the release would be imported instead of the library's; the release is where
        # relative paths in the requirements begin.
        pip = [str(venv / "bin" / "python"), "-I", "-m", "pip"]
        runner.run([*pip, "install", *self._arguments(call, text), "--requirement", str(requirements)])

    def _make(self, runner: Runner, call: StepCall, venv: Path) -> None:
        import os
        import pwd

        if self.options.run_as:
            # The release belongs to the agent: this one directory in it does not.
            try:
                venv.mkdir(parents=True, exist_ok=True)
                account = pwd.getpwnam(self.options.run_as)
                os.chown(venv, account.pw_uid, account.pw_gid, follow_symlinks=False)
            except OSError as error:
                raise StepFailed(f"step pip of build {call.release.build.id}: {venv}: {error.strerror}") from error
        runner.run([call.expand(self.options.python), "-I", "-m", "venv", "--clear", str(venv)])

    def _environment(self, call: StepCall) -> dict[str, str]:
        env = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if not self.options.run_as:
            env["PIP_ROOT_USER_ACTION"] = "ignore"  # in an environment of its own, root is no danger to the system's packages
        if self.options.index_url is not None:
            env["PIP_INDEX_URL"] = call.expand(self.options.index_url)  # and not in argv, where every user sees the password
        return env | {name: call.expand(value) for name, value in self.options.env.items()}

    def _arguments(self, call: StepCall, requirements: str) -> list[str]:
        arguments = ["--require-hashes"] if _HASH.search(_COMMENT.sub("", requirements)) else []
        arguments += ["--no-index"] if self.options.no_index else []
        for place in self.options.find_links:
            arguments += ["--find-links", call.expand(place)]
        return arguments + [call.expand(argument) for argument in self.options.args]


def _inside(release: Path, text: str, option: str) -> Path:
    """A path in the release that an option names."""
    path = Path(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(f"option {option} of step pip must be a path in the release, not {text!r}")
    return release / path


@hookimpl
def deployd_steps() -> list[type[PipStep]]:
    """Register the step."""
    return [PipStep]
