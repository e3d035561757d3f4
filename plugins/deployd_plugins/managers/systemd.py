"""The `systemd` manager: instances that are units, asked over D-Bus."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

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
    from jeepney import DBusErrorResponse, Message
    from jeepney.io.blocking import DBusConnection

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{_NAME}.Manager"
_SERVICE = f"{_NAME}.Service"
_UNKNOWN_UNIT = (f"{_NAME}.NoSuchUnit", "org.freedesktop.DBus.Error.InvalidArgs")
_DENIED = ("org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
_AWAY = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.Spawn.ChildExited",
)
_STATES = {
    "active": State.RUNNING,
    "reloading": State.RUNNING,
    "refreshing": State.RUNNING,
    "activating": State.STARTING,
    "deactivating": State.STOPPING,
    "inactive": State.STOPPED,
    "failed": State.FAILED,
}


class SystemdOptions(Options, frozen=True, kw_only=True):
    """Which unit an instance is, and whose systemd runs it."""

    unit: Annotated[str, Meta(description='unit of an instance, such as "web@{port}.service"')] = "{instance}.service"
    scope: Annotated[Literal["system", "user"], Meta(description="the machine's systemd, or that of the agent's user")] = "system"
    bus: Annotated[str, Meta(description="address of the message bus, when it is not the usual one of the scope")] = ""

    def __post_init__(self) -> None:
        """Refuse an address that cannot be used."""
        if self.bus and not self.bus.startswith(("unix:path=", "unix:abstract=")):
            raise ValueError(f"bus {self.bus!r} must be an address such as unix:path=/run/dbus/system_bus_socket")


class SystemdManager(Manager[SystemdOptions]):
    """Restart units of systemd over D-Bus.

    Give the units ``WorkingDirectory=<root>/current`` and ``Environment=PWD=<root>/current``. A unit of ``Type=notify`` has
    restarted when it says so, others when their process has been started.
    """

    name = "systemd"

    def state(self, call: InstanceCall) -> Status:
        """Ask for the unit's state and main process."""
        with self._unit(call) as unit:
            status = unit.status()
            pid = unit.property("MainPID")
            result = unit.property("Result") if status.active == "failed" else ""
        detail = f"{status.active} ({status.sub})" + (f": {result}" if result else "")
        return Status(state=_STATES.get(status.active, State.UNKNOWN), pid=pid or None, detail=detail)

    def start(self, call: InstanceCall) -> None:
        """Start the unit; nothing happens when it is active."""
        with self._unit(call) as unit:
            unit.forget_starts()
            unit.job("StartUnit")

    def stop(self, call: InstanceCall) -> None:
        """Stop the unit and wait until its processes have ended."""
        with self._unit(call) as unit:
            unit.job("StopUnit")

    def restart(self, call: InstanceCall) -> None:
        """Restart the unit, or start it when it is not active."""
        with self._unit(call) as unit:
            unit.forget_starts()
            unit.job("RestartUnit")

    def reload(self, call: InstanceCall) -> None:
        """Have the unit reload itself; a command of ExecReload need not have done its work when this returns."""
        with self._unit(call) as unit:
            unit.job("ReloadUnit")

    @contextmanager
    def _unit(self, call: InstanceCall) -> Iterator[_Unit]:
        name = call.expand(self.options.unit)
        deadline = time.monotonic() + call.timeout
        with _connect(self.options, call.timeout) as connection:
            yield _Unit(connection, name, deadline, call.timeout)


class _UnitStatus(NamedTuple):
    """What ListUnitsByNames says first of a unit."""

    name: str
    description: str
    load: str
    active: str
    sub: str


class _Unit:
    """One unit during one call with one deadline."""

    def __init__(self, connection: DBusConnection, name: str, deadline: float, timeout: float) -> None:
        self._connection = connection
        self._name = name
        self._deadline = deadline
        self._timeout = timeout
        self._path = ""

    def status(self) -> _UnitStatus:
        """Load it if need be, and say its state.

        Raises:
            ConfigError: There is no such unit, or its file is broken.
        """
        (units,) = self._call(_PATH, _MANAGER, "ListUnitsByNames", "as", ([self._name],))
        self._path = units[0][6]
        status = _UnitStatus(*units[0][:5])
        if status.load != "loaded":
            raise ConfigError(
                f"unit {self._name} is {status.load}",
                hint=f"`systemctl status {self._name}` says more; after a change of unit files `systemctl daemon-reload`",
            )
        return status

    def property(self, name: str) -> Any:
        """A property of it as a service; `status` must have been asked."""
        ((_, value),) = self._call(self._path, "org.freedesktop.DBus.Properties", "Get", "ss", (_SERVICE, name))
        return value

    def forget_starts(self) -> None:
        """Clear what systemd remembers of its starts: past its limit (5 in 10 s) it would stop the unit and refuse to start it."""
        if self.status().active != "inactive":
            self._call(_PATH, _MANAGER, "ResetFailedUnit", "s", (self._name,))

    def job(self, method: str) -> None:
        """Have systemd do something with it, and wait until that is done.

        Raises:
            RestartFailed: It failed, or was not done in time.
        """
        from jeepney import MatchRule
        from jeepney.bus_messages import message_bus

        removed = MatchRule(type="signal", sender=_NAME, interface=_MANAGER, member="JobRemoved", path=_PATH)
        # systemd sends signals only to who asked for them, and the bus passes on only what matches.
        self._send(message_bus.AddMatch(removed))
        self._call(_PATH, _MANAGER, "Subscribe", "", ())
        # The bus names the sender by its unique name, which is not known here.
        arrived = MatchRule(type="signal", interface=_MANAGER, member="JobRemoved", path=_PATH)
        with self._connection.filter(arrived, bufsize=1024) as queue:
            (job,) = self._call(_PATH, _MANAGER, method, "ss", (self._name, "replace"))
            while True:
                try:
                    message = self._connection.recv_until_filtered(queue, timeout=self._left())
                except TimeoutError as error:
                    raise self._late(method) from error
                _, path, _, result = message.body
                if path == job:
                    break
        if result != "done":
            raise self._failed(method, result)

    def _late(self, method: str) -> RestartFailed:
        return RestartFailed(
            f"systemd has not finished {method} of {self._name} in {self._timeout:.1f} s: it is {self._condition()}",
            hint="TimeoutStartSec= and TimeoutStopSec= of the unit must be shorter than restart_timeout",
        )

    def _failed(self, method: str, result: str) -> RestartFailed:
        return RestartFailed(
            f"{method} of {self._name} ended as {result}: it is {self._condition()}",
            hint=f"`journalctl -u {self._name}` shows its output",
        )

    def _condition(self) -> str:
        """In systemd's words: ``failed (failed), result exit-code``."""
        self._deadline += 1.0  # one more question, whose answer makes the message useful
        status = self.status()
        return f"{status.active} ({status.sub}), result {self.property('Result')}"

    def _call(self, path: str, interface: str, method: str, signature: str, arguments: tuple[object, ...]) -> tuple[Any, ...]:
        from jeepney import DBusAddress, new_method_call

        return self._send(new_method_call(DBusAddress(path, _NAME, interface), method, signature, arguments))

    def _send(self, message: Message) -> tuple[Any, ...]:
        from jeepney import DBusErrorResponse
        from jeepney.wrappers import unwrap_msg

        try:
            return tuple(unwrap_msg(self._connection.send_and_get_reply(message, timeout=self._left())))
        except DBusErrorResponse as error:
            raise self._refusal(error) from error
        except TimeoutError as error:
            raise Unavailable(f"systemd did not answer about {self._name} in time") from error

    def _refusal(self, error: DBusErrorResponse) -> DeploydError:
        words = str(error.data[0]) if error.data else error.name
        if error.name in _UNKNOWN_UNIT:
            return ConfigError(f"systemd has no unit {self._name}: {words}", hint="`systemctl list-unit-files` lists what it has")
        if error.name in _DENIED:
            return ConfigError(
                f"systemd does not let this user manage {self._name}: {words}",
                hint="run the agent as root, or add a polkit rule for org.freedesktop.systemd1.manage-units",
            )
        if error.name in _AWAY:
            return Unavailable(f"systemd cannot be reached over the bus: {words}")
        return RestartFailed(f"systemd refused {self._name}: {words}", hint=f"`systemctl status {self._name}` says more")

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


@contextmanager
def _connect(options: SystemdOptions, timeout: float) -> Iterator[DBusConnection]:
    from jeepney.auth import AuthenticationError
    from jeepney.io.blocking import open_dbus_connection

    address = _address(options)
    try:
        with open_dbus_connection(address, auth_timeout=max(0.05, min(timeout, 5.0))) as connection:
            yield connection
    except (AuthenticationError, PermissionError) as error:
        raise ConfigError(f"the message bus at {address} does not let this user in: {error}") from error
    except OSError as error:
        raise Unavailable(f"no message bus at {address}: {error}", hint="is dbus running?") from error


def _address(options: SystemdOptions) -> str:
    """Where the bus is; the environment of the agent has no say in it, so that a spec means the same on every host."""
    if options.bus:
        return options.bus
    if options.scope == "user":
        return f"unix:path=/run/user/{os.getuid()}/bus"
    return "unix:path=/run/dbus/system_bus_socket"


@hookimpl
def deployd_managers() -> list[type]:
    """The manager of this module."""
    return [SystemdManager]
