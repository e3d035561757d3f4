"""libnftables, the library that ``nft`` itself is made of, in this process. Not a gate itself.

In the process, and through one handle that stays open, because closing a netlink socket after something was deleted waits for the
kernel to let go of it: ``nft delete element`` takes 8 to 20 ms, nearly all of it in its last `close`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import socket
import threading
from typing import Any

import msgspec

from deployd_core.api import ConfigError, DeploydError, Unavailable

_NETLINK_NETFILTER = 12
_JSON = 1 << 4
_CAP_NET_ADMIN = 12

_LOCK = threading.Lock()
_HANDLES: dict[tuple[int, int], tuple[Any, int]] = {}
"""The library and its handle, by process and network: the socket in a handle stays in the network that it was opened in, so that
one that came along through a fork would change the rules of another."""


class NoSuchTable(DeploydError):
    """What was asked for is not there."""


def run(commands: str) -> list[dict[str, Any]]:
    """Run commands, as ``nft -j -f`` would, in one transaction; returns what they list.

    Raises:
        NoSuchTable: Something that they name is not there.
        ConfigError: This host or user cannot.
        Unavailable: nft says no for another reason.
    """
    if not _may():
        raise _no_right()
    with _LOCK:
        library, handle = _opened()
        code = library.nft_run_cmd_from_buffer(handle, commands.encode())
        output, error = library.nft_ctx_get_output_buffer(handle), library.nft_ctx_get_error_buffer(handle)
    if code != 0:
        raise _refusal(error.decode(errors="replace"))
    listed = msgspec.json.decode(output)["nftables"] if output.strip() else []
    return [item for item in listed if "metainfo" not in item]


def _opened() -> tuple[Any, int]:
    here = (os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino)  # noqa: PTH116 - a path need not be made for each call
    if here not in _HANDLES:
        library = _library()
        _try_netlink()
        handle = library.nft_ctx_new(0)
        library.nft_ctx_output_set_flags(handle, _JSON)
        library.nft_ctx_buffer_output(handle)
        library.nft_ctx_buffer_error(handle)
        _HANDLES[here] = (library, handle)
    return _HANDLES[here]


def _library() -> Any:
    name = ctypes.util.find_library("nftables") or "libnftables.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ConfigError(f"libnftables cannot be loaded: {error}", hint="install it: apt install nftables") from error
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    for function, result, arguments in (
        ("nft_ctx_new", handle, [ctypes.c_uint32]),
        ("nft_ctx_output_set_flags", None, [handle, ctypes.c_uint]),
        ("nft_ctx_buffer_output", ctypes.c_int, [handle]),
        ("nft_ctx_buffer_error", ctypes.c_int, [handle]),
        ("nft_ctx_get_output_buffer", text, [handle]),
        ("nft_ctx_get_error_buffer", text, [handle]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [handle, text]),
    ):
        loaded = getattr(library, function)
        loaded.restype, loaded.argtypes = result, arguments
    return library


def _may() -> bool:
    """Whether this process has the right: asked without it, the library writes to standard error by itself."""
    with open("/proc/thread-self/status", encoding="ascii") as file:  # noqa: PTH123 - as above
        effective = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) & 1 << _CAP_NET_ADMIN)


def _no_right() -> ConfigError:
    return ConfigError("only root may use nftables", hint="run the agent as root, or with CAP_NET_ADMIN")


def _try_netlink() -> None:
    """Open the kind of socket that the library is about to open: where it cannot, it ends the process."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
    except OSError as error:
        raise ConfigError(
            f"this kernel has no nftables: {error.strerror}", hint='load it, modprobe nf_tables, or use gate = "iptables"'
        ) from error


def _refusal(words: str) -> DeploydError:
    first = words.strip().splitlines()[0] if words.strip() else "it does not say why"
    if "Operation not permitted" in words or "you must be root" in words:
        return _no_right()
    if "No such file or directory" in words:
        return NoSuchTable(f"nftables: {first}")
    if "Operation not supported" in words or "Protocol not supported" in words or "Unable to initialize" in words:
        return ConfigError(
            f"this kernel cannot do what the gate needs of nftables: {first}",
            hint='load it, modprobe nf_tables, or use gate = "iptables"',
        )
    return Unavailable(f"nftables refused: {first}")
