"""HAProxy's runtime API, over its socket. Not a gate itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deployd_core.api import ConfigError, Unavailable

if TYPE_CHECKING:
    import socket

TIMEOUT = 5.0
"""Longest to wait for an answer; HAProxy gives one within a millisecond."""


class Runtime:
    """The runtime API. It has no error codes: a command that was carried out is answered by nothing, any other by words."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self._timeout = min(TIMEOUT, timeout)

    def states(self, server: str) -> dict[str, int]:
        """The bits of srv_admin_state of the server and of all in its backend; empty when there is no such backend.

        The status of `show stat` would not do: a server that is drained and down is DOWN there.
        """
        answer = self._ask(f"show servers state {backend_of(server)}")
        if answer.startswith("Can't find"):
            return {}
        version, _, table = answer.partition("\n")
        if version.strip() != "1" or not table.startswith("# "):
            raise self._strange(answer)
        heading, *rows = table[2:].splitlines()
        servers = [dict(zip(heading.split(), row.split(), strict=False)) for row in rows]
        return {f"{row['be_name']}/{row['srv_name']}": int(row["srv_admin_state"]) for row in servers if "srv_admin_state" in row}

    def stat(self, server: str) -> dict[str, str]:
        """The row of a server in `show stat`.

        Raises:
            ConfigError: There is no such server.
        """
        import csv

        answer = self._ask(f"show stat {backend_of(server)} 4 -1")
        if answer.startswith("No such"):
            raise self.unknown(server)
        if not answer.startswith("# "):
            raise self._strange(answer)
        for row in csv.DictReader(answer[2:].splitlines()):
            if f"{row['pxname']}/{row['svname']}" == server:
                return row
        raise self.unknown(server)

    def has_sticking_clients(self, server: str) -> bool:
        """Whether clients stick to the server, by its cookie or a table of its backend: past a drain, but not past maintenance."""
        table = f"# table: {backend_of(server)},"
        return bool(self.stat(server).get("cookie")) or table in self._ask("show table")

    def set_state(self, server: str, state: str) -> None:
        """Have a server be ``ready``, ``drain`` or ``maint``."""
        answer = self._ask(f"set server {server} state {state}")
        if answer.startswith("No such"):
            raise self.unknown(server)
        if answer.startswith("Permission denied"):
            raise self._powerless()
        if answer:
            raise self._strange(answer)

    def check_level(self) -> str:
        """The version of HAProxy.

        Raises:
            ConfigError: This socket may not change anything.
        """
        if "admin" not in self._ask("show cli level"):
            raise self._powerless()
        info = dict(line.split(": ", 1) for line in self._ask("show info").splitlines() if ": " in line)
        if "Version" not in info:
            raise self._strange(str(info))
        return info["Version"]

    def unknown(self, server: str) -> ConfigError:
        """The error for a server that is not there."""
        return ConfigError(
            f"HAProxy at {self.address} has no server {server}", hint="compare `server` of the gate with `show servers state`"
        )

    def _powerless(self) -> ConfigError:
        return ConfigError(f"HAProxy's socket {self.address} may only look", hint="add `level admin` to its `stats socket`")

    def _strange(self, answer: str) -> Unavailable:
        return Unavailable(f"{self.address} does not answer as HAProxy does: {answer[:200]!r}")

    def _ask(self, command: str) -> str:
        """One command on a connection of its own, which HAProxy closes after its answer."""
        try:
            with self._connect() as connection:
                connection.sendall(f"{command}\n".encode())
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except PermissionError as error:
            raise ConfigError(
                f"HAProxy's socket {self.address} may not be used: {error.strerror}",
                hint="run the agent as root, or give it user and mode",
            ) from error
        except TimeoutError as error:
            raise Unavailable(f"HAProxy at {self.address} did not answer in {self._timeout:g} s") from error
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"HAProxy at {self.address} does not answer: {getattr(error, 'strerror', None) or error}",
                hint="is HAProxy running, with `stats socket … level admin` in its `global`?",
            ) from error
        return answer.decode(errors="replace").strip()

    def _connect(self) -> socket.socket:
        import socket

        if not self.address.startswith("/"):
            host, _, port = self.address.rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)), timeout=self._timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout)
            connection.connect(self.address)
        except OSError:
            connection.close()
            raise
        return connection


def backend_of(server: str) -> str:
    """The name of the backend in ``backend/server``."""
    return server.partition("/")[0]
