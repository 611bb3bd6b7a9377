"""The flow that alerts people: it fails if somebody was not told, whatever the reason."""

from pathlib import Path

import pytest

from flows.alert import alert
from tests.helpers.environment import clear_settings
from tests.helpers.inbox import inbox


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The variables of a run of the deployment, which empties the passphrase."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(tmp_path / "archive"))
    monkeypatch.setenv("CUSTODY_KEYRING_PASSPHRASE", "")
    return monkeypatch


@pytest.mark.usefixtures("prefect_server")
def test_an_alert_is_sent_without_a_passphrase(variables: pytest.MonkeyPatch) -> None:
    """The run completes once everybody was told, and its name is the alert's title."""
    with inbox() as people:
        variables.setenv("CUSTODY_ALERT__URLS", people.url)
        ended = alert("a title", "details", return_state=True)
        assert (ended.type, ended.message) == ("COMPLETED", "a title: told 1 (json)")
        assert [message["title"] for message in people.received] == ["a title"]


@pytest.mark.usefixtures("prefect_server")
def test_an_alert_that_nobody_gets_has_failed(variables: pytest.MonkeyPatch) -> None:
    """Without receivers, or with settings that are wrong, the run fails in one line, which says what to do."""
    ended = alert("a title", return_state=True)
    assert ended.is_failed()
    assert "nobody is alerted: set alert.urls" in str(ended.message)
    variables.setenv("CUSTODY_ALERT__URLS", "no URL")
    ended = alert("a title", return_state=True)
    assert ended.is_failed()
    assert str(ended.message).startswith(
        "a title: nobody was told: alert.urls in CUSTODY_ALERT__URLS: want Apprise URLs"
    )
