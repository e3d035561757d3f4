"""The hooks: where a plugin module meets deployd, one function and one docstring each.

Eight hooks return classes (or commands) and are called once, when plugins are loaded; two are called while deploys happen. A hook
function may take fewer arguments than its specification here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from deployd_core.api import Gate, Manager, Probe, Reporter, Source, Step, Strategy
    from deployd_core.model import Event, RestartRequest, Veto

hookspec = pluggy.HookspecMarker("deployd")


@hookspec
def deployd_strategies() -> Iterable[type[Strategy[Any]]]:  # type: ignore[empty-body]
    """Return the restart strategies of this module.

    Example::

        class WholeHost(Strategy[FleetOptions]):
            \"\"\"Restart every instance of a host at once, so many hosts at a time.\"\"\"

            name = "whole-host"

            def plan(self, view: HostView) -> Plan:
                return Plan(cycle=view.stale, limit=self.options.fleet_limit, why="the whole host at once")


        @hookimpl
        def deployd_strategies():
            return [WholeHost]
    """


@hookspec
def deployd_gates() -> Iterable[type[Gate[Any]]]:  # type: ignore[empty-body]
    """Return the gates of this module: what turns the traffic of an instance off and on.

    Example::

        class FileGate(Gate[Options]):
            \"\"\"Take an instance out of rotation by a file that its balancer looks for.\"\"\"

            name = "file"

            def close(self, call):
                (call.root / "shared" / f"{call.instance.name}.closed").write_text(f"{call.owner} {call.until}")

            def open(self, call):
                (call.root / "shared" / f"{call.instance.name}.closed").unlink(missing_ok=True)

            def closed(self, call):
                found = []
                for path in (call.root / "shared").glob("*.closed"):
                    owner, until = path.read_text().split()
                    found.append(ClosedGate(service=call.service, instance=path.stem, owner=owner, until=float(until)))
                return tuple(found)

            def connections(self, call):
                return Connections(busy=0)


        @hookimpl
        def deployd_gates():
            return [FileGate]
    """


@hookspec
def deployd_managers() -> Iterable[type[Manager[Any]]]:  # type: ignore[empty-body]
    """Return the managers of this module: what starts, stops, restarts and reloads instances.

    Example::

        class Nothing(Manager[Options]):
            \"\"\"Manage instances that need no process, such as files that a web server reads.\"\"\"

            name = "nothing"

            def state(self, call):
                return Status(state=State.RUNNING)

            def restart(self, call):
                pass

            start = stop = restart


        @hookimpl
        def deployd_managers():
            return [Nothing]
    """


@hookspec
def deployd_probes() -> Iterable[type[Probe[Any]]]:  # type: ignore[empty-body]
    """Return the probes of this module: what tells whether an instance is healthy.

    Example::

        class SocketFile(Probe[ProbeOptions]):
            \"\"\"Call an instance healthy when its socket file exists.\"\"\"

            name = "socket-file"

            def check(self, call):
                path = call.root / "shared" / f"{call.instance.name}.sock"
                return Verdict.healthy() if path.is_socket() else Verdict.unhealthy(f"{path} is missing")


        @hookimpl
        def deployd_probes():
            return [SocketFile]
    """


@hookspec
def deployd_sources() -> Iterable[type[Source[Any]]]:  # type: ignore[empty-body]
    """Return the sources of this module: what fetches builds. A source named like a URL scheme serves those URLs.

    Example::

        class InMemory(Source[Options]):
            \"\"\"Serve builds from a dictionary.\"\"\"

            name = "memory"
            builds = {"v1": b"..."}

            def resolve(self, call):
                return Artifact(location=f"memory:{call.build}.tar.gz", size=len(self.builds[call.build]))

            def fetch(self, call):
                data = self.builds[call.build]
                return Download(chunks=iter([data[call.offset :]]), offset=call.offset, size=len(data))


        @hookimpl
        def deployd_sources():
            return [InMemory]
    """


@hookspec
def deployd_steps() -> Iterable[type[Step[Any]]]:  # type: ignore[empty-body]
    """Return the post-install steps of this module.

    Example::

        class Stamp(Step[StepOptions]):
            \"\"\"Write the id of the build into the release.\"\"\"

            name = "stamp"

            def run(self, call):
                (call.release.path / "BUILD").write_text(call.release.build.id)


        @hookimpl
        def deployd_steps():
            return [Stamp]
    """


@hookspec
def deployd_reporters() -> Iterable[type[Reporter[Any]]]:  # type: ignore[empty-body]
    """Return the reporters of this module; the agent's ``[[reporters]]`` tables choose among them.

    Example::

        class Printing(Reporter[Options]):
            \"\"\"Print every event.\"\"\"

            name = "print"

            def report(self, event):
                print(event.at, event.name, event.service, event.host)


        @hookimpl
        def deployd_reporters():
            return [Printing]
    """


@hookspec
def deployd_commands() -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Return further commands for ``deployd``; one that has the name of a built-in command is refused.

    Example::

        @click.command("hello")
        def hello():
            \"\"\"Say hello.\"\"\"
            click.echo("hello")


        @hookimpl
        def deployd_commands():
            return [hello]
    """


@hookspec
def deployd_veto(request: RestartRequest) -> Veto | None:
    """Say no to a restart that is about to begin on this host, or return None.

    Asked on every host before it takes a permit, never while one is held. A veto that raises or does not answer in time counts
    as a veto, with that as its reason: what could not be asked has not agreed.

    Example::

        @hookimpl
        def deployd_veto(request):
            if pathlib.Path("/run/no-restarts").exists():
                return Veto(reason="/run/no-restarts exists", retry_after=10)
    """


@hookspec
def deployd_veto_promotion(service: str, build: str) -> str | None:
    """Say why a build that the canary hosts serve must not go to the fleet, or return None.

    Asked before a build is promoted: by the agent of a canary host when that happens by itself, and by ``deployd promote``. A veto
    that raises or does not answer in time counts as a veto, with that as its reason: what could not be asked has not agreed.

    Example::

        @hookimpl
        def deployd_veto_promotion(service, build):
            if pathlib.Path("/run/error-rate-is-high").exists():
                return "too many errors on the canaries"
    """


@hookspec
def deployd_event(event: Event) -> None:
    """Be told what happens on this host. Runs beside the deploy: slowness and errors do no harm to it.

    Example::

        @hookimpl
        def deployd_event(event):
            if event.name == "host.failed":
                print("look at", event.host)
    """
