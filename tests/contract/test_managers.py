"""Every manager that ships keeps the contract: on a real supervisord, a real systemd, and real commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployd_core.api import Manager
from deployd_core.testing import FakeManager, FakeManagerOptions, ManagerContract, SampleService
from deployd_core.testing.fakes import FakeProcesses
from deployd_core.testing.supervisor import Program, Supervisord
from deployd_core.testing.systemd import Systemd
from deployd_plugins.managers.command import CommandManager, CommandManagerOptions
from deployd_plugins.managers.supervisor import SupervisorManager, SupervisorOptions
from deployd_plugins.managers.systemd import SystemdManager, SystemdOptions


class TestSupervisor(ManagerContract):
    """supervisor."""

    @contextmanager
    def managing(self, service: SampleService, directory: Path, ports: Mapping[str, int]) -> Iterator[Manager[Any]]:
        programs = {
            f"{kind}@{port}": Program(
                command=service.command(port, kind),
                directory=service.current,
                startretries=0,
                stopwaitsecs=2 if kind == "deaf" else 10,
            )
            for kind, port in ports.items()
        }
        with Supervisord(directory, programs) as supervisord:
            yield SupervisorManager(SupervisorOptions(url=supervisord.url))


@pytest.mark.root
class TestSystemd(ManagerContract):
    """systemd, in namespaces of its own."""

    systemd: Systemd

    @contextmanager
    def managing(self, service: SampleService, directory: Path, ports: Mapping[str, int]) -> Iterator[Manager[Any]]:
        unit = (
            "[Unit]\nDefaultDependencies=no\n"
            "[Service]\nType=exec\nExecStart={command}\nWorkingDirectory={current}\nEnvironment=PWD={current}\n"
        )
        units = {
            f"{kind}@.service": unit.format(command=" ".join(service.command("%i", kind)), current=service.current)
            for kind in ports
        }
        with Systemd(units, shared=[directory.parent]) as self.systemd:
            yield SystemdManager(SystemdOptions(bus=self.systemd.bus))

    def outer_pid(self, pid: int) -> int:
        return self.systemd.pid_of(pid)


INIT_SCRIPT = """\
#!/bin/sh
# An init script as people write them: server ACTION INSTANCE PORT
kind=${{2%@*}}
pid_file={shared}/$2.pid
case $kind in web|peer|die|deaf) ;; *) echo "no such instance: $2"; exit 6;; esac
case $1 in
start) {command} $3 $kind & echo $! > $pid_file ;;
stop) kill $(cat $pid_file); rm $pid_file ;;
status) test -f $pid_file || exit 3; kill -0 $(cat $pid_file) || exit 1 ;;
esac
"""


class TestCommand(ManagerContract):
    """Commands: an init script."""

    @contextmanager
    def managing(self, service: SampleService, directory: Path, ports: Mapping[str, int]) -> Iterator[Manager[Any]]:
        directory.mkdir()
        script = directory / "server"
        command = shlex.join(service.command("")[:-1])
        script.write_text(INIT_SCRIPT.format(shared=service.root / "shared", command=command), encoding="utf-8")
        script.chmod(0o755)
        actions = {name: (str(script), name, "{instance}", "{port}") for name in ("start", "stop", "status")}
        yield CommandManager(CommandManagerOptions(**actions, pid_file="{root}/shared/{instance}.pid"))


class TestFake(ManagerContract):
    """The fake one: children of this process."""

    @contextmanager
    def managing(self, service: SampleService, directory: Path, ports: Mapping[str, int]) -> Iterator[Manager[Any]]:
        names = tuple(f"{kind}@{port}" for kind, port in ports.items())
        # A shell passes on which kind of instance it is; `exec` leaves the server as the main process.
        command = ("/bin/sh", "-c", 'kind=${0%@*}; exec "$@" "$kind"', "{instance}", *service.command("{port}"))
        processes = FakeProcesses()
        try:
            yield FakeManager(FakeManagerOptions(command=command, instances=names), processes)
        finally:
            processes.kill()
