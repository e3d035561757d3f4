"""What a gate costs: closing and opening beside 1,000 rules of others, and counting 2,000 connections. Needs root.

    python bench/gates.py [ROUNDS]

Runs in a network namespace of its own. Medians of interleaved rounds; beside them what the command line tools take for the same.
Targets: 10 ms to close, to open and to count. Exits 1 past one of them.
"""

from __future__ import annotations

import json
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deployd_core.api import Gate, GateCall, Instance
from deployd_core.testing import netns
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

LIMIT_MS = 10.0
RULES = 1000
CONNECTIONS = 2000
PORT = 8001


def call(port: int = PORT) -> GateCall:
    instance = Instance(service="web", name=f"web@{port}", port=port)
    return GateCall(
        service="web",
        host="h1",
        zone="",
        root=Path("/"),
        timeout=10.0,
        instance=instance,
        until=time.time() + 120,
        owner="h1/1/2.34",
    )


def foreign_rules() -> None:
    """Other people's rules, in the legacy tables of both families and in nftables."""
    for program, source in (("iptables", "10.{}.{}.0/24"), ("ip6tables", "fd00:{}:{}::/64")):
        rules = [
            f"-A INPUT -s {source.format(number // 250, number % 250)} -p tcp -m tcp --dport {20000 + number} -j ACCEPT"
            for number in range(RULES)
        ]
        text = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *rules, "COMMIT", ""])
        subprocess.run([f"{program}-legacy-restore"], input=text, text=True, check=True)
    rules = [f"ip saddr 10.{number // 250}.{number % 250}.0/24 tcp dport {20000 + number} accept\n" for number in range(RULES)]
    head = "table inet foreign {\n chain input {\n type filter hook input priority filter; policy accept;\n"
    text = "".join([head, *rules, " }\n}\n"])
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def connections() -> list[socket.socket]:
    """Connections that are kept open after a request, half of them IPv4 in an IPv6 socket."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * CONNECTIONS, 3 * CONNECTIONS))
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", PORT))
    server.listen(CONNECTIONS)
    held: list[socket.socket] = [server]

    def serve() -> None:
        for _ in range(CONNECTIONS):
            connection, _ = server.accept()
            connection.sendall(connection.recv(100))
            held.append(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    for number in range(CONNECTIONS):
        client = socket.create_connection(("::1" if number % 2 else "127.0.0.1", PORT))
        client.sendall(b"request")
        held.append(client)
    thread.join()
    return held


def tool(*argv: str) -> Callable[[], object]:
    return lambda: subprocess.run(argv, check=True, capture_output=True)


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in interleaved rounds of which the first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, function in contenders.items():
            begin = time.perf_counter()
            function()
            if number:
                taken[name].append((time.perf_counter() - begin) * 1000)
    return {name: statistics.median(values) for name, values in taken.items()}


def changes(name: str, gate: Gate) -> dict[str, Callable[[], object]]:
    return {
        f"{name}: close": lambda: gate.close(call()),
        f"{name}: close again": lambda: gate.close(call()),
        f"{name}: list": lambda: gate.closed(call()),
        f"{name}: open": lambda: gate.open(call()),
    }


def bench(rounds: int) -> dict[str, float]:
    foreign_rules()
    iptables, nftables = IptablesGate(IptablesOptions()), NftablesGate(NftablesOptions())
    rule = ["INPUT", "-p", "tcp", "--syn", "--dport", "9999", "-j", "REJECT"]
    found = measure(
        {
            **changes("iptables", iptables),
            "tool: iptables -w -I": tool("iptables-legacy", "-w", "-I", *rule),
            "tool: iptables -w -D": tool("iptables-legacy", "-w", "-D", *rule),
            **changes("nftables", nftables),
        },
        rounds,
    )
    held = connections()
    found |= measure(
        {
            f"count {CONNECTIONS}": lambda: iptables.connections(call()),
            f"tool: ss -tin, {CONNECTIONS}": tool("ss", "-tin", f"sport = :{PORT}"),
        },
        rounds,
    )
    for connection in held:
        connection.close()
    return found


def main() -> int:
    """Run, print a table and a line of JSON."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    found = netns.run(lambda: bench(rounds))
    missed = []
    for name, value in found.items():
        limited = not name.startswith("tool")
        missed += [name] if limited and value > LIMIT_MS else []
        print(f"{name:24} {value:7.2f} ms" + (f"  {value / LIMIT_MS:5.2f} of {LIMIT_MS:g} ms" if limited else ""))
    print(f"targets, with {RULES} rules of others: " + (f"MISSED by {', '.join(missed)}" if missed else "ok"))
    medians = {name: round(value, 2) for name, value in found.items()}
    print(json.dumps({"bench": "gates", "rounds": rounds, "ms": medians, "target_ms": LIMIT_MS}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
