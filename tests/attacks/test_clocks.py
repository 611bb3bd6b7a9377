"""Rows 68 to 70: clocks that are wrong, and times written by whoever profits from them."""

import random
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import custody
from custody.archive import reader, search
from custody.archive.time_index import EMPTY, TimeIndex
from custody.archive.time_parts import Contents, make_part
from custody.archive.time_spans import SpanMaker
from custody.archive.trusted import standing
from custody.format import audit as form
from custody.format.layout import Log
from custody.format.times import EPOCH, format_time, kafka_moment, moment_of, parse_time, shift
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey, open_trust
from custody.store.open import open_store
from custody.store.protocol import S3Options, Store
from custody.verify.run import verify
from tasks.audit.plan import Request as AuditRequest
from tasks.audit.plan import plan_audit
from tasks.backfill.plan import Request, plan_backfill
from tasks.settings import AuditSettings, Settings
from tests.helpers.archives import KEY_ID, NOTE_NAME, NOTE_PUBLIC, SECRET, Builder
from tests.helpers.audit import audit
from tests.helpers.environment import shifted
from tests.helpers.sample import Growing
from tests.servers.s3 import SeaweedServer

NOW = datetime.now(UTC).replace(microsecond=0)
YEAR = timedelta(days=365)
NOTE = TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC)


def append_at(growing: Growing, moments: Sequence[datetime]) -> None:
    """Append statements that are sealed at these times."""
    for moment in moments:
        growing.begun = moment - timedelta(minutes=growing.size)
        growing.append(1)


def archive_of(root: Path, moments: Sequence[datetime], seed: int = 0) -> Growing:
    """Return an archive whose statements were sealed at these times."""
    made = Growing(root, begun=datetime(1990, 1, 1, tzinfo=UTC), partition=seed % 3)
    made._open()
    append_at(made, moments)
    return made


def settings(made: Growing) -> Settings:
    return Settings(archive=str(made.folder), keys=f"file:{made.keyring}", audit=AuditSettings(report=False))


def chosen(moments: Sequence[datetime], since: datetime | None, until: datetime | None) -> list[int]:
    return [
        sequence
        for sequence, moment in enumerate(moments)
        if (since is None or moment >= since) and (until is None or moment < until)
    ]


def indexed(store: Store, log: Log, chance: random.Random) -> TimeIndex:
    """Return an index of spans of any sizes: some are left out, and of some nothing is known."""
    spans, first = [], 0
    while first < 40:
        end = min(first + chance.randrange(1, 8), 40)
        maker = SpanMaker(str(log), first, end)
        for sequence in range(first + chance.choice((0, 0, 0, 1)), end):
            maker.add(reader.read_manifest(store, log, sequence, lambda *_: True).statement)
        spans += [maker.span()] if chance.random() < 0.8 else []
        first = end
    part, _ = make_part("", "", spans)
    return TimeIndex([part], lambda _: Contents(spans=spans))


@pytest.mark.parametrize("seed", range(4))
def test_searches_by_time_need_no_order(tmp_path: Path, seed: int) -> None:
    """Each search gives exactly the statements sealed in its range, in whatever order the clocks were."""
    chance = random.Random(seed)
    moments = [NOW - chance.random() * 3 * YEAR + chance.choice((-20, 0, 0, 0, 4)) * YEAR for _ in range(40)]
    made = archive_of(tmp_path, moments, seed)
    store = open_store(str(made.folder))
    (log,) = reader.list_logs(store)
    holds = standing(store, None, Trust())(log)
    index = indexed(store, log, chance)
    for _ in range(30):
        since, until = sorted(chance.choices([*moments, NOW, NOW + 9 * YEAR], k=2))
        for low, high in ((since, until), (since, None), (None, until)):
            for known in (EMPTY, index):
                sequences = search.sealed_between(store, log, 40, low, high, holds, index=known)
                assert list(sequences) == chosen(moments, low, high), seed
        first = chance.randrange(200)
        young = [sequence for sequence in range(first // 5, 40) if moments[sequence] >= since]
        for known in (EMPTY, index):
            assert search.sealed_from(store, log, first, since, holds, known) == (young[0] * 5 if young else 200), seed


WRONG = {
    "the first is a year ahead": (0, YEAR),
    "one in the middle is a year ahead": (6, YEAR),
    "the last is a year ahead": (11, YEAR),
    "one in the middle is years behind": (6, -10 * YEAR),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_clock_hides_no_statement(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, audits and backfills by time have all events sealed in the range, with and without tables."""
    monkeypatch.chdir(tmp_path)
    place, off = WRONG[name]
    moments = [NOW - timedelta(days=30 - sequence) for sequence in range(12)]
    moments[place] += off
    made = archive_of(tmp_path / "a", moments)
    given = settings(made)
    since, until = NOW - timedelta(days=27, hours=1), NOW - timedelta(days=20, hours=1)
    wanted, early = chosen(moments, since, until), chosen(moments, since - timedelta(days=1), until)
    request = Request(since=since, until=until, target="folder", folder="x", late_days=0)
    plans = []
    for _ in range(2):
        plans.append(plan_backfill(given, request))
        with closing(custody.connect(str(made.folder), since=since, until=until)) as opened:
            for table in ("manifests", "events"):
                rows = opened.table(table).select("sequence").distinct().order("sequence").fetchall()
                assert [sequence for (sequence,) in rows] == wanted, table
        # Now with the tables and the index that an audit makes.
        audit(given)
    plan = plan_audit(given, AuditRequest(since=since, until=until), NOW)
    assert [n for piece in plan.pieces for n in range(piece.first, piece.end)] == wanted
    assert plans[0].statements == len(early)
    assert plans[1].statements <= len(early)
    assert plans[0].parts == plans[1].parts


def test_an_audit_of_a_time_without_statements(tmp_path: Path) -> None:
    """An audit that had nothing to read says for which time. It never says that the archive is empty."""
    made = archive_of(tmp_path, [NOW])
    outcome = audit(settings(made), since=NOW + YEAR)
    (empty,) = outcome.findings
    assert empty["finding"] == "empty"
    assert empty["message"].startswith(f"nothing was audited: no statement was sealed from {NOW + YEAR}")


@pytest.mark.parametrize("seed", range(6))
def test_an_audit_grants_no_expiry_that_verify_refuses(tmp_path: Path, seed: int) -> None:
    """An audit that goes on from another one finds the same old enough, whatever the clocks of statements before."""
    chance = random.Random(seed)
    old = NOW - 20 * YEAR
    moments = [NOW - timedelta(days=2)] * 2 + [old] * 2
    if seed:
        moments = [old + timedelta(days=chance.randrange(99)) for _ in range(12)]
        moments[chance.randrange(12)] = NOW - chance.choice((2, 3000)) * timedelta(days=1)
    made = archive_of(tmp_path, moments)
    given = settings(made)
    audit(given)
    size = len(moments)
    middle = size // 3 if seed % 2 else 0
    for first, end in ((0, middle), (middle, size)):
        if first < end:
            made.begun = NOW - timedelta(minutes=made.size)
            made.expire(first, end)
            audit(given)
    (log,) = verify(open_store(str(made.folder)), open_trust([given.keys]), now=NOW, workers=0).logs
    marks = form.parse(max((made.folder / "audits").iterdir()).read_bytes()).statement.marks[made.log]
    # A mark moves on only over whole expiries.
    assert marks.expired == max((end for end in (middle, size) if end <= log.expired), default=0), seed
    if not seed:
        assert log.expired == 0
        for path in (made.folder / "events").rglob("*.gz"):
            path.unlink()
        outcome = audit(given, full=True)
        assert {"retention", "segment-missing"} <= {problem["finding"] for problem in outcome.findings}


@pytest.mark.parametrize("minutes", [-8, 0, 8])
def test_the_stores_clock(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, minutes: int, tmp_path: Path
) -> None:
    """A bucket's answers tell how far the host's clock is from the server's. A folder has no clock of its own."""
    seaweed.use(monkeypatch)
    store = open_store(f"s3://{seaweed.make_bucket()}/a", S3Options(endpoint_url=seaweed.endpoint_url))
    assert store.capabilities.clock
    assert store.capabilities.clock.ahead() is None
    monkeypatch.setattr("custody.store.s3_client.datetime", shifted(timedelta(minutes=minutes)))
    store.exists("archive.json")
    ahead = store.capabilities.clock.ahead()
    assert ahead is not None
    assert round(ahead / timedelta(minutes=1)) == minutes
    assert open_store(str(tmp_path)).capabilities.clock is None


@pytest.mark.parametrize("live", [False, True])
def test_a_time_far_ahead_excuses_nothing(tmp_path: Path, live: bool) -> None:
    """A statement sealed far ahead does not make statements without a checkpoint wait for one, nor hides silence."""
    made = Builder(tmp_path / "archive").init()
    made.append(3)
    made.checkpoint()
    for at in ("2126-01-01T00:00:00.000000Z", "2126-01-01T00:01:00.000000Z"):
        made.append(3, edit=lambda statement, at=at: statement.update(sealed_at=at))  # type: ignore[misc]
    public = Trust(keys={KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256"), NOTE_NAME: NOTE})
    report = verify(open_store(str(made.root)), public, now=NOW, workers=0, live=live)
    names = {problem.finding for problem in report.findings}
    assert names == {"clock", "uncovered", "unchecked-signature"} | ({"stale"} if live else set())


ENDS = ["0001-01-01T00:00:00.000000Z", "1969-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"]


@pytest.mark.parametrize("at", ENDS)
def test_the_first_and_the_last_day_that_there_is(tmp_path: Path, at: str) -> None:
    """A statement, or an expiry, sealed at either end of the calendar ends no reader, and lets nothing expire."""
    made = Builder(tmp_path / "archive").init()
    made.append(3)
    made.append(3, edit=lambda statement: statement.update(sealed_at=at))
    made.append(0, expired=[0, 2], edit=lambda statement: statement.update(sealed_at=at))
    trust = Trust(keys={KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET))})
    report = verify(open_store(str(made.root)), trust, now=NOW, workers=0)
    assert "retention" in {problem.finding for problem in report.findings}
    assert report.logs[0].expired == 0
    with closing(custody.connect(str(made.root))) as opened:
        assert opened.execute("SELECT count(*) FROM manifests").fetchone() == (3,)


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 1, 2**31, 253_402_300_800_000, 2**62, 2**63 - 1])
def test_bounds_on_times(number: int) -> None:
    """Any number is a time, or none. No time, and no sum of times, overflows."""
    known = kafka_moment(number)
    assert known is None or known == EPOCH + timedelta(milliseconds=number)
    moment = moment_of(number)
    assert moment >= EPOCH
    for days in (-36_525, 36_525):
        for start in (moment, parse_time(ENDS[0]), parse_time(ENDS[2])):
            assert format_time(shift(start, timedelta(days=days)))
