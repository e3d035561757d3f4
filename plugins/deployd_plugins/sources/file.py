"""The `file` source: builds that lie in a directory, local or mounted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from deployd_core.api import (
    Artifact,
    BuildCall,
    ConfigError,
    Download,
    FetchCall,
    Meta,
    NotFound,
    Options,
    Source,
    Unavailable,
    hookimpl,
)
from deployd_plugins.sources import sidecar

_CHUNK = 1 << 20


class FileOptions(Options, frozen=True, kw_only=True):
    """Where the builds lie."""

    url: Annotated[str, Meta(description="such as file:///srv/builds/{service}/{build}.tar.gz, or an absolute path")]


class FileSource(Source[FileOptions]):
    """Take builds from a directory, local or mounted.

    A digest published beside the build (``v1.tar.gz.sha256``, as sha256sum writes it) is found.
    """

    name = "file"

    def resolve(self, call: BuildCall) -> Artifact:
        """Look at the file."""
        path = self._path(call)
        size = self._stat(path)[0]
        beside = path.with_name(path.name + sidecar.ENDING)
        try:
            with beside.open("rb") as file:
                text = file.read(sidecar.MAX_SIZE).decode(errors="replace")
        except FileNotFoundError:
            return Artifact(location=str(path), size=size)
        except OSError as error:
            raise Unavailable(f"{beside} cannot be read: {error.strerror}") from error
        return Artifact(location=str(path), size=size, digest=sidecar.read(text, path.name, str(beside)))

    def fetch(self, call: FetchCall) -> Download:
        """Read the file, from the offset if it has not changed."""
        path = self._path(call)
        size, validator = self._stat(path)
        offset = call.offset if call.validator == validator and call.offset <= size else 0
        return Download(chunks=_chunks(path, offset), offset=offset, size=size, validator=validator)

    def _path(self, call: BuildCall) -> Path:
        from urllib.parse import unquote, urlsplit

        url = call.expand(self.options.url)
        path = Path(url)
        if url.startswith("file:"):
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost"):
                raise ConfigError(
                    f"url {url} names host {parts.netloc!r}, but source file reads local paths", hint="write file:///path"
                )
            path = Path(unquote(parts.path))
        if not path.is_absolute():
            raise ConfigError(f"url {url!r} of source file is neither file:///… nor an absolute path")
        return path

    def _stat(self, path: Path) -> tuple[int, str]:
        """Its size, and what is the same as long as the file is."""
        import stat

        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"there is no {path}", hint=f"builds there: ls {path.parent}") from error
        except PermissionError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}", hint="give the agent's user the right to read it"
            ) from error
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is no file", hint="a build is one archive: deployd builds pack DIR")
        return found.st_size, f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def _chunks(path: Path, offset: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error


@hookimpl
def deployd_sources() -> list[type[FileSource]]:
    """Register the source."""
    return [FileSource]
