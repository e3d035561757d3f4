"""The contract of reporters, with a receiver that listens, one that refuses, and none."""

from __future__ import annotations

import http.server
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from webhook import Webhook, WebhookOptions

from deployd_core.api import ConfigError, Reporter, Unavailable
from deployd_core.testing import WholeReporterContract, free_port
from deployd_core.testing.reporters import event


class Receiver(http.server.ThreadingHTTPServer):
    """What listens at the other end."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.status, self.received = status, list[dict[str, Any]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T00/B00/secret"


class Post(http.server.BaseHTTPRequestHandler):
    """Takes a post."""

    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def receiving(status: int = 200, **options: Any) -> Iterator[tuple[Webhook, Receiver]]:
    with Receiver(status) as receiver, tempfile.TemporaryDirectory() as directory:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        path = Path(directory) / "url"
        path.write_text(receiver.url + "\n")
        yield Webhook(WebhookOptions(url_file=str(path), **options)), receiver
        receiver.shutdown()
        thread.join()


class TestWebhook(WholeReporterContract):
    """All that every reporter keeps to."""

    @contextmanager
    def started(self) -> Iterator[tuple[Reporter[Any], Callable[[], Sequence[str]]]]:
        with receiving(events=()) as (reporter, self.receiver):
            yield reporter, lambda: [found["name"] for found in self.passed_on()]

    def passed_on(self) -> Sequence[Mapping[str, Any]]:
        return [body["event"] for body in self.receiver.received]


def test_the_text_says_it_in_a_line() -> None:
    """Service, build, host, what happened and why."""
    with receiving() as (reporter, receiver):
        reporter.report(event("host.failed", detail={"reason": "web@8001 was not healthy"}))

        assert [body["text"] for body in receiver.received] == ["web v2 on h1.example.com: failed (web@8001 was not healthy)"]


def test_only_what_was_asked_for_is_posted() -> None:
    """By default what people want to hear of."""
    with receiving() as (reporter, receiver):
        for name in ("host.fetching", "host.converged", "host.waiting"):
            reporter.report(event(name))

        assert [body["event"]["name"] for body in receiver.received] == ["host.converged"]


def test_a_refusal_is_said_without_the_secret() -> None:
    """The URL of a webhook is a password: no message has it."""
    with receiving(status=403) as (reporter, _), pytest.raises(Unavailable, match="the webhook answered 403") as caught:
        reporter.report(event("host.failed"))

    assert "secret" not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_nobody_at_the_other_end_is_unavailable(tmp_path: Path) -> None:
    """So is a host that is down."""
    (tmp_path / "url").write_text(f"http://127.0.0.1:{free_port()}/secret")

    with pytest.raises(Unavailable, match="the webhook did not answer"):
        Webhook(WebhookOptions(url_file=str(tmp_path / "url"))).report(event("host.failed"))


@pytest.mark.parametrize("text", [None, "", "file:///etc/passwd"])
def test_a_file_without_a_url_is_an_error_of_the_configuration(text: str | None, tmp_path: Path) -> None:
    """With what to do about it."""
    if text is not None:
        (tmp_path / "url").write_text(text)

    with pytest.raises(ConfigError) as caught:
        Webhook(WebhookOptions(url_file=str(tmp_path / "url"))).report(event("host.failed"))

    assert caught.value.hint == "write the URL of the webhook there"
