"""THREATS.md, rows 58 and 59: what stands in a slot that the writer passed over, well formed or of any size.

Whoever can write into the store, and has no key, can put a statement there whose signature does not hold. The writer
passes over it, and nobody else may go by a word of it: each reader does what it does where garbage is in that slot.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import custody
from custody.archive import reader, search
from custody.archive.forms import statements_of
from custody.archive.reader import find_tip
from custody.archive.resume import find_checked_tip
from custody.archive.show import show
from custody.archive.trusted import Judge, find_trusted_audits, find_trusted_tip, standing
from custody.errors import CustodyError, FormatError
from custody.format import limits
from custody.format.layout import Log, audit_key
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.verify.run import verify
from tasks.audit import recheck
from tasks.backfill import plan as backfill
from tasks.backfill.stated import StatedReader
from tasks.drain.context import read_audited_heads
from tasks.roll import expire
from tasks.search import following
from tasks.settings import Settings
from tests.attacks.registry import LARGE
from tests.attacks.targets import Folder, judge
from tests.helpers.archives import ARCHIVE_ID, KEY_ID, START, Builder, event, member
from tests.helpers.sample import Message
from tests.helpers.scene import Scene

LOG = Log("young", 0)
Edit = Callable[[dict[str, Any]], None]


def sealed_long_ago(statement: dict[str, Any]) -> None:
    statement["sealed_at"] = f"{START.replace(year=1971):%Y-%m-%dT%H:%M:%S.%fZ}"


def lost(statement: dict[str, Any]) -> None:
    statement.update(lost=[110, 200], next_offset=200, last_record=None)


def unreadable(statement: dict[str, Any]) -> None:
    statement.update(unreadable=[{"from": 110, "to": 10**9, "error": "x"}], next_offset=10**9)


def direct(statement: dict[str, Any]) -> None:
    statement["log"] = statement["log"] | {"cluster": "direct"}


FORGED: dict[str, tuple[int, Edit]] = {
    "sealed in 1971": (0, sealed_long_ago),
    "offsets lost": (0, lost),
    "offsets unreadable": (0, unreadable),
    "batches": (10, lambda _: None),
    "another cluster": (0, direct),
}
"""How many events somebody without the key states, and what they change."""


def forge(log: Builder, count: int, edit: Edit, key_id: str = KEY_ID) -> bytes:
    """Return a statement for the next slot that whoever has no key has signed; it stays there."""
    size, honest = len(log.entries), (log.clock, list(log.passed), log.secret, log.key_id)
    log.secret, log.key_id = b"w" * 32, key_id
    stated = log.append(count, edit=edit)
    if stated["segment"]:
        (log.root / stated["segment"]["key"]).unlink()
    data = log.path(size).read_bytes()
    log.clock, log.passed, log.secret, log.key_id = honest
    passed = list(log.passed)
    log.go_back(size)
    log.passed = passed
    return data


def young(scene: Scene, forged: str | None, slots: int) -> Builder:
    """Append a log in which slots from 2 on are passed over: they hold garbage, or a forged statement."""
    log = Builder(scene.root, topic="young")
    scene.logs["young/0"] = log
    log.clock = scene.now
    log.append()
    log.append(10)
    for _ in range(slots):
        data = b"garbage" if forged is None else forge(log, *FORGED[forged])
        log.pass_over(data)
    log.append(5)
    log.append(20)
    return log


def settings(scene: Scene) -> Settings:
    return Settings(archive=str(scene.root))


def found(scene: Scene) -> list[tuple[Any, ...]]:
    report = judge(scene, Folder())
    return [(one.finding, one.log, one.sequence, one.key) for one in report.findings if one.finding != "passed-over"]


def verify_expiry(scene: Scene, log: Builder, _store: Store, _trust: Trust) -> object:
    """An expiry seconds after the archiving counts for nothing, and the deleted segment is missed."""
    segment = log.segment(1)
    log.append(expired=[0, 5])
    log.checkpoint()
    segment.unlink()
    names = found(scene)
    assert {"retention", "segment-missing"} <= {one[0] for one in names}
    return names


def verify_foreign(scene: Scene, log: Builder, _store: Store, _trust: Trust) -> object:
    """A foreign segment beside committed records is no orphan."""
    rows = [event(offset) for offset in range(110, 120)]
    rows += [event(offset, None, hacked=True) for offset in range(110, 120)]
    data = member(b"".join(row + b"\n" for row in rows))
    scene.put(log.records_key("events", 110, 119, data), data)
    names = found(scene)
    assert "unlisted" in {one[0] for one in names}
    return names


def verify_plainly(scene: Scene, _log: Builder, _store: Store, _trust: Trust) -> object:
    """Nothing but the notice."""
    return found(scene)


def compare_with_the_broker(_scene: Scene, log: Builder, store: Store, trust: Trust) -> object:
    """Records that the broker has otherwise are found."""
    records = (Message(offset, event(offset) if offset < 110 else b'{"edited":1}') for offset in range(100, 135))
    holds = standing(store, ARCHIVE_ID, trust)(LOG)
    differences = recheck._differences(store, LOG, records, 100, len(log.entries), holds)
    return [(one.finding, one.sequence, one.offset) for one in differences]


def follow(_scene: Scene, _log: Builder, store: Store, trust: Trust) -> object:
    """The next statements of the index, and of detection."""
    holds = standing(store, ARCHIVE_ID, trust)(LOG)
    seen = [following.next_statement(store, LOG, sequence, holds, holes=True) for sequence in range(8)]
    return [(one and one.sequence, sorted(passed)) for one, passed in seen]


def shown(_scene: Scene, _log: Builder, store: Store, trust: Trust) -> object:
    """Places of offsets, slots and the head."""

    def one(what: str) -> object:
        try:
            place = show(store, what, trust).position
            # The tree has another leaf where other bytes were passed over.
            return {name: value for name, value in place.items() if name != "leaf"}
        except CustodyError as error:
            return type(error)

    return [one(f"young/0{what}") for what in ("", "/1", "/2", "/3", "@105", "@112", "@120", "@134", "@5000")]


def asked(scene: Scene, _log: Builder, _store: Store, _trust: Trust) -> object:
    """What SQL says of statements and batches."""
    with closing(custody.connect(str(scene.root))) as opened:
        return [
            opened.execute(f"SELECT {what} WHERE log = 'young/0' ORDER BY ALL").fetchall()
            for what in ("sequence, next_offset, sealed_at FROM manifests", "sequence, batch FROM batches")
        ]


def expiring(_scene: Scene, log: Builder, store: Store, trust: Trust) -> object:
    """How far a log has expired."""
    if not trust.keys or not all(key.checkable for key in trust.keys.values()):
        return None
    judged = Judge(store, LOG, statements_of(LOG), ARCHIVE_ID, trust)
    work = expire._Log(store, LOG, find_trusted_tip(store, LOG, ARCHIVE_ID, trust), judged, None)
    work.find(log.clock - timedelta(seconds=25), 1)
    return work.until, work.signed, work.granted, work.keys


def sealed(_scene: Scene, log: Builder, store: Store, trust: Trust) -> object:
    """Where searches by time end."""
    holds = standing(store, None, trust)(LOG)
    size = find_tip(store, LOG, holds).head.size
    moments = [log.clock - timedelta(seconds=seconds) for seconds in range(0, 100, 10)]
    ends = [search.sealed_from(store, LOG, 0, moment, holds) for moment in moments]
    untils = [list(search.sealed_between(store, LOG, size, None, moment, holds)) for moment in moments]
    return ends, untils


def backfilled(_: Scene, log: Builder, store: Store, trust: Trust) -> object:
    """What a backfill reads."""
    request = backfill.Request(
        since=START, until=log.clock + timedelta(days=1), types=(), logs=(), target="folder", folder="x", late_days=None
    )
    problems: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        holds = standing(store, ARCHIVE_ID, trust)(LOG)
        sequences = range(find_tip(store, LOG, holds).head.size)
        stated = StatedReader(store, threads, LOG, holds).read([(sequences, None)])
        chosen = list(backfill.choose_pieces(stated, request, problems))
    return [(sequence, piece is None) for sequence, piece in chosen], problems


VERIFYING = [verify_expiry, verify_foreign, verify_plainly]
READERS = [
    *VERIFYING,
    compare_with_the_broker,
    follow,
    shown,
    asked,
    expiring,
    sealed,
    backfilled,
]


def public(trust: Trust) -> Trust:
    """Return what an auditor trusts who has no secret."""
    return replace(trust, keys=dict(trust.keys) | {KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256")})


TRUSTS: dict[str, Callable[[Trust], Trust]] = {
    "all keys": lambda trust: trust,
    "public keys": public,
    "none": lambda _: Trust(),
}


# Who trusts no key at all verifies nothing.
CASES = [
    pytest.param(read, trusting, id=f"{read.__name__} with {trusting}")
    for read in READERS
    for trusting in TRUSTS
    if read not in VERIFYING or trusting != "none"
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize(("read", "trusting"), CASES)
def test_a_forged_statement_is_garbage(
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[..., object],
    forged: str,
    trusting: str,
) -> None:
    """Whatever a statement says that the writer passed over, each reader does as with garbage."""
    other = scene.copy(tmp_path / "other")
    # Who cannot check any is alarmed by several in a row.
    slots = 1 if read in VERIFYING and trusting != "all keys" else 2
    outcomes = []
    for one, what in ((scene, forged), (other, None)):
        one.trust = TRUSTS[trusting](one.trust)
        monkeypatch.setattr(Settings, "trust_at_hand", lambda _, trust=one.trust: trust)
        log = young(one, what, slots)
        outcomes.append(read(one, log, open_store(str(one.root)), one.trust))
    assert outcomes[0] == outcomes[1]


def test_a_forged_end_does_not_end_the_comparison(scene: Scene) -> None:
    """A newest statement by an unknown key says nothing, not even that the log was never in Kafka."""
    log = young(scene, None, 1)
    forge(log, 0, direct, "who")
    end = recheck._find_end(open_store(str(scene.root)), LOG, ARCHIVE_ID, scene.trust)
    assert end is not None
    assert end.newest.sequence == len(log.entries) - 1


def test_readers_are_told_what_is_valid() -> None:
    """No function that reads entries has a default for what is valid."""
    named = [
        each
        for module in (reader, search)
        for _, each in inspect.getmembers(module, inspect.isfunction)
        if each.__module__ == module.__name__
    ]
    asked = [one for one in named if "holds" in inspect.signature(one).parameters]
    assert len(asked) >= 10
    assert all(inspect.signature(one).parameters["holds"].default is inspect.Parameter.empty for one in asked)
    assert {"read_manifest", "read_audit", "manifests_from", "find_tip", "find_statement"} <= {
        one.__name__ for one in asked
    }


# --- too large


def test_an_object_too_large_in_the_next_slot(scene: Scene) -> None:
    """The writer passes over it by the digest of all of its bytes."""
    log = scene.main
    scene.put(log.key(len(log.entries)), LARGE)
    store, name = open_store(str(scene.root)), Log("audit", 0)
    form = statements_of(name)
    judged = Judge(store, name, form, ARCHIVE_ID, scene.trust)
    tip = find_checked_tip(store, name, form, judged, scene.trust)
    assert (tip.size, tip.passed_over) == (len(log.entries) + 1, (sha256(LARGE).hexdigest(),))


def test_audits_go_on_behind_an_object_too_large(scene: Scene) -> None:
    """Audits pass over it, and the heads that they remember still keep a drain from going on behind another history."""
    store = open_store(str(scene.root))
    before = read_audited_heads(store, ARCHIVE_ID, scene.trust)
    assert before
    scene.put(audit_key(len(scene.audits)), LARGE)
    assert read_audited_heads(store, ARCHIVE_ID, scene.trust) == before
    tip = find_trusted_audits(store, ARCHIVE_ID, scene.trust)
    assert tip.passed_over == (sha256(LARGE).hexdigest(),)


def test_heads_are_known_behind_any_number_of_garbage_audits(scene: Scene) -> None:
    """More garbage than a writer passes over makes it forget no head: it takes the newest audit before it."""
    store = open_store(str(scene.root))
    before = read_audited_heads(store, ARCHIVE_ID, scene.trust)
    for sequence in range(limits.PASSED_OVER + 1):
        scene.put(audit_key(len(scene.audits) + sequence), b"garbage")
    with pytest.raises(FormatError, match="no more may be passed over"):
        find_trusted_audits(store, ARCHIVE_ID, scene.trust)
    assert before
    assert read_audited_heads(store, ARCHIVE_ID, scene.trust) == before


def test_a_huge_sparse_object_in_the_next_slot(scene: Scene) -> None:
    """What is larger than a writer hashes is an error of that log alone, and verification names it."""
    log = scene.main
    with (scene.root / log.key(len(log.entries))).open("wb") as file:
        file.truncate(2**40)
    store, name = open_store(str(scene.root)), Log("audit", 0)
    judged = Judge(store, name, statements_of(name), ARCHIVE_ID, scene.trust)
    with pytest.raises(FormatError, match=r"is larger than 256 MiB: .*remove it"):
        find_checked_tip(store, name, statements_of(name), judged, scene.trust)
    report = verify(store, scene.trust, now=datetime.now(UTC), workers=0)
    (finding,) = [found for found in report.findings if found.finding == "statement"]
    assert finding.key == log.key(len(log.entries))
    assert "is larger than 256 MiB" in finding.message
