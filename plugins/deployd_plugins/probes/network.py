"""What a failed connection says about an instance; shared by the probes that connect. Not a probe itself."""

from __future__ import annotations

from deployd_core.api import ConfigError, Verdict


def verdict_of(error: ConfigError | OSError, timeout: float) -> Verdict:
    """Unhealthy when it is the instance that does not answer, unknown when it could not be asked."""
    import socket

    if isinstance(error, ConfigError):
        return Verdict.unknown(str(error))
    words = error.strerror or str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return Verdict.unhealthy(f"no answer in {timeout:g} s")
    if isinstance(error, ConnectionError):
        return Verdict.unhealthy(f"no answer: {words}")
    if isinstance(error, socket.gaierror):
        return Verdict.unknown(f"cannot resolve the host: {words}")
    return Verdict.unknown(f"cannot ask: {words}")
