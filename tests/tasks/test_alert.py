"""Alerts: who is told, what they read, and what becomes of a URL that fails."""

import logging

import pytest
from pydantic import SecretStr

from tasks.alert import NOBODY, Alert, receivers, send
from tasks.settings import AlertSettings, Settings
from tests.helpers.inbox import inbox

CANARY = "xoxb-CANARY-token"
ALERT = Alert("custody: the audit failed", "tampered segment-hash: events/1.gz", "http://prefect/runs/1", "docs/a.md#b")


def settings_with(*urls: str) -> Settings:
    """Return settings with these receivers."""
    return Settings(archive="archive", alert=AlertSettings(urls=[SecretStr(url) for url in urls]))


def test_everybody_is_told_where_and_what() -> None:
    """Each URL gets the title, the details, and where it happened and where to read on."""
    with inbox() as first, inbox() as second:
        delivery = send(settings_with(first.url, second.url), ALERT, attempts=1)
        assert delivery.told == ("1 (json)", "2 (json)")
        assert not delivery.failed
        (message,) = first.received
        assert second.received == [message]
    assert (message["title"], message["type"]) == (ALERT.title, "failure")
    for part in ("tampered segment-hash", "Archive: ", "/archive", "Host: ", "http://prefect/runs/1", "docs/a.md#b"):
        assert part in message["message"]


def test_one_url_that_fails_is_named_and_hides_none(caplog: pytest.LogCaptureFixture) -> None:
    """The others are told all the same, once. No log line, summary or name shows a token."""
    caplog.set_level(logging.DEBUG)
    with inbox() as good, inbox(status=500) as bad:
        wrong = f"nonsense://{CANARY}"
        delivery = send(settings_with(good.url, bad.url, wrong), ALERT, attempts=1)
        assert len(good.received) == 1
    assert delivery.told == ("1 (json)",)
    assert delivery.failed == ("2 (json)", "3 (nonsense)")
    assert delivery.unreadable == ("3 (nonsense)",)
    assert "3 (nonsense): the URL cannot be read" in delivery.summary()
    assert "2 (json): the service did not take it" in delivery.summary()
    assert CANARY not in caplog.text + delivery.summary() + repr(receivers(settings_with(wrong)))


def test_only_who_was_not_told_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt asks the URL that failed, and tells nobody twice."""
    monkeypatch.setattr("tasks.alert._WAIT_SECONDS", 0)
    with inbox() as good, inbox(status=500, failures=1) as flaky:
        delivery = send(settings_with(good.url, flaky.url), ALERT, attempts=3)
        assert (len(good.received), len(flaky.received)) == (1, 2)
    assert delivery.told == ("1 (json)", "2 (json)")


def test_a_url_that_cannot_be_read_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for it: no attempt changes a URL. The summary says no word of a service."""
    monkeypatch.setattr("tasks.alert._notify", lambda *_: pytest.fail("it was tried"))
    delivery = send(settings_with("slack://x", "nonsense://x"), ALERT)
    assert (delivery.told, delivery.failed) == ((), delivery.unreadable)
    assert delivery.unreadable == ("1 (slack)", "2 (nonsense)")
    assert delivery.summary().startswith("nobody was told; 1 (slack), 2 (nonsense): the URL cannot be read")
    assert "did not take it" not in delivery.summary()


def test_nobody_is_said() -> None:
    """Without URLs nobody is told, and the summary says how to change that."""
    delivery = send(settings_with(), ALERT, attempts=1)
    assert (delivery.told, delivery.failed) == ((), ())
    assert delivery.summary() == NOBODY
    assert receivers(settings_with()) == ()
