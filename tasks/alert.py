"""Alerts: their text, who gets them, and sending them. Apprise speaks to the services.

A URL may hold a token, so no message, log line or error shows it: a receiver is named by its place in `alert.urls` and
by its kind, such as `1 (slack)`.
"""

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tenacity
from pydantic import SecretStr

from tasks.settings import Settings

TRY = "set alert.urls, and try it with 'custody alert --test'"
NOBODY = f"nobody is alerted: {TRY}"
UNREADABLE = "the URL cannot be read: there is no service of this kind, or the URL lacks parts"
CORRECT = "correct it in alert.urls, as Apprise's documentation of the service says"

_ATTEMPTS = 4
_WAIT_SECONDS = 30

# It logs URLs that it cannot read, with their tokens.
logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as people read it.

    Attributes:
        title: what happened, in one line.
        details: what is wrong, with which object, and what to do.
        run: the address of the run's page in Prefect, if a run found it.
        read_on: the command that explains this alert.
        kind: how services mark it: `failure`, or `info` for one that nobody must act on.
    """

    title: str
    details: str = ""
    run: str = ""
    read_on: str = ""
    kind: Literal["failure", "info"] = "failure"

    def text(self, settings: Settings) -> str:
        """Return the text: the details, and then where it happened and where to read on."""
        archive = settings.archive if "://" in settings.archive else Path(settings.archive).resolve()
        places = {"Archive": archive, "Host": socket.gethostname(), "Run": self.run, "Read on": self.read_on}
        known = "\n".join(f"{name}: {value}" for name, value in places.items() if value)
        return "\n\n".join(filter(None, (self.details, known)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an alert.

    Attributes:
        told: the receivers that took it.
        failed: the receivers that did not.
        unreadable: those of them whose URLs no service takes, so that nothing was sent.
    """

    told: tuple[str, ...]
    failed: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return in one line who was told, and what to do about the others."""
        if not self.told and not self.failed:
            return NOBODY
        told = f"told {', '.join(self.told)}" if self.told else "nobody was told"
        if not self.failed:
            return told
        parts = [told]
        if self.unreadable:
            parts.append(f"{', '.join(self.unreadable)}: {UNREADABLE}; {CORRECT}")
        if refused := [name for name in self.failed if name not in self.unreadable]:
            parts.append(f"{', '.join(refused)}: the service did not take it; check the service, and what the URL has")
        return "; ".join(parts)


def receivers(settings: Settings) -> tuple[str, ...]:
    """Return the receivers of alerts, such as `1 (slack)`. Nothing of a URL but its kind is in it."""
    return tuple(_receiver(number, url) for number, url in enumerate(settings.alert.urls, 1))


def unreadable(settings: Settings) -> tuple[str, ...]:
    """Return the receivers whose URLs no service of Apprise's takes. Nothing is sent."""
    import apprise

    urls = enumerate(settings.alert.urls, 1)
    return tuple(_receiver(number, url) for number, url in urls if not apprise.Apprise().add(url.get_secret_value()))


def send(settings: Settings, alert: Alert, attempts: int = _ATTEMPTS) -> Delivery:
    """Send an alert to each URL of `alert.urls`. One that fails is tried again, without telling the others twice.

    Args:
        settings: with the URLs, and the archive that the text names.
        alert: the alert.
        attempts: how often each URL is tried, half a minute apart.
    """
    text = alert.text(settings)
    again = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_fixed(_WAIT_SECONDS),
        retry=tenacity.retry_if_result(bool),
        # After the last attempt, what is left is the result.
        retry_error_callback=lambda _: None,
    )
    wrong = unreadable(settings)
    left = [(number, url) for number, url in enumerate(settings.alert.urls, 1) if _receiver(number, url) not in wrong]

    def tell_the_rest() -> int:
        left[:] = [(number, url) for number, url in left if not _notify(url, alert, text)]
        return len(left)

    again(tell_the_rest)
    refused = {_receiver(number, url) for number, url in left}
    names = receivers(settings)
    failed = tuple(name for name in names if name in refused or name in wrong)
    return Delivery(tuple(name for name in names if name not in failed), failed, wrong)


def _notify(url: SecretStr, alert: Alert, text: str) -> bool:
    """Send a message to a URL, and return whether its service took it."""
    # It takes half a second to import.
    import apprise

    # Apprise adds no service for a URL that it cannot read, and notifies nobody then.
    sender = apprise.Apprise()
    return bool(
        sender.add(url.get_secret_value()) and sender.notify(body=text, title=alert.title, notify_type=alert.kind)
    )


def _receiver(number: int, url: SecretStr) -> str:
    # The settings take no URL without a kind.
    return f"{number} ({url.get_secret_value().partition('://')[0]})"
