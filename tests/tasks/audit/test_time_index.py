"""An audit keeps an index of statements by time, and finds an index that does not say what the statements say."""

import io
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

import custody
from custody.archive import time_index, time_merge, time_parts
from custody.archive.reader import read_archive, read_manifest
from custody.archive.time_index import TimeIndex
from custody.archive.time_spans import Span, SpanMaker
from custody.format import layout
from custody.format.audit import ObjectRef
from custody.format.layout import Log, parse_log_text
from custody.format.times import EPOCH, MICROSECOND, microseconds_of
from custody.keys.trust import Trust, open_trust
from custody.query import parquet, statements, tables
from custody.store.open import open_store
from tasks.audit.conclude import Outcome, conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings
from tests.helpers.sample import Growing

STEP = 3


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    return Growing(tmp_path)


def run(growing: Growing, request: Request | None = None, **more: Any) -> Outcome:
    """Audit: new statements, and one piece of old ones."""
    options = {"piece_statements": STEP, "reread_days": 365} | more
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}", audit=AuditSettings(**options))
    plan = plan_audit(given, request or Request(), growing.sealed_at(growing.size))
    return conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))


def log_of(growing: Growing) -> Log:
    log = parse_log_text(growing.log)
    assert log is not None
    return log


def index_of(growing: Growing, trust: Trust | None = None) -> TimeIndex:
    """Return the index as a reader finds it."""
    return time_index.find(open_store(str(growing.folder)), None, trust or open_trust([f"file:{growing.keyring}"]))


def ranges(growing: Growing) -> list[tuple[int, int]]:
    return [(span.first, span.end) for span in index_of(growing).overlapping(log_of(growing), None, None)]


def kinds(outcome: Outcome) -> list[tuple[str, str]]:
    return [(each["finding"], each["severity"]) for each in outcome.findings]


def test_each_audit_adds_a_span_for_each_piece(growing: Growing) -> None:
    """A span has the times and sums of its statements, its list of tables, and files with the rows of the views."""
    growing.append(7)
    assert run(growing).verdict == "verified"
    growing.append(4)
    run(growing)
    assert ranges(growing) == [(0, 3), (3, 6), (6, 7), (7, 9), (9, 11)]
    store, log, index = open_store(str(growing.folder)), log_of(growing), index_of(growing)
    assert len(index.parts) == 1
    assert (index.end(log), list(index.gaps(log, 0, 12))) == (11, [range(11, 12)])
    for span in index.overlapping(log, None, None):
        assert span.sealed == tuple(microseconds_of(growing.sealed_at(at)) for at in (span.first, span.end - 1))
        maker = SpanMaker(growing.log, span.first, span.end)
        read = [read_manifest(store, log, at, lambda *_: True).statement for at in range(span.first, span.end)]
        for each in read:
            maker.add(each)
        assert maker.span() == msgspec.structs.replace(span, tables=None, manifests=None, batches=None)
        assert span.events == 5 * len(read)
        assert span.tables is not None
        assert tables.parse_list_key(span.tables.key) == (log, span.first, span.end)
        assert span.manifests is not None
        assert span.batches is not None
        rows = statements.read_files(store, "manifests", [span.manifests])
        assert [tuple(row.values())[1] for row in rows.to_pylist()] == [each.sequence for each in read]
        assert statements.read_files(store, "batches", [span.batches]).num_rows == sum(len(s.batches) for s in read)


def test_an_audit_with_nothing_new_keeps_the_index(growing: Growing) -> None:
    """It refers to the same objects, and writes none."""
    growing.append(6)
    run(growing)
    before = sorted(path.name for path in (growing.folder / time_parts.FOLDER).rglob("*"))
    parts = index_of(growing).parts
    assert run(growing).sequence == 1
    assert index_of(growing).parts == parts
    assert sorted(path.name for path in (growing.folder / time_parts.FOLDER).rglob("*")) == before


def test_statements_that_are_not_there_have_a_span_without_times(growing: Growing) -> None:
    """It overlaps every time, so that readers read what there is. Once they are back, it gets its times."""
    growing.append(9)
    run(growing)
    before = index_of(growing).overlapping(log_of(growing), None, None)
    path = growing.folder / layout.manifest_key(log_of(growing), 4)
    data = path.read_bytes()
    path.unlink()
    assert ("sequence-gap", "incomplete") in kinds(run(growing, request=Request(full=True)))
    spans = index_of(growing).overlapping(log_of(growing), None, None)
    assert spans == [before[0], Span(log=growing.log, first=3, end=6), before[2]]
    path.write_bytes(data)
    assert [kinds(run(growing)) for _ in range(3)] == [[], [], []]
    assert ranges(growing) == [(0, 3), (3, 6), (6, 9)]
    assert all(span.sealed and span.manifests for span in index_of(growing).overlapping(log_of(growing), None, None))


def test_beyond_the_head_that_is_signed_nothing_is_indexed(growing: Growing) -> None:
    """While a log is not valid, its head is not signed again, and what lies behind may become another history."""
    growing.append(4)
    run(growing)
    growing.append(4)
    path = growing.folder / layout.manifest_key(log_of(growing), 6)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"a test"', b'"a fake"'))
    assert run(growing).verdict == "tampered"
    assert ranges(growing) == [(0, 3), (3, 4)]
    path.write_bytes(data)
    run(growing)
    assert ranges(growing) == [(0, 3), (3, 4), (4, 6), (6, 8)]


def test_an_old_archive_gets_its_index_by_and_by(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that were audited before there was an index get spans when they are read again, tables included."""
    growing.append(8)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.audit.conclude.hand_on", lambda *_: ([], []))
        run(growing)
    assert ranges(growing) == []
    growing.append(2)
    run(growing)
    assert ranges(growing) == [(0, 3), (8, 9), (9, 10)]
    run(growing)
    run(growing)
    assert ranges(growing) == [(0, 3), (3, 6), (6, 8), (8, 9), (9, 10)]
    assert all(span.tables and span.manifests for span in index_of(growing).overlapping(log_of(growing), None, None))


def test_a_full_audit_makes_the_index_again(growing: Growing) -> None:
    """Whatever the index was: the new one is made of the statements alone, with the tables that there are."""
    growing.append(8)
    run(growing)
    before = index_of(growing)
    forge(growing, lambda span: msgspec.structs.replace(span, first=0, end=8) if not span.first else None)
    assert set(kinds(run(growing, request=Request(full=True)))) == {("time-index", "tampered")}
    assert index_of(growing).overlapping(log_of(growing), None, None) == before.overlapping(log_of(growing), None, None)


def forge(growing: Growing, change: Callable[[Span], Span | None], more: Sequence[Span] = ()) -> None:
    """Sign an index that was changed, or has more spans. Who holds the audit's key can do so."""
    store = open_store(str(growing.folder))
    spans = [
        changed
        for span in index_of(growing).overlapping(log_of(growing), None, None)
        if (changed := change(span)) is not None
    ]
    ref, made = time_merge.extend(read_archive(store).id, 999, time_index.EMPTY, [*spans, *more])
    for key, data in made.items():
        store.create(key, data)
    assert ref is not None
    sign(growing, ref)


def sign(growing: Growing, index: ObjectRef) -> None:
    """Sign an audit of nothing, as the newest one, that refers to an index."""
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tasks.audit.conclude.hand_on", lambda *_: ([index], []))
        plan = plan_audit(given, Request(logs=(growing.log,), since=growing.sealed_at(growing.size)), growing.begun)
        conclude(given, plan, [])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("lie", [{"sealed": (5, 6)}, {"event_times": None}, {"end": 99}])
def test_a_map_that_hides_a_part_is_found_and_made_again(growing: Growing, lie: dict[str, Any], full: bool) -> None:
    """Its bounds decide which parts are read. So they must be those of the part's spans, and end at the head."""
    growing.append(6)
    run(growing)
    before = index_of(growing).overlapping(log_of(growing), None, None)
    index = index_of(growing)
    (part,) = index.parts
    runs = [msgspec.structs.replace(part.runs[0], **lie)]
    archive = read_archive(open_store(str(growing.folder))).id
    data = time_parts.encode(archive, time_parts.MAP_FORMAT, [msgspec.structs.replace(part, runs=runs)])
    ref = ObjectRef(f"{time_parts.FOLDER}000-map-forged.jsonl.gz", len(data), sha256(data).hexdigest())
    open_store(str(growing.folder)).create(ref.key, data)
    sign(growing, ref)
    # A full audit makes the index anew, and says what it was.
    assert kinds(run(growing, Request(full=full))) == [("time-index", "tampered")]
    for _ in range(2):
        assert kinds(run(growing)) == []
    assert index_of(growing).overlapping(log_of(growing), None, None) == before


def _earlier(bounds: tuple[int, int] | None) -> tuple[int, int]:
    assert bounds
    return bounds[0] - 10**9, bounds[1] - 10**9


def _list_of(span: Span) -> ObjectRef:
    assert span.tables is not None
    return span.tables


FORGERIES: dict[str, Callable[[Span], Span]] = {
    "sealed at another time": lambda span: msgspec.structs.replace(span, sealed=_earlier(span.sealed)),
    "sealed until earlier": lambda span: msgspec.structs.replace(span, sealed=(span.sealed or (0, 0))[:1] * 2),
    "events of another time": lambda span: msgspec.structs.replace(span, event_times=_earlier(span.event_times)),
    "without events": lambda span: msgspec.structs.replace(span, event_times=None),
    "Kafka's times": lambda span: msgspec.structs.replace(span, kafka_times=(5, 6)),
    "far times of Kafka": lambda span: msgspec.structs.replace(span, kafka_times=(-(2**63), -(2**62))),
    "fewer events": lambda span: msgspec.structs.replace(span, events=span.events - 1),
    "another offset": lambda span: msgspec.structs.replace(span, next_offset=span.next_offset - 1),
    "no batches": lambda span: msgspec.structs.replace(span, batches=None),
    "tables of others": lambda span: msgspec.structs.replace(
        span, tables=msgspec.structs.replace(_list_of(span), key="x")
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signed_index_that_is_wrong_is_found_and_made_again(growing: Growing, forgery: str) -> None:
    """The rolling re-read recomputes the spans of what it reads: a difference is tampering, and is gone afterwards."""
    growing.append(8)
    run(growing)
    before = index_of(growing).overlapping(log_of(growing), None, None)
    forge(growing, lambda span: FORGERIES[forgery](span) if span.first == 3 else span)
    assert index_of(growing).overlapping(log_of(growing), None, None) != before
    assert kinds(run(growing)) == []
    outcome = run(growing)
    assert kinds(outcome) == [("time-index", "tampered")]
    assert (outcome.findings[0]["sequence"], outcome.findings[0]["through"]) == (3, 5)
    assert outcome.exit_code == 13
    assert index_of(growing).overlapping(log_of(growing), None, None) == before
    assert [kinds(run(growing)) for _ in range(3)] == [[], [], []]


def test_tables_of_others_hide_no_events(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is signed by the index alone is no list: queries read the events from their segments."""
    growing.append(3)
    run(growing)
    (span,) = index_of(growing).overlapping(log_of(growing), None, None)
    store = open_store(str(growing.folder))
    made = tables.TableList(
        format=tables.LIST_FORMAT,
        archive=read_archive(store).id,
        log=span.log,
        first=0,
        end=3,
        sealed_at="2026-01-01T00:00:00Z",
        files=[],
    )
    data = msgspec.json.encode(made) + b"\n"
    ref = ObjectRef("reports/index/fake.json", len(data), sha256(data).hexdigest())
    store.create(ref.key, data)
    forge(growing, lambda span: msgspec.structs.replace(span, tables=ref))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    with closing(custody.connect(str(growing.folder))) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchall() == [(15,)]
        (warning,) = connection.execute("SELECT message FROM warnings WHERE kind = 'ignored'").fetchall()
    assert "reports/index/fake.json" in warning[0]
    assert kinds(run(growing)) == [("time-index", "tampered")]
    assert index_of(growing).overlapping(log_of(growing), None, None) == [span]


@pytest.mark.parametrize("full", [False, True])
def test_spans_that_overlap_are_found(growing: Growing, full: bool) -> None:
    """Who prunes by the run of a lie must not get the honest span when it is opened: no audit would find the lie."""
    growing.append(9)
    run(growing)
    before = index_of(growing).overlapping(log_of(growing), None, None)
    honest, dummy, lie = (
        before[1],
        _without_files(before[0], first=2),
        _without_files(before[1], sealed=before[2].sealed),
    )
    forge(growing, lambda span: span, [dummy, lie])
    moment = EPOCH + MICROSECOND * (honest.sealed or (0, 0))[0]
    for _ in range(1 if full else 4):
        outcome = run(growing, Request(full=full))
        if kinds(outcome):
            break
    assert kinds(outcome) == [("time-index", "tampered")]
    for _ in range(4):
        run(growing)
    index = index_of(growing)
    assert [span for span in index.overlapping(log_of(growing), moment, moment + MICROSECOND) if span == honest]
    assert index.overlapping(log_of(growing), None, None) == before


def _without_files(span: Span, **change: Any) -> Span:
    return msgspec.structs.replace(span, tables=None, manifests=None, batches=None, **change)


def test_batches_of_no_statements_are_found(growing: Growing) -> None:
    """A span has both files, or none: else the rows of batches would be compared with nothing."""
    growing.append(3)
    run(growing)
    forge(growing, lambda span: msgspec.structs.replace(span, manifests=None))
    assert kinds(run(growing)) == [("time-index", "tampered")]
    (span,) = index_of(growing).overlapping(log_of(growing), None, None)
    assert span.manifests
    assert span.batches


@pytest.mark.parametrize("text", [False, True])
def test_rows_that_are_not_those_of_the_statements_are_found(growing: Growing, *, text: bool) -> None:
    """A query shows these rows, so each is compared: with one changed, or with text that is no UTF-8."""
    growing.append(3)
    run(growing)
    (span,) = index_of(growing).overlapping(log_of(growing), None, None)
    store = open_store(str(growing.folder))
    assert span.manifests is not None
    rows = statements.read_files(store, "manifests", [span.manifests])
    changed = rows.set_column(5, rows.schema.field(5), [[0, 0, 0]])
    data = parquet.encode(changed)
    if text:
        plain, log = io.BytesIO(), str(log_of(growing)).encode()
        pq.write_table(rows, plain, compression="none", use_dictionary=False)
        data = plain.getvalue().replace(log, b"\x92" * len(log))
    ref = statements.file_ref("manifests", log_of(growing), 0, 3, data)
    store.create(ref.key, data)
    forge(growing, lambda span: msgspec.structs.replace(span, manifests=ref))
    outcome = run(growing)
    assert kinds(outcome) == [("time-index", "tampered")]
    assert index_of(growing).overlapping(log_of(growing), None, None) == [span]


@pytest.mark.parametrize("harm", ["missing", "changed"])
@pytest.mark.parametrize("of", ["map", "part", "file"])
def test_an_object_that_is_not_as_it_was_signed_is_made_again(growing: Growing, harm: str, of: str) -> None:
    """Who may only write into the store makes readers do without: a finding, and the index is whole again."""
    growing.append(3)
    run(growing)
    index = index_of(growing)
    (span,) = index.overlapping(log_of(growing), None, None)
    ref = {"map": index.ref, "part": index.parts[0].ref, "file": span.manifests}[of]
    assert ref is not None
    path = growing.folder / ref.key
    data = path.read_bytes()
    path.unlink()
    if harm == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    outcome = run(growing)
    # A copy of an archive has no index.
    assert kinds(outcome) == [("time-index", "notice" if harm == "missing" and of != "file" else "policy")]
    assert ranges(growing) == [(0, 3)]
    assert kinds(run(growing)) == []
    # What was put in its place cannot be overwritten.
    (after,) = index_of(growing).overlapping(log_of(growing), None, None)
    assert (after.manifests is None) == ((of, harm) == ("file", "changed"))


def test_spans_that_pieces_cut_elsewhere_are_compared_too(growing: Growing) -> None:
    """Each piece must lie within the times of a span that is only partly in it; else the span is made again."""
    growing.append(8)
    run(growing)
    assert kinds(run(growing, piece_statements=2)) == []
    assert ranges(growing) == [(0, 3), (3, 6), (6, 8)]
    forge(growing, lambda span: FORGERIES["sealed until earlier"](span) if span.first == 3 else span)
    for _ in range(4):
        outcome = run(growing, piece_statements=2)
        if kinds(outcome):
            break
    assert kinds(outcome) == [("time-index", "tampered")]
    for _ in range(10):
        assert kinds(run(growing, piece_statements=2)) == []
    covered = ranges(growing)
    assert (covered[0][0], covered[-1][1]) == (0, 8)
    assert list(index_of(growing).gaps(log_of(growing), 0, 8)) == []


def test_without_tables_there_are_spans_alone(growing: Growing) -> None:
    """`audit.tables` is about all tables. Once it is on, what is read again gets its files."""
    growing.append(3)
    run(growing, tables=False)
    (span,) = index_of(growing).overlapping(log_of(growing), None, None)
    assert span.sealed is not None
    assert (span.manifests, span.batches, span.tables) == (None, None, None)
    assert kinds(run(growing)) == []
    (span,) = index_of(growing).overlapping(log_of(growing), None, None)
    assert span.manifests is not None


def test_only_an_audit_of_a_trusted_key_counts(growing: Growing) -> None:
    """With keys of somebody else there is no index; without any, what the newest audit names is used."""
    growing.append(3)
    run(growing)
    assert ranges(growing) == [(0, 3)]
    other = Growing(growing.root / "other")
    assert index_of(growing, open_trust([f"file:{other.keyring}"])).parts == ()
    assert index_of(growing, Trust()).end(log_of(growing)) == 3
