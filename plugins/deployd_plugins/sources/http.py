"""The `http` and `https` sources: builds on a web server, or in any store that hands out URLs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deployd_core.api import (
    Artifact,
    BuildCall,
    BuildRefused,
    Download,
    Duration,
    FetchCall,
    Meta,
    NotFound,
    Options,
    Size,
    Source,
    hookimpl,
)
from deployd_plugins.sources import sidecar

if TYPE_CHECKING:
    from deployd_plugins.sources.web import Answer, Page


class HttpOptions(Options, frozen=True, kw_only=True):
    """Where the builds lie, and how to ask for them."""

    url: Annotated[str, Meta(description="such as https://builds.example.com/{service}/{build}.tar.gz")]
    headers: Annotated[Mapping[str, str], Meta(description="headers to send, such as Authorization; never to another host")] = {}
    ca_file: Annotated[str | None, Meta(description="certificates to trust, in PEM, instead of the system's")] = None
    connect_timeout: Annotated[Duration, Meta(description="longest to wait for a connection")] = Duration("10s")
    max_size: Annotated[Size, Meta(description="refuse builds that are bigger")] = Size("20GB")


class HttpSource(Source[HttpOptions]):
    """Fetch builds from a web server by HTTP or HTTPS, resuming broken transfers.

    A digest published beside the build (``v1.tar.gz.sha256``, as sha256sum writes it) is found. Redirects are followed, but never
    from https to http, and headers from the options go to the first host only. Proxies are those of the environment.
    """

    name = "http"

    def resolve(self, call: BuildCall) -> Artifact:
        """Ask for the first byte of the build, which every server and every signed URL allows, and for the digest beside it."""
        page = self._page(call)
        with page.get(headers={"Range": "bytes=0-0"}) as answer:
            size = answer.total_size
            if answer.status != 416:  # an empty file has no first byte
                self._check(answer, page, call)
            self._check_size(size or 0, page, call)
        beside = page.beside(sidecar.ENDING)
        with beside.get() as answer:
            if answer.status in (403, 404, 410):  # S3 says 403 for what is not there
                return Artifact(location=page.shown, size=size)
            self._check(answer, beside, call)
            text = answer.read(sidecar.MAX_SIZE).decode(errors="replace")
        return Artifact(location=page.shown, size=size, digest=sidecar.read(text, page.file_name, beside.shown))

    def fetch(self, call: FetchCall) -> Download:
        """Ask for the build, or for its rest if it has not changed."""
        page = self._page(call)
        headers = {}
        if call.offset and call.validator:
            headers = {"Range": f"bytes={call.offset}-", "If-Range": call.validator}
        with ExitStack() as stack:
            answer = stack.enter_context(page.get(headers=headers))
            if answer.status == 416 or (answer.status == 206 and answer.first_byte != call.offset):
                answer = stack.enter_context(page.get())
            self._check(answer, page, call)
            self._check_size(answer.total_size or 0, page, call)
            stack.pop_all()  # the one who reads hangs up
        offset = call.offset if answer.status == 206 else 0
        chunks = answer.chunks(limit=self.options.max_size - offset)
        return Download(chunks=chunks, offset=offset, size=answer.total_size, validator=answer.validator)

    def _page(self, call: BuildCall) -> Page:
        from deployd_plugins.sources.web import Page

        return Page(
            call.expand(self.options.url),
            headers=self.options.headers,
            ca_file=Path(self.options.ca_file) if self.options.ca_file else None,
            connect_timeout=min(self.options.connect_timeout, call.timeout),
            timeout=call.timeout,
        )

    def _check(self, answer: Answer, page: Page, call: BuildCall) -> None:
        if answer.status in (404, 410):
            raise NotFound(f"there is no build {call.build} of {call.service}: {page.shown} answers {answer.words}")
        answer.check(page.shown)

    def _check_size(self, size: int, page: Page, call: BuildCall) -> None:
        if size > self.options.max_size:
            raise BuildRefused(
                f"build {call.build} of {call.service} is bigger than max_size {self.options.max_size}: {page.shown} has {size}",
                hint="raise max_size in [source] if that is right",
            )


class HttpsSource(HttpSource):
    """Fetch builds from a web server by HTTPS; the same as `http`."""

    name = "https"


@hookimpl
def deployd_sources() -> list[type[HttpSource]]:
    """Register the source, under the names of both URL schemes."""
    return [HttpSource, HttpsSource]
