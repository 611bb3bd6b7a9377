"""What a state of detection says without its tables: positions, counts and what is to be told.

Metrics read this part alone: it needs neither DuckDB nor Arrow. `tasks.detect.state` has the whole.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from custody.errors import FormatError, ObjectArchived, ObjectMissing
from custody.format import limits
from custody.format.times import EPOCH
from custody.store.protocol import Store

FORMAT: Final = "custody/detect/1"
FOLDER: Final = "reports/detect/"
KEPT: Final = 2
"""States that stay: the one that counts, and the one before, in case that one is damaged."""
LARGEST: Final = 10**15 - 1
"""The largest number of a state. No run gets there: what has a larger one was put there by somebody, and is ignored."""
STATE_BYTES: Final = 64 * limits.MIB
_AHEAD: Final = timedelta(minutes=15)
"""How far the clock of who committed a state may be ahead."""
_EPOCH: Final = EPOCH.replace(tzinfo=None)
_LOOKED: Final = 1_000
"""Objects that are looked at, until one is a state that can be used. A run must end."""
_KEY = re.compile(rf"{FOLDER}([0-9]{{20}})")


class Late(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Events that came so late that rules with windows must look at their time again: from and to, both included."""

    first: datetime
    last: datetime


class Totals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts since the first run, for metrics: of alerts as `rule/level`, of the others by rule.

    `dropped` counts notices that were never sent, because too many waited.
    """

    alerts: dict[str, int] = {}
    suppressed: dict[str, int] = {}
    failures: dict[str, int] = {}
    late: int = 0
    dropped: int = 0


class TableRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a state: its key and its size."""

    key: str
    size: int


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a state says without its tables.

    Attributes:
        positions: of each log, the sequence of the next statement.
        until: the newest time of an event that is known, as a time in UTC without zone; None before the first event.
        told_from: alerts that ended before are recorded and not told: a first run tells nobody of the past.
        looked_again: until when the events of past days were looked at again.
        late: times of late events that are still to be looked at.
        held: notices about alerts before `told_from`, which are sent if these last.
        outbox: notices that are to be sent.
        announced: ids of those of them that people heard of, and Kafka did not take yet.
        sent: ids of notices that were sent, the newest last.
        telling_until: until when the run that committed this tells its notices, in seconds since 1970; 0 if none does.
        totals: counts for metrics.
        failed: the rules that failed in the last step, and why.
    """

    positions: dict[str, int] = {}
    until: datetime | None = None
    told_from: datetime | None = None
    looked_again: datetime | None = None
    late: tuple[Late, ...] = ()
    held: tuple[dict[str, Any], ...] = ()
    outbox: tuple[dict[str, Any], ...] = ()
    announced: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
    telling_until: int = 0
    totals: Totals = Totals()
    failed: dict[str, str] = {}


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A state object. `writer` is of one commit: two runs that did the same do not take each other's for theirs."""

    format: Literal["custody/detect/1"]
    archive: str
    number: int
    at: str
    writer: str
    facts: Facts
    tables: dict[str, TableRef]


_document: msgspec.json.Decoder[Document] = msgspec.json.Decoder(Document)


def read_document(store: Store, number: int, archive: str) -> Document:
    """Return a state's object without its tables.

    Raises:
        FormatError: it is none, of another archive, or has times that no run wrote.
        StoreError: the store does not give it.
    """
    key = state_key(number)
    try:
        document = _document.decode(store.read(key, limit=STATE_BYTES))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"{key} has another form: {str(error)[:200]}") from None
    if document.archive != archive:
        raise FormatError(f"{key} is of another archive")
    if document.number != number:
        raise FormatError(f"{key} claims to be number {document.number}")
    latest = _now() + _AHEAD
    for name, time in _times(document.facts):
        if time.tzinfo is not None or not _EPOCH <= time <= latest:
            raise FormatError(f"{key} has the time {time} as `{name}`, which no run wrote: times are past, and in UTC")
    return document


def written(facts: Facts) -> Facts:
    """Return facts as they are committed: a drain's clock may be ahead, and then reading would refuse its times."""
    now = _now()

    def past(time: datetime | None) -> datetime | None:
        return None if time is None else min(time, now)

    return msgspec.structs.replace(
        facts,
        until=past(facts.until),
        told_from=past(facts.told_from),
        looked_again=past(facts.looked_again),
        late=tuple(Late(min(each.first, now), min(each.last, now)) for each in facts.late),
    )


def _times(facts: Facts) -> Iterator[tuple[str, datetime]]:
    for name in ("until", "told_from", "looked_again"):
        if (time := getattr(facts, name)) is not None:
            yield name, time
    for late in facts.late:
        yield from (("late", late.first), ("late", late.last))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def newest_facts(store: Store, archive: str) -> Facts | None:
    """Return what the newest readable state says, without its tables; None if there is none. Raises StoreError."""
    for number in candidates(numbers(store)):
        try:
            return read_document(store, number, archive).facts
        except (FormatError, ObjectMissing, ObjectArchived):
            continue
    return None


def numbers(store: Store) -> list[int]:
    """Return the numbers of all states, also of objects that only have such a name. Raises StoreError."""
    named = (_KEY.fullmatch(info.key) for info in store.level(FOLDER)[1])
    return [number for match in named if match and (number := int(match[1])) <= LARGEST]


def candidates(taken: list[int]) -> list[int]:
    """Return the numbers of objects that may be the state that counts, the best first."""
    return sorted(taken, reverse=True)[:_LOOKED]


def state_key(number: int) -> str:
    """Return the key of a state's object."""
    return f"{FOLDER}{number:020}"
