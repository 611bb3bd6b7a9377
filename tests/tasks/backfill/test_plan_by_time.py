"""With the index by time, what is of one day costs the same in an old archive, and late events are found."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from custody.archive import search, time_index
from custody.archive.reader import list_logs, read_archive
from custody.archive.trusted import standing
from custody.cli.keys import public_keys, read_own_archive
from custody.format.times import format_time
from custody.keys import trust_file
from custody.store.folder import FolderStore
from custody.store.open import open_store
from tasks.audit.plan import Request as AuditRequest
from tasks.audit.plan import plan_audit
from tasks.backfill.plan import Plan, Request, plan_backfill
from tasks.settings import AuditSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.sample import Growing, event

SIZE = 40
TIMES_OLDER = 10
MOST = 1.2
"""How many times as many requests the older archive may take."""
BEGUN = datetime.now(UTC) - timedelta(days=40)


def settings(made: Growing, pieces: int = 20) -> Settings:
    return Settings(
        archive=str(made.folder),
        keys=f"file:{made.keyring}",
        audit=AuditSettings(piece_statements=pieces, report=False),
    )


def archive_of(root: Path, size: int, moment: Callable[[int], datetime], pieces: int = 20) -> Growing:
    """Return an audited archive of statements with two events each, which have the times that `moment` gives."""
    made = Growing(root, begun=BEGUN)

    def content(offset: int) -> bytes:
        return json.dumps(json.loads(event(offset)) | {"timestamp": format_time(moment(offset))}).encode()

    made.append(size, content, each=2)
    audit(settings(made, pieces))
    return made


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Growing]:
    """Two archives with the same newest day: here, its newest half hour."""
    return [
        archive_of(tmp_path_factory.mktemp(f"of-{size}"), size, lambda offset: BEGUN + timedelta(minutes=offset // 2))
        for size in (SIZE, SIZE * TIMES_OLDER)
    ]


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the calls of the store."""
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("read", "exists", "list", "level", "status", "create"):
            patched.setattr(FolderStore, name, _counting(getattr(FolderStore, name), calls, name))
        yield calls


def test_a_statement_spoiled_since_the_audit_costs_no_other(tmp_path: Path) -> None:
    """Of a part for a table too: what cannot be read is named before, and all else is copied."""
    made = archive_of(tmp_path / "archive", SIZE, lambda offset: BEGUN + timedelta(minutes=offset // 2))
    for path in (made.folder / "tables").rglob("*.parquet"):
        path.unlink()
    spoiled = made.folder / "manifests" / made.log / f"{7:012}.json"
    spoiled.chmod(0o600)
    spoiled.write_bytes(b"garbage")
    since, until = BEGUN - timedelta(days=1), datetime.now(UTC)
    plan = plan_backfill(settings(made), Request(since=since, until=until, target="tables"))
    assert sum(len(part.pieces) for part in plan.parts) == SIZE - 1
    assert [f"{7:012}.json" in problem for problem in plan.problems] == [True]


def test_keys_that_cannot_check_statements_get_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A copy of statements that nobody here can check says so, covered by an audit or not."""
    made = archive_of(tmp_path / "archive", SIZE, lambda offset: BEGUN + timedelta(minutes=offset // 2))
    owner = settings(made)
    with closing(open_store(owner.archive)) as store:
        trust_file.publish(tmp_path / "trust.json", read_own_archive(store, owner.own_trust()).pin, public_keys(owner))
    given = Settings(archive=owner.archive, trust=tmp_path / "trust.json")
    plan_backfill(given, request(BEGUN - timedelta(days=1), datetime.now(UTC), None))
    assert f"{SIZE} signatures could not be checked" in caplog.text


def _counting(call: Callable[..., Any], calls: Counter[str], name: str) -> Callable[..., Any]:
    @wraps(call)
    def counting(*args: Any, **options: Any) -> Any:
        calls[name] += 1
        return call(*args, **options)

    return counting


def search_day(made: Growing, since: datetime, until: datetime) -> None:
    given = settings(made)
    with closing(open_store(given.archive)) as store:
        trust, (log,) = given.own_trust(), list_logs(store)
        archive = read_archive(store).id
        index, holds = time_index.find(store, archive, trust), standing(store, archive, trust)(log)
        chosen = search.sealed_between(store, log, made.size, since, until, holds, index=index)
        assert list(chosen) == list(range(made.size - 30, made.size - 5))
        assert search.sealed_from(store, log, 0, since, holds, index) == 2 * (made.size - 30)


def backfill_day(made: Growing, since: datetime, until: datetime, late_days: int | None = None) -> None:
    plan = plan_backfill(settings(made), request(since, until, late_days))
    assert len(plan.parts) == 25
    assert plan.problems == ()


def audit_day(made: Growing, since: datetime, until: datetime) -> None:
    plan = plan_audit(settings(made), AuditRequest(since=since, until=until), datetime.now(UTC))
    assert sum(piece.end - piece.first for piece in plan.pieces) == 25


def request(since: datetime, until: datetime, late_days: int | None) -> Request:
    return Request(since=since, until=until, target="folder", folder="x", late_days=late_days)


DAYS: dict[str, Callable[..., None]] = {
    "searching": search_day,
    "a backfill": backfill_day,
    "a backfill with --late-days": partial(backfill_day, late_days=0),
    "an audit": audit_day,
}


@pytest.mark.parametrize("day", DAYS)
def test_a_day_costs_the_same_in_an_archive_ten_times_as_old(archives: list[Growing], day: str) -> None:
    """Only statements of spans that overlap the time are read, and O(log n) objects besides."""
    requests = []
    for made in archives:
        with counted_calls() as calls:
            DAYS[day](made, made.sealed_at(made.size - 30), made.sealed_at(made.size - 5))
        requests.append(calls)
    young, old = (calls.total() for calls in requests)
    assert old <= MOST * young, requests


@pytest.mark.parametrize("seed", range(3))
def test_late_events_are_found_with_the_index(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some events come days early or late: a backfill reads the same batches as without an index."""
    chance = random.Random(seed)
    moments = [BEGUN + timedelta(hours=hour) for hour in range(120)]
    for _ in range(8):
        moments[chance.randrange(120)] += timedelta(days=chance.choice((-9, -1, 1, 30)))
    made = archive_of(tmp_path, 60, moments.__getitem__, pieces=5)
    made.append(5, each=2)
    given = settings(made)

    def plans(index: bool) -> list[Plan]:
        with monkeypatch.context() as patched:
            if not index:
                patched.setattr(time_index, "find", lambda *_: time_index.EMPTY)
            return [plan_backfill(given, each) for each in requests]

    ranges = [sorted(chance.choices(moments, k=2)) for _ in range(8)]
    days = (None, 0, 40)
    requests = [request(since, until + timedelta(milliseconds=1), late) for since, until in ranges for late in days]
    with_index, without = plans(index=True), plans(index=False)
    assert [plan.parts for plan in with_index] == [plan.parts for plan in without]
    assert any(plan.parts for plan in without)
    assert sum(plan.statements for plan in with_index) < sum(plan.statements for plan in without)
