"""In a night each manifest and each segment is read once, and what a run has kept is believed no more than a store."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from custody.format import layout
from custody.format.layout import Log
from custody.store.protocol import Store
from tasks.audit import kept as keeping
from tasks.audit import pieces
from tasks.audit.conclude import TAKEN_OVER
from tasks.audit.kept import Kept
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Plan, Request, plan_audit
from tasks.settings import AuditSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.memory import MemoryStore
from tests.helpers.nights import LockingStore, Nights, Spread, opened, settings_of
from tests.helpers.sample import Growing

LOGS = 2
STATEMENTS, NEW = 60, 21
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Nights, list[Spread]]:
    """An archive of two logs that was audited for two nights, and has grown since."""
    store = LockingStore()
    root = tmp_path_factory.mktemp("kept")
    grown = [Spread(root, store, partition) for partition in range(LOGS)]
    for each in grown:
        each.append(STATEMENTS)
    with opened(store):
        nights = Nights(store, settings_of(grown[0].keyring, days=5, piece=4, tables=True), datetime.now(UTC))
        for _ in range(2):
            assert nights.audit().verdict == "notices"
    for each in grown:
        each.append(NEW)
    return nights, grown


@pytest.fixture
def nights(aged: tuple[Nights, list[Spread]]) -> Iterator[Nights]:
    store = LockingStore(dict(aged[0].store.objects))
    with opened(store):
        yield Nights(store, aged[0].settings, aged[0].now)


def reads(store: MemoryStore, before: set[str]) -> Counter[str]:
    """Return how often each object was read that was there."""
    return Counter(key for name, key in store.calls if name == "read" and key in before)


@pytest.mark.parametrize("what", ["a night", "a night that reads all audits", "all"])
def test_each_object_is_read_once(nights: Nights, what: str) -> None:
    """New statements, a share of old ones, checkpoints, audits, tables and indices: one read each.

    Only the newest audit is read again, so that its log is known to end there right before the next one is signed.
    """
    there = set(nights.store.objects)
    outcome = nights.audit(5 if what == "a night that reads all audits" else 1, full=what == "all")
    assert outcome.counts["statements"] >= LOGS * (NEW + STATEMENTS // 5)
    counts = reads(nights.store, there)
    assert counts.pop(layout.audit_key(1)) <= 3
    assert {key: count for key, count in counts.items() if count > 1} == {}
    folders = {key.partition("/")[0] for key in counts}
    assert folders >= {"archive.json", "manifests", "events", "reports", "tables"}
    assert ("checkpoints" in folders) == ("audits" in folders) or what == "a night"


def planned(nights: Nights) -> Plan:
    """Plan an audit of all statements of both logs, each of several pieces."""
    plan = plan_audit(nights.settings, Request(full=True), nights.now)
    assert len({piece.log for piece in plan.pieces}) == LOGS
    assert len(plan.pieces) > 4 * LOGS
    return plan


def test_results_of_several_logs_come_in_order(nights: Nights) -> None:
    """Logs in a bucket are verified at once, and an audit has their pieces in the order of its plan."""
    plan = planned(nights)
    assert [result.piece for result in verify_pieces(nights.settings, plan, plan.pieces)] == list(plan.pieces)


def test_who_stops_has_no_piece_begun_behind(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt or an error, another log ends with the piece that it is at."""
    plan = planned(nights)
    names = sorted({piece.log for piece in plan.pieces})
    begun: Counter[str] = Counter()
    stopped, there = Event(), Event()
    real: Any = pieces._verify_piece

    def verify(settings: Settings, store: Store, *more: Any) -> Any:
        piece = more[3]
        begun[piece.log] += 1
        if piece.log == names[1]:
            there.set()
            assert stopped.wait(60)
        return real(settings, store, *more)

    monkeypatch.setattr(pieces, "_verify_piece", verify)
    results = verify_pieces(nights.settings, plan, plan.pieces)
    assert next(iter(results)).piece.log == names[0]
    assert there.wait(60)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    results.close()  # type: ignore[attr-defined]
    stopped.set()
    for thread in threads:
        thread.join(60)
    assert begun[names[1]] == 1


@pytest.mark.parametrize("bound", ["FILE_BYTES", "SMALL_BYTES", "PIECE_BYTES"])
def test_beyond_a_bound_it_is_read_again(nights: Nights, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """What there is no room for is read again, and the audit finds and signs the same."""
    same = Nights(LockingStore(dict(nights.store.objects)), nights.settings, nights.now)
    there = set(nights.store.objects)
    outcome = nights.audit()
    once = reads(nights.store, there)
    monkeypatch.setattr(keeping, bound, 2_000)
    with opened(same.store):
        again = same.audit()
    assert (again.verdict, again.counts) == (outcome.verdict, outcome.counts)
    # Those about times say at what time they were made.
    names, same_names = ([found["finding"] for found in each.findings] for each in (outcome, again))
    assert names == same_names
    counts = reads(same.store, there)
    assert counts.total() > once.total()
    assert {key: count for key, count in counts.items() if count > 1 and key.startswith("events/")} == {}


def test_without_a_temporary_file(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs requests, and no audit."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "NamedTemporaryFile", full)
    assert nights.audit().verdict == "notices"


def kept_of(store: MemoryStore, kept: Kept, sequences: range) -> list[str]:
    """Put some manifests, read them by what keeps them, and return their keys."""
    keys = [layout.manifest_key(Log("audit", 0), sequence) for sequence in sequences]
    for key in keys:
        store.create(key, key.encode() * 100)
        kept.reading(store, manifests=True).read(key, limit=LIMIT)
    store.create(layout.ARCHIVE, b"{}")
    kept.reading(store).read(layout.ARCHIVE, limit=LIMIT)
    return keys


@pytest.mark.parametrize("sent", [True, False], ids=["sent", "in a file"])
def test_in_another_process(sent: bool) -> None:
    """A share has its manifests with it, or finds them in the file as long as the run lasts; no other ones.

    A scheduler between the processes changes nothing.
    """
    store = MemoryStore()
    with Kept() as kept:
        keys = kept_of(store, kept, range(50, 200))
        pickled = cloudpickle.dumps(kept.share([("audit/0", 60, 128)], sent=sent))
        pickled = cloudpickle.dumps(cloudpickle.loads(pickled))
        other = cloudpickle.loads(pickled).kept
        assert [other.get(key) for key in keys[10:79]] == [key.encode() * 100 for key in keys[10:79]]
        assert other.get(layout.ARCHIVE) == b"{}"
        assert other.get(keys[-1]) is None
        assert other.get(layout.manifest_key(Log("audit", 1), 60)) is None
    after = cloudpickle.loads(pickled).kept
    store.calls.clear()
    assert after.reading(store).read(keys[10], limit=LIMIT) == keys[10].encode() * 100
    assert store.calls == ([] if sent else [("read", keys[10])])


def test_little_is_sent_along() -> None:
    """All shares of a run together are sent so many bytes; the others read for themselves, on another machine."""
    store = MemoryStore()
    with Kept() as kept:
        keys = kept_of(store, kept, range(256))
        kept._left = kept._end // 2
        shares = [kept.share([("audit/0", first, first + 60)], sent=True) for first in range(0, 256, 64)]
        pickled = [cloudpickle.dumps(share) for share in shares]
    given = [cloudpickle.loads(each).kept.get(keys[64 * at]) is not None for at, each in enumerate(pickled)]
    assert given[0]
    assert 1 <= sum(given) <= 2


def test_only_what_the_store_would_give() -> None:
    """A kept object is not given beyond a reader's limit, and a missing one is asked for again."""
    store = MemoryStore()
    with Kept() as kept:
        (key,) = kept_of(store, kept, range(1))
        with pytest.raises(Exception, match="too large"):
            kept.reading(store).read(key, limit=10)
        later = layout.manifest_key(Log("audit", 0), 1)
        with pytest.raises(Exception, match="no object"):
            kept.reading(store).read(later, limit=LIMIT)
        store.create(later, b"there now")
        assert kept.reading(store).read(later, limit=LIMIT) == b"there now"


def test_what_was_kept_is_verified(nights: Nights) -> None:
    """Bytes that somebody changes where they are kept are found as they would be in the archive."""
    key = layout.manifest_key(Log("audit.grows", 0), STATEMENTS + 5)
    with Kept() as kept:
        plan = plan_audit(nights.settings, Request(), nights.now, kept)
        forged = Kept()
        forged.put(key, nights.store.objects[key].replace(b'"writer":"a test"', b'"writer":"a tesT"'))
        results = list(verify_pieces(nights.settings, plan, plan.pieces, kept=forged))
    names = [(found["finding"], found.get("sequence")) for result in results for found in result.findings]
    assert ("signature", STATEMENTS + 5) in names
    forged.__exit__()


def test_what_changes_behind_the_survey_is_read_again(tmp_path: Path) -> None:
    """A piece counts as read when the survey began. So an audit that resumes sees what was replaced since."""
    growing = Growing(tmp_path)
    growing.append(6)
    given = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(piece_statements=3, tables=False),
    )
    with Kept() as kept:
        plan = plan_audit(given, Request(), datetime.now(UTC), kept)
        path = growing.folder / layout.manifest_key(Log("audit.grows", 0), 1)
        data = path.read_bytes().replace(b'"writer":"a test"', b'"writer":"a tesT"')
        path.unlink()
        path.write_bytes(data)
        results = list(verify_pieces(given, plan, plan.pieces, kept=kept))
    assert [result.findings for result in results] == [[], []]
    again = audit(given)
    assert again.counts[TAKEN_OVER] == 1
    assert [(found["finding"], found["sequence"]) for found in again.findings] == [("signature", 1), ("tree", 2)]
