"""What runs know from each other: how far each log was read, what rules remember, alerts, and what is to be told.

It is in the archive under `reports/detect/`, made from the archive, and no evidence: `custody detect rebuild` makes it
again. Nobody signs it. Who may write there can hide alerts, at night too, if they forge more than a position: alerts
that claim to be known, or times. `custody detect backtest` and `rebuild` read signed statements alone, and find them.

- A state is a JSON object, `reports/detect/<number of 20 digits>`. It is created and never changed. The largest number
  counts. Of two runs at once one cannot create its state, and throws its work away.
- Large parts are Parquet files, `reports/detect/tables/<number>-<sha256>.parquet`, by the number of the state that
  needed them first. A part that did not change is not written again.
- A state that is damaged, of another archive or of another form, or with times of the future, is passed over. The run
  names it, and the one before it counts. Two are kept. Older ones, and files that none of the two has, are deleted if
  the store allows it.
- Notices are in a state before they are sent. The next state no longer has those that were sent. So a run that is
  killed between sends them again, with the same ids. At most `WAITING` wait: beyond that, notices are dropped.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

import msgspec
import pyarrow as pa

from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectExists, ObjectMissing, counted
from custody.format import limits
from custody.query import parquet
from custody.store.protocol import Store
from tasks.detect import memory as memories
from tasks.detect.alerts import Alert, NotAnAlert, Notice
from tasks.detect.memory import Memory
from tasks.detect.positions import (
    FOLDER,
    FORMAT,
    KEPT,
    LARGEST,
    STATE_BYTES,
    Document,
    Facts,
    TableRef,
    candidates,
    numbers,
    read_document,
    state_key,
    written,
)

TABLES: Final = f"{FOLDER}tables/"
SENT: Final = 10_000
"""Ids of notices that are remembered after they were sent, so that a rebuild does not send them again."""
WAITING: Final = 10_000
"""Notices that wait at most. A topic may be missing for long."""
REBUILD: Final = "run `custody detect rebuild`, which makes it again from the archive"
_TABLE_BYTES: Final = 512 * limits.MIB
_TRIES: Final = 3
_WAITING_BYTES: Final = STATE_BYTES // 4
"""What they may take, and as much those that are held. The rest of a state is far smaller."""
_TABLE = re.compile(rf"{TABLES}([0-9]{{20}})-([0-9a-f]{{64}})\.parquet")
_ALERTS: Final = pa.schema([("alert", pa.string())])

logger = logging.getLogger(__name__)


class Superseded(CustodyError):
    """Another run committed a state meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A state: what is to be committed, or was.

    Attributes:
        number: that of its object; 0 if there is none.
        facts: all that is small.
        memory: what rules remember.
        alerts: alerts that may still change.
        outbox: notices that are to be sent.
        held: see `Facts`.
        tables: the files of a committed state, by name.
    """

    number: int = 0
    facts: Facts = field(default_factory=Facts)
    memory: Memory = field(default_factory=memories.empty)
    alerts: tuple[Alert, ...] = ()
    outbox: tuple[Notice, ...] = ()
    held: tuple[Notice, ...] = ()
    tables: Mapping[str, TableRef] = field(default_factory=dict)

    def with_facts(self, **changed: Any) -> "State":
        """Return it with some of its facts changed."""
        return replace(self, facts=msgspec.structs.replace(self.facts, **changed))

    def marked(self, announced: Collection[str], sent: Collection[str]) -> "State":
        """Return it with what became of notices: without those of which people heard and that Kafka has."""
        announced = {*self.facts.announced, *announced}
        done = {notice.id for notice in self.outbox if notice.id in announced and notice.id in sent}
        rest = tuple(notice for notice in self.outbox if notice.id not in done)
        return replace(self, outbox=rest).with_facts(
            announced=tuple(sorted(announced & {notice.id for notice in rest})),
            sent=(*self.facts.sent, *sorted(done))[-SENT:],
        )


class States:
    """The states of an archive."""

    def __init__(self, store: Store, archive: str) -> None:
        """Set up. Reads nothing.

        Args:
            store: the archive.
            archive: its id.
        """
        self._store, self._archive = store, archive
        self._passed_over = ""
        self._dropped = 0
        self._taken: list[int] = []
        """The numbers that are taken, also by objects that are no states."""
        self._keep: tuple[State, ...] = ()
        """States whose objects and files stay."""

    @property
    def problems(self) -> list[str]:
        """What was passed over or dropped, and what to do."""
        problems = []
        if self._passed_over:
            problems.append(
                f"an older state of detection counts; {FOLDER} has {self._passed_over}; find out who wrote it"
            )
        if self._dropped:
            problems.append(
                f"{counted(self._dropped, 'notice')} of alerts dropped, because too many wait: see that Kafka takes"
                " them, and look with `custody detect backtest` for the alerts"
            )
        return problems

    def newest(self) -> State | None:
        """Return the state that counts; None if there is none.

        Raises:
            FormatError: there are objects, and none of them can be used. The message names the command that helps.
            StoreError: the store does not answer.
        """
        for _ in range(_TRIES):
            self._taken, self._keep = numbers(self._store), ()
            if not self._taken:
                return None
            problem, gone, refused = None, False, 0
            for number in candidates(self._taken):
                try:
                    state = self._read(number)
                except (FormatError, ObjectMissing, ObjectArchived) as error:
                    problem, gone = problem or error, gone or isinstance(error, ObjectMissing)
                    refused += not isinstance(error, ObjectMissing)
                    if problem is error:
                        logger.warning("a state of detection is not used: %s", error)
                    continue
                self._keep = (state,)
                self._passed_over = f"{counted(refused, 'object')} that cannot be used: {problem}" if refused else ""
                return state
            if not gone:
                break
            # Another run may have put newer ones meanwhile, and deleted these.
        raise FormatError(f"no state of detection can be used: {problem}; {REBUILD}")

    def commit(self, state: State, now: datetime) -> State:
        """Create the next state, and delete what is no longer needed. Return it with its number.

        Args:
            state: what is known now, made from the state that `newest` or `commit` gave last.
            now: the time, for people.

        Raises:
            Superseded: another run was first.
            FormatError: it is larger than what is read, or there is no number left.
            StoreError: it is not known whether it was created: the next run sees.
        """
        number = self._next(state)
        state = self._bounded(state)
        tables = {name: self._put(number, state, name, table) for name, table in self._parts(state)}
        facts = msgspec.structs.replace(
            written(state.facts),
            outbox=tuple(notice.to_json() for notice in state.outbox),
            held=tuple(notice.to_json() for notice in state.held),
        )
        document = Document(
            format=FORMAT,
            archive=self._archive,
            number=number,
            at=now.astimezone(UTC).isoformat(),
            writer=uuid4().hex,
            facts=facts,
            tables=tables,
        )
        data = msgspec.json.encode(document)
        _check_size("the state of detection", len(data), STATE_BYTES)
        try:
            self._store.create(state_key(number), data)
        except ObjectExists:
            raise Superseded("another run of detection was first: this one throws its work away") from None
        self._taken.append(number)
        made = replace(state, number=number, facts=facts, tables=tables)
        self._keep = (*self._keep, made)[-KEPT:]
        self._prune()
        return made

    def _next(self, state: State) -> int:
        """Return the number of the next state: behind all that are taken, if there is one."""
        last = max([state.number, *(kept.number for kept in self._keep)])
        number = max([last, *self._taken]) + 1
        if number > LARGEST:
            # Somebody put an object there to end detection: states go on below it.
            taken = {*self._taken}
            number = next(each for each in range(last + 1, last + len(taken) + 2) if each not in taken)
        if number > LARGEST:
            raise FormatError(f"{state_key(LARGEST)} has the last possible number: remove it, and {REBUILD}")
        return number

    def _bounded(self, state: State) -> State:
        """Return a state without the notices that are too many, and count them."""
        outbox, held = _fitting(state.outbox), _fitting(state.held)
        dropped = len(state.outbox) - len(outbox) + len(state.held) - len(held)
        if not dropped:
            return state
        self._dropped += dropped
        left = {notice.id for notice in outbox}
        totals = msgspec.structs.replace(state.facts.totals, dropped=state.facts.totals.dropped + dropped)
        announced = tuple(name for name in state.facts.announced if name in left)
        return replace(state, outbox=outbox, held=held).with_facts(totals=totals, announced=announced)

    def _parts(self, state: State) -> Iterator[tuple[str, pa.Table]]:
        for each in fields(Memory):
            yield each.name, getattr(state.memory, each.name)
        lines = [msgspec.json.encode(alert.to_json(), order="sorted").decode() for alert in state.alerts]
        yield "alerts", pa.table({"alert": pa.array(lines, pa.string())}, schema=_ALERTS)

    def _put(self, number: int, state: State, name: str, table: pa.Table) -> TableRef:
        """Put a table, unless the state before has the same. Return its reference."""
        before = next((kept for kept in self._keep if kept.number == state.number), None)
        known = before.tables.get(name) if before else None
        if known and before and name != "alerts" and getattr(before.memory, name) is table:
            return known
        data = parquet.encode(table)
        what = f"what detection remembers as `{name}`"
        _check_size(what, parquet.size_of(table), parquet.TABLE_BYTES)
        _check_size(what, len(data), _TABLE_BYTES)
        digest = sha256(data).hexdigest()
        if known and known.key.endswith(f"-{digest}.parquet"):
            return known
        key = f"{TABLES}{number:020}-{digest}.parquet"
        self._store.create(key, data)
        return TableRef(key, len(data))

    def _read(self, number: int) -> State:
        document = read_document(self._store, number, self._archive)
        tables = {name: self._table(name, document) for name in (*(each.name for each in fields(Memory)), "alerts")}
        lines = tables.pop("alerts").column("alert").to_pylist()
        try:
            return State(
                number=number,
                facts=document.facts,
                memory=Memory(**tables),
                alerts=tuple(_usable(Alert.from_json(msgspec.json.decode(line))) for line in lines),
                outbox=tuple(map(_notice, document.facts.outbox)),
                held=tuple(map(_notice, document.facts.held)),
                tables=document.tables,
            )
        except (NotAnAlert, msgspec.MsgspecError, TypeError, OverflowError, RecursionError) as error:
            raise FormatError(f"{state_key(number)} has an alert that is none: {error}") from None

    def _table(self, name: str, document: Document) -> pa.Table:
        schema = _ALERTS if name == "alerts" else getattr(memories.empty(), name).schema
        ref = document.tables.get(name)
        match = _TABLE.fullmatch(ref.key) if ref else None
        if ref is None or match is None:
            raise FormatError(f"{state_key(document.number)} names no file of {name}")
        data = self._store.read(ref.key, limit=_TABLE_BYTES)
        if sha256(data).hexdigest() != match[2]:
            raise FormatError(f"{ref.key} differs from its digest")
        table = parquet.decode(ref.key, data, schema)
        if name == "kept":
            table = _with_new_columns(table, schema)
        if not table.schema.equals(schema):
            raise FormatError(f"{ref.key} has other columns: it is of another version of custody")
        return table

    def _prune(self) -> None:
        """Delete the states before those that are kept, and their files."""
        oldest, newest = self._keep[0].number, self._keep[-1].number
        used = {ref.key for state in self._keep for ref in state.tables.values()}
        try:
            keys = [state_key(number) for number in numbers(self._store) if number < oldest]
            # A file with a larger number may be of a run that is about to commit.
            keys += [
                info.key
                for info in self._store.level(TABLES)[1]
                if (match := _TABLE.fullmatch(info.key)) and int(match[1]) <= newest and info.key not in used
            ]
            for key in keys:
                self._store.remove(key)
        except CustodyError as error:
            logger.warning("what detection no longer needs stays under %s, and takes room: %s", FOLDER, error)


def _with_new_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return events with the columns that came after the version of custody which wrote them: NULL in each."""
    for column in schema:
        if column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table.select(schema.names) if len(table.schema) == len(schema) else table


def _notice(value: object) -> Notice:
    notice = Notice.from_json(value)
    _usable(notice.alert)
    return notice


def _usable(alert: Alert) -> Alert:
    """Return an alert whose times can be reckoned with.

    Raises:
        NotAnAlert: they have a zone.
        OverflowError: its cool-down is longer than times may be.
    """
    if alert.first.tzinfo or alert.last.tzinfo:
        raise NotAnAlert(f"its times have a zone: {alert.first} and {alert.last}")
    timedelta(seconds=alert.cool_down)
    return alert


def _fitting(notices: tuple[Notice, ...]) -> tuple[Notice, ...]:
    """Return the notices that may wait. The oldest go first, and before one that an alert opened, all others."""
    sizes = [len(msgspec.json.encode(notice)) for notice in notices]
    many, size, gone = len(notices), sum(sizes), set[int]()
    for at in sorted(range(len(notices)), key=lambda at: (notices[at].kind in {"opened", "storm"}, at)):
        if many <= WAITING and size <= _WAITING_BYTES:
            break
        many, size = many - 1, size - sizes[at]
        gone.add(at)
    return tuple(notice for at, notice in enumerate(notices) if at not in gone) if gone else notices


def _check_size(name: str, size: int, most: int) -> None:
    """Check that what is written can be read again.

    Raises:
        FormatError: it is too large.
    """
    if size > most:
        raise FormatError(f"{name} has {size:,} bytes, more than the {most:,} that are read: {REBUILD}")
