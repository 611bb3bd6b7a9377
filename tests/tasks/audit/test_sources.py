"""An audit names the events that were lost before Kafka, and those that came twice; what comes late closes its gap."""

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.archive import sources as stored
from custody.archive.sources import Sources
from custody.format import audit as form
from custody.format.limits import INT_MAX
from custody.format.times import format_time
from custody.keys.trust_file import accept
from custody.store.open import open_store
from custody.verify import acceptance
from custody.verify.work import Work
from tasks.audit import advance as advancing
from tasks.audit import emitters
from tasks.audit import sources as accounting
from tasks.audit.advance import advance, forget
from tasks.audit.conclude import TAKEN_OVER, Outcome, conclude
from tasks.audit.emitters import Collector, Seen, SeenSpan
from tasks.audit.numbers import Numbers, Room
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.roll.record import Action, record
from tasks.settings import AuditSettings, Settings, SourceSettings
from tests.helpers.emitted import SOURCE, emitted, life
from tests.helpers.querying import BATCH, WORK
from tests.helpers.sample import Growing

Found = list[tuple[str, str, str]]


def settings(growing: Growing, **more: Any) -> Settings:
    return Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        sources=SourceSettings(**{"settle": 0, **more}),
        audit=AuditSettings(piece_statements=3, report=False),
    )


def audit(given: Settings, request: Request | None = None) -> Outcome:
    plan = plan_audit(given, request or Request(), datetime.now(UTC))
    return conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))


def said(outcome: Outcome) -> Found:
    """Return what an audit says of sources: names, severities and messages."""
    return [
        (each["finding"], each["severity"], each["message"])
        for each in outcome.findings
        if each["finding"].startswith("source-")
    ]


def put(growing: Growing, lines: Sequence[bytes], each: int = 5) -> None:
    """Append events, some in each statement."""
    start = growing.events
    for begin in range(0, len(lines), each):
        some = lines[begin : begin + each]
        growing.append(1, lambda offset: lines[offset - start], each=len(some))


def known(growing: Growing, sequence: int) -> Sources:
    """Return what an audit knew."""
    statement = form.parse((growing.folder / f"audits/{sequence:012}.json").read_bytes()).statement
    read = stored.read(open_store(str(growing.folder)), statement)
    assert read is not None
    return read


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    return Growing(tmp_path)


def test_a_gap_says_who_how_many_which_and_when(growing: Growing) -> None:
    """A gap names source, numbers and the times on both sides; its severity is by whether the service is expected."""
    lines = life(20)
    times = [json.loads(line)["timestamp"] for line in lines]
    del lines[4:7]
    put(growing, lines)
    (gap,) = said(audit(settings(growing)))
    message = f"3 events of the source '{SOURCE}' never arrived: numbers 5 to 7 (between {times[3]} and {times[7]})"
    assert gap == ("source-gap", "notice", message)
    outcome = audit(settings(growing, expected=["shop"]))
    assert said(outcome) == [("source-gap", "incomplete", message)]
    assert (outcome.verdict, outcome.exit_code) == ("incomplete", 11)
    (stated,) = outcome.findings
    assert (stated["log"], stated["sequence"], stated["offset"]) == (growing.log, 0, 4)


def test_without_a_gap_nothing_is_said(growing: Growing) -> None:
    """Whole sources, in whatever order their events arrive, are no finding; one that is silent is none either."""
    lines = [*life(40), *life(30, "shop/web-2/1-1", stopped=False)]
    random.Random(5).shuffle(lines)
    put(growing, lines, each=7)
    outcome = audit(settings(growing, expected=["shop"]))
    assert (outcome.verdict, outcome.counts["sources"]) == ("verified", 2)
    sources = known(growing, 0).sources
    assert [source.stopped is None for source in sources.values()] == [False, True]
    assert all(source.started for source in sources.values())


def test_an_expected_service_that_emits_nothing(growing: Growing) -> None:
    """A service that the settings expect and of which no source was seen is a notice."""
    put(growing, life(5))
    outcome = audit(settings(growing, expected=["shop", "shopp"]))
    message = "no event names a source of the service 'shopp', which sources.expected names"
    assert said(outcome) == [("source-gap", "notice", message)]


def test_an_expected_source_that_falls_silent(growing: Growing) -> None:
    """One that did not stop is a notice, one for each service, night by night; until something of it arrives."""
    names = [f"shop/web-{number}/1-1" for number in range(7)]
    lines = [line for name in names for line in life(3, name, stopped=False)]
    put(growing, [*lines, *life(4), *life(3, "till/a/1-1", stopped=False)], each=9)
    age = int((datetime.now(UTC) - growing.begun) / timedelta(minutes=1))
    assert said(audit(settings(growing, silent=age + 60, expected=["shop", "till"]))) == []
    assert said(audit(settings(growing, silent=0))) == []
    outcome = audit(settings(growing, silent=0, expected=["shop", "till"]))
    assert outcome.verdict == "notices"
    shop, till = said(outcome)
    assert [each[:2] for each in (shop, till)] == [("source-silent", "notice")] * 2
    assert "7 sources of the service 'shop' sent nothing for 0 minutes" in shop[2]
    assert shop[2].endswith(", and 2 more")
    assert SOURCE not in shop[2]
    assert "'till/a/1-1' (number 3, archived at " in till[2]
    put(growing, [emitted(4, "till/a/1-1", "emitter_stopped")])
    assert [message for *_, message in said(audit(settings(growing, silent=0, expected=["shop", "till"])))] == [shop[2]]


def test_the_first_events_can_be_missing(growing: Growing) -> None:
    """A source that begins with 4 lacks three events."""
    put(growing, life(10)[3:])
    (gap,) = said(audit(settings(growing)))
    assert "3 events" in gap[2]
    assert "numbers 1 to 3 (before " in gap[2]


def test_a_late_replay_closes_a_gap(growing: Growing) -> None:
    """A gap is said every night until its events arrive: in part, in another log, after a roll, or all at once."""
    given = settings(growing)
    lines = life(30)
    other = Growing(growing.root, partition=1)
    put(growing, [*lines[:9], *lines[15:20]])
    assert "numbers 10 to 15" in said(audit(given))[0][2]
    put(growing, lines[20:25])
    assert "numbers 10 to 15" in said(audit(given))[0][2]
    put(other, lines[11:13])
    (gap,) = said(audit(given))
    assert gap[2].startswith("4 events")
    assert "numbers 10 to 11 (between" in gap[2]
    assert "numbers 14 to 15 (between" in gap[2]
    record(given, [Action("delete", "an index", "done")], datetime.now(UTC))
    put(other, [*lines[9:11], *lines[13:15]])
    assert said(audit(given)) == []
    put(growing, lines[25:])
    assert audit(given).verdict == "verified"
    assert known(growing, 5).sources[SOURCE].missing == 0


def test_a_log_that_is_read_as_new_again(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the chain of a log is not valid, each audit reads its newest statements as new: no event is a repeat."""
    given = settings(growing)
    lines = life(40)
    put(growing, lines[:20])
    audit(given)
    put(growing, lines[20:])
    monkeypatch.setattr("tasks.audit.plan._heads", lambda _report, _reads, before: _heads_of(before))
    first = audit(given)
    put(growing, [emitted(41)])
    second = audit(given)
    assert second.counts["events"] == first.counts["events"] + 1 > 20
    assert said(first) == said(second) == []
    source = known(growing, 2).sources[SOURCE]
    assert (source.events, source.repeats) == (41, 0)


def _heads_of(audit: form.Audit) -> dict[str, tuple[int, str]]:
    return {name: (head.size, head.root) for name, head in audit.heads.items()}


def test_an_audit_that_resumes(growing: Growing) -> None:
    """What pieces of a killed run have counted is taken over with them."""
    given = settings(growing)
    put(growing, [line for at, line in enumerate(life(30)) if at != 4])
    plan = plan_audit(given, Request(), datetime.now(UTC))
    assert len(list(verify_pieces(given, plan, plan.pieces))) == 2
    outcome = audit(given)
    assert outcome.counts[TAKEN_OVER] == 2
    assert "number 5 (between" in said(outcome)[0][2]


def test_an_audit_with_very_many_objects(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an audit knows is found too where its objects are so many that an object lists them."""
    monkeypatch.setattr("tasks.audit.objects.OBJECTS_INLINE", 0)
    given = settings(growing)
    put(growing, [line for at, line in enumerate(life(10)) if at != 4])
    wanted = said(audit(given))
    assert said(audit(given)) == wanted != []


def test_a_source_spread_over_logs(growing: Growing) -> None:
    """Only all logs together show what is missing, and an audit of one of them says nothing."""
    given = settings(growing)
    other = Growing(growing.root, partition=1)
    lines = life(60)
    put(growing, lines[0::2])
    put(other, [line for line in lines[1::2] if b'"source_seq":30}' not in line])
    assert said(audit(given, Request(logs=(growing.log,)))) == []
    (gap,) = said(audit(given))
    assert "1 event of" in gap[2]
    assert "number 30 (between" in gap[2]


def test_a_gap_must_stay(growing: Growing) -> None:
    """Numbers that went missing less than `sources.settle` ago are not yet a finding; later they are."""
    put(growing, [line for at, line in enumerate(life(10)) if at != 4])
    sealed = growing.begun
    assert said(audit(settings(growing, settle=600))) == []
    age = int((datetime.now(UTC) - sealed) / timedelta(minutes=1))
    assert said(audit(settings(growing, settle=age - 1))) != []


def test_an_accepted_gap_is_a_notice(growing: Growing, tmp_path: Path) -> None:
    """A gap is accepted by its digest. Then it is a notice, and another number that is missing is none of it."""
    given = settings(growing, expected=["shop"])
    put(growing, [line for at, line in enumerate(life(20)) if at != 4])
    (stated,) = audit(given).findings
    trust = tmp_path / "trust.json"
    trust.write_text('{"format":"custody/trust/1"}')
    wanted = acceptance.Wanted("source-gap", stated["log"], stated["sequence"], sha256=stated["sha256"])
    entries = acceptance.entries(acceptance.named(wanted), "a drill", "Ada", format_time(datetime.now(UTC)))
    accept(trust, entries)
    accepted = given.model_copy(update={"trust": trust})
    assert [each[:2] for each in said(audit(accepted))] == [("source-gap", "notice")]
    put(growing, [emitted(25)])
    assert [each[:2] for each in said(audit(accepted))] == [("source-gap", "incomplete")]


def test_a_repeat_is_compared(growing: Growing) -> None:
    """The same bytes again are a notice; other bytes under a number are more, if the service is expected."""
    given = settings(growing, expected=["shop"])
    lines = life(12)
    put(growing, [*lines, lines[3]])
    put(growing, [lines[4]])
    assert said(audit(given)) == [
        (
            "source-repeat",
            "notice",
            f"2 events of the source '{SOURCE}' arrived again, byte for byte the same: numbers 4, 5",
        )
    ]
    other = Growing(growing.root, partition=1)
    put(other, [lines[6], emitted(8), emitted(2, "unknown/x/1-1"), emitted(2, "unknown/x/1-1", status="x")])
    assert sorted((name, severity) for name, severity, _ in said(audit(given))) == [
        ("source-gap", "notice"),
        ("source-repeat", "notice"),
        ("source-repeat", "notice"),
        ("source-repeat", "policy"),
    ]
    assert [name for name, *_ in said(audit(given))] == ["source-gap"]
    assert known(growing, 2).sources[SOURCE].repeats == 4


def test_without_anything_new_no_event_is_read(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit with nothing new says what stays missing, and reads no event for it."""
    given = settings(growing)
    put(growing, [line for at, line in enumerate(life(40)) if at not in {9, 20}])
    wanted = said(audit(given))
    read: list[str] = []
    monkeypatch.setattr(accounting, "read_batch", lambda *_: read.append("a batch"))
    monkeypatch.setattr(Collector, "add", lambda *_: read.append("a batch"))
    assert said(audit(given)) == wanted
    assert read == []


@pytest.mark.parametrize("lost", ["deleted", "changed"])
def test_what_was_known_is_lost(growing: Growing, lost: str) -> None:
    """If what an audit knew is gone or changed, the next one says so, and a full one finds the gaps again."""
    given = settings(growing)
    lines = life(30)
    put(growing, [line for at, line in enumerate(lines[:20]) if at != 4])
    wanted = said(audit(given))
    (path,) = (growing.folder / "reports/sources").iterdir()
    if lost == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b'"holes"', b'"Holes"'))
    put(growing, [line for at, line in enumerate(lines[20:], 20) if at != 26])
    before, gap = sorted(said(audit(given)), key=lambda each: "never arrived" in each[2])
    assert before[:2] == ("source-gap", "notice")
    assert "custody audit --full" in before[2]
    assert "1 event of" in gap[2]
    assert "number 27" in gap[2]
    (all_of_them,) = said(audit(given, Request(full=True)))
    assert "2 events of" in all_of_them[2]
    assert wanted[0][2].partition("arrived: ")[2] in all_of_them[2]


def test_an_archive_that_an_older_version_audited(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the audits before knew nothing of sources, nothing is said of numbers before the first that is seen."""
    given = settings(growing)
    put(growing, life(10)[:5])
    with monkeypatch.context() as patched:
        patched.setattr(stored, "FOLDER", "reports/elsewhere/")
        audit(given)
    put(growing, [emitted(7), emitted(9)])
    (gap,) = said(audit(given))
    assert gap[2].startswith("1 event of")
    put(growing, [emitted(3)])
    (gap,) = said(audit(given))
    assert "numbers 4 to 6" in gap[2]


def test_hostile_values(growing: Growing) -> None:
    """No value that a producer chooses is an error, takes memory, or hides another source's gap."""
    values: list[Any] = [None, 5, "", "x" * 300, "a\x1b[31m\nb", [1], {"a": 1}, "y" * 900_000]
    numbers: list[Any] = [None, 0, -5, 1.0, "3", True, 10**30, INT_MAX, INT_MAX - 5, [1], {"a": 1}]
    lines = [json.dumps({**json.loads(emitted(1)), "source": value}).encode() for value in values]
    lines += [json.dumps({**json.loads(emitted(1, "b/b/b")), "source_seq": value}).encode() for value in numbers]
    lines += [line for at, line in enumerate(life(8)) if at != 3]
    put(growing, lines)
    gaps = [message for name, _, message in said(audit(settings(growing))) if name == "source-gap"]
    assert len(gaps) == 2
    assert gaps[0].startswith(f"{INT_MAX - 2:,} events of the source 'b/b/b' never arrived: numbers 1 to {INT_MAX - 6}")
    assert gaps[1].startswith(f"1 event of the source '{SOURCE}'")
    assert set(known(growing, 0).sources) == {SOURCE, "b/b/b", "a\x1b[31m\nb"}
    collector = Collector()
    collector.add(WORK, BATCH, b"[]\n" + emitted(1, "half \ud800", kind="own") + b"\n")
    assert [each.source for each in collector.take()] == ["half \ufffd"]


def seen(numbers: Sequence[int], source: str = "s", sealed_at: str = "2026-01-01T00:00:00.000000Z") -> Seen:
    """Return what a piece has of a source."""
    collected = Numbers()
    repeats = [number for number in numbers if not collected.add(number, Room(10_000))]
    span = SeenSpan(0, 1, min(numbers), max(numbers), sealed_at)
    return Seen(
        source=source, events=len(numbers), numbers=collected.parts(), repeated=len(repeats), repeats=repeats,
        started=None, stopped=None, first_sealed=sealed_at, spans=[span], partial=False,
    )  # fmt: skip


NUMBERS = st.lists(st.one_of(st.integers(1, 60), st.integers(1000, 4200)), min_size=1, max_size=40)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=3), min_size=1, max_size=4), st.booleans())
def test_nights_add_up(nights: list[list[list[int]]], is_known: bool) -> None:
    """However events are spread over pieces and nights, holes and repeats are those of all events together."""
    made = Sources({}, None if is_known else "2027-01-01T00:00:00.000000Z")
    events: list[int] = []
    for night, pieces in enumerate(nights):
        named = advance(made, [("log/0", seen(piece)) for piece in pieces], night).repeats
        before = len(events) - len(set(events))
        events += [number for piece in pieces for number in piece]
        many = named["s"].many if named else 0
        assert many == len(events) - len(set(events)) - before
        assert not named or len(named["s"].numbers) == many
    source = made.sources["s"]
    first = 1 if is_known else min(events)
    holes = [number for hole in source.holes for number in range(hole.first, hole.last + 1)]
    assert holes == sorted(set(range(first, max(events) + 1)) - set(events))
    assert (source.base, source.last, source.events) == (first, max(events), len(events))
    assert source.missing == len(holes)
    data = stored.encode("archive", made)
    assert data.count(b"\n") == 2


WINDOW = 30


@given(st.lists(st.sampled_from(["all", "named", "unnamed"]), min_size=1, max_size=6), st.randoms())
def test_what_was_left_out_is_no_gap(nights: list[str], random: random.Random) -> None:
    """Whichever numbers an audit had no room for, with their source's name or without, no gap is named that is none.

    A gap is named if that audit, and the one before it, had room for all.
    """
    made, lost, highest = Sources({}), set[int](), []
    for night, room in enumerate(nights):
        numbers = list(range(night * WINDOW + 1, (night + 1) * WINDOW + 1))
        random.shuffle(numbers)
        gone, taken, others = numbers[:3], numbers[3:15], numbers[15:]
        lost.update(gone)
        pieces = [("log/0", seen(taken)), ("log/1", seen(others))]
        if room == "named":
            pieces[1] = ("log/1", left_out(pieces[1][1]))
        elif room == "unnamed":
            del pieces[1]
        assert not advance(made, pieces, night, unnamed=room == "unnamed").repeats
        highest.append(max(taken) if room != "all" else max(taken + others))
        seen_at = {number: next((at for at, most in enumerate(highest) if most > number), None) for number in lost}
        certain = {night for night in range(len(highest)) if {*nights[max(night - 1, 0) : night + 1]} == {"all"}}
        holes = {number for hole in made.sources["s"].holes for number in range(hole.first, hole.last + 1)}
        assert holes == {number for number, at in seen_at.items() if at in certain}


def left_out(each: Seen) -> Seen:
    return msgspec.structs.replace(each, numbers=[], partial=True)


def test_a_gap_is_seen_again_after_numbers_were_left_out() -> None:
    """What was left out in one night hides no gap of earlier nights, and none that opens later."""
    made = Sources({})
    advance(made, [("log/0", seen([1, 2, 5]))], 0)
    advance(made, [("log/0", seen([9]))], 1, unnamed=True)
    advance(made, [("log/0", seen([12, 13], "other"))], 2)
    advance(made, [("log/0", seen([20, 22]))], 3)
    advance(made, [("log/0", seen([25, 3]))], 4)
    holes = [(hole.first, hole.last) for hole in made.sources["s"].holes]
    assert holes == [(4, 4), (23, 24)]
    assert not made.sources["s"].partial


def test_old_statements_leave_room_for_sources(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces of old statements a night reads again, new ones have all the room for their sources."""
    put(growing, life(24), each=1)
    assert "source-gap" not in {name for name, _, _ in said(audit(settings(growing)))}
    monkeypatch.setattr(emitters, "HANDED_ON", 6)
    put(growing, [emitted(number, f"service/{name}/1") for number in (1, 3) for name in range(5)], each=10)
    gaps = [message for name, _, message in said(audit(settings(growing))) if name == "source-gap"]
    assert [message.partition(":")[0] for message in gaps] == [
        f"1 event of the source 'service/{name}/1' never arrived" for name in range(5)
    ]


def test_sources_without_room_are_no_false_gap(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source for which one of two pieces had no room lacks nothing, in that night and in the next."""
    monkeypatch.setattr(emitters, "SOURCES", 2)
    crowd = [emitted(1, f"crowd/{name}/1") for name in range(3)]
    put(growing, [*crowd, emitted(1, "shop/1/1")], each=4)
    put(growing, [emitted(2, "shop/1/1")], each=1)
    of_one = AuditSettings(piece_statements=1, report=False)
    given = settings(growing, expected=("shop",)).model_copy(update={"audit": of_one})
    ((_, severity, message),) = said(audit(given))
    assert (severity, "2 events were not counted. This audit" in message) == ("incomplete", True)
    put(growing, [emitted(4, "shop/1/1")], each=1)
    assert said(audit(given)) == []
    put(growing, [emitted(6, "shop/1/1")], each=1)
    ((name, severity, message),) = said(audit(given))
    assert (name, severity, "number 5 (" in message) == ("source-gap", "incomplete", True)


def test_a_source_that_began_without_room_is_no_false_gap(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a source sent in a night in which there was no room for it at all is not named as missing in the next."""
    monkeypatch.setattr(emitters, "SOURCES", 2)
    put(growing, [emitted(1, f"crowd/{name}/1") for name in range(2)] + [emitted(1, "shop/1/1")], each=3)
    ((_, severity, _),) = said(audit(settings(growing)))
    assert severity == "notice"
    put(growing, [emitted(2, "shop/1/1")], each=1)
    assert said(audit(settings(growing, expected=("shop",)))) == []


def test_a_full_audit_without_room_keeps_what_was_known(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full audit that has no room for all sources forgets no gap that audits before it have found."""
    put(growing, [emitted(number, "shop/1/1") for number in (1, 2, 5)])
    given = settings(growing, expected=("shop",))
    gaps = [said for said in said(audit(given)) if "never arrived" in said[2]]
    assert len(gaps) == 1
    monkeypatch.setattr(emitters, "SOURCES", 0)
    assert gaps[0] in said(audit(given, Request(full=True)))


@given(st.sets(st.integers(1, 5000)), st.sets(st.integers(1, 5000)))
def test_sets_of_numbers(some: set[int], others: set[int]) -> None:
    """A set of numbers is what a set is, also after it was stored."""
    first, second = Numbers(), Numbers()
    for number in some:
        assert first.add(number, Room(10))
        assert first.add(number, Room(10)) is False
    for number in others:
        second.add(number, Room(10))
    first = Numbers(first.parts())
    assert numbers_in(first.merge(Numbers(second.parts()))) == some & others
    assert numbers_in(first.runs()) == some | others


def numbers_in(runs: Iterator[tuple[int, int]]) -> set[int]:
    return {number for first, last in runs for number in range(first, last + 1)}


def test_a_full_set_is_small() -> None:
    """Very many consecutive numbers are a few values."""
    numbers = Numbers()
    for number in range(1, 100_001):
        numbers.add(number, Room(1_000))
    assert len(numbers.parts()) <= 3
    assert list(numbers.runs()) == [(1, 100_000)]


def test_bounds_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources and scattered numbers beyond the bounds are counted, not kept."""
    monkeypatch.setattr(emitters, "SOURCES", 3)
    monkeypatch.setattr(emitters, "CHUNKS", 4)
    collector = Collector()
    lines = [emitted(1 + 5000 * at, "a") for at in range(9)] + [emitted(1, f"b{at}") for at in range(9)]
    collector.add(WORK, BATCH, b"".join(line + b"\n" for line in lines))
    taken = collector.take()
    assert [(each.source, each.events, each.partial) for each in taken] == [
        ("a", 9, True), ("b0", 1, True), ("b1", 1, True),
    ]  # fmt: skip
    assert collector.left_out == 7
    monkeypatch.undo()
    monkeypatch.setattr(emitters, "HANDED_ON", 12)
    shared = Collector(pieces=4)
    lines = [emitted(number, "a") for number in range(1, 9000, 2)] + [emitted(1, f"b{at}") for at in range(9)]
    shared.add(WORK, BATCH, b"".join(line + b"\n" for line in lines))
    taken = shared.take()
    assert [(each.source, bool(each.numbers), each.partial) for each in taken] == [
        ("a", False, True), ("b0", True, False), ("b1", True, False),
    ]  # fmt: skip
    assert shared.left_out == 7 + 4500
    made = Sources({})
    advance(made, [("log/0", each) for each in taken], 0)
    assert made.sources["a"].partial
    spans = Collector()
    for sequence in range(500):
        work = Work(**{name: getattr(WORK, name) for name in WORK.__struct_fields__} | {"sequence": sequence})
        spans.add(work, BATCH, emitted(sequence + 1) + b"\n")
    (each,) = spans.take()
    assert len(each.spans) <= emitters.SPANS
    assert [(span.first + 1, span.last + 1) for span in each.spans] == [(span.low, span.high) for span in each.spans]
    assert (each.spans[0].first, each.spans[-1].last) == (0, 499)


def test_bounds_of_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes beyond the bound are counted, and go away with late events; old sources are forgotten by the rules."""
    monkeypatch.setattr(advancing, "HOLES", 5)
    monkeypatch.setattr(advancing, "SOURCES", 3)
    made = Sources({})
    advance(made, [("log/0", seen(range(1, 100, 2)))], 0)
    source = made.sources["s"]
    assert (len(source.holes), source.unlisted, source.missing) == (5, 44, 49)
    advance(made, [("log/1", seen(range(2, 100, 2)))], 1)
    assert source.missing == 0
    now = datetime(2026, 6, 1, tzinfo=UTC)
    for age, name in enumerate(["d", "c", "b", "a"]):
        advance(made, [("log/0", seen([1, 3] if name == "d" else [1], name, format_time(now - timedelta(age))))], 2)
    assert forget(made, now) == 1
    assert set(made.sources) == {"b", "c", "d"}
    assert made.known_from == format_time(now + timedelta(days=7))
    assert forget(made, now + timedelta(days=200)) == 0
    assert set(made.sources) == {"d"}


def test_too_much_to_compare(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an audit cannot look at again within its bounds is said without times, and without a comparison."""
    monkeypatch.setattr(accounting, "_STATEMENTS", 0)
    lines = life(20)
    put(growing, [*lines[:5], *lines[7:], lines[2]])
    repeat, gap = sorted(said(audit(settings(growing))), reverse=True)
    assert "1 event has a number" in repeat[2]
    assert "not compared" in repeat[2]
    assert "numbers 6 to 7 (before 20" in gap[2]
