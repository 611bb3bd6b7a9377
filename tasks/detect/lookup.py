"""Finds an alert by its id: in the state of detection, or among the events that were sent and archived."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import duckdb

from custody.archive.reader import read_archive
from custody.archive.trusted import check_keys
from custody.errors import ConfigurationError, CustodyError, FormatError
from custody.query.connect import open_archive
from custody.store.open import open_store
from tasks.detect.alerts import Alert, Notice
from tasks.detect.publish import details_of
from tasks.detect.state import States
from tasks.detect.views import OWN
from tasks.settings import Settings

_SENT: Final = """
SELECT log, "offset", severity, details FROM events
WHERE event_type = 'security_event' AND request_id = $id AND starts_with(alert_type, $own)
ORDER BY time DESC, "offset" DESC LIMIT 1
"""
_NEAR: Final = 3
_ID: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Traced:
    """An alert that was found.

    Attributes:
        details: what its newest notice says, as in the event; `kind` is empty if nobody was told.
        level: how bad it is.
        source: where it was found.
        over: whether it is over; None if that is not known.
    """

    details: Mapping[str, Any]
    level: str
    source: str
    over: bool | None


def is_alert(text: str) -> bool:
    """Return whether a text has the form of an alert's id."""
    return _ID.fullmatch(text) is not None


def find_alert(settings: Settings, alert: str, since: datetime) -> Traced:
    """Return an alert. What is archived proves only that somebody sent it: whoever may write to the topic can.

    Args:
        settings: the settings.
        alert: its id.
        since: how far back archived events are searched, if the state does not have it.

    Raises:
        ConfigurationError: there is no such alert. The message has ids that are near.
        CustodyError: the archive cannot be read.
    """
    known = _known(settings)
    for each in known:
        if each.id == alert:
            kind = "" if each.recorded_only else "over" if each.over else "storm" if each.storm else "opened"
            details = details_of(Notice("", "opened", each, "", each.matches if each.storm else 0))
            return Traced({**details, "kind": kind}, each.level, "the state of detection", each.over)
    sent = next(_sent(settings, alert, since), None)
    if sent is not None:
        return sent
    raise ConfigurationError(
        f"no alert has the id {alert}, neither in the state of detection nor in what was archived since"
        f" {since:%Y-%m-%d}: search further back with --since{_near(alert, known)}"
    )


def _known(settings: Settings) -> Sequence[Alert]:
    """Return the alerts of the state. Without one that can be read, archived events are left to search."""
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_archive(store)
        check_keys(store, file, settings.trust_at_hand())
        try:
            state = States(store, file.id).newest()
        except FormatError:
            return ()
    return state.alerts if state else ()


def _sent(settings: Settings, alert: str, since: datetime) -> Iterator[Traced]:
    """Yield what archived events say of an alert."""
    connection, _ = open_archive(settings.archive, since=since)
    with closing(connection):
        try:
            rows = connection.execute(_SENT, {"id": alert, "own": OWN}).fetchall()
        except duckdb.Error as error:
            raise CustodyError(f"archived events cannot be searched for the alert: {error}") from None
    for log, offset, severity, text in rows:
        details = _mapping(text)
        if details:
            over = True if details.get("kind") == "over" else None
            yield Traced(details, str(severity), f"the archived event {log}@{offset}", over)


def _mapping(text: Any) -> Mapping[str, Any]:
    """Return an event's details, which somebody else may have written."""
    try:
        details = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return details if isinstance(details, dict) else {}


def _near(alert: str, known: Sequence[Alert]) -> str:
    if not known:
        return ""
    near = [each for each in known if each.id[:4] == alert[:4]]
    newest = sorted(known, key=lambda each: each.last, reverse=True)
    return f"; known are, for instance, {', '.join(each.id for each in (near or newest)[:_NEAR])}"
