"""Gates that services of this host use with options of their own, on record for `deployd drains`, which has no spec at hand.

The record is written before such a gate is closed, one file for each way of using it, and stays: what an agent closed before its
spec was changed must be found as well. It lies in `state_directory`, which is gone after a reboot, as is what was closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core.api import Gate
from deployd_core.boundary import Bound
from deployd_core.decoding import decode_json
from deployd_core.disk import write_atomically
from deployd_core.errors import ConfigError, DeploydError
from deployd_core.plugins import Kind, Plugins
from deployd_core.spec import Table

_DIRECTORY = "gates"


class _Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a service uses a gate."""

    service: str
    gate: dict[str, Any]
    """The table of its spec."""


def remember(state_directory: Path, service: str, gate: Table | None) -> None:
    """Put a gate on record, unless it is used as it comes.

    Args:
        state_directory: As in agent.toml.
        service: Whose it is.
        gate: `[instances] gate` of its spec.

    Raises:
        ConfigError: It cannot be written, so that nobody could find what is closed.
    """
    if gate is None or set(gate) <= {"use"}:
        return
    text = msgspec.json.encode(_Record(service=service, gate=dict(gate)), order="sorted")
    path = state_directory / _DIRECTORY / f"{service}-{hashlib.sha256(text).hexdigest()[:12]}.json"
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="set state_directory in agent.toml") from error


def recall(state_directory: Path, plugins: Plugins) -> tuple[list[Bound[Gate[Any]]], Sequence[str]]:
    """The gates on record, and why some of them cannot be asked."""
    gates: dict[bytes, Bound[Gate[Any]]] = {}
    problems: list[str] = []
    for path in sorted((state_directory / _DIRECTORY).glob("*.json")):
        try:
            record = decode_json(path.read_bytes(), _Record)
            options = {key: value for key, value in record.gate.items() if key != "use"}
            key = msgspec.json.encode(record.gate, order="sorted")
            gates[key] = plugins.make(Kind.GATE, str(record.gate.get("use")), options, where=str(path))
        except (OSError, msgspec.MsgspecError) as error:
            problems.append(f"{path} cannot be read: {error}; remove it")
        except DeploydError as error:
            problems.append(f"a gate cannot be asked: {error.message}; if no service uses it any more, remove {path}")
    return list(gates.values()), problems
