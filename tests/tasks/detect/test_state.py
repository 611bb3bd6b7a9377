"""The state of detection in the archive: what is committed comes back, and what is damaged never counts."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import CustodyError, FormatError, TerminalStoreError
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.detect import memory, positions
from tasks.detect import state as state_module
from tasks.detect.alerts import Alert, Kind, Notice, Place
from tasks.detect.memory import SEEN
from tasks.detect.positions import FOLDER, LARGEST, Late, Totals, newest_facts
from tasks.detect.state import SENT, TABLES, State, States, Superseded

ARCHIVE = "0190a000-0000-7000-8000-000000000001"
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
TIME = datetime(2026, 3, 2, 11, 30, tzinfo=UTC).replace(tzinfo=None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "archive"))
    yield opened
    opened.close()


def alert(number: int) -> Alert:
    return Alert(
        id=f"{number:032x}",
        rule="failures",
        rule_id="4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a01",
        title="Failures",
        level="high",
        group=(("api_key_id", f"key-{number}"),),
        first=TIME,
        last=TIME + timedelta(minutes=number),
        matches=number,
        metric=3.5,
        told=3.0,
        evidence=(Place("a/0", number),),
        cool_down=3600,
    )


def notice(number: int) -> Notice:
    return Notice(f"{number:031x}f", "opened", alert(number), "Look.", 0, 3.0)


def full() -> State:
    """Return a state of which no part is empty."""
    rows = [{"kind": "network", "key": "k", "value": "192.0.2.0/24", "first_seen": TIME, "last_seen": TIME}]
    known = memory.empty()
    remembered = memory.Memory(
        known.kept, known.minutes, known.peaks, pa.Table.from_pylist(rows, schema=SEEN), known.operations, known.sources
    )
    return State(memory=remembered, alerts=(alert(1), alert(2)), outbox=(notice(1),), held=(notice(2),)).with_facts(
        positions={"a/0": 7},
        until=TIME,
        told_from=TIME,
        looked_again=TIME,
        late=(Late(TIME, TIME),),
        announced=(notice(1).id,),
        sent=("x",),
        totals=Totals(alerts={"failures/high": 2}, late=3),
        failed={"broken": "why"},
    )


def files(store: Store) -> dict[str, bytes]:
    return {info.key: store.read(info.key, limit=10**7) for info in store.list(FOLDER)}


def damage(store: Store, key: str, data: bytes | None) -> None:
    path = Path(store.url.removeprefix("file://")) / key
    path.chmod(0o600)
    path.unlink() if data is None else path.write_bytes(data)


def exchange(store: Store, state: State, name: str, data: bytes) -> None:
    """Put another table in the place of a state's, as anybody can who may write into the archive."""
    key = f"{TABLES}{state.number:020}-{sha256(data).hexdigest()}.parquet"
    store.create(key, data)
    document = json.loads(store.read(f"{FOLDER}{state.number:020}", limit=10**7))
    document["tables"][name] = {"key": key, "size": len(data)}
    damage(store, f"{FOLDER}{state.number:020}", json.dumps(document).encode())


def test_what_is_committed_comes_back(store: Store) -> None:
    """All of it, and the small part without the tables."""
    assert States(store, ARCHIVE).newest() is None
    assert newest_facts(store, ARCHIVE) is None
    states = States(store, ARCHIVE)
    made = states.commit(full(), NOW)
    assert made.number == 1
    assert States(store, ARCHIVE).newest() == made
    assert (made.alerts, made.outbox, made.held) == (full().alerts, full().outbox, full().held)
    assert newest_facts(store, ARCHIVE) == made.facts
    again = states.commit(made.with_facts(positions={"a/0": 8}), NOW)
    assert (again.number, again.tables) == (2, made.tables)


def test_events_of_an_older_version(store: Store) -> None:
    """They lack the columns that came later, which are NULL then. What is remembered is not lost by an update."""
    rows = [{"event_type": "query_executed", "time": TIME, "log": "a/0", "offset": 5, "operation_type": "mutation"}]
    whole = pa.Table.from_pylist(rows, schema=memory.KEPT)
    older = whole.drop_columns(["operation_type"])
    States(store, ARCHIVE).commit(State(memory=replace(memory.empty(), kept=older)), NOW)
    newest = States(store, ARCHIVE).newest()
    assert newest is not None
    assert newest.memory.kept.schema.equals(memory.KEPT)
    assert newest.memory.kept.to_pylist() == [{**whole.to_pylist()[0], "operation_type": None}]


def test_two_states_stay_with_their_files(store: Store) -> None:
    """Whatever older ones had is deleted; a part that did not change is not written again."""
    states = States(store, ARCHIVE)
    state = full()
    for number in range(6):
        state = states.commit(State(memory=state.memory, alerts=(alert(number),), number=state.number), NOW)
    kept = files(store)
    numbers = sorted(key.removeprefix(FOLDER) for key in kept if not key.startswith(TABLES))
    assert numbers == [f"{number:020}" for number in (5, 6)]
    # Of the tables one, and of the alerts two.
    parts = 1 + len(memory.Memory.__slots__)
    assert len([key for key in kept if key.startswith(TABLES)]) <= parts + 1
    assert States(store, ARCHIVE).newest() == state


def test_of_two_who_commit_one_is_superseded(store: Store) -> None:
    """Also if both have the same to say: otherwise both would tell people."""
    first, second = States(store, ARCHIVE), States(store, ARCHIVE)
    assert (first.newest(), second.newest()) == (None, None)
    made = first.commit(full(), NOW)
    with pytest.raises(Superseded):
        second.commit(full(), NOW)
    newest = second.newest()
    assert newest == made
    assert second.commit(newest, NOW).number == 2


def _without(name: str) -> Any:
    def edit(data: bytes) -> bytes:
        document = json.loads(data)
        del document[name]
        return json.dumps(document).encode()

    return edit


def _with(**fields: Any) -> Any:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "no JSON": lambda data: b"\xff" + data,
    "another archive": _with(archive="another"),
    "another number": _with(number=1),
    "another format": _with(format="custody/detect/2"),
    "more": _with(more=1),
    "no facts": _without("facts"),
    "no tables": _with(tables={}),
    "a foreign table": _with(tables={"kept": {"key": "events/x", "size": 1}}),
    "nested": lambda _: b"[" * 100_000,
    "facts": _with(facts={"outbox": [{"id": 5}]}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_passed_over(store: Store, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """A warning names it, and the one before counts; the next commit has a number behind it."""
    states = States(store, ARCHIVE)
    first = states.commit(full(), NOW)
    states.commit(first.with_facts(positions={"a/0": 9}), NOW)
    key = f"{FOLDER}{2:020}"
    damage(store, key, DAMAGES[name](store.read(key, limit=10**7)))
    again = States(store, ARCHIVE)
    assert again.newest() == first
    assert "is not used" in caplog.text
    assert again.commit(first, NOW).number == 3
    assert States(store, ARCHIVE).newest() is not None


@pytest.mark.parametrize("data", [None, b"", b"PAR1 nonsense"])
def test_without_its_tables_a_state_does_not_count(store: Store, data: bytes | None) -> None:
    """If no other one is whole, the error names the command that helps."""
    States(store, ARCHIVE).commit(full(), NOW)
    for key in files(store):
        if key.startswith(TABLES):
            damage(store, key, data)
    states = States(store, ARCHIVE)
    with pytest.raises(FormatError, match="custody detect rebuild"):
        states.newest()
    assert states.commit(full(), NOW).number == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [("seen", b"192.0.2.0/24"), ("seen", b"first_seen"), ("kept", b"event_type"), ("alerts", b"Failures")],
)
def test_a_table_with_bytes_that_are_no_utf8(
    store: Store, caplog: pytest.LogCaptureFixture, name: str, text: bytes
) -> None:
    """A table with values or names that are no UTF-8, as anybody can put one, ends no run: the state before counts."""
    states = States(store, ARCHIVE)
    first = states.commit(full(), NOW)
    second = states.commit(first.with_facts(positions={"a/0": 9}), NOW)
    made = io.BytesIO()
    table = pq.read_table(io.BytesIO(store.read(second.tables[name].key, limit=10**7)))
    pq.write_table(table, made, compression="none", use_dictionary=False)
    assert text in made.getvalue()
    exchange(store, second, name, made.getvalue().replace(text, b"\x92" * len(text)))
    assert States(store, ARCHIVE).newest() == first
    assert "is no Parquet file" in caplog.text


def test_an_alert_that_is_nested_without_an_end(store: Store) -> None:
    """It ends no run either: the state before counts."""
    states = States(store, ARCHIVE)
    first = states.commit(full(), NOW)
    second = states.commit(first.with_facts(positions={"a/0": 9}), NOW)
    table, made = pa.table({"alert": ["[" * 200_000]}), io.BytesIO()
    pq.write_table(table, made)
    exchange(store, second, "alerts", made.getvalue())
    assert States(store, ARCHIVE).newest() == first


JUNK = {
    "beyond all numbers": [10**20 - 1],
    "more than are kept": [10**19 + number for number in range(9)],
    "the last number": [LARGEST],
    "the last numbers": [LARGEST - number for number in range(9)],
    "the next numbers": [2, 3, 4, 5, 6, 7],
}


@pytest.mark.parametrize("numbers", JUNK.values(), ids=JUNK)
def test_objects_that_are_no_states_end_nothing(store: Store, numbers: list[int]) -> None:
    """Whatever number they have, the state counts, and so do the next ones, also those of a rebuild."""
    made = States(store, ARCHIVE).commit(full(), NOW)
    for number in numbers:
        store.create(f"{FOLDER}{number:020}", b"x")
    states = States(store, ARCHIVE)
    assert states.newest() == made
    assert bool(states.problems) == (min(numbers) <= LARGEST)
    for position in range(4):
        made = states.commit(made.with_facts(positions={"a/0": position}), NOW)
        assert made.number <= LARGEST
        assert States(store, ARCHIVE).newest() == made
        assert newest_facts(store, ARCHIVE) == made.facts
    states = States(store, ARCHIVE)
    states.newest()
    rebuilt = states.commit(full(), NOW)
    assert rebuilt.number > made.number
    assert States(store, ARCHIVE).newest() == rebuilt


def test_the_last_number_is_an_error(store: Store) -> None:
    """Who puts a state with the largest number can end detection, but not in silence."""
    made = States(store, ARCHIVE).commit(full(), NOW)
    document = json.loads(store.read(f"{FOLDER}{made.number:020}", limit=10**7))
    store.create(f"{FOLDER}{LARGEST:020}", json.dumps({**document, "number": LARGEST}).encode())
    states = States(store, ARCHIVE)
    newest = states.newest()
    assert newest is not None
    assert newest.number == LARGEST
    for state in (newest, full()):
        with pytest.raises(FormatError, match="remove it"):
            states.commit(state, NOW)


def kind(number: int, name: Kind) -> Notice:
    return replace(notice(number), kind=name)


def test_notices_wait_up_to_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then those go that an alert grew or is over, and the oldest that one opened. They are counted, and named."""
    kinds: list[Kind] = ["opened", "grown", "opened", "storm", "over", "opened", "over"]
    waiting = tuple(kind(number, name) for number, name in enumerate(kinds))
    state = replace(full(), outbox=waiting).with_facts(announced=tuple(each.id for each in waiting))
    states, made = States(store, ARCHIVE), state
    for most, left in ((7, [0, 1, 2, 3, 4, 5, 6]), (5, [0, 2, 3, 5, 6]), (3, [2, 3, 5]), (2, [3, 5])):
        monkeypatch.setattr(state_module, "WAITING", most)
        made = states.commit(made, NOW)
        assert made.outbox == tuple(waiting[number] for number in left)
        assert made.facts.announced == tuple(waiting[number].id for number in left)
        assert made.facts.totals.dropped == 7 - len(left)
        assert States(store, ARCHIVE).newest() == made
    (problem,) = states.problems
    assert "5 notices" in problem


def test_notices_take_no_more_room_than_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones are fewer: what was committed can be read, whatever waits or is held."""
    for module in (state_module, positions):
        monkeypatch.setattr(module, "STATE_BYTES", 40_000)
    monkeypatch.setattr(state_module, "_WAITING_BYTES", 10_000)
    large = tuple(replace(notice(number), advice="x" * 1_000) for number in range(50))
    made = States(store, ARCHIVE).commit(replace(full(), outbox=large, held=large), NOW)
    assert made.outbox == made.held == large[-len(made.outbox) :]
    assert len(made.outbox) > 3
    assert made.facts.totals.dropped == 100 - 2 * len(made.outbox)
    assert States(store, ARCHIVE).newest() == made


@pytest.mark.parametrize("bound", ["STATE_BYTES", "_TABLE_BYTES"])
def test_what_could_not_be_read_is_not_committed(store: Store, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """The error says so, and the state before stays the one that counts."""
    states = States(store, ARCHIVE)
    made = states.commit(State(), NOW)
    monkeypatch.setattr(state_module, bound, 100)
    with pytest.raises(FormatError, match="custody detect rebuild"):
        states.commit(replace(full(), number=made.number), NOW)
    monkeypatch.undo()
    assert States(store, ARCHIVE).newest() == made


FAR, ZONE, FIRST, SOON = "9999-12-31T23:59:59", "2026-03-02T11:11:00Z", "0001-01-01T00:00:00", "in an hour"
TIMES = [(name, time) for name in ("until", "told_from", "looked_again", "late") for time in (FAR, ZONE, FIRST, SOON)]


@pytest.mark.parametrize(("name", "time"), TIMES)
def test_times_that_no_run_wrote(store: Store, name: str, time: str) -> None:
    """Such a state does not count, for runs and for metrics, and the run says so."""
    states = States(store, ARCHIVE)
    first = states.commit(full(), NOW)
    states.commit(first.with_facts(positions={"a/0": 9}), NOW)
    key = f"{FOLDER}{2:020}"
    document = json.loads(store.read(key, limit=10**7))
    soon = (datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None).isoformat()
    forged = soon if time == SOON else time
    document["facts"][name] = [{"first": "2026-03-02T11:11:00", "last": forged}] if name == "late" else forged
    damage(store, key, json.dumps(document).encode())
    again = States(store, ARCHIVE)
    assert again.newest() == first
    assert name in again.problems[0]
    assert newest_facts(store, ARCHIVE) == first.facts


@pytest.mark.parametrize("part", ["alerts", "outbox", "held"])
@pytest.mark.parametrize("change", [{"first": NOW}, {"last": NOW}, {"cool_down": 10**18}])
def test_alerts_that_cannot_be_reckoned_with(store: Store, part: str, change: dict[str, Any]) -> None:
    """A time with a zone, or a cool-down without an end: such a state does not count."""
    states = States(store, ARCHIVE)
    first = states.commit(full(), NOW)
    forged = replace(alert(7), **change)
    parts: dict[str, Any] = {part: (forged if part == "alerts" else replace(notice(7), alert=forged),)}
    states.commit(replace(first, **parts), NOW)
    assert States(store, ARCHIVE).newest() == first


def test_a_clock_that_is_ahead_ends_nothing(store: Store) -> None:
    """If a drain sealed in the future, the state says now."""
    ahead = (datetime.now(UTC) + timedelta(hours=3)).replace(tzinfo=None)
    times = {"until": ahead, "told_from": ahead, "looked_again": ahead, "late": (Late(TIME, ahead),)}
    made = States(store, ARCHIVE).commit(full().with_facts(**times), NOW)
    assert States(store, ARCHIVE).newest() == made
    assert made.facts.until is not None
    assert TIME < made.facts.until < ahead


def test_a_store_that_deletes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Commits go on, and a warning says that room is taken."""

    def refuse(_: str) -> None:
        raise TerminalStoreError("AccessDenied")

    monkeypatch.setattr(store, "remove", refuse)
    states, state = States(store, ARCHIVE), full()
    for _ in range(4):
        state = states.commit(State(alerts=(alert(state.number),), number=state.number), NOW)
    assert "AccessDenied" in caplog.text
    assert States(store, ARCHIVE).newest() == state
    assert len([key for key in files(store) if not key.startswith(TABLES)]) == 4


@given(
    st.lists(st.integers(0, 9), unique=True),
    st.sets(st.integers(0, 9)),
    st.sets(st.integers(0, 9)),
    st.sets(st.integers(0, 9)),
)
def test_a_notice_leaves_when_people_heard_and_kafka_has_it(
    waiting: list[int], heard_before: set[int], heard: set[int], taken: set[int]
) -> None:
    """And not before; what is left stays in its order, and is told to nobody again who heard of it."""

    def ids(numbers: set[int]) -> set[str]:
        return {notice(number).id for number in numbers}

    state = State(outbox=tuple(map(notice, waiting))).with_facts(announced=tuple(ids(heard_before)))
    marked = state.marked(ids(heard), ids(taken))
    assert [each.id for each in marked.outbox] == [
        notice(number).id for number in waiting if number not in taken & (heard | heard_before)
    ]
    assert set(marked.facts.announced) == ids((heard | heard_before) & set(waiting)) & {n.id for n in marked.outbox}
    assert len(marked.facts.sent) <= SENT


def test_errors_are_custodys() -> None:
    """Who calls catches one kind."""
    assert issubclass(Superseded, CustodyError)
