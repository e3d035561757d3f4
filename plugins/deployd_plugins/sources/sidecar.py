"""Digests published beside a build, in a file such as ``v1.tar.gz.sha256``, as sha256sum writes it."""

from __future__ import annotations

import re

from deployd_core.api import ConfigError

ENDING = ".sha256"
MAX_SIZE = 1 << 16
_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?: [ *](.+))?")


def read(text: str, archive: str, location: str) -> str:
    """Find the digest of an archive in the text of a sidecar; a line that names no file will do if it is the only one.

    Raises:
        ConfigError: There is none.
    """
    lines = [match for line in text.splitlines() if (match := _LINE.fullmatch(line.strip()))]
    named = [match for match in lines if match[2] and match[2].rpartition("/")[2] == archive]
    if len(named) != 1:
        named = lines if len(lines) == 1 else []
    if not named:
        raise ConfigError(
            f"{location} holds no sha256 digest of {archive}", hint=f"write it anew: sha256sum {archive} > {archive}{ENDING}"
        )
    return f"sha256:{named[0][1].lower()}"
