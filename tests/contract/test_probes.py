"""Every probe that ships keeps the contract, and the fake one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deployd_core.api import InstanceCall, Probe, ProbeOptions, Verdict
from deployd_core.testing import FakeProbe, ProbeContract, SampleService, SpeakingProbeContract
from deployd_plugins.probes.command import CommandProbe, CommandProbeOptions
from deployd_plugins.probes.http import HttpOptions, HttpProbe
from deployd_plugins.probes.tcp import TcpOptions, TcpProbe


class TestHttp(SpeakingProbeContract):
    """http."""

    def make_probe(self) -> Probe[Any]:
        return HttpProbe(HttpOptions(url="http://127.0.0.1:{port}/"))


class TestTcp(ProbeContract):
    """tcp."""

    def make_probe(self) -> Probe[Any]:
        return TcpProbe(TcpOptions())


class TestCommand(ProbeContract):
    """A command: the instance is healthy while its file is there."""

    def make_probe(self) -> Probe[Any]:
        return CommandProbe(CommandProbeOptions(argv=("test", "-e", "{root}/shared/{instance}.up")))

    @contextmanager
    def healthy(self, service: SampleService) -> Iterator[InstanceCall]:
        up = service.root / "shared" / "web@1.up"
        up.touch()
        yield service.call("web@1")
        up.unlink()

    @contextmanager
    def sick(self, service: SampleService) -> Iterator[InstanceCall]:
        yield service.call("web@2")


class TestFake(ProbeContract):
    """The fake one, told which instance is well."""

    well: str | None = None

    def make_probe(self) -> Probe[Any]:
        return FakeProbe(
            ProbeOptions(),
            lambda call: Verdict.healthy() if call.instance.name == self.well else Verdict.unhealthy("told so"),
        )

    @contextmanager
    def healthy(self, service: SampleService) -> Iterator[InstanceCall]:
        self.well = "web@1"
        yield service.call("web@1")
        self.well = None

    @contextmanager
    def sick(self, service: SampleService) -> Iterator[InstanceCall]:
        yield service.call("web@2")
