"""The steps, with real processes, users and environments."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from deployd_core.api import Build, ConfigError, Release, StepCall, StepFailed, Unavailable
from deployd_plugins.steps.command import CommandStep, CommandStepOptions
from deployd_plugins.steps.pip import PipOptions, PipStep


@pytest.fixture
def call(tmp_path: Path) -> StepCall:
    return call_in(tmp_path)


def call_in(root: Path, timeout: float = 60) -> StepCall:
    path = root / "releases/v1"
    path.mkdir(parents=True)
    release = Release(service="web", build=Build(id="v1", digest="sha256:" + "0" * 64), path=path, root=root)
    return StepCall(release=release, host="h1", log=root / "step.log", timeout=timeout)


def command(*argv: str, **options: Any) -> CommandStep:
    return CommandStep(CommandStepOptions(argv=argv, **options))


def wait_until_gone(pids: list[int]) -> None:
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)


def test_command_runs_in_the_release_with_its_environment(call: StepCall) -> None:
    """A command runs in the release, without a shell, and is told what it works on."""
    step = command(
        "sh", "-c", 'echo "$1 $DEPLOYD_BUILD $EXTRA $PWD" > out', "sh", "{service} {host} $HOME;x", env={"EXTRA": "{build}+"}
    )

    step.run(call)

    assert f"web h1 $HOME;x v1 v1+ {call.release.path}\n" == (call.release.path / "out").read_text()
    assert "$ sh -c" in call.log.read_text()


def test_command_can_run_elsewhere(call: StepCall) -> None:
    """`cwd` names another directory."""
    call.release.shared.mkdir()

    command("touch", "here", cwd="{shared}").run(call)

    assert (call.release.shared / "here").exists()


def test_failure_ends_with_the_tail_of_the_output(call: StepCall) -> None:
    """A command that fails is reported with its code and the end of its output; all of it is in the log."""
    step = command("sh", "-c", "seq 100000; echo the reason >&2; exit 3")

    with pytest.raises(StepFailed, match=r"step command of build v1: .* exited with 3: (.|\n)*\nthe reason$") as caught:
        step.run(call)

    assert len(caught.value.message) < 3000
    assert "\n1\n2\n" in call.log.read_text()
    assert str(call.log) in caught.value.hint


def test_megabytes_of_output_block_nobody(call: StepCall) -> None:
    """Output far beyond what a pipe holds goes to the log, and the command ends."""
    command("sh", "-c", "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2").run(call)

    assert call.log.stat().st_size > 40_000_000


@pytest.mark.parametrize("argv", [("./missing",), ("no-such-program",), ("./plain",), ("a\0b",)])
def test_command_that_cannot_start(call: StepCall, argv: tuple[str, ...]) -> None:
    """A command that the build does not bring is the build's fault, and named."""
    (call.release.path / "plain").write_text("no program")

    with pytest.raises(Exception, match="cannot run") as caught:
        command(*argv).run(call)

    assert type(caught.value).__name__ in {"StepFailed", "Unavailable"}


def test_placeholder_without_value(call: StepCall) -> None:
    """An option with an unknown placeholder is the spec's fault."""
    with pytest.raises(ConfigError, match="no value for {port}"):
        command("echo", "{port}").run(call)


def test_signal_is_named(call: StepCall) -> None:
    """A command that dies of a signal is reported with it."""
    with pytest.raises(StepFailed, match="was killed by signal 15"):
        command("sh", "-c", "kill -TERM $$").run(call)


@pytest.fixture
def orphans(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pids"
    yield path
    if path.exists():
        for pid in map(int, path.read_text().split()):
            if psutil.pid_exists(pid):
                os.kill(pid, 9)


def test_timeout_takes_the_grandchildren_along(tmp_path: Path, orphans: Path) -> None:
    """Out of time, the whole process group ends, those that ignore SIGTERM and write without end included; the message says so."""
    script = f"""
        trap '' TERM
        echo begun
        (echo $BASHPID >> {orphans}; trap '' TERM; exec sleep 1000) &
        (echo $BASHPID >> {orphans}; yes) &
        echo $$ >> {orphans}
        trap 'echo ending; exit 0' TERM
        wait
    """
    call = call_in(tmp_path, timeout=0.5)
    before = time.monotonic()

    with pytest.raises(StepFailed, match="did not end in time and was killed"):
        command("bash", "-c", script).run(call)

    pids = [int(pid) for pid in orphans.read_text().split()]
    wait_until_gone(pids)
    assert 3 == len(pids)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert time.monotonic() - before < 60


def test_sigterm_comes_first(tmp_path: Path) -> None:
    """A command that is out of time can still clean up."""
    call = call_in(tmp_path, timeout=0.3)

    with pytest.raises(StepFailed, match="did not end in time and was killed: ?.*cleaned up$"):
        command("bash", "-c", "trap 'echo cleaned up; exit 0' TERM; sleep 100 & wait").run(call)


@pytest.fixture
def public_call() -> Iterator[StepCall]:
    """Where other users may go: pytest's own directories are for one user alone."""
    with tempfile.TemporaryDirectory(prefix="deployd-steps-") as directory:
        Path(directory).chmod(0o755)
        yield call_in(Path(directory))


@pytest.mark.root
def test_command_runs_as_another_user(public_call: StepCall) -> None:
    """`run_as` gives the command the user, its groups and its home, and nothing of root's."""
    call = public_call
    call.release.shared.mkdir()
    call.release.shared.chmod(0o777)

    command("sh", "-c", 'echo "$(id -u) $(id -G) $HOME $USER" > {shared}/out', run_as="nobody").run(call)

    nobody = pwd.getpwnam("nobody")
    assert f"{nobody.pw_uid} {nobody.pw_gid} {nobody.pw_dir} nobody\n" == (call.release.shared / "out").read_text()


def test_user_that_is_not_there(call: StepCall) -> None:
    """An unknown user is the spec's fault, for each step that has the option."""
    (call.release.path / "requirements.txt").write_text("")
    for step in (command("true", run_as="no-such-user"), PipStep(PipOptions(run_as="no-such-user"))):
        with pytest.raises(ConfigError, match="no user 'no-such-user'"):
            step.run(call)


@pytest.mark.root
def test_only_root_becomes_others(call: StepCall) -> None:
    """An agent that is not root cannot run a command as somebody else, and says so."""
    child = os.fork()
    if child == 0:
        os.setuid(pwd.getpwnam("nobody").pw_uid)
        try:
            command("true", run_as="daemon").run(call)
        except ConfigError as error:
            os._exit(0 if "needs an agent that runs as root" in error.message else 1)
        os._exit(2)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wheel(directory: Path, name: str, version: str = "1.0") -> Path:
    """A tiny package, by hand."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def pip(call: StepCall, **options: Any) -> PipStep:
    defaults: dict[str, Any] = {"python": sys.executable, "no_index": True, "find_links": ("{root}/wheels",)}
    return PipStep(PipOptions(**(defaults | options)))


def version_in(venv: Path, name: str) -> str:
    import subprocess

    return subprocess.check_output([venv / "bin/python", "-c", f"import {name}; print({name}.VERSION)"], text=True).strip()


def test_pip_installs_into_the_release(call: StepCall) -> None:
    """The requirements are installed into the release, which may hold modules of the standard library's names."""
    wheel(call.release.root / "wheels", "tinypkg")
    (call.release.path / "requirements.txt").write_text("tinypkg==1.0\n")
    (call.release.path / "random.py").write_text("raise SystemExit('imported by mistake')\n")
    (call.release.path / "logging").mkdir()
    (call.release.path / "logging/__init__.py").write_text("raise SystemExit('imported by mistake')\n")

    pip(call).run(call)

    assert "1.0" == version_in(call.release.path / "venv", "tinypkg")
    assert "--require-hashes" not in call.log.read_text()


def test_pip_makes_a_broken_environment_anew(call: StepCall) -> None:
    """An environment that a crash left half-made does no harm."""
    wheel(call.release.root / "wheels", "tinypkg")
    (call.release.path / "requirements.txt").write_text("tinypkg\n")
    (call.release.path / "env/lib").mkdir(parents=True)
    (call.release.path / "env/leftover").write_text("")

    pip(call, venv="env").run(call)

    assert "1.0" == version_in(call.release.path / "env", "tinypkg")
    assert not (call.release.path / "env/leftover").exists()


@pytest.mark.parametrize("right", [True, False])
def test_pip_holds_everything_to_hashes(call: StepCall, right: bool) -> None:
    """When the file has hashes pip must check them, and another artifact is refused."""
    artifact = wheel(call.release.root / "wheels", "tinypkg")
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest() if right else "0" * 64
    (call.release.path / "requirements.txt").write_text(f"tinypkg==1.0 \\\n    --hash=sha256:{digest}\n")

    if right:
        pip(call).run(call)
    else:
        with pytest.raises(StepFailed, match="DO NOT MATCH THE HASHES"):
            pip(call).run(call)

    assert "--require-hashes" in call.log.read_text()


def test_hash_in_a_comment_is_none(call: StepCall) -> None:
    """A comment that speaks of hashes does not ask for them."""
    wheel(call.release.root / "wheels", "tinypkg")
    (call.release.path / "requirements.txt").write_text("tinypkg  # no --hash=sha256:… yet\n")

    pip(call).run(call)

    assert "--require-hashes" not in call.log.read_text()


def test_package_that_is_not_there(call: StepCall) -> None:
    """What pip says is in the message."""
    (call.release.root / "wheels").mkdir()
    (call.release.path / "requirements.txt").write_text("nosuchpkg==9\n")

    with pytest.raises(StepFailed, match=r"step pip of build v1: (.|\n)*No matching distribution found for nosuchpkg"):
        pip(call).run(call)


def test_password_of_the_index_is_told_to_nobody(call: StepCall) -> None:
    """User and password of an index are neither in the log nor in the message."""
    (call.release.path / "requirements.txt").write_text("nosuchpkg==9\n")
    url = "http://user:hunter2@127.0.0.1:9/simple"

    with pytest.raises(StepFailed) as caught:
        pip(call, no_index=False, find_links=(), index_url=url, args=("--retries", "0")).run(call)

    assert "hunter2" not in caught.value.message + call.log.read_text()


def test_password_in_an_argument_is_told_to_nobody(call: StepCall) -> None:
    """User and password of a URL among the arguments are neither in the log nor in the message, which say all else."""
    (call.release.path / "requirements.txt").write_text("nosuchpkg==9\n")
    url = "http://user:hunter2@127.0.0.1:9/wheels"

    with pytest.raises(StepFailed) as caught:
        pip(call, find_links=(url,), args=("--retries", "0")).run(call)
    with pytest.raises(StepFailed) as of_command:
        command("false", f"--from={url}").run(call)

    assert "--find-links http://****@127.0.0.1:9/wheels" in caught.value.message
    assert "hunter2" not in caught.value.message + of_command.value.message + call.log.read_text()


def test_missing_requirements(call: StepCall) -> None:
    """Without the file the step fails and says how to go on, or is content when it is optional."""
    with pytest.raises(StepFailed, match=r"no requirements\.txt in the release") as caught:
        pip(call).run(call)

    assert "optional = true" in caught.value.hint

    pip(call, optional=True).run(call)

    assert [] == list(call.release.path.iterdir())


@pytest.mark.parametrize("place", ["/etc", "../venv", "", "a/../../b"])
def test_environment_outside_the_release(call: StepCall, place: str) -> None:
    """Nothing is made, and nothing cleared, outside the release."""
    (call.release.path / "requirements.txt").write_text("")

    with pytest.raises(ConfigError, match="must be a path in the release"):
        pip(call, venv=place).run(call)


@pytest.mark.root
def test_pip_as_another_user(public_call: StepCall) -> None:
    """With `run_as` the environment belongs to that user, and the rest of the release does not."""
    call = public_call
    wheel(call.release.root / "wheels", "tinypkg")
    (call.release.path / "requirements.txt").write_text("tinypkg\n")

    pip(call, run_as="nobody", python="/usr/bin/python3", env={"PIP_CACHE_DIR": "{release}/venv/cache"}).run(call)

    nobody = pwd.getpwnam("nobody").pw_uid
    assert nobody == (call.release.path / "venv/bin/python").lstat().st_uid
    assert 0 == call.release.path.stat().st_uid
    assert "1.0" == version_in(call.release.path / "venv", "tinypkg")


def test_a_command_that_outlived_its_agent_is_waited_for(tmp_path: Path) -> None:
    """Killed with -9 in mid-step and started again, the agent does not run the step beside the command it left behind."""
    call = call_in(tmp_path)
    marks = tmp_path / "marks"
    script = f"echo begin >> {marks}; sleep 1.5; echo end >> {marks}"
    code = (
        "import msgspec, sys; from deployd_core.api import StepCall;"
        "from deployd_plugins.steps.command import CommandStep, CommandStepOptions as O;"
        "call = msgspec.convert(msgspec.json.decode(sys.argv[1]), StepCall, dec_hook=lambda kind, value: kind(value));"
        f"CommandStep(O(argv=('sh', '-c', {script!r}))).run(call)"
    )
    argument = msgspec.json.encode(call, enc_hook=str).decode()
    agent = subprocess.Popen([sys.executable, "-c", code, argument])
    while not marks.exists():
        assert agent.poll() is None
        time.sleep(0.01)
    agent.kill()
    agent.wait()

    command("sh", "-c", script).run(call)

    assert ["begin", "end", "begin", "end"] == marks.read_text().split()


def test_a_log_that_is_held_for_too_long_is_no_fault_of_the_build(tmp_path: Path) -> None:
    """An earlier run that does not end makes the step wait, and then say who is in the way."""
    call = call_in(tmp_path, timeout=0.5)
    with call.log.open("a") as log:
        held = subprocess.Popen(["sleep", "60"], stdout=log)
        fcntl.flock(log, fcntl.LOCK_EX)
    try:
        with pytest.raises(Unavailable, match="an earlier run still writes to"):
            command("true").run(call)
    finally:
        held.kill()
        held.wait()
