"""What is particular to the `systemd` manager, on a real systemd in namespaces of its own."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployd_core.api import ConfigError, RestartFailed, State, Unavailable
from deployd_core.testing.sample import SampleService
from deployd_core.testing.systemd import Systemd
from deployd_plugins.managers.systemd import SystemdManager, SystemdOptions

HEAD = "[Unit]\nDefaultDependencies=no\n[Service]\n"
UNITS = {
    "web@.service": HEAD + "Type=exec\nExecStart=/bin/sleep 60\n",
    "missing.service": HEAD + "Type=exec\nExecStart=/nonexistent/server\n",
    "quiet.service": HEAD + "Type=notify\nExecStart=/bin/sleep 60\n",
    "refusing.service": HEAD + "Type=oneshot\nExecStart=/bin/false\n",
    "retrying.service": HEAD + "Restart=always\nRestartSec=60\nExecStart=/bin/false\n",
    "reloading.service": HEAD + "ExecStart=/bin/sleep 60\nExecReload=/usr/bin/touch /run/reloaded\n",
    "unloading.service": HEAD + "ExecStart=/bin/sleep 60\nExecReload=/bin/false\n",
    "broken.service": HEAD + "ExecStart=not/absolute\n",
}

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    with Systemd(UNITS) as systemd:
        yield systemd


@pytest.fixture
def manager(systemd: Systemd) -> SystemdManager:
    return SystemdManager(SystemdOptions(bus=systemd.bus))


@pytest.fixture
def service(tmp_path: Path) -> SampleService:
    return SampleService(tmp_path / "web")


def test_unit_of_a_template_is_filled_in_for_each_instance(systemd: Systemd, service: SampleService) -> None:
    """The unit is named by the template, and two instances are two units."""
    manager = SystemdManager(SystemdOptions(bus=systemd.bus, unit="{service}@{port}.service"))
    manager.start(service.call("one@8001"))
    assert manager.state(service.call("one@8001")).state is State.RUNNING
    assert manager.state(service.call("two@8002")).state is State.STOPPED
    manager.stop(service.call("one@8001"))


def test_missing_executable_fails_the_restart(manager: SystemdManager, service: SampleService) -> None:
    """Where systemd can tell, a unit that cannot start fails the restart with systemd's own words."""
    with pytest.raises(RestartFailed, match="result exit-code") as caught:
        manager.restart(service.call("missing"))
    assert "journalctl -u missing.service" in caught.value.hint
    assert manager.state(service.call("missing")).detail == "failed (failed): exit-code"


def test_unit_that_never_gets_ready_is_given_up_at_the_deadline(manager: SystemdManager, service: SampleService) -> None:
    """A notifying unit that says nothing is still starting when the time of the call is over."""
    with pytest.raises(RestartFailed, match=r"has not finished RestartUnit of quiet.service in 0.3 s: it is activating \(start\)"):
        manager.restart(service.call("quiet", timeout=0.3))
    status = manager.state(service.call("quiet"))
    assert status.state is State.STARTING
    assert status.pid
    manager.stop(service.call("quiet"))


def test_oneshot_that_fails_fails_the_start(manager: SystemdManager, service: SampleService) -> None:
    """The result of the job is what counts, not that it was accepted."""
    with pytest.raises(RestartFailed, match="StartUnit of refusing.service ended as failed"):
        manager.start(service.call("refusing"))


def test_unit_that_waits_for_its_next_attempt_counts_as_starting(manager: SystemdManager, service: SampleService) -> None:
    """A unit that died and will be started again is starting, and its words say so."""
    manager.start(service.call("retrying"))
    while (status := manager.state(service.call("retrying"))).state is State.RUNNING:
        assert status.detail
    assert (State.STARTING, None, "activating (auto-restart)") == (status.state, status.pid, status.detail)
    manager.stop(service.call("retrying"))


def test_many_restarts_in_a_row_are_not_refused(manager: SystemdManager, service: SampleService) -> None:
    """A rollback soon after several deploys does not run into systemd's limit of 5 starts in 10 s."""
    pids = set()
    for _ in range(8):
        manager.restart(service.call("web@1"))
        pids.add(manager.state(service.call("web@1")).pid)
    assert len(pids) == 8


def test_reload_runs_what_the_unit_says(systemd: Systemd, manager: SystemdManager, service: SampleService) -> None:
    """Reload runs ExecReload, keeps the process, and fails when that fails or there is none."""
    manager.start(service.call("reloading"))
    before = manager.state(service.call("reloading"))
    manager.reload(service.call("reloading"))
    assert systemd.run("test", "-e", "/run/reloaded").returncode == 0
    assert manager.state(service.call("reloading")) == before
    manager.start(service.call("unloading"))
    with pytest.raises(RestartFailed, match="ReloadUnit of unloading.service ended as failed"):
        manager.reload(service.call("unloading"))
    manager.start(service.call("web@2"))
    with pytest.raises(RestartFailed, match="reload is not applicable"):
        manager.reload(service.call("web@2"))


def test_unit_with_a_broken_file_is_an_error_of_the_configuration(manager: SystemdManager, service: SampleService) -> None:
    """A unit that systemd cannot read is named with systemd's word for it."""
    with pytest.raises(ConfigError, match="unit broken.service is bad-setting"):
        manager.restart(service.call("broken"))


def test_unit_that_was_added_is_found(systemd: Systemd, manager: SystemdManager, service: SampleService) -> None:
    """A unit that was not there is found after it has been written."""
    with pytest.raises(ConfigError, match="late.service is not-found"):
        manager.state(service.call("late"))
    systemd.write_unit("late.service", UNITS["web@.service"])
    assert manager.state(service.call("late")).state is State.STOPPED


def test_absent_bus_is_worth_another_try(service: SampleService, tmp_path: Path) -> None:
    """Without a bus the error is Unavailable and names the address."""
    manager = SystemdManager(SystemdOptions(bus=f"unix:path={tmp_path}/bus"))
    with pytest.raises(Unavailable, match=f"no message bus at unix:path={tmp_path}/bus"):
        manager.restart(service.call("web@1"))


def test_silent_bus_is_given_up_at_the_deadline(service: SampleService, tmp_path: Path) -> None:
    """A bus that takes connections and never answers costs the time of the call, not more."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "bus"))
        listening.listen()
        manager = SystemdManager(SystemdOptions(bus=f"unix:path={tmp_path}/bus"))
        with pytest.raises(Unavailable):
            manager.state(service.call("web@1", timeout=0.2))


def test_address_that_cannot_be_is_refused_with_the_options() -> None:
    """An address of another transport is found when the spec is read."""
    with pytest.raises(ValueError, match="must be an address such as"):
        SystemdOptions(bus="tcp:host=localhost")


def test_user_without_rights_is_told_what_to_do(systemd: Systemd) -> None:
    """Who may not manage units gets an error of the configuration that names the way out."""
    code = """
import os, pathlib, sys
from deployd_core.api import ConfigError
from deployd_core.testing.sample import SampleService
from deployd_plugins.managers.systemd import SystemdManager, SystemdOptions
import encodings.ascii, encodings.idna, jeepney.io.blocking, jeepney.wrappers, jeepney.bus_messages, jeepney.auth
call = SampleService(pathlib.Path(sys.argv[1])).call("web@1")
manager = SystemdManager(SystemdOptions(bus="unix:path=/run/dbus/system_bus_socket"))
os.setresuid(65534, 65534, 65534)
try:
    manager.restart(call)
except ConfigError as error:
    print(error, "|", error.hint)
"""
    answer = systemd.run(sys.executable, "-c", code, "/run/web")
    assert "does not let this user manage web@1.service" in answer.stdout, answer.stderr
    assert "run the agent as root, or add a polkit rule" in answer.stdout
