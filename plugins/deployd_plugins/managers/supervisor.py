"""The `supervisor` manager: instances that are programs of a supervisord, asked over XML-RPC."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from deployd_core.api import (
    ConfigError,
    DeploydError,
    InstanceCall,
    Manager,
    Meta,
    Options,
    RestartFailed,
    State,
    Status,
    Unavailable,
    hookimpl,
)

if TYPE_CHECKING:
    import http.client
    import xmlrpc.client

_STATES = {
    "STOPPED": State.STOPPED,
    "STARTING": State.STARTING,
    "RUNNING": State.RUNNING,
    "BACKOFF": State.STARTING,  # it died early and supervisor is about to try again; when it gives up, that is FATAL
    "STOPPING": State.STOPPING,
    "EXITED": State.STOPPED,
    "FATAL": State.FAILED,
}
_DOWN = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")

# The fault codes of supervisor's XML-RPC interface that mean something of their own here.
_UNKNOWN_METHOD = 1
_SHUTDOWN_STATE = 6
_BAD_NAME = 10
_ALREADY_STARTED = 60
_NOT_RUNNING = 70
_NEWBORN = 0.5
"""Seconds after which a process that had only just been started is told once more to stop."""

_SOCKET_PATH_BYTES = 107

_LOOK_AGAIN = 0.01
"""Seconds between two looks while a program stops. supervisord notices the death of a child when a request wakes it, else up to
a second later."""


class SupervisorOptions(Options, frozen=True, kw_only=True):
    """Where supervisord is, and what it calls an instance."""

    url: Annotated[str, Meta(description="unix:///path/of/the/socket or http://host:port; {root} and the like are filled in")] = (
        "unix:///run/supervisor.sock"
    )
    program: Annotated[str, Meta(description="what supervisor calls an instance: program, or group:program")] = "{instance}"
    username: Annotated[str, Meta(description="user name, where supervisor wants one")] = ""
    password_file: Annotated[str, Meta(description="file that holds the password, alone")] = ""
    reload_signal: Annotated[str, Meta(description="signal that has a program take the new release")] = "HUP"

    def __post_init__(self) -> None:
        """Refuse a URL that cannot be a supervisor's."""
        from urllib.parse import urlsplit

        if "{" in self.url:
            return  # looked at again once it is filled in
        parts = urlsplit(self.url)
        if not (parts.scheme == "http" and parts.hostname and parts.port != 0) and not (
            parts.scheme == "unix" and parts.path and not parts.netloc
        ):
            raise ValueError(f"url {self.url!r} must be unix:///path/of/the/socket or http://host:port")
        if parts.scheme == "unix" and len(parts.path.encode()) > _SOCKET_PATH_BYTES:
            raise ValueError(f"url {self.url!r} has a path longer than the {_SOCKET_PATH_BYTES} bytes of a socket")


class SupervisorManager(Manager[SupervisorOptions]):
    """Restart programs of a supervisord over its XML-RPC interface.

    Give the programs ``directory=<root>/current`` and ``environment=PWD="<root>/current"``.
    """

    name = "supervisor"

    def state(self, call: InstanceCall) -> Status:
        """Ask supervisord for the program."""
        info = self._program(call).info()
        state = _STATES.get(info["statename"], State.UNKNOWN)
        if info["statename"] == "EXITED" and info["exitstatus"] != 0:
            state = State.FAILED
        return Status(state=state, pid=info["pid"] or None, detail=_describe(info))

    def start(self, call: InstanceCall) -> None:
        """Start the program; supervisord watches it from then on."""
        program = self._program(call)
        if program.info()["statename"] == "STOPPING":
            program.stop()
        program.start()

    def stop(self, call: InstanceCall) -> None:
        """Stop the program and wait until it has ended."""
        self._program(call).stop()

    def restart(self, call: InstanceCall) -> None:
        """Stop the program, start it as soon as it has ended, and return when its process is there, not after its startsecs."""
        program = self._program(call)
        program.stop()
        program.start()

    def reload(self, call: InstanceCall) -> None:
        """Send the program the reload signal."""
        program = self._program(call)
        program.ask("signalProcess", self.options.reload_signal)

    def _program(self, call: InstanceCall) -> _Program:
        here = msgspec.structs.replace(self.options, url=call.expand(self.options.url))
        return _Program(here, call.expand(self.options.program), call.timeout)


class _Program:
    """One program of a supervisord, during one call with one deadline."""

    def __init__(self, options: SupervisorOptions, name: str, timeout: float) -> None:
        self._options = options
        self._name = name
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout

    def info(self) -> dict[str, Any]:
        """What supervisord knows of the program."""
        answer = self.ask("getProcessInfo")
        if not isinstance(answer, dict):
            raise Unavailable(f"{self._options.url} does not answer as supervisor does: {answer!r}")
        return answer

    def start(self) -> None:
        """Start it unless it runs; without waiting for startsecs, since a probe tells more than a second of survival."""
        try:
            self.ask("startProcess", False, ignore=_ALREADY_STARTED)
        except RestartFailed as error:
            description = _describe(self.info())
            raise RestartFailed(f"{error} ({description})", hint=error.hint) from error

    def stop(self) -> None:
        """Stop it if it runs, and wait until it has ended."""
        info = self.info()
        if info["statename"] in _DOWN:
            return
        newborn = info["pid"] and info["now"] - info["start"] <= 1
        self.ask("stopProcess", False, ignore=_NOT_RUNNING)
        again_at = time.monotonic() + _NEWBORN if newborn else float("inf")
        while (info := self.info())["statename"] not in _DOWN:
            if time.monotonic() >= again_at:
                # A child that has yet to become the program, as in a crash loop, loses the signal and lives until stopwaitsecs.
                self.ask("signalProcess", self._stop_signal(), ignore=_NOT_RUNNING)
                again_at = float("inf")
            if self._left() == 0:
                raise RestartFailed(
                    f"supervisor could not stop {self._name} in {self._timeout:.1f} s: {_describe(info)}",
                    hint="its stopwaitsecs must be shorter than restart_timeout",
                )
            self._wait_for_end(info["pid"])

    def _stop_signal(self) -> str:
        """The number of the signal that ends the program: for some, TERM means something else."""
        configs = cast("list[dict[str, Any]] | None", self._call("getAllConfigInfo", ignore=_UNKNOWN_METHOD))
        for config in configs or ():
            group, name = config["group"], config["name"]
            if self._name in (f"{group}:{name}", name if group == name else None):
                return str(config["stopsignal"])
        return "TERM"

    def ask(self, method: str, *arguments: object, ignore: int | None = None) -> object:
        """Call a method of supervisord about this program; a fault `ignore` counts as done."""
        return self._call(method, self._name, *arguments, ignore=ignore)

    def _call(self, method: str, *arguments: object, ignore: int | None = None) -> object:
        import http.client
        import xml.parsers.expat
        import xmlrpc.client

        url = self._options.url
        try:
            with xmlrpc.client.ServerProxy("http://supervisor/RPC2", transport=self._transport()) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == ignore:
                return None
            raise self._refusal(fault) from fault
        except xmlrpc.client.ProtocolError as error:
            raise _http_refusal(url, error) from error
        except TimeoutError as error:
            raise Unavailable(f"supervisor at {url} did not answer {method} in time") from error
        except PermissionError as error:
            raise ConfigError(
                f"supervisor's socket {url} may not be used: {error.strerror}",
                hint="run the agent as root, or set chown and chmod in [unix_http_server]",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"supervisor at {url} does not answer: {error}", hint="is supervisord running?") from error
        except (xmlrpc.client.Error, xml.parsers.expat.ExpatError) as error:
            raise Unavailable(f"{url} does not answer as supervisor does: {error}") from error

    def _refusal(self, fault: xmlrpc.client.Fault) -> DeploydError:
        if fault.faultCode == _BAD_NAME:
            return ConfigError(
                f"supervisor at {self._options.url} has no program {self._name!r}",
                hint=f"`supervisorctl -s {self._options.url} update` reads its configuration again, `… status` lists its programs",
            )
        if fault.faultCode == _SHUTDOWN_STATE:
            return Unavailable(f"supervisor at {self._options.url} is shutting down")
        return RestartFailed(
            f"supervisor refused {self._name}: {fault.faultString}",
            hint=f"`supervisorctl -s {self._options.url} tail {self._name} stderr` shows its output",
        )

    def _wait_for_end(self, pid: int) -> None:
        """Until the process has ended or it is time to look again: its pid may be one of another machine or namespace."""
        from deployd_plugins.commands import wait_gone

        moment = min(_LOOK_AGAIN, self._left())
        if not pid or wait_gone(pid, moment):
            time.sleep(min(0.001, self._left()))

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _transport(self) -> xmlrpc.client.Transport:
        password = _password(self._options.password_file) if self._options.password_file else ""
        return _transport(self._options.url, self._options.username, password, max(0.05, self._left()))


def _describe(info: dict[str, Any]) -> str:
    """In supervisor's words: ``BACKOFF: Exited too quickly (process log may have details)``."""
    words = info["spawnerr"] or info["description"]
    return f"{info['statename']}: {words}" if words else str(info["statename"])


def _http_refusal(url: str, error: xmlrpc.client.ProtocolError) -> DeploydError:
    if error.errcode == 401:
        return ConfigError(f"supervisor at {url} wants another user name or password", hint="set username and password_file")
    if error.errcode == 404:
        return ConfigError(f"{url} is not supervisor's XML-RPC interface")
    return Unavailable(f"supervisor at {url} answers {error.errcode} {error.errmsg}")


def _password(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read password_file {path}: {error.strerror}") from error


def _transport(url: str, username: str, password: str, timeout: float) -> xmlrpc.client.Transport:
    """A transport that speaks to `url`, with a time limit on each wait for bytes."""
    import base64
    import xmlrpc.client

    token = base64.b64encode(f"{username}:{password}".encode()).decode()
    headers = [("Authorization", f"Basic {token}")] if username else []

    class Transport(xmlrpc.client.Transport):
        def make_connection(self, host: object) -> http.client.HTTPConnection:
            self._extra_headers = headers
            connection = _connection(url, timeout)
            self._connection = (host, connection)  # type: ignore[assignment]  # for close()
            return connection

    return Transport()


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    import http.client
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname or "", parts.port or 9001, timeout=timeout)

    class UnixConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout)
            self.sock.connect(parts.path)

    return UnixConnection("localhost", timeout=timeout)


@hookimpl
def deployd_managers() -> list[type]:
    """The manager of this module."""
    return [SupervisorManager]
