"""A reporter that posts to a webhook: Slack's, Mattermost's, or your own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

from deployd_core.api import ConfigError, Duration, Event, Meta, Options, Reporter, Unavailable, hookimpl


class WebhookOptions(Options, frozen=True, kw_only=True):
    """What agent.toml can say under [[reporters]]."""

    url_file: Annotated[str, Meta(description="file that holds the URL, which is a secret")]
    events: Annotated[tuple[str, ...], Meta(description="names of the events to post; all, when there are none")] = (
        "host.failed",
        "host.blocked",
        "host.converged",
        "instance.cut",
    )
    timeout: Annotated[Duration, Meta(description="longest one post may take")] = Duration("5s")


class Webhook(Reporter[WebhookOptions]):
    """Post events to a webhook, as Slack and Mattermost have them.

    The text is for people; the event stands beside it, for machines.
    """

    name = "webhook"

    def report(self, event: Event) -> None:
        """Post one event. Runs on a thread of its own; what it raises is logged, and nobody waits."""
        if self.options.events and event.name not in self.options.events:
            return
        body = {
            "text": text_of(event),
            "event": {
                "name": event.name,
                "service": event.service,
                "host": event.host,
                "at": event.at,
                "build": event.build,
                "detail": dict(event.detail),
            },
        }
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url(), data=data, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=float(self.options.timeout)) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            error.close()
            raise Unavailable(f"the webhook answered {error.code}") from None
        except OSError as error:
            # Without the cause: its text may hold the URL.
            raise Unavailable(f"the webhook did not answer: {getattr(error, 'reason', error)}") from None

    def _url(self) -> str:
        path = Path(self.options.url_file)
        try:
            url = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="write the URL of the webhook there") from error
        if not url.startswith(("https://", "http://")):
            raise ConfigError(f"{path} holds no URL", hint="write the URL of the webhook there")
        return url


def text_of(event: Event) -> str:
    """One line for people."""
    build = f" {event.build}" if event.build else ""
    reason = event.detail.get("reason")
    return f"{event.service}{build} on {event.host}: {event.name.partition('.')[2]}" + (f" ({reason})" if reason else "")


@hookimpl
def deployd_reporters() -> list[type[Webhook]]:
    """Register the reporter."""
    return [Webhook]
