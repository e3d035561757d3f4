"""Which bytes a build id means: looked up at the service's source before anything is written, so that every host gets the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from deployd_core.api import Artifact, BuildCall, FetchCall, Source
from deployd_core.boundary import Bound
from deployd_core.coordination import HistoryEntry
from deployd_core.errors import ConfigError, Conflict, NotFound, Unavailable

SOURCE_TIMEOUT = 30.0


def pin(source: Bound[Source[Any]], service: str, build: str, digest: str | None, say: Callable[[str], object]) -> str:
    """Check that a build exists, and find its digest.

    Args:
        source: The source of the service's spec.
        service: Its name.
        build: The build.
        digest: What the person says it is; None when they do not.
        say: Told when the whole build has to be fetched.

    Raises:
        NotFound: There is no such build.
        Unavailable: The source does not answer.
        Conflict: The source publishes another digest.
    """
    try:
        call = BuildCall(service=service, build=build, timeout=SOURCE_TIMEOUT)
        artifact = source.call(f"resolving build {build}", lambda plugin: plugin.resolve(call))
    except NotFound as error:
        hint = error.hint or f"publish it where the [source] of the spec looks: deployd services show {service}"
        raise NotFound(f"there is no build {build!r} of {service}: {error.message}", hint=hint) from error
    except Unavailable as error:
        hint = "try again, or vouch for it with --digest sha256:… --no-check"
        raise Unavailable(f"the source of {service} cannot be asked for build {build!r}: {error.message}", hint=hint) from error
    if digest is None:
        return artifact.digest or _fetched_digest(source, service, build, artifact, say)
    if artifact.digest not in (None, digest):
        raise Conflict(
            f"{artifact.location} is published with {artifact.digest}, not with {digest}",
            hint="leave --digest out to take the former",
        )
    return digest


def check_history(history: tuple[HistoryEntry, ...], build: str, digest: str) -> None:
    """Refuse a build id that has meant other bytes before: hosts keep releases by their id.

    Raises:
        ConfigError: It has.
    """
    for entry in reversed(history):
        if entry.build == build and entry.digest not in (None, digest):
            raise ConfigError(
                f"build {build!r} was enabled with {entry.digest} at {entry.at}, and now has {digest}",
                hint="publish it under a new id: an id names one artifact for ever",
            )


def _fetched_digest(source: Bound[Source[Any]], service: str, build: str, artifact: Artifact, say: Callable[[str], object]) -> str:
    size = f" ({artifact.size / 1e6:.1f} MB)" if artifact.size is not None else ""
    say(f"{artifact.location} publishes no digest: fetching it{size} to pin what is there now. `deployd builds pack` publishes one")
    call = FetchCall(service=service, build=build, timeout=SOURCE_TIMEOUT)

    def fetch(plugin: Source[Any]) -> tuple[str, int, int | None]:
        download = plugin.fetch(call)
        digest, length = hashlib.sha256(), 0
        for chunk in download.chunks:
            digest.update(chunk)
            length += len(chunk)
        return digest.hexdigest(), length, download.size

    found, length, size_told = source.call(f"fetching build {build}", fetch)
    if size_told is not None and size_told != length:
        raise Unavailable(f"{artifact.location} broke off after {length} of {size_told} bytes", hint="try again")
    return f"sha256:{found}"
