"""The nightly audit's turn: which old statements it reads again, which keys it lists, and what it hands on for that.

Whatever is added, removed or replaced among what earlier audits have seen is found within `audit.reread_days`, R. What
is new is found at once, since all new statements are read. For each kind of change:

- **A segment, a quarantine object or a manifest that is removed or replaced, or has lost its lock.** A statement is
  read again within R, with all that it names. A turn of a log moves on by the same share of the log, `days / R`,
  whatever it has grown by: it ends at statement `(f + days / R) * size`, if the last one ended at the fraction f of the
  size then. A statement's fraction never grows. So the next turn that reaches it comes after R at the latest.
- **A checkpoint, or any other key among a log's manifests or checkpoints.** They are listed from slot to slot with the
  statements of each piece, and with all versions. The ranges of adjacent pieces meet. The first begins before slot 0.
  The new statements' range has no end, so what lies behind the head is seen each night. In a folder, a listing goes
  through all names wherever it begins. So there the slots of a piece are looked for by their names, and those behind
  the head as `custody.archive.slots` does. A log is listed as a whole in the night that reads its first statement.
- **A key under `events/` or `quarantine/`**: one that nothing names, a foreign one, another version, a delete marker.
  `Turn.listed` says of each position when it was last listed (`custody.verify.records`), and leaves none out. All that
  was listed R ago or earlier is due, and listed tonight. So no position is older than R, whatever else decides what is
  listed. So that this costs little, a night also lists the keys of the statements that it reads again anyway: those of
  the log with the most statements, from where the last such stretch ended. This way little is left to be due, and most
  names are known. For each other listed key the statement is looked up that accounts for its offset.
- **A key at any other place**, in a folder that no archive has or above the logs: these folders are listed each night.
- **An audit, an object of one, or a checkpoint of the audits.** All are listed and read when the last time is R ago.
- **A table.** Those of the statements that are read again are compared with their signed lists; those of other days
  when their day is listed.

The signed audit names an object with a `Turn` for the next one by its SHA-256. If that object is missing or changed,
all is listed. A clock that goes back makes nothing due later: times in the future count as long ago.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

import msgspec

from custody.archive.audit_findings import listed_objects
from custody.archive.reader import Holds, read_manifest
from custody.errors import FormatError, ObjectMissing
from custody.format import limits
from custody.format.audit import Audit, ObjectRef
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import EPOCH, check_time, format_time, parse_time
from custody.store.protocol import Store
from custody.verify.records import Stretch, named_objects, names_of, position_of

logger = logging.getLogger(__name__)

FORMAT: Literal["custody/turn/1"] = "custody/turn/1"
FOLDER = "reports/turns/"
_SLACK = timedelta(hours=6)
"""Audits do not begin at the same second each night. What is due within this time is due now."""
_LONG_AGO = format_time(EPOCH)

Listed = Sequence[tuple[str, str]]
"""Positions in order, each with the time when the keys from there on were last listed. The first position is ''."""


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an audit hands on to the next one.

    Attributes:
        format: the form.
        archive: the archive's id.
        listed: when the records' keys were last listed.
        following: the position at which the next stretch begins that goes with the statements.
        audits_at: when all audits were last read.
        sizes: of each log, how many old statements there were when its last turn ended.
    """

    format: Literal["custody/turn/1"] = FORMAT
    archive: str
    listed: tuple[tuple[str, str], ...] = (("", _LONG_AGO),)
    following: str = ""
    audits_at: str = _LONG_AGO
    sizes: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Share:
    """The old statements of a log that are read again in a turn.

    Attributes:
        log: the log.
        size: how many old statements it has.
        spans: which are read, in order of sequence. If there are two, the turn ended and began anew.
    """

    log: Log
    size: int
    spans: Sequence[tuple[int, int]]


def read(store: Store, audit: Audit | None) -> Turn | None:
    """Return what an audit handed on; None if there is nothing to be used. Raises StoreError."""
    if audit is None:
        return None
    listed = listed_objects(store, audit.objects[0]) if len(audit.objects) == 1 else ()
    ref = next((ref for ref in (*audit.objects, *listed) if ref.key.startswith(FOLDER)), None)
    if ref is None or ref.size > limits.FILE_BYTES:
        return None
    try:
        data = store.read(ref.key, limit=ref.size)
        turn = msgspec.json.decode(data, type=Turn)
        for moment in (turn.audits_at, *(moment for _, moment in turn.listed)):
            check_time(ref.key, moment)
    except (ObjectMissing, FormatError, msgspec.MsgspecError) as error:
        logger.warning("%s cannot be used, and the whole archive is listed: %s", ref.key, error)
        return None
    positions = [names_of(position) for position, _ in turn.listed]
    whole = positions[:1] == [()] and positions == sorted(positions)
    same = sha256(data).hexdigest() == ref.sha256 and turn.archive == audit.archive
    return turn if same and whole else None


def put(store: Store, audit: int, turn: Turn) -> ObjectRef:
    """Store what an audit hands on, and return the reference to it. Raises StoreError."""
    data = msgspec.json.encode(turn)
    digest = sha256(data).hexdigest()
    ref = ObjectRef(f"{FOLDER}{audit:012}-{digest[:16]}.json", len(data), digest)
    store.create(ref.key, data)
    return ref


def is_due(moment: str, now: datetime, days: int) -> bool:
    """Return whether what was done at a time is to be done again now, so that it is never longer ago than some days."""
    age = now - parse_time(moment)
    return age >= timedelta(days=days) - _SLACK or age < timedelta(0)


def share_of(start: int, old: int, before: int, days: float, step: int) -> list[tuple[int, int]]:
    """Return the old statements to read again in a turn.

    Args:
        start: where the last turn ended.
        old: how many old statements there are.
        before: how many there were in the last turn.
        days: the part of `audit.reread_days` that went by since.
        step: statements in a piece, to which the share is rounded up.
    """
    grown = start * max(old - before, 0) / before if before else 0
    many = math.ceil((old * days + grown) / step) * step
    if many >= old:
        return [(0, old)]
    start = 0 if start >= old else start
    return [(start, start + many)] if start + many <= old else [(0, start + many - old), (start, old)]


def stretches_beside(
    store: Store, shares: Iterable[Share], following: str, holds: Callable[[Log], Holds[Manifest]]
) -> tuple[list[Stretch], str]:
    """Return the keys of the statements that a turn reads again of the log with the most, and where the next begin."""
    largest = max((share for share in shares if share.spans), key=lambda share: share.size, default=None)
    if largest is None:
        return [Stretch()], ""
    if len(largest.spans) == 2:
        end = _position(store, largest.log, largest.spans[0][1], holds)
        return [Stretch(following), *([Stretch("", end)] if end else [])], end or ""
    ((first, stop),) = largest.spans
    begin = following if first else ""
    if stop >= largest.size:
        return [Stretch(begin)], ""
    end = _position(store, largest.log, stop, holds)
    if end is None or names_of(end) <= names_of(begin):
        # Its clock went back, or another log had the most: what is left out is listed when it is due.
        return [], begin
    return [Stretch(begin, end)], end


def _position(store: Store, log: Log, sequence: int, holds: Callable[[Log], Holds[Manifest]]) -> str | None:
    """Return where the keys begin that a statement and those behind it name, about; None if it cannot be read."""
    try:
        statement = read_manifest(store, log, sequence, holds(log)).statement
    except (ObjectMissing, FormatError):
        return None
    key = next(named_objects(statement), None)
    if key is None:
        return f"{parse_time(statement.sealed_at):%Y/%m/%d/%H/%M/%S}"
    return "/".join(position_of(key))


def choose(
    listed: Listed, beside: Sequence[Stretch], now: datetime, days: int
) -> tuple[list[Stretch], list[tuple[str, str]]]:
    """Return which keys are listed now, and when each was last listed then.

    Args:
        listed: when the keys were last listed.
        beside: those that are listed in any case.
        now: the time.
        days: within how many days each key is listed.
    """
    edges = {position for position, _ in listed} | {stretch.since for stretch in beside}
    edges |= {stretch.until for stretch in beside if stretch.until is not None}
    chosen: list[Stretch] = []
    after: list[tuple[str, str]] = []
    order = sorted(edges, key=names_of)
    moments = dict(listed)
    moment = _LONG_AGO
    for position, until in zip(order, [*order[1:], None], strict=True):
        moment = moments.get(position, moment)
        stated = moment
        if is_due(moment, now, days) or any(stretch.holds(names_of(position)) for stretch in beside):
            stated = format_time(now)
            if chosen and chosen[-1].until == position:
                chosen[-1] = Stretch(chosen[-1].since, until)
            else:
                chosen.append(Stretch(position, until))
        if not after or after[-1][1] != stated:
            after.append((position, stated))
    return chosen, after
