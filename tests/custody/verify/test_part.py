"""A part of an archive that a user chose: what is verified, what is outside, and that nothing is hidden by it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.known_heads import State
from custody.errors import ConfigurationError
from custody.findings import finding
from custody.format.layout import Log, parse_log_text
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.verify.report import LeftOut, Report
from custody.verify.run import verify
from custody.verify.scope import Part, Scope, Span
from tests.helpers.archives import KEY_ID, NOTE_NAME, NOTE_PUBLIC, SECRET, START, Builder, event, good, member

TRUST = Trust(
    keys={
        KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
        NOTE_NAME: TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC),
    }
)


def judge(builder: Builder, part: Part, *, contents: bool = True, **more: Any) -> Report:
    store = open_store(str(builder.root))
    return verify(store, TRUST, now=builder.clock, workers=0, scope=Scope(contents=contents, part=part), **more)


def names(report: Report) -> list[str]:
    return [kept.finding for kept in report.findings]


def sealed(builder: Builder) -> list[datetime]:
    """Return when each statement was sealed."""
    lines = [builder.path(sequence).read_bytes().splitlines()[0] for sequence in range(builder.head[0])]
    return [datetime.fromisoformat(json.loads(line)["sealed_at"]) for line in lines]


@pytest.fixture
def archive(tmp_path: Path) -> Builder:
    return good(tmp_path / "archive")


@pytest.mark.parametrize("year", [1, 99, 999, 1000, 2026, 9999])
def test_times_of_a_part_have_four_digits_for_the_year(year: int) -> None:
    """The words that name a part have times by RFC 3339, whatever the year."""
    part = Part(since=datetime(year, 1, 2, tzinfo=UTC))
    assert str(part) == f"sealed from {year:04}-01-02T00:00:00Z"


@pytest.fixture
def both(archive: Builder) -> Builder:
    """Add a second log, and return its builder."""
    other = Builder(archive.root, partition=1)
    for _ in range(3):
        other.append(5)
    return other


def plant(builder: Builder, offset: int) -> str:
    """Put a segment of one event that no statement names."""
    packed = member(event(offset, request_id="planted") + b"\n")
    key = builder.records_key("events", offset, offset, packed)
    builder.put(key, packed)
    return key


def test_a_part_of_the_logs(archive: Builder, both: Builder) -> None:
    """Faults of other logs are not reported, and what was not looked at is counted in the verdict."""
    both.segment(1).unlink()
    plant(both, 103)
    plant(Builder(archive.root, partition=2), 103)
    report = judge(archive, Part((archive.name,)))
    assert (names(report), report.exit_code, report.left_out) == ([], 0, LeftOut(1, 3))
    assert [log.log for log in report.logs] == [archive.name]
    assert report.verdict.startswith(f"of a part only ({archive.name}): verified: 115 events in 1 log")
    assert "1 log of 3 statements, of which nothing was read" in report.verdict
    other = judge(archive, Part((both.name,)))
    assert sorted(names(other)) == ["segment-missing", "unlisted"]
    topic = judge(archive, Part((archive.name.partition("/")[0],)))
    assert {log.log for log in topic.logs} == {archive.name, both.name}


def test_an_unknown_log_is_an_error(archive: Builder) -> None:
    """A typing mistake is no empty part. Where the archive is not known, its findings come first."""
    with pytest.raises(ConfigurationError, match="has no log 'audit/7'"):
        judge(archive, Part(("audit/7",)))
    (archive.root / "archive.json").unlink()
    assert "archive" in names(judge(archive, Part(("audit/7",))))


def test_times_choose_whose_objects_are_read(archive: Builder) -> None:
    """Objects of statements sealed at other times are not read; each statement at the bound is on one side of it."""
    times = sealed(archive)
    archive.segment(1).unlink()
    archive.segment(8).unlink()
    inside = judge(archive, Part(since=times[2], until=times[8]))
    assert (names(inside), inside.logs[0].outside, inside.logs[0].statements) == ([], 3, 9)
    assert "3 statements sealed at other times" in inside.verdict
    assert "every hash of it recomputed" in inside.verdict
    assert names(judge(archive, Part(since=times[1], until=times[8]))) == ["segment-missing"]
    assert names(judge(archive, Part(since=times[2]))) == ["segment-missing"]
    assert names(judge(archive, Part(until=times[1]))) == []
    events = [judge(archive, part).logs[0].events for part in (Part(until=times[5]), Part(since=times[5]))]
    assert sum(events) == judge(archive, Part()).logs[0].events


@pytest.mark.parametrize("since", [0, 4, 9])
def test_times_hide_nothing_of_a_chain(archive: Builder, since: int) -> None:
    """A gap, a rollback and a forged statement are found wherever the chosen times lie, and so is a planted object."""
    moment = START + timedelta(days=400) if since == 9 else sealed(archive)[since]
    archive.resign(2, lambda statement: statement.update(writer="another"))
    assert "tree" in names(judge(archive, Part(since=moment)))
    planted = plant(archive, 103)
    assert planted in {kept.key for kept in judge(archive, Part(since=moment)).findings}


def test_a_rollback_is_found_by_any_part(archive: Builder, tmp_path: Path) -> None:
    """Known heads are compared, also if the statements that are left are all outside the chosen times."""
    state, times = tmp_path / "state.json", sealed(archive)
    assert judge(archive, Part(), state=state).exit_code == 0
    archive.path(archive.head[0] - 1).unlink()
    for part in (Part(since=times[-1]), Part(until=times[1]), Part((archive.name,))):
        assert "head-rollback" in names(judge(archive, part, state=state))


def test_a_wrong_clock_hides_nothing(archive: Builder) -> None:
    """A statement that a wrong clock puts outside is counted, its chain is checked, and its clock is a notice."""
    times = sealed(archive)
    archive.clock -= timedelta(days=300)
    archive.append(5)
    archive.clock += timedelta(days=301)
    report = judge(archive, Part(since=times[0]))
    assert names(report) == ["clock"]
    assert (report.logs[0].outside, report.logs[0].size) == (1, 10)
    assert "1 statement sealed at other times" in report.verdict


def test_a_part_remembers_what_it_verified(archive: Builder, both: Builder, tmp_path: Path) -> None:
    """The state file gets heads of chosen logs, whose chains were verified. Heads of other logs stay as they are."""
    state, store = tmp_path / "state.json", open_store(str(archive.root))
    judge(archive, Part((archive.name,), since=sealed(archive)[5]), state=state)
    assert set(State(state).heads(store.url)) == {archive.name}
    judge(archive, Part(), state=state)
    before = State(state).heads(store.url)[both.name]
    both.append(5)
    judge(archive, Part((archive.name,)), state=state)
    assert State(state).heads(store.url)[both.name] == before
    judge(archive, Part((both.name,)), state=state)
    assert State(state).heads(store.url)[both.name].size == before.size + 1


def test_expired_objects_are_no_losses_of_a_part(tmp_path: Path) -> None:
    """An expiry that was sealed after the chosen times counts for what it covers."""
    old = Builder(tmp_path / "old", clock=START - timedelta(days=4000)).init(retention_days=30)
    old.append()
    old.append(5)
    old.append(5)
    times = sealed(old)
    old.clock = START
    old.append(expired=[0, 2])
    old.segment(1).unlink()
    # The silence of years is no finding of this test.
    found = [names(judge(old, Part(until=until))) for until in (times[2], None)]
    assert found == [[], []]
    old.segment(2).unlink()
    assert names(judge(old, Part(since=times[2], until=START))) == ["segment-missing"]


def test_a_time_without_statements_is_empty(archive: Builder) -> None:
    """Nothing was read: that is said, and it is a notice."""
    report = judge(archive, Part(since=START + timedelta(days=4000)))
    assert (names(report), report.exit_code) == (["empty"], 3)


def test_findings_of_other_checks_follow_the_part(archive: Builder, both: Builder) -> None:
    """What the comparison with Kafka finds in another log is not of this part."""
    others = [finding("record-edited", "x", log=log) for log in (archive.name, both.name)]
    report = judge(archive, Part((archive.name,)), others=others)
    assert [kept.log for kept in report.findings] == [archive.name]


def test_the_verdict_says_how_it_was_made(archive: Builder) -> None:
    """Time, duration, version, keys and heads are in the JSON, and no secret is."""
    report = judge(archive, Part())
    verdict = list(report.to_dicts())[-1]
    assert verdict["at"].startswith(f"{archive.clock:%Y-%m-%d}")
    assert verdict["seconds"] >= 0
    assert verdict["version"]
    assert {key["id"] for key in verdict["keys"]} == {KEY_ID, NOTE_NAME}
    assert SECRET.hex() not in str(verdict)
    assert SECRET.decode("latin-1") not in str(verdict)
    assert verdict["part"] is None


def test_a_span_makes_no_orphans_of_what_it_does_not_read(archive: Builder) -> None:
    """Objects of statements between two spans are named by statements that nobody read."""
    log: Log | None = parse_log_text(archive.name)
    assert log
    scope = Scope({log: [Span(0, 3), Span(5)]})
    assert names(verify(open_store(str(archive.root)), TRUST, now=archive.clock, workers=0, scope=scope)) == []
