"""Alerts of rules, from the audit events in which they are archived: each as it was last, and where that is archived.

Rules:
- Only statements of the period that name events of the type `security_event` are looked into, the newest first.
- Bytes that no statement names are never shown. Whether a statement counts is for the rest of the report to say.
- Whoever may write to Kafka can write such events, and too many of them: so texts are cut, and all is bounded.
- What cannot be read is counted. It changes no verdict, because audits look for it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgspec

from custody.archive import reader
from custody.archive.rows import Row
from custody.errors import FormatError, ObjectArchived, ObjectMissing
from custody.format import limits
from custody.format.offsets import offsets_of
from custody.format.times import format_time
from custody.report.statements import Read
from custody.store.protocol import Store

TYPE: Final = "security_event"
OWN: Final = "custody."
"""How the `alert_type` of a rule's alert begins."""
STATEMENTS: Final = 2_000
"""Statements that are looked into at most."""
ALERTS: Final = 10_000
"""Alerts that are kept at most."""
_BYTES: Final = 512 * 1024 * 1024
"""Inflated bytes of these statements."""
_PARALLEL: Final = 16
_CHUNK: Final = 64
"""Statements whose alerts are in memory at a time."""
_MARK: Final = f'"alert_type":"{OWN}'.encode()
_TEXT: Final = 300

_Count = Annotated[int, msgspec.Meta(ge=0, le=limits.INT_MAX)]
Kind = Literal["opened", "grown", "storm", "over"]
_ORDER: Final[dict[Kind, int]] = {"opened": 0, "storm": 0, "grown": 1, "over": 2}


class _Details(msgspec.Struct, frozen=True):
    kind: Kind
    alert_id: Annotated[str, msgspec.Meta(max_length=128)]
    title: str
    group: dict[str, str]
    first: str
    last: str
    matches: _Count
    others: _Count = 0


class _Event(msgspec.Struct, frozen=True):
    alert_type: str
    severity: str
    details: _Details


@dataclass(frozen=True, slots=True)
class Detection:
    """An alert, as its last event says.

    Attributes:
        level: how bad it is.
        rule: the rule's name.
        title: the rule's title.
        group: whom it is about.
        first: the time of its oldest event.
        last: the time of its newest match.
        matches: how many matches it has; of a storm, how many alerts.
        state: `open`, `over`, or `storm` while that is not over.
        others: of a storm, how many alerts were recorded and not sent.
        event: where the event is archived, as `custody evidence` takes it.
    """

    level: str
    rule: str
    title: str
    group: str
    first: str
    last: str
    matches: int
    state: str
    others: int
    event: str


@dataclass(slots=True)
class Detections:
    """What is archived of alerts.

    Attributes:
        rows: the alerts, the newest first.
        since: if not all statements of the period were looked into: when the oldest one was sealed that was.
        unread: how many statements could not be read: they expired, are damaged, or in an archive storage class.
    """

    rows: list[Detection] = field(default_factory=list)
    since: str | None = None
    unread: int = 0


@dataclass(slots=True)
class Candidates:
    """Statements that may have alerts; of many, the newest."""

    _statements: list[tuple[str, str, Row, Read]] = field(default_factory=list)
    _left_out: bool = False

    def add(self, row: Row, read: Read) -> None:
        """Add a statement of the period, if it has events of the type."""
        if row.types.get(TYPE) and row.segment is not None:
            self._statements.append((format_time(row.sealed_at), row.log, row, read))
        if len(self._statements) > 2 * STATEMENTS:
            self._cut()

    def _cut(self) -> None:
        self._statements.sort(key=lambda each: each[:2], reverse=True)
        self._left_out |= len(self._statements) > STATEMENTS
        del self._statements[STATEMENTS:]

    def read(self, store: Store) -> Detections:
        """Return the alerts in them.

        Raises:
            StoreError: the store does not answer.
        """
        self._cut()
        made, newest = Detections(), dict[str, tuple[tuple[int, int], Detection]]()
        chosen = self._chosen()
        with ThreadPoolExecutor(_PARALLEL) as threads:
            for start in range(0, len(chosen), _CHUNK):
                for events in threads.map(
                    lambda each: _events(store, each[1], each[3]), chosen[start : start + _CHUNK]
                ):
                    made.unread += events is None
                    for at, event in events or ():
                        _keep(newest, at, event)
        if self._left_out:
            made.since = chosen[-1][0]
        made.rows = sorted((row for _, row in newest.values()), key=lambda row: (row.last, row.event), reverse=True)
        return made

    def _chosen(self) -> list[tuple[str, str, Row, Read]]:
        """Return the newest statements, one at least, whose events are not too many."""
        left = _BYTES
        for index, (_, _, row, _) in enumerate(self._statements):
            left -= row.inflated
            if index and left < 0:
                self._left_out = True
                return self._statements[:index]
        return self._statements


def _events(store: Store, log: str, read: Read) -> list[tuple[str, _Event]] | None:
    """Return the alerts' events of a statement, with their places; None if not all can be read."""
    events: list[tuple[str, _Event]] = []
    try:
        statement = read()
        if statement.segment is None:
            return []
        for batch in statement.batches:
            payload, _ = reader.read_batch(store, statement.segment.key, batch)
            if _MARK in payload:
                offsets = offsets_of(statement, batch)
                events += [(f"{log}@{offsets[line]}", event) for line, event in _parsed(payload.split(b"\n"))]
    except (FormatError, ObjectArchived, ObjectMissing):
        return None
    return events


def _parsed(lines: Sequence[bytes]) -> Iterator[tuple[int, _Event]]:
    for number, line in enumerate(lines):
        if _MARK not in line:
            continue
        try:
            event = msgspec.json.decode(line, type=_Event)
        except (msgspec.MsgspecError, RecursionError):
            # Of an application, which may call its alerts as it likes.
            continue
        if event.alert_type.startswith(OWN):
            yield number, event


def _keep(newest: dict[str, tuple[tuple[int, int], Detection]], at: str, event: _Event) -> None:
    """Keep an event if it says more of its alert than those before: matches never become fewer."""
    details = event.details
    rank = (details.matches, _ORDER[details.kind])
    known = newest.get(details.alert_id)
    if (known is None and len(newest) >= ALERTS) or (known is not None and known[0] >= rank):
        return
    state = "over" if details.kind == "over" else "storm" if details.others else "open"
    group = ", ".join(f"{name} {value}" for name, value in details.group.items())
    newest[details.alert_id] = (
        rank,
        Detection(
            level=_cut(event.severity),
            rule=_cut(event.alert_type.removeprefix(OWN)),
            title=_cut(details.title),
            group=_cut(group),
            first=_cut(details.first),
            last=_cut(details.last),
            matches=details.matches,
            state=state,
            others=details.others,
            event=at,
        ),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
