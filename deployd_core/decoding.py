"""From bytes and plain values into our types, from any thread."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from deployd_core.units import decode_unit

_ONE_AT_A_TIME = threading.RLock()
"""What msgspec finds out about a type when it is first needed, it keeps with the type; two threads at once crash Python."""

KindT = TypeVar("KindT")


def convert(value: Any, kind: type[KindT], *, from_attributes: bool = False) -> KindT:
    """`msgspec.convert` with our units, from any thread.

    Raises:
        msgspec.ValidationError: The value is not of that kind.
    """
    with _ONE_AT_A_TIME:
        return msgspec.convert(value, kind, from_attributes=from_attributes, dec_hook=decode_unit)


def decode_json(data: bytes, kind: type[KindT]) -> KindT:
    """`msgspec.json.decode`, from any thread.

    Raises:
        msgspec.DecodeError: It is not JSON, or (`msgspec.ValidationError`) not of that kind.
    """
    with _ONE_AT_A_TIME:
        return msgspec.json.decode(data, type=kind)
