"""The lease of a closed gate, as the comment of a firewall rule: service, instance, owner and end. Not a gate itself.

::

    deployd:v1:web:web@8001:h1.example.com/812/41.07:1795442400

The end is in whole seconds since the epoch: the kernel's clocks for rules have no finer steps. The rule is the only place where any
of this is kept.
"""

from __future__ import annotations

import time

from deployd_core.api import ClosedGate, ConfigError, GateCall

PREFIX = "deployd:v1:"


def ends_at(call: GateCall) -> int:
    """When the lease of a gate that is to be closed ends: in whole seconds, and never after `call.until`.

    Raises:
        ConfigError: It ends before it began.
    """
    end = int(call.until)
    if end <= time.time():
        raise ConfigError(
            f"the lease of {call.instance.name} would end before its gate is closed",
            hint="make `lease` some seconds or minutes long",
        )
    return end


def comment_for(call: GateCall, longest: int) -> str:
    """The comment of the rule that closes an instance, of at most `longest` bytes; a long host name is cut, nothing else.

    Raises:
        ConfigError: It would not fit.
    """
    begin, end = f"{PREFIX}{call.service}:{call.instance.name}:", f":{ends_at(call)}"
    host, slash, process = call.owner.partition("/")
    room = longest - len((begin + slash + process + end).encode())
    if room < 1:
        raise ConfigError(
            f"{call.instance.name} of {call.service} cannot be closed: names and lease are {1 - room} bytes too long for the "
            f"{longest} bytes of a rule's comment",
            hint="give the service or its instances shorter names",
        )
    return begin + host[:room] + slash + process + end


def parse(comment: str) -> ClosedGate | None:
    """Read a comment; None when the rule is not one of ours.

    Names of services, hosts and numbers hold no colon; names of instances may.
    """
    if not comment.startswith(PREFIX):
        return None
    service, _, rest = comment.removeprefix(PREFIX).partition(":")
    rest, _, end = rest.rpartition(":")
    instance, _, owner = rest.rpartition(":")
    if not (service and instance and owner and end.isdecimal()):
        return None
    return ClosedGate(service=service, instance=instance, owner=owner, until=float(end))


def comment_of(lease: ClosedGate) -> str:
    """The comment that `parse` reads as this lease."""
    return f"{PREFIX}{lease.service}:{lease.instance}:{lease.owner}:{int(lease.until)}"


def expired(lease: ClosedGate, now: float) -> bool:
    """Whether the rule lets traffic pass again."""
    return lease.until <= now


def selected(lease: ClosedGate, service: str | None, instance: str | None, *, expired_only: bool, now: float) -> bool:
    """Whether `Gate.clear` means this one."""
    if expired_only and not expired(lease, now):
        return False
    return service in (None, lease.service) and instance in (None, lease.instance)
