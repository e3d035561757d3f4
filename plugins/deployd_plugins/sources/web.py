"""HTTP for sources, by the standard library. Heavy to import: done when a source is used, not when it is listed."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from deployd_core.api import BuildRefused, ConfigError, Unavailable

_CHUNK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_AGAIN = (408, 425, 429)


class Page:
    """A URL, with what it takes to ask for it. What must stay secret in it never gets into a message."""

    def __init__(
        self, url: str, *, headers: Mapping[str, str], ca_file: Path | None, connect_timeout: float, timeout: float
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"the url of source http is malformed: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the url of source http must begin with http:// or https:// and a host, not {parts.scheme}://…")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._parts = parts._replace(netloc=host if port is None else f"{host}:{port}", fragment="")
        self._headers = dict(headers)
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + b64encode(credentials.encode()).decode()
        self._ca_file = ca_file
        self._connect_timeout = connect_timeout
        self._timeout = timeout

    @property
    def shown(self) -> str:
        """The URL for messages: no user, no password, no query, which may be a signature."""
        return _shown(self._parts)

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return unquote(self._parts.path.rpartition("/")[2])

    def beside(self, ending: str) -> Page:
        """The page of the same name with an ending."""
        return Page(
            urlunsplit(self._parts._replace(path=self._parts.path + ending)),
            headers=self._headers,
            ca_file=self._ca_file,
            connect_timeout=self._connect_timeout,
            timeout=self._timeout,
        )

    def get(self, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask for it; any answer of the server is an answer.

        Raises:
            Unavailable: There was none.
            ConfigError: The certificates, or the URL, cannot be used.
        """
        request = urllib.request.Request(urlunsplit(self._parts), headers={"User-Agent": "deployd", "Accept-Encoding": "identity"})  # noqa: S310
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        try:
            return Answer(_opener(self._timeout, self._ca_file).open(request, timeout=self._connect_timeout), self.shown)
        except urllib.error.HTTPError as error:
            return Answer(error, self.shown)
        except urllib.error.URLError as error:
            raise Unavailable(f"{self.shown} cannot be reached: {_words(error.reason)}", hint=_hint(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.shown} gave no answer: {_words(error)}") from error
        except ValueError as error:
            # http.client refuses control characters in a URL or header; its message quotes them, so it is not repeated
            raise ConfigError(
                f"{self.shown} cannot be asked for: the url or a header holds characters that HTTP forbids"
            ) from error


class Answer:
    """What a server answered; close it, or read `chunks` to the end."""

    def __init__(self, response: Any, shown: str) -> None:
        self._response = response
        self._shown = shown
        self.status: int = response.status
        self.words = f"{response.status} {response.reason}".strip()
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        self.first_byte = int(match[1]) if match and match[1] else None
        length = response.headers.get("Content-Length", "")
        self.total_size = int(length) if length.isdecimal() else None
        """Bytes of the whole, not of the part that was asked for; None when the server does not say."""
        if match:
            self.total_size = int(match[2]) if match[2] != "*" else None

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._response.close()

    @property
    def validator(self) -> str | None:
        """What is the same as long as the page is: a strong ETag, or else the time of its last change."""
        etag: str | None = self._response.headers.get("ETag")
        if etag and not etag.startswith("W/"):  # RFC 9110: If-Range takes no weak one
            return etag
        changed: str | None = self._response.headers.get("Last-Modified")
        return changed

    def check(self, shown: str) -> None:
        """Raise unless it is a success.

        Raises:
            Unavailable: The server has troubles of its own.
            ConfigError: It does not like the request.
        """
        if self.status in (200, 206):
            return
        if self.status >= 500 or self.status in _AGAIN:
            raise Unavailable(f"{shown} answers {self.words}")
        hint = "check headers, or user and password, in [source]" if self.status in (401, 403, 407) else "check the url in [source]"
        raise ConfigError(f"{shown} answers {self.words}", hint=hint)

    def read(self, limit: int) -> bytes:
        """A small body, cut at a limit.

        Raises:
            Unavailable: The transfer broke.
        """
        body = b""
        with self.chunks() as chunks:
            for chunk in chunks:
                body += chunk
                if len(body) >= limit:
                    break
        return body[:limit]

    def chunks(self, limit: int | None = None) -> Chunks:
        """The body, piece by piece; more than `limit` bytes are `BuildRefused`."""
        return Chunks(self._response, self._shown, limit)


class Chunks:
    """The body of an answer. A class and not a generator, so that one that was never begun still hangs up when it is closed."""

    def __init__(self, response: Any, shown: str, limit: int | None) -> None:
        self._response = response
        self._shown = shown
        self._left = limit
        self._buffer = memoryview(bytearray(_CHUNK))

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        try:
            count = self._response.readinto(self._buffer)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the transfer from {self._shown} broke: {_words(error)}") from error
        if not count:
            self.close()
            raise StopIteration
        if self._left is not None:
            self._left -= count
            if self._left < 0:
                self.close()
                raise BuildRefused(f"{self._shown} is bigger than max_size", hint="raise max_size in [source] if that is right")
        return self._buffer[:count]

    def close(self) -> None:
        """Hang up."""
        self._response.close()


class _Plain(http.client.HTTPConnection):
    """Waits one time for a connection, and another for each piece of an answer."""

    answer_timeout: float

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self.answer_timeout)


class _Secure(http.client.HTTPSConnection):
    """The same with TLS."""

    answer_timeout: float

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self.answer_timeout)


class _Transport(urllib.request.AbstractHTTPHandler):
    """Opens connections; makes a TLS context only when one is needed, since that reads all the certificates of the system."""

    def __init__(self, timeout: float, ca_file: Path | None) -> None:
        super().__init__()
        self._timeout = timeout
        self._ca_file = ca_file

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._prepared, _Plain), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"ca_file {self._ca_file} cannot be used: {_words(error)}") from error
        return self.do_open(partial(self._prepared, partial(_Secure, context=context)), request)

    def _prepared(self, kind: Any, host: str, **arguments: Any) -> Any:
        connection = kind(host, **arguments)
        connection.answer_timeout = self._timeout
        return connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not out of TLS; what was meant for one host alone is not told to another."""

    def redirect_request(  # noqa: PLR0917  # urllib's signature
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or new.scheme < old.scheme or "@" in new.netloc:
            fp.close()
            raise ConfigError(f"{_shown(old)} redirects to {_shown(new)}, which is refused", hint="only https may follow https")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            for name, value in req.unredirected_hdrs.items():
                request.add_unredirected_header(name, value)
        return request


def _opener(timeout: float, ca_file: Path | None) -> urllib.request.OpenerDirector:
    """An opener of HTTP and nothing else: the usual one would follow to ftp: as well, and reads files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Transport(timeout, ca_file),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _shown(parts: SplitResult) -> str:
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _words(error: object) -> str:
    """What went wrong, without what an exception may quote of the request."""
    if isinstance(error, TimeoutError):
        return "no byte in time"
    if isinstance(error, http.client.IncompleteRead):
        return "it was cut off"
    if isinstance(error, http.client.InvalidURL):
        return "the url is malformed"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _hint(error: object) -> str:
    return "name the authority's certificate: ca_file in [source]" if isinstance(error, ssl.SSLCertVerificationError) else ""
