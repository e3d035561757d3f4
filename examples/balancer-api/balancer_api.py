"""A gate for a load balancer with an HTTP API.

Written for an API of this shape; yours will differ in words, and the words are all in `_Api`:

- ``GET /servers`` lists ``{"name", "state": "up" | "drain", "active", "note"}``;
- ``PUT /servers/NAME`` takes ``{"state", "note", "until"}``; the balancer ends a drain by itself at `until`.

The note says who has closed it and until when: everything an agent must know is in the balancer, and nothing in this process.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any

from deployd_core.api import (
    ClosedGate,
    ConfigError,
    Connections,
    Duration,
    Gate,
    GateCall,
    HostCall,
    InstanceCall,
    Meta,
    Options,
    Unavailable,
    hookimpl,
)


class BalancerApiOptions(Options, frozen=True, kw_only=True):
    """What a spec can say of the gate."""

    url: Annotated[str, Meta(description="where the API is: https://balancer.example.com/api")]
    server: Annotated[str, Meta(description="what the balancer calls an instance")] = "{host}-{instance}"
    token_file: Annotated[str, Meta(description="file that holds a bearer token; none is sent when empty")] = ""
    timeout: Annotated[Duration, Meta(description="longest to wait for one answer")] = Duration("5s")


class BalancerApi(Gate[BalancerApiOptions]):
    """Drain instances by the HTTP API of a load balancer."""

    name = "balancer-api"

    def __init__(self, options: BalancerApiOptions) -> None:
        super().__init__(options)
        self._api = _Api(options)

    def close(self, call: GateCall) -> None:
        """Drain the server; closing it again moves its end."""
        note = {"service": call.service, "instance": call.instance.name, "owner": call.owner, "until": call.until}
        self._api.put(call.expand(self.options.server), {"state": "drain", "note": json.dumps(note), "until": call.until})

    def open(self, call: InstanceCall) -> None:
        """Put the server back."""
        self._api.put(call.expand(self.options.server), {"state": "up", "note": "", "until": None})

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """The servers that drain under a note of ours, of this service."""
        return tuple(gate for _, gate in self._closed() if gate.service == call.service)

    def connections(self, call: InstanceCall) -> Connections:
        """What the balancer has under way there: it knows best."""
        server = call.expand(self.options.server)
        for found in self._api.servers():
            if found["name"] == server:
                return Connections(busy=found["active"], recent=found["active"])
        raise ConfigError(f"the balancer knows no server {server!r}", hint="see `server` of the gate's options")

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """Those of any service."""
        return tuple(gate for _, gate in self._closed())

    def clear(
        self, service: str | None = None, instance: str | None = None, *, expired_only: bool = False
    ) -> tuple[ClosedGate, ...]:
        """Open by hand what is closed; a drain whose time is over the balancer has ended itself."""
        opened = []
        for server, gate in [] if expired_only else self._closed():
            if service in (None, gate.service) and instance in (None, gate.instance):
                self._api.put(server, {"state": "up", "note": "", "until": None})
                opened.append(gate)
        return tuple(opened)

    def _closed(self) -> list[tuple[str, ClosedGate]]:
        found = []
        for server in self._api.servers():
            if server["state"] == "drain" and server["note"].startswith("{"):
                gate = ClosedGate(**json.loads(server["note"]))
                found += [(server["name"], gate)] if gate.until > time.time() else []
        return found


class _Api:
    """The balancer's words."""

    def __init__(self, options: BalancerApiOptions) -> None:
        self._options = options

    def servers(self) -> list[dict[str, Any]]:
        """Every server."""
        answer = self._ask("GET", "/servers")
        if not isinstance(answer, list):
            raise Unavailable(f"{self._options.url} answered no list of servers")
        return answer

    def put(self, server: str, body: dict[str, Any]) -> None:
        """Change a server."""
        self._ask("PUT", f"/servers/{urllib.parse.quote(server, safe='')}", body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        options = self._options
        headers = {"Content-Type": "application/json"}
        if options.token_file:
            headers["Authorization"] = f"Bearer {Path(options.token_file).read_text(encoding='utf-8').strip()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(options.url.rstrip("/") + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=float(options.timeout)) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise ConfigError(
                    f"the balancer knows no {urllib.parse.unquote(path)}", hint="see `server` of the gate's options"
                ) from error
            raise Unavailable(f"{options.url} answered {error.code} to {method} {path}") from error
        except (OSError, ValueError) as error:
            raise Unavailable(f"{options.url} did not answer: {error}") from error


@hookimpl
def deployd_gates() -> list[type[BalancerApi]]:
    """Register the gate."""
    return [BalancerApi]
