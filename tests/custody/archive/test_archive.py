"""Appending to a log: its head is found with few requests, checked before anything is signed, and fenced."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from custody.archive.assemble import Assembler
from custody.archive.checkpoints import put_checkpoint
from custody.archive.forms import AUDITS, statements_of
from custody.archive.reader import Tip, choose_logs, find_audit_tip, find_tip, list_logs, read_archive, read_manifest
from custody.archive.trusted import Judge, find_trusted_audits, find_trusted_tip
from custody.archive.writer import Entry, LogWriter, append_audit, create_archive
from custody.errors import (
    ConfigurationError,
    CustodyError,
    Fenced,
    FormatError,
    HeadRollback,
    KeyUnavailable,
    LogChanged,
    NoArchive,
    TransientStoreError,
)
from custody.findings import Accepted
from custody.format import audit, envelope, limits, manifest
from custody.format.audit import Audit, SignedAudit
from custody.format.envelope import Algorithm, HeadRef, Tree
from custody.format.layout import AUDIT_LOG, Log, audit_key, audit_object_key, checkpoint_key, manifest_key
from custody.format.manifest import Batch, LogId, PreviousEpoch, Unreadable
from custody.keys.key import HmacKey
from custody.keys.keyring import Keyring
from custody.keys.secret import Secret
from custody.keys.signers import Signers
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.tlog import merkle
from custody.tlog.checkpoint import sign_checkpoint
from custody.tlog.head import Head, KnownHead
from custody.verify.run import verify
from tests.helpers import rfc6962
from tests.helpers.memory import MemoryStore
from tests.helpers.reading import anything, read_archive_records
from tests.helpers.sample import Message, audit_of, event

LOG = Log("audit.events", 0)
LOG_ID = LogId("cluster", "audit.events", "topic-id", 0, 1)
CLOCK = datetime(2026, 3, 1, 12, tzinfo=UTC)
RING = Keyring.new(CLOCK - timedelta(days=1))
SIGNERS = RING.signers(CLOCK)
FOREIGN = HmacKey("foreign", Secret(bytes(32)))
ELSEWHERE = "00000000-0000-4000-8000-000000000000"


def trust_of(*rings: Keyring) -> Trust:
    keys: dict[str, TrustedKey] = {}
    for key in (key for ring in rings for key in ring.keys):
        if key.algorithm == "Ed25519":
            keys[key.key_id] = TrustedKey(key.key_id, "Ed25519", key.from_, key.to, material=key.public)
        elif key.algorithm == "HMAC-SHA256":
            keys[key.key_id] = TrustedKey(key.key_id, "HMAC-SHA256", key.from_, key.to, material=key.secret)
    return Trust(keys=keys)


TRUST = trust_of(RING)


def ended(until: Mapping[str, Head], trust: Trust = TRUST) -> Trust:
    """Return the trust in which all keys ended at these heads."""
    return replace(trust, keys={name: replace(key, until=until) for name, key in trust.keys.items()})


def identity(store: MemoryStore) -> str:
    return create_archive(store, SIGNERS.both).id


def writer(
    store: MemoryStore,
    log_id: LogId = LOG_ID,
    name: str = "a test",
    *,
    trust: Trust = TRUST,
    signers: Signers = SIGNERS,
    clock: datetime = CLOCK,
) -> LogWriter:
    return LogWriter(
        store, identity(store), log_id, signer=signers.hmac(), trust=trust, writer=name, clock=lambda: clock
    )


def opened(store: MemoryStore, log_id: LogId = LOG_ID, name: str = "a test", **more: Any) -> LogWriter:
    appending = writer(store, log_id, name, **more)
    appending.open()
    return appending


def records(appending: LogWriter, first: int, count: int, bad: int | None = None) -> Entry:
    """Return an entry with so many records, one of them perhaps no event."""
    assembler = Assembler(first, batch_events=4, segment_bytes=2**20, level=1, number=appending.next_batch)
    assembler.add([Message(at, b"no event" if at == bad else event(at)) for at in range(first, first + count)])
    return assembler.cut()


def gap(first: int) -> Entry:
    """Return an entry of one offset without a record."""
    return Entry(first_offset=first, next_offset=first + 1, skipped=[(first, first + 1)])


def grown(size: int) -> tuple[MemoryStore, list[Tip[manifest.Manifest]]]:
    """Return a log of `size` statements, and its tip at each size."""
    store = MemoryStore()
    appending = opened(store)
    tips = [appending.tip]
    for sequence in range(size):
        appending.append(gap(sequence))
        tips.append(appending.tip)
    return store, tips


@pytest.fixture(scope="module")
def long() -> tuple[MemoryStore, list[Tip[manifest.Manifest]]]:
    return grown(5000)


def prefix(store: MemoryStore, size: int) -> MemoryStore:
    """Return a store with the log's first statements only."""
    names = {manifest_key(LOG, sequence) for sequence in range(size)}
    return MemoryStore(
        {key: data for key, data in store.objects.items() if not key.startswith("manifests/") or key in names}
    )


def resealed(found: manifest.Manifest, signer: HmacKey | None = None, **fields: object) -> bytes:
    """Return a manifest that says something else, rightly signed by ours or another key."""
    line = manifest.encode(msgspec.structs.replace(found.statement, **fields))
    return envelope.seal(line, manifest.FORMAT, [signer or SIGNERS.hmac()])


def verified(store: MemoryStore, folder: Path, trust: Trust = TRUST) -> tuple[int, list[str]]:
    """Verify the archive both ways; return the verifier's exit code and the names of its findings."""
    read_archive_records(store.objects)
    for key, data in store.objects.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    report = verify(open_store(str(folder)), trust, now=CLOCK + timedelta(hours=1), workers=0)
    return report.exit_code, [one.finding for one in report.findings]


# --- where a log ends


@pytest.mark.parametrize("size", range(41))
def test_tip_of_any_size(long: tuple[MemoryStore, list[Tip[manifest.Manifest]]], size: int) -> None:
    """The tip of a log of any size is found, whatever size is hinted at: right, too small, or too large."""
    store, tips = long
    part = prefix(store, size)
    for hint in (0, 1, size - 1, size, size + 1, size + 2, 2 * size, 1000):
        tip = find_tip(part, LOG, anything, hint)
        assert (tip.size, tip.root, tip.compact_range) == (size, tips[size].root, tips[size].compact_range)
        assert tip.head == Head(size, tips[size].root)
        assert (tip.newest is None) is (size == 0)


def test_root_is_that_of_the_messages(long: tuple[MemoryStore, list[Tip[manifest.Manifest]]]) -> None:
    """The head's root is RFC 6962's over the signed messages."""
    store, tips = long
    lines = [store.objects[manifest_key(LOG, sequence)].split(b"\n")[0] for sequence in range(100)]
    leaves = [
        merkle.leaf_hash(f"custody/manifest/1\n{sha256(line).hexdigest()}\n".encode()) for line in lines
    ]  # the page's words, not ours
    for size in (0, 1, 2, 3, 64, 99, 100):
        assert tips[size].root == rfc6962.root(leaves[:size])


@given(st.integers(0, 5000), st.integers(0, 10_000))
@settings(max_examples=60)
def test_requests_are_few(size: int, hint: int) -> None:
    """A head among thousands is found with some twenty requests, and with four when the hint is right."""
    store = _long_once()
    names = {manifest_key(LOG, sequence) for sequence in range(size)}
    part = MemoryStore({key: data for key, data in store.objects.items() if key in names})
    assert find_tip(part, LOG, anything, hint).size == size
    assert len(part.calls) <= 2 * size.bit_length() + 5
    part.calls.clear()
    assert find_tip(part, LOG, anything, size).size == size
    assert len(part.calls) <= 4
    # One listing, for a slot that was emptied: it begins behind the head.
    assert sum(what == "list" for what, _ in part.calls) == 1


_once: list[MemoryStore] = []


def _long_once() -> MemoryStore:
    if not _once:
        _once.append(grown(5000)[0])
    return _once[0]


def test_logs_by_name() -> None:
    """A name is a log with its partition, or one for all of its partitions; audits are chosen by name alone."""
    logs = [Log("b", 0), Log("a", 1), Log("a", 0), Log("a", 0, 2)]
    assert choose_logs(logs, ()) == choose_logs(logs, (), [AUDIT_LOG]) == sorted(logs)
    assert choose_logs(logs, ["b/0", "a/1"]) == [Log("a", 1), Log("b", 0)]
    assert choose_logs(logs, ["a", "a/1"]) == [Log("a", 0), Log("a", 1)]
    assert choose_logs(logs, ["audits/0"], [AUDIT_LOG]) == [AUDIT_LOG]
    for name in ("audits/0", "a/2", "", "a/"):
        with pytest.raises(ConfigurationError, match="has no log"):
            choose_logs(logs, ["b", name])


def test_opening_is_cheap(long: tuple[MemoryStore, list[Tip[manifest.Manifest]]]) -> None:
    """Opening a log of 5,000 statements takes a search and a few listings that begin at the head."""
    store, tips = long
    store.calls.clear()
    appending = writer(store)
    assert appending.open([KnownHead(4990, tips[4990].root, "an audit")]).size == 5000
    assert len(store.calls) < 40
    counts = Counter(what for what, _ in store.calls)
    assert counts["list"] == 2
    # archive.json, the newest, and those of one root.
    assert counts["read"] <= 2 + (4990).bit_count()


def test_batch_numbers_after_silence(long: tuple[MemoryStore, list[Tip[manifest.Manifest]]]) -> None:
    """A log that was idle for long numbers its next batch right: from the newest statement that had one."""
    store = MemoryStore()
    appending = opened(store)
    appending.append(records(appending, 0, 10))
    for number in range(70):
        if number in {3, 69}:
            store.objects[manifest_key(LOG, appending.tip.size)] = b"garbage"
        appending.append(Entry(first_offset=10, next_offset=10))
    again = opened(store)
    assert again.next_batch() == 3
    assert [batch.number for batch in again.append(records(again, 10, 5)).statement.batches] == [3, 4]
    assert [batch.number for batch in again.append(records(again, 15, 1)).statement.batches] == [5]
    silent = opened(long[0].copy())
    assert [one.number for one in silent.append(records(silent, 5000, 1)).statement.batches] == [0]
    late = MemoryStore()
    identity(late)
    late.objects[manifest_key(LOG, 0)] = b"garbage"
    first = opened(late)
    first.append(Entry(first_offset=0, next_offset=0))
    assert opened(late).next_batch() == 0


def test_batch_numbers_that_do_not_follow() -> None:
    """Batches that are not numbered on from the log's are refused, before anything is signed."""
    store = MemoryStore()
    appending = opened(store)
    entry = records(appending, 0, 6)
    appending.append(entry)
    again = replace(records(appending, 6, 3), batches=entry.batches[:1])
    with pytest.raises(FormatError, match="batch 0 does not follow: 2 is next"):
        appending.append(again)
    assert appending.tip.size == 1
    assert manifest_key(LOG, 1) not in store.objects


def test_logs_are_listed() -> None:
    """Every log with a manifest is listed, in order; what is no log's name is passed over."""
    store = MemoryStore()
    for topic, partition, epoch in (("b", 10, 1), ("b", 9, 1), ("a", 0, 2), ("a", 0, 1)):
        opened(store, LogId("cluster", topic, "id", partition, epoch)).append(Entry(first_offset=0, next_offset=0))
    store.objects |= {
        "manifests/a b/0/x": b"",
        "manifests/a/x/0.json": b"",
        "manifests/a/00/0.json": b"",
        "manifests/a@1/0/y": b"",
    }
    assert list_logs(store) == [Log("a", 0, 1), Log("a", 0, 2), Log("b", 9), Log("b", 10)]


# --- the archive itself


def test_archive_is_created_once() -> None:
    """`archive.json` is written once; whoever comes later gets what is there, also when both come at once."""
    store = MemoryStore()
    made = create_archive(store, SIGNERS.both, heartbeat=60, checkpoint=70, retention_days=80)
    assert create_archive(store, SIGNERS.both, heartbeat=3600) == made == read_archive(store)
    said = made.statement
    assert (said.heartbeat, said.checkpoint, said.retention_days) == (60, 70, 80)
    assert [one.algorithm for one, _ in made.signatures] == ["HMAC-SHA256", "Ed25519"]

    late = MemoryStore()

    def somebody(what: str, key: str) -> None:
        if what == "create":
            late.objects.setdefault(key, store.objects["archive.json"])

    late.before = somebody
    assert create_archive(late, SIGNERS.both) == made


def test_archive_that_is_there_needs_no_key() -> None:
    """Who finds an archive signs nothing."""
    store = MemoryStore()
    made = create_archive(store, SIGNERS.both)

    def unavailable() -> Sequence[envelope.Signer]:
        raise KeyUnavailable("no key")

    assert create_archive(store, unavailable) == made
    with pytest.raises(KeyUnavailable):
        create_archive(MemoryStore(), unavailable)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 10_000,
        b'{"format":"custody/archive/2"}\n{"signatures":[]}\n',
        b'{"format":"custody/archive/1","archive":"x","created":"2026-03-01T12:00:00.000000Z","heartbeat":1}\n{}\n',
        b"x" * limits.ARCHIVE_FILE_BYTES,
    ],
)
def test_other_archive_files(data: bytes) -> None:
    """What is no `archive.json` of this format is a FormatError, and is not written over."""
    store = MemoryStore({"archive.json": data})
    with pytest.raises(FormatError):
        read_archive(store)
    with pytest.raises(FormatError):
        create_archive(store, SIGNERS.both)
    assert store.objects == {"archive.json": data}


@pytest.mark.parametrize("field", ["heartbeat", "checkpoint", "retention_days"])
@pytest.mark.parametrize("number", [0, -1, 10**9])
def test_archive_with_numbers_out_of_bounds(field: str, number: int) -> None:
    """A promise that nobody could keep is refused before it is signed."""
    store = MemoryStore()
    with pytest.raises(FormatError):
        create_archive(store, SIGNERS.both, **{field: number})
    assert store.objects == {}


def test_no_archive() -> None:
    """Where there is no archive, that is said."""
    with pytest.raises(NoArchive):
        read_archive(MemoryStore())


# --- appending


def test_order_of_puts() -> None:
    """Segment first, quarantine next, manifest last; each is created, none read back."""
    store = MemoryStore()
    appending = opened(store)
    store.calls.clear()
    statement = appending.append(records(appending, 0, 10, bad=3)).statement
    assert statement.segment is not None
    assert statement.quarantine is not None
    assert store.calls == [
        ("create", statement.segment.key),
        ("create", statement.quarantine.key),
        ("create", manifest_key(LOG, 0)),
    ]


@pytest.mark.parametrize("step", range(3))
def test_what_a_failed_put_leaves(step: int) -> None:
    """Where a put fails nothing after it is put, the head stays, and the same append may follow."""
    store = MemoryStore()
    appending = opened(store)
    appending.append(Entry(first_offset=0, next_offset=0))
    tip, there = appending.tip, set(store.objects)
    count = 0

    def fail(what: str, key: str) -> None:
        nonlocal count
        count += 1
        if count == step + 1:
            raise TransientStoreError(f"{what} {key}: no")

    entry = records(appending, 0, 10, bad=3)
    store.before = fail
    with pytest.raises(TransientStoreError):
        appending.append(entry)
    assert appending.tip == tip
    assert len(set(store.objects) - there) == step
    store.before = None
    appending.append(entry)
    log = read_archive_records(store.objects)["audit.events/0"]
    assert [offset for offset, _ in log.events] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(store.objects) - len(there) == 3


def test_what_is_written_verifies(tmp_path: Path) -> None:
    """A log with all kinds of statements is what both judges call sound."""
    store = MemoryStore()
    appending = opened(store)
    appending.append(Entry(first_offset=5, next_offset=5))
    appending.append(records(appending, 5, 10, bad=7))
    appending.append(Entry(first_offset=15, next_offset=15))
    appending.append(Entry(first_offset=15, next_offset=20, skipped=[(15, 20)]))
    appending.append(records(appending, 20, 3))
    log = read_archive_records(store.objects)["audit.events/0"]
    assert [offset for offset, _ in log.events] == [5, 6, *range(8, 15), 20, 21, 22]
    put_checkpoint(store, identity(store), LOG, appending.tip.head, SIGNERS.ed25519(), appending.judge)
    assert verified(store, tmp_path) == (0, [])
    statement = read_manifest(store, LOG, 1, anything).statement
    assert statement.sealed_at == "2026-03-01T12:00:00.000000Z"
    assert statement.writer == "a test"


def test_last_record() -> None:
    """A statement with records says which was the last, and others repeat it, until something is lost."""
    store = MemoryStore()
    appending = opened(store)
    entries = [
        Entry(first_offset=0, next_offset=0),
        records(appending, 0, 5),
        Entry(first_offset=5, next_offset=5),
        Entry(first_offset=5, next_offset=9, skipped=[(5, 9)]),
        replace(records(appending, 9, 3), skipped=[]),
        Entry(first_offset=12, next_offset=20, lost=(12, 20)),
        Entry(first_offset=20, next_offset=20),
        replace(records(appending, 20, 3), leader_epoch=None),
        Entry(first_offset=23, next_offset=24, unreadable=[Unreadable(23, 24, "no client decodes it")]),
    ]
    said = []
    for entry in entries:
        numbers = [
            msgspec.structs.replace(batch, number=appending.next_batch() + place)
            for place, batch in enumerate(entry.batches)
        ]
        last = appending.append(replace(entry, batches=numbers)).statement.last_record
        said.append(last and (last.offset, last.leader_epoch))
    assert said == [None, (4, 4), (4, 4), (4, 4), (11, 4), None, None, None, None]


def test_previous_epoch_is_written_once() -> None:
    """What an epoch goes on from stands in its first statement, where the entry says so."""
    store = MemoryStore()
    appending = opened(store, LogId("cluster", "audit.events", "other", 0, 2))
    previous = PreviousEpoch(1, 5, "00" * 32)
    first = appending.append(Entry(first_offset=0, next_offset=0, previous_epoch=previous))
    assert first.statement.previous_epoch == previous
    assert appending.append(Entry(first_offset=0, next_offset=0)).statement.previous_epoch is None


# --- slots that hold nothing valid


def garbage(store: MemoryStore, sequence: int) -> dict[str, bytes]:
    """Return what somebody without a key could put into a slot, by kind."""
    good = opened(store.copy())
    next_ = good.append(gap(sequence))
    line = next_.line
    other = MemoryStore(dict(store.objects))
    foreign_log = opened(other, msgspec.structs.replace(LOG_ID, partition=1))
    for at in range(sequence):
        foreign_log.append(gap(at))
    kept = foreign_log.append(gap(sequence))
    zero = base64.b64encode(bytes(32)).decode()
    public = SIGNERS.ed25519()

    def signed(*signatures: tuple[str, str, str]) -> bytes:
        listed = [{"key": key, "algorithm": algorithm, "value": value} for key, algorithm, value in signatures]
        return line + b"\n" + json.dumps({"signatures": listed}, separators=(",", ":")).encode() + b"\n"

    ours = SIGNERS.hmac().key_id
    return {
        "nothing": b"",
        "no manifest": b"x" * 1000,
        "cut": signed((ours, "HMAC-SHA256", zero))[:-1],
        "of another log": envelope.seal(kept.line, manifest.FORMAT, [SIGNERS.hmac()]),
        "of another slot": store.objects[manifest_key(LOG, sequence - 1)],
        "of another archive": resealed(next_, archive=ELSEWHERE),
        "a wrong HMAC": signed((ours, "HMAC-SHA256", zero)),
        "no signature": signed(),
        "by an algorithm that the key does not have": signed((public.key_id, "HMAC-SHA256", zero)),
        "too large": b"x" * (limits.FILE_BYTES - 1),
    }


KINDS = (
    "nothing", "no manifest", "cut", "of another log", "of another slot", "of another archive", "a wrong HMAC",
    "no signature", "by an algorithm that the key does not have", "too large",
)  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, when: str) -> None:
    """What nobody signed, put into the next slot before or after a writer looks, is named, and stops nothing."""
    store, _ = grown(5)
    data = garbage(store, 5)[kind]
    appending = writer(store)
    if when == "before":
        store.objects[manifest_key(LOG, 5)] = data
        tip = appending.open()
        assert (tip.size, tip.head.size, tip.passed_over) == (6, 5, (sha256(data).hexdigest(),))
        assert "a slot after the head has no valid statement" in caplog.text
    else:
        assert appending.open().size == 5
        store.objects[manifest_key(LOG, 5)] = data
    found = appending.append(gap(5)).statement
    assert (found.sequence, found.passed_over) == (6, [sha256(data).hexdigest()])
    assert store.objects[manifest_key(LOG, 5)] == data
    # What follows passes over nothing, and so does who comes next.
    assert appending.append(gap(6)).statement.passed_over == []
    assert opened(store).tip == appending.tip
    assert verified(store, tmp_path)[0] == 3


def test_many_slots_are_passed_over(tmp_path: Path) -> None:
    """As many slots in a row as a statement may name are passed over, and one more is refused."""
    store, _ = grown(3)
    for sequence in range(3, 1003):
        store.objects[manifest_key(LOG, sequence)] = b"garbage %d" % sequence
    one_more = store.copy()
    one_more.objects[manifest_key(LOG, 1003)] = b"garbage"
    with pytest.raises(FormatError, match="have no valid entry"):
        writer(one_more).open()
    appending = opened(store)
    assert len(appending.append(gap(3)).statement.passed_over) == 1000
    assert verified(store, tmp_path)[0] == 3
    full = opened(prefix(store, 1003))
    full._store.create(manifest_key(LOG, 1003), b"garbage")
    with pytest.raises(FormatError, match="1000 slots in a row have no valid entry"):
        full.append(gap(3))


def test_slots_that_were_emptied_since(tmp_path: Path) -> None:
    """A slot that was passed over, and whose garbage was removed, does not hide what follows it."""
    store, _ = grown(5)
    store.objects[manifest_key(LOG, 5)] = b"garbage"
    appending = opened(store)
    appending.append(gap(5))
    appending.append(gap(6))
    del store.objects[manifest_key(LOG, 5)]
    assert opened(store).tip == appending.tip
    assert verified(store, tmp_path)[0] == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_unknown_keys_are_not_passed_over(when: str) -> None:
    """A statement by a key that is not known here may be a right one: nothing is appended."""
    store, _ = grown(5)
    good = opened(store.copy()).append(gap(5))
    # One by a key that may not sign statements has a good signature, too.
    for signer, said in ((FOREIGN, "'foreign'"), (SIGNERS.ed25519(), "a signature by Ed25519")):
        check_not_passed_over(store.copy(), envelope.seal(good.line, manifest.FORMAT, [signer]), when, said)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_accepted_unknown_key_is_passed_over(tmp_path: Path, when: str) -> None:
    """What somebody has judged to be no writer's, by its exact digest, stops the archiving no longer."""
    store, _ = grown(5)
    good = opened(store.copy()).append(gap(5))
    data = envelope.seal(good.line, manifest.FORMAT, [FOREIGN])
    digest = sha256(data).hexdigest()
    judged = Accepted("key-unknown", "nobody has this key", "ops", "2026-03-02", str(LOG), 5, sha256=digest)
    for wrong in (
        structs.replace(judged, sequence=4),
        structs.replace(judged, sha256="0" * 64),
        structs.replace(judged, finding="signature"),
    ):
        copy = store.copy()
        copy.objects[manifest_key(LOG, 5)] = data
        refuses(copy, digest, trust=replace(TRUST, accepted=(wrong,)))
    appending = writer(store, trust=replace(TRUST, accepted=(judged,)))
    if when == "after":
        appending.open()
    store.objects[manifest_key(LOG, 5)] = data
    if when == "before":
        assert appending.open().passed_over == (digest,)
    assert appending.append(gap(5)).statement.passed_over == [digest]
    assert verified(store, tmp_path)[0] == 3


def check_not_passed_over(store: MemoryStore, data: bytes, when: str, said: str) -> None:
    appending = writer(store)
    if when == "before":
        store.objects[manifest_key(LOG, 5)] = data
        refuses(store, f"does not count: .*{said}")
        return
    appending.open()
    store.objects[manifest_key(LOG, 5)] = data
    with pytest.raises(HeadRollback, match=said):
        appending.append(gap(5))
    assert store.objects[manifest_key(LOG, 5)] == data


# --- the order of keys


@pytest.mark.parametrize("older", [1, 2, 3, 7])
def test_an_older_key_that_signs_after_a_newer_one(older: int) -> None:
    """A writer does not go on behind what an older key signed after a newer one, however often it has."""
    newer = Keyring.new(CLOCK + timedelta(seconds=1))
    later = CLOCK + timedelta(minutes=1)
    trust = replace(TRUST, keys={**TRUST.keys, **trust_of(newer).keys})
    store, _ = grown(3)
    appending = opened(store, trust=trust, signers=newer.signers(later))
    for offset in range(3, 11):
        appending.append(gap(offset))
    # A rotation is no fault, whoever looks.
    assert writer(store, trust=trust).open().size == 11
    appending = opened(store, trust=trust)
    for offset in range(11, 11 + older):
        appending.append(gap(offset))
    refuses(store, "an older key signed it after the newer", trust=trust)
    with pytest.raises(HeadRollback, match="an older key signed it after the newer"):
        find_trusted_tip(store, LOG, identity(store), trust)


def test_what_names_a_newer_key_and_is_not_signed_by_it() -> None:
    """A forged signature by a newer key makes nothing out of order."""
    newer = Keyring.new(CLOCK + timedelta(seconds=1))
    trust = replace(TRUST, keys={**TRUST.keys, **trust_of(newer).keys})
    store, _ = grown(5)
    key = manifest_key(LOG, 3)
    (id_,) = (one.key_id for one in newer.keys if one.algorithm == "HMAC-SHA256")
    store.objects[key] = store.objects[key].replace(SIGNERS.hmac().key_id.encode(), id_.encode())
    assert writer(store, trust=trust).open().size == 5


# --- keys that ended


def test_a_key_that_ended_within() -> None:
    """A log whose newest statements an ended key signed before its end is gone on from, with another key."""
    store, tips = grown(5)
    newer = Keyring.new(CLOCK)
    trust = ended({str(LOG): tips[5].head})
    trust = replace(trust, keys={**trust.keys, **trust_of(newer).keys})
    appending = opened(store, trust=trust, signers=newer.signers(CLOCK))
    assert appending.append(gap(5)).statement.sequence == 5


@pytest.mark.parametrize(
    "until",
    [{}, {"audit.events/1": 5}, {str(LOG): 4}, {str(LOG): 0}],
    ids=["unlisted", "another log", "beyond", "nowhere"],
)
def test_a_key_that_ended_before(until: dict[str, int]) -> None:
    """What an ended key signed at or beyond its end is not gone on from, nor passed over."""
    store, tips = grown(5)
    heads = {name: tips[size].head for name, size in until.items()}
    refuses(store, "ended at this log's size", trust=ended(heads))


def test_a_key_that_ended_in_another_tree() -> None:
    """What an ended key signed in a tree that does not lead to its end is not gone on from."""
    store, tips = grown(5)
    refuses(store, "is not shown to lie within that head", trust=ended({str(LOG): Head(6, tips[5].root)}))
    refuses(store, "is not shown to lie within that head", trust=ended({str(LOG): Head(5, bytes(32))}))


def test_the_head_at_which_a_key_ended_is_known() -> None:
    """A log that has not the head at which a key ended is not gone on from, whoever signed what it has."""
    store, tips = grown(5)
    other = replace(TRUST.keys[SIGNERS.hmac().key_id], id="another", until={str(LOG): tips[5].head})
    trust = replace(TRUST, keys={**TRUST.keys, "another": other})
    refuses(prefix(store, 4), "known from the end of the key 'another' has size 5", trust=trust)
    forked = prefix(store, 4)
    opened(forked, name="another history").append(gap(4))
    refuses(forked, "forked", trust=trust)
    assert writer(store, trust=trust).open().size == 5


# --- a glance at the end, for a log that probably gets nothing


def known(tip: Tip[manifest.Manifest]) -> KnownHead:
    return KnownHead(tip.head.size, tip.head.root, "a test")


def test_a_glance_takes_two_requests(long: tuple[MemoryStore, list[Tip[manifest.Manifest]]]) -> None:
    """It reads the newest statement that is known, and looks whether another one follows."""
    store, tips = long
    appending = writer(store)
    store.calls.clear()
    tip = appending.glance([known(tips[10]), known(tips[5000]), known(tips[4000])])
    assert tip is not None
    assert (tip.head, tip.newest) == (tips[5000].head, tips[5000].newest)
    assert (appending.tip, appending.next_offset) == (tip, 5000)
    assert store.calls == [("read", manifest_key(LOG, 4999)), ("exists", manifest_key(LOG, 5000))]


def test_where_a_glance_is_not_enough() -> None:
    """Without the largest head, or if it is not the end, a writer has to open the log. Nothing is refused yet."""
    store, tips = grown(6)
    lost, changed = prefix(store, 5), store.copy()
    changed.objects[manifest_key(LOG, 5)] = b"garbage"
    garbage_behind = store.copy()
    garbage_behind.objects[manifest_key(LOG, 6)] = b"garbage"
    end = known(tips[6])
    for archive, heads in (
        (store, []),
        (store, [KnownHead(0, merkle.EMPTY_ROOT, "a test")]),
        (store, [known(tips[5])]),
        (store, [KnownHead(6, tips[5].root, "a test")]),
        (store, [end, KnownHead(6, tips[5].root, "a test")]),
        (store, [KnownHead(6, None, "a test")]),
        (store, [KnownHead(7, tips[5].root, "a test")]),
        (lost, [end]),
        (changed, [end]),
        (garbage_behind, [end]),
    ):
        appending = writer(archive)
        assert appending.glance(heads) is None
        assert appending.tip.newest is None
    assert writer(store).glance([end]) is not None
    assert writer(store, trust=replace(TRUST, heads={str(LOG): tips[6].head})).glance([]) is not None


def test_an_append_after_a_glance() -> None:
    """It checks the end once, and then goes on as after opening."""
    store, tips = grown(6)
    appending = writer(store)
    assert appending.glance([known(tips[6])]) is not None
    for sequence in range(6, 9):
        store.calls.clear()
        assert appending.append(gap(sequence)).statement.sequence == sequence
        names = Counter(name for name, _ in store.calls)
        assert (names["list"] > 0, names["create"]) == (sequence == 6, 1)
    assert opened(store).tip == appending.tip


@pytest.mark.parametrize("evidence", ["a statement", "a checkpoint", "a version"])
def test_nothing_is_signed_after_a_glance_alone(evidence: str) -> None:
    """What shows that the log was longer is found before the first append, or when somebody asks for the check."""
    whole, tips = grown(6)
    store = prefix(whole, 4)
    if evidence == "a statement":
        store.objects[manifest_key(LOG, 5)] = whole.objects[manifest_key(LOG, 5)]
    elif evidence == "a checkpoint":
        note = sign_checkpoint(SIGNERS.ed25519(), identity(store), LOG, tips[6].head)
        store.objects[checkpoint_key(LOG, 6)] = note.encode()
    else:
        store.versions[manifest_key(LOG, 4)] = [None, whole.objects[manifest_key(LOG, 4)]]
    before = dict(store.objects)
    for sign in (lambda appending: appending.append(records(appending, 4, 3)), LogWriter.check):
        appending = writer(store)
        assert appending.glance([known(tips[4])]) is not None
        for _ in range(2):
            with pytest.raises(HeadRollback, match="custody verify"):
                sign(appending)
    assert store.objects == before


def test_a_glance_that_misses_what_another_writer_appended() -> None:
    """Behind an empty slot that was passed over there may be more. Then nothing is appended by this writer."""
    store, tips = grown(4)
    other = opened(store, name="another writer")
    other.tip = other.tip.pass_over("00" * 32)
    other.append(gap(4))
    before = dict(store.objects)
    appending = writer(store)
    assert appending.glance([known(tips[4])]) is not None
    for _ in range(2):
        with pytest.raises(Fenced, match="another writer appended behind the head that this run began from"):
            appending.append(records(appending, 4, 2))
    assert store.objects == before
    assert opened(store).append(gap(5)).statement.sequence == 6


def test_another_writer_appends_after_a_glance() -> None:
    """The first append is fenced, however many there are by then, and leaves no orphan."""
    for several in (1, 3):
        store, tips = grown(4)
        appending = writer(store)
        assert appending.glance([known(tips[4])]) is not None
        other = opened(store, name="another writer")
        for sequence in range(4, 4 + several):
            other.append(gap(sequence))
        before = dict(store.objects)
        with pytest.raises(Fenced, match="another writer appended behind the head"):
            appending.append(records(appending, 4, 2))
        assert store.objects == before


# --- refusals


def known_end(store: MemoryStore, trust: Trust) -> list[KnownHead]:
    """Return the head at which the log seems to end; none if that cannot be told."""
    with suppress(CustodyError):
        return [known(find_tip(store, LOG, writer(store, trust=trust).judge.holds))]
    return []


def refuses(
    store: MemoryStore, match: str, known: Sequence[KnownHead] = (), *, trust: Trust = TRUST, log_id: LogId = LOG_ID
) -> bool:
    """Opening is refused with a message that says what is wrong and what to do; nothing is written.

    Where a glance at the end that is there is enough, the first append is refused like that. Return whether it was.
    """
    before = dict(store.objects)
    with pytest.raises(HeadRollback, match=match) as raised:
        writer(store, log_id, trust=trust).open(known)
    assert "custody verify" in str(raised.value)
    appending = writer(store, log_id, trust=trust)
    glanced = appending.glance([*known, *known_end(store, trust)]) is not None
    if glanced:
        with pytest.raises(HeadRollback, match=match):
            appending.append(gap(appending.next_offset or 0))
    assert store.objects == before
    return glanced


def test_known_head_of_a_larger_size() -> None:
    """A head below one that somebody knows is refused, and the message says who knows it."""
    store, tips = grown(6)
    for size in range(7):
        assert writer(store).open([KnownHead(size, tips[size].root, "an audit")]).size == 6
    refuses(
        store, "the head has size 6, but the head known from an audit has size 7", [KnownHead(7, bytes(32), "an audit")]
    )
    refuses(store, "known from an audit has size 7", [KnownHead(7, None, "an audit")])
    refuses(prefix(store, 0), "known from an audit has size 1", [KnownHead(1, tips[1].root, "an audit")])
    refuses(store, r"known from trust\.json has size 7", trust=replace(TRUST, heads={str(LOG): Head(7, bytes(32))}))


def test_garbage_below_a_known_head() -> None:
    """A slot below a head that somebody knows is not passed over: what was there was valid."""
    store, tips = grown(6)
    store.objects[manifest_key(LOG, 5)] = b"garbage"
    assert writer(store).open().passed_over
    refuses(store, "known from an audit has size 6", [KnownHead(6, tips[6].root, "an audit")])


def test_known_head_of_another_root() -> None:
    """A history other than the one that somebody knows is a fork, at the head and below it."""
    store, tips = grown(6)
    for size in (1, 3, 6):
        refuses(store, "forked", [KnownHead(size, tips[size - 1].root, "an audit")])


def test_known_head_whose_root_cannot_be_recomputed() -> None:
    """Where a statement on the way to a known root is gone, nothing is appended."""
    store, tips = grown(6)
    store.objects[manifest_key(LOG, 2)] = b"garbage"
    refuses(store, "the root at size 3 cannot be computed", [KnownHead(3, tips[3].root, "an audit")])


def test_hole_below_a_later_manifest() -> None:
    """A signed manifest beyond a hole is found, wherever the search ended."""
    store, _ = grown(12)
    glanced = 0
    for hole in range(12):
        holed = store.copy()
        del holed.objects[manifest_key(LOG, hole)]
        if hole == 11:
            assert writer(holed).open().size == 11
        elif find_tip(holed, LOG, anything).size == 12:
            continue  # below the head, which is the verifier's to find
        else:
            glanced += refuses(holed, "is missing, but")
    assert glanced > 5


def test_manifest_beyond_the_head_that_nobody_signed(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody signed behind a hole raises an alarm, and stops nothing."""
    store, _ = grown(5)
    for kind, data in garbage(store, 5).items():
        with_it = store.copy()
        with_it.objects[manifest_key(LOG, 7)] = data
        caplog.clear()
        appending = writer(with_it)
        assert appending.open().size == 5, kind
        assert "000000000007.json is not a valid statement, and is after the head" in caplog.text
        for offset in (5, 6):
            assert appending.append(gap(offset)).statement.passed_over == []
        assert appending.append(gap(7)).statement.passed_over == [sha256(data).hexdigest()]


def checkpointed(store: MemoryStore, head: Head, signers: Signers = SIGNERS, archive: str | None = None) -> bytes:
    return sign_checkpoint(signers.ed25519(), archive or identity(store), LOG, head).encode()


def test_checkpoint_beyond_the_head() -> None:
    """A signed checkpoint of a size that the log does not have is a memory of more."""
    store, tips = grown(6)
    store.objects[checkpoint_key(LOG, 6)] = checkpointed(store, tips[6].head)
    assert writer(store).open().size == 6
    assert refuses(prefix(store, 5), "there is a checkpoint checkpoints/audit.events/0/000000000006")
    refuses(prefix(store, 0), "the head has size 0, but there is a checkpoint")


def test_checkpoint_of_a_statement_that_became_garbage() -> None:
    """A slot that a signed checkpoint covers is not passed over, although something lies in it."""
    store, tips = grown(6)
    store.objects[checkpoint_key(LOG, 6)] = checkpointed(store, tips[6].head)
    store.objects[manifest_key(LOG, 5)] = b"garbage"
    refuses(store, "there is a checkpoint checkpoints/audit.events/0/000000000006")
    store.objects[manifest_key(LOG, 6)] = b"garbage"
    refuses(store, "there is a checkpoint checkpoints/audit.events/0/000000000006")


def test_checkpoints_beyond_the_head_that_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints of sizes that the log does not have, which no trusted key signed, stop nothing."""
    store, tips = grown(6)
    head = Head(9, bytes(32))
    foreign = Keyring.new(CLOCK).signers(CLOCK)
    bad = {
        "garbage": b"garbage",
        "nothing": b"",
        "by a foreign key": checkpointed(store, head, foreign),
        "of another archive": checkpointed(store, head, archive=ELSEWHERE),
        "of another size": checkpointed(store, Head(8, bytes(32))),
        "with a wrong signature": checkpointed(store, head).replace(b"AAAA", b"AAAB", 1),
    }
    for kind, data in bad.items():
        with_it = store.copy()
        with_it.objects[checkpoint_key(LOG, 9)] = data
        caplog.clear()
        assert writer(with_it).open().size == 6, kind
        assert "is not a valid checkpoint, and is after the head" in caplog.text
    with_it = store.copy()
    with_it.objects[checkpoint_key(LOG, 9)] = checkpointed(store, head)
    # By a key that had ended before.
    newer = Keyring.new(CLOCK)
    trust = ended({str(LOG): tips[6].head})
    trust = replace(trust, keys={**trust.keys, **trust_of(newer).keys})
    assert writer(with_it, trust=trust, signers=newer.signers(CLOCK)).open().size == 6


# --- what a bucket keeps of the next slot


def test_history_of_the_next_key() -> None:
    """Where a bucket keeps a statement that was taken away from the next slot, nothing is appended."""
    store, _ = grown(7)
    taken = store.objects[manifest_key(LOG, 6)]
    histories: list[list[bytes | None]] = [[None, taken], [b"garbage", taken]]
    for kept in histories:
        bucket = prefix(store, 6)
        bucket.versions[manifest_key(LOG, 6)] = kept
        assert refuses(bucket, "was deleted")
    forged = prefix(store, 6)
    forged.versions[manifest_key(LOG, 6)] = [None, resealed(manifest.parse(taken), FOREIGN)]
    refuses(forged, "'foreign'")
    # Who put garbage there, and hid it with a marker, stops nothing: the first version is what is named.
    hidden = prefix(store, 6)
    hidden.versions[manifest_key(LOG, 6)] = [None, taken, b"garbage"]
    appending = opened(hidden)
    assert appending.append(gap(6)).statement.passed_over == [sha256(b"garbage").hexdigest()]
    assert manifest_key(LOG, 6) not in hidden.objects


def test_delete_marker_of_a_key_that_never_was(caplog: pytest.LogCaptureFixture) -> None:
    """A delete marker on the next key, with no version under it, stops nothing, unless a known head covers the slot."""
    store, tips = grown(7)
    bucket = prefix(store, 6)
    bucket.versions[manifest_key(LOG, 6)] = [None]
    refuses(bucket, "known from an audit has size 7", [KnownHead(7, tips[7].root, "an audit")])
    appending = opened(bucket)
    assert "000000000006.json has a delete marker, but no version" in caplog.text
    assert appending.append(gap(6)).statement.passed_over == []
    assert opened(bucket).tip == appending.tip
    bucket.objects[checkpoint_key(LOG, 7)] = checkpointed(bucket, tips[7].head)
    del bucket.objects[manifest_key(LOG, 6)]
    refuses(bucket, "there is a checkpoint")


@pytest.mark.parametrize("kind", ["statement", "checkpoint"])
def test_much_garbage_after_the_head(caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """A writer reads a bounded number of objects after its head, and says that there are more."""
    reads = []
    for count in (2_000, 4_000):
        store, _ = grown(3)
        for number in range(100, 100 + count):
            key = manifest_key(LOG, number) if kind == "statement" else checkpoint_key(LOG, number)
            store.objects[key] = b"garbage"
        store.calls.clear()
        caplog.clear()
        appending = opened(store)
        reads.append(sum(name in {"read", "exists"} for name, _ in store.calls))
        assert f"more than 1000 {kind}s are after the head" in caplog.text
        assert appending.append(gap(3)).statement.passed_over == []
    assert reads[0] == reads[1]


# --- the newest statement


def edited(store: MemoryStore, place: int, **fields: object) -> MemoryStore:
    """Return a copy in which one statement says something else, rightly signed."""
    bent = store.copy()
    bent.objects[manifest_key(LOG, place)] = resealed(read_manifest(bent, LOG, place, anything), None, **fields)
    return bent


def test_a_tree_that_does_not_hold_together() -> None:
    """A signed head whose tree contradicts itself is not gone on from, and is named."""
    store, _ = grown(4)
    tree = read_manifest(store, LOG, 3, anything).statement.tree
    for changed in (
        msgspec.structs.replace(tree, size=2),
        msgspec.structs.replace(tree, root="00" * 32),
        msgspec.structs.replace(tree, compact_range=tree.compact_range[:1]),
    ):
        with pytest.raises(FormatError, match=r"000000000003\.json is inconsistent"):
            writer(edited(store, 3, tree=changed)).open()


def test_another_topic_or_cluster() -> None:
    """A log that was made from another topic or cluster is refused, with what to do."""
    store, _ = grown(2)
    for changed in (msgspec.structs.replace(LOG_ID, topic_id="new"), msgspec.structs.replace(LOG_ID, cluster="new")):
        with pytest.raises(LogChanged, match=r"custody new-epoch audit\.events"):
            writer(store, changed).open()


def test_a_key_that_cannot_be_asked() -> None:
    """Where the newest statement's signature cannot be checked now, nothing is appended."""
    store, _ = grown(2)
    keys = {name: replace(key, material=None) for name, key in TRUST.keys.items()}
    with pytest.raises(KeyUnavailable, match=r"000000000001\.json can be checked"):
        writer(store, trust=replace(TRUST, keys=keys)).open()


# --- two writers at once


def test_loser_stops_quietly() -> None:
    """Of two writers one wins the next manifest; the other checks the winner's, is fenced, and changes nothing."""
    store, _ = grown(5)
    one, two = opened(store, name="one"), opened(store, name="two")
    one.append(records(one, 5, 10))
    winner = dict(store.objects)
    with pytest.raises(Fenced, match="another writer appended"):
        two.append(records(two, 5, 12))
    left = {key for key in store.objects if key not in winner}
    assert [key.split("/")[0] for key in left] == ["events"]
    assert all(store.objects[key] == data for key, data in winner.items())
    assert two.tip.size == 5
    one.append(records(one, 15, 3))
    kept = {key: data for key, data in store.objects.items() if key not in left}
    assert len(read_archive_records(kept)["audit.events/0"].events) == 13


def test_both_may_begin_a_log() -> None:
    """Two writers that both see a new partition do not both write its statement 0."""
    store = MemoryStore()
    one, two = opened(store, name="one"), opened(store, name="two")
    one.append(Entry(first_offset=0, next_offset=0))
    with pytest.raises(Fenced):
        two.append(Entry(first_offset=3, next_offset=3))


def test_both_pass_over_the_same_garbage(tmp_path: Path) -> None:
    """Of two writers that pass over the same slot one wins, and the other is fenced."""
    store, _ = grown(5)
    one, two = opened(store, name="one"), opened(store, name="two")
    store.objects[manifest_key(LOG, 5)] = b"garbage"
    one.append(gap(5))
    with pytest.raises(Fenced):
        two.append(gap(5))
    one.append(gap(6))
    assert verified(store, tmp_path)[0] == 3


def winners(store: MemoryStore) -> dict[str, tuple[bytes, str]]:
    """Return signed manifests that another writer might have put in our place, and what is said of each."""
    good = opened(store.copy(), name="another").append(Entry(first_offset=5, next_offset=9, skipped=[(5, 9)]))
    other = MemoryStore()
    identity(other)
    other.objects["archive.json"] = store.objects["archive.json"]
    forking = opened(other, name="another history")
    for offset in range(5):
        forking.append(gap(offset))
    tree = Tree(5, forking.tip.root.hex(), [node.hex() for node in forking.tip.compact_range])
    return {
        "of a foreign key": (resealed(good, FOREIGN), "'foreign'"),
        "over another history": (resealed(good, tree=tree), "another history"),
        "with a gap": (resealed(good, first_offset=6, skipped=[(6, 9)]), "starts at offset 6, not 5"),
        "of another topic": (
            resealed(good, log=msgspec.structs.replace(LOG_ID, topic_id="new")),
            "another topic or cluster",
        ),
    }


@pytest.mark.parametrize("kind", ["of a foreign key", "over another history", "with a gap", "of another topic"])
def test_winner_that_does_not_join(kind: str) -> None:
    """A lost put ends quietly only if the winner's statement counts and joins; else it is a head-rollback."""
    store, _ = grown(5)
    data, said = winners(store)[kind]
    appending = opened(store)
    store.objects[manifest_key(LOG, 5)] = data
    with pytest.raises(HeadRollback, match=said):
        appending.append(records(appending, 5, 1))
    assert store.objects[manifest_key(LOG, 5)] == data


def test_winner_that_cannot_be_read() -> None:
    """Where the winner cannot be read now, the loser stops all the same."""
    store, _ = grown(5)
    one, two = opened(store, name="one"), opened(store, name="two")
    one.append(Entry(first_offset=5, next_offset=5))

    def fail(what: str, key: str) -> None:
        if (what, key) == ("read", manifest_key(LOG, 5)):
            raise TransientStoreError(f"{key}: not now")

    entry = records(two, 5, 1)
    store.before = fail
    with pytest.raises(Fenced, match="cannot be checked now"):
        two.append(entry)


def test_head_found_while_another_writes() -> None:
    """A manifest that another writer puts between search and listing is no hole; the next append is fenced."""
    store, _ = grown(5)
    for listing in (1, 2):
        part = store.copy()
        other = opened(part, name="other")
        seen = 0

        def meanwhile(
            what: str, _: str, part: MemoryStore = part, other: LogWriter = other, listing: int = listing
        ) -> None:
            nonlocal seen
            seen += what == "list"
            if seen == listing:
                part.before = None
                for offset in range(5, 8):
                    other.append(gap(offset))

        late = writer(part)
        part.before = meanwhile
        tip = late.open()
        assert seen == listing
        if tip.size == 5:
            with pytest.raises(Fenced):
                late.append(records(late, 5, 1))
        else:
            assert tip == other.tip


# --- before anything is signed


def test_signer_that_cannot_sign() -> None:
    """Where the key cannot be had no manifest is put."""

    class Gone:
        key_id = "gone"
        algorithm: Algorithm = "HMAC-SHA256"

        def sign(self, _: bytes) -> bytes:
            raise KeyUnavailable("the key's service does not answer")

    store = MemoryStore()
    appending = LogWriter(store, identity(store), LOG_ID, signer=Gone(), trust=TRUST, writer="a test")
    appending.open()
    with pytest.raises(KeyUnavailable):
        appending.append(records(appending, 0, 3))
    assert not any(key.startswith("manifests/") for key in store.objects)


def beyond_limits() -> dict[str, Entry]:
    """Return entries that the format does not allow, by what is too much."""
    half = 2**60
    batch = Batch(
        0, 0, 1, 1, 0, 1, 1, "00" * 32, "2026-03-01T12:00:00.000000Z", "2026-03-01T12:00:00.000000Z", None, None
    )

    def batched(**fields: int) -> Entry:
        one = msgspec.structs.replace(batch, **fields)
        return Entry(first_offset=0, next_offset=one.events, members=[b"x"], batches=[one], types={"login": one.events})

    spread = [(half + 2 * place, half + 2 * place + 1) for place in range(limits.RANGES + 1)]
    return {
        "a statement's bytes": Entry(
            first_offset=half,
            next_offset=half + 2 * limits.RANGES,
            skipped=spread[: limits.RANGES],
            quarantined=spread[: limits.RANGES],
            quarantine=b"x",
            types={f"{'t' * 240}{number}": 1 for number in range(limits.TYPES)},
            batches=[batch] * 20_000,
            members=[b"x"],
        ),
        "skipped": Entry(first_offset=half, next_offset=half + 2 * limits.RANGES + 1, skipped=spread),
        "quarantined": Entry(
            first_offset=half, next_offset=half + 2 * limits.RANGES + 1, quarantined=spread, quarantine=b"x"
        ),
        "unreadable": Entry(
            first_offset=0,
            next_offset=2 * limits.UNREADABLE_RANGES + 2,
            unreadable=[Unreadable(2 * at, 2 * at + 1, "x") for at in range(limits.UNREADABLE_RANGES + 1)],
        ),
        "a reason": Entry(first_offset=0, next_offset=1, unreadable=[Unreadable(0, 1, "x" * 257)]),
        "types": replace(batched(), types={str(number): 1 for number in range(limits.TYPES + 1)}),
        "events of a batch": batched(events=limits.BATCH_EVENTS + 1, next_offset=limits.BATCH_EVENTS + 1),
        "bytes of a batch": batched(inflated=limits.BATCH_BYTES + 1),
        "a segment": replace(batched(), members=[bytes(limits.MIB)] * 257),
        "a quarantine": Entry(
            first_offset=0, next_offset=1, quarantined=[(0, 1)], quarantine=bytes(limits.QUARANTINE_BYTES + 1)
        ),
        "a quarantine's lines": Entry(
            first_offset=0,
            next_offset=1,
            quarantined=[(0, 1)],
            quarantine=b"x",
            quarantine_inflated=limits.QUARANTINE_INFLATED + 1,
        ),
    }


@pytest.mark.parametrize("kind", beyond_limits())
def test_entries_beyond_the_limits(kind: str) -> None:
    """An entry beyond a limit of the format is refused before it is signed: the verifier takes what we write."""
    signed: list[bytes] = []

    class Noting:
        key_id = "noting"
        algorithm: Algorithm = "HMAC-SHA256"

        def sign(self, message: bytes) -> bytes:
            signed.append(message)
            return bytes(32)

    store = MemoryStore()
    appending = LogWriter(store, identity(store), LOG_ID, signer=Noting(), trust=TRUST, writer="a test")
    appending.open()
    with pytest.raises(FormatError):
        appending.append(beyond_limits()[kind])
    assert signed == []
    assert not any(key.startswith("manifests/") for key in store.objects)


# --- checkpoints


def test_checkpoints_are_put_once(caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that is there with our root is success; garbage gets none; another signed root is an alarm."""
    store, tips = grown(3)
    archive, judge = identity(store), writer(store).judge
    signer = SIGNERS.ed25519()
    made = put_checkpoint(store, archive, LOG, tips[3].head, signer, judge)
    assert made is not None
    assert store.objects[checkpoint_key(LOG, 3)] == made.encode()
    # Another key, of this keyring too, made it.
    other = Keyring.new(CLOCK).signers(CLOCK).ed25519()
    assert put_checkpoint(store, archive, LOG, tips[3].head, other, judge) == made
    forked = store.copy()
    forked.objects[checkpoint_key(LOG, 3)] = checkpointed(store, Head(3, bytes(32)))
    with pytest.raises(HeadRollback, match="has another root"):
        put_checkpoint(forked, archive, LOG, tips[3].head, signer, writer(forked).judge)
    for garbage_ in (b"", b"garbage", checkpointed(store, Head(3, bytes(32)), Keyring.new(CLOCK).signers(CLOCK))):
        taken = store.copy()
        taken.objects[checkpoint_key(LOG, 3)] = garbage_
        caplog.clear()
        assert put_checkpoint(taken, archive, LOG, tips[3].head, signer, writer(taken).judge) is None
        assert "this size gets no checkpoint" in caplog.text
        assert taken.objects[checkpoint_key(LOG, 3)] == garbage_


# --- audits


def audit_with_a_head(store: MemoryStore, tip: Tip[SignedAudit], **fields: object) -> Audit:
    return audit_of(identity(store), tip, CLOCK, **{"heads": {"a/0": HeadRef(3, "00" * 32)}, **fields})


def audited(
    store: MemoryStore, tip: Tip[SignedAudit], signers: Sequence[envelope.Signer] | None = None, **fields: object
) -> Tip[SignedAudit]:
    both = SIGNERS.both() if signers is None else signers
    return append_audit(store, tip, lambda at: audit_with_a_head(store, at, **fields), both, TRUST)


def sealed_audit(
    store: MemoryStore, tip: Tip[SignedAudit], signers: Sequence[envelope.Signer], **fields: object
) -> bytes:
    return envelope.seal(envelope.encode_line(audit_with_a_head(store, tip, **fields)), audit.FORMAT, signers)


def test_audits_follow_one_another() -> None:
    """Audits are a signed log: each states the tree of those before it, and the next is found behind the newest."""
    store = MemoryStore()
    tip = find_trusted_audits(store, identity(store), TRUST)
    assert tip == Tip()
    for size in range(1, 6):
        tip = audited(store, tip)
        assert tip.size == size
        assert find_trusted_audits(store, identity(store), TRUST) == tip == find_audit_tip(store, anything)
    store.objects["audits/000000000003.json.bak"] = b""
    assert find_trusted_audits(store, identity(store), TRUST) == tip


def test_garbage_among_audits() -> None:
    """What nobody signed in the next audit's slot is passed over, before and after the audit is made."""
    hmac_key, ed25519 = SIGNERS.both()
    for when in ("before", "after"):
        store = MemoryStore()
        tip = audited(store, Tip())
        first = store.objects[audit_key(0)]
        line, _ = first.split(b"\n")[:2]
        bad = [
            b"",
            b"garbage",
            first,
            line + b'\n{"signatures":[]}\n',
            sealed_audit(store, tip, [hmac_key]),
            sealed_audit(store, tip, [ed25519]),
            sealed_audit(store, tip, [hmac_key, ed25519], archive=ELSEWHERE),
        ]
        for place, data in enumerate(bad):
            at = tip
            key = audit_key(tip.size)
            if when == "before":
                store.objects[key] = data
                at = find_trusted_audits(store, identity(store), TRUST)
                assert (at.size, at.head) == (tip.size + 1, tip.head), place
            else:
                store.objects[key] = data
            tip = audited(store, at)
            assert tip.newest is not None
            assert tip.newest.statement.passed_over == [sha256(data).hexdigest()]
            assert store.objects[key] == data
        assert find_trusted_audits(store, identity(store), TRUST) == tip


def test_an_audit_that_was_first() -> None:
    """Only a signed audit that joins ends another quietly: it is of the same archive, slot and history."""
    store = MemoryStore()
    tip = audited(store, Tip())
    won = audited(store, tip, writer="another")
    with pytest.raises(Fenced, match="audit 1 was written by another process"):
        audited(store, tip)
    assert find_trusted_audits(store, identity(store), TRUST) == won
    forked = store.copy()
    other = MemoryStore({"archive.json": store.objects["archive.json"]})
    apart = audited(other, Tip(), writer="another history")
    forked.objects[audit_key(1)] = sealed_audit(store, apart, SIGNERS.both())
    with pytest.raises(HeadRollback, match="continues another history of audits"):
        audited(forked, tip)
    foreign = store.copy()
    foreign.objects[audit_key(1)] = sealed_audit(store, tip, [FOREIGN, SIGNERS.ed25519()])
    with pytest.raises(HeadRollback, match="'foreign'"):
        audited(foreign, tip)


def test_what_audits_refer_to_is_not_listed_with_them() -> None:
    """Where audits end is found at a cost that does not grow with what they refer to."""
    store = MemoryStore()
    tip = audited(store, Tip())
    store.calls.clear()
    assert find_trusted_audits(store, identity(store), TRUST) == tip
    listed = [key for what, key in store.calls if what == "list"]
    assert listed
    assert not any(audit_object_key("0" * 64).startswith(prefix) for prefix in listed)


def test_an_audit_by_an_ended_key() -> None:
    """An ended key's audits count as far as its end in the log of audits, and no further."""
    store = MemoryStore()
    one = audited(store, Tip())
    two = audited(store, one)
    archive = identity(store)
    assert find_trusted_audits(store, archive, ended({str(AUDIT_LOG): two.head})) == two
    with pytest.raises(HeadRollback, match="ended at this log's size 1"):
        find_trusted_audits(store, archive, ended({str(AUDIT_LOG): one.head}))
    with pytest.raises(HeadRollback, match="ended at this log's size 0"):
        find_trusted_audits(store, archive, ended({}))


def test_judges_of_both_kinds_of_log() -> None:
    """Statements and audits are judged by the same policy; neither counts in the other's place."""
    store, _ = grown(2)
    archive = identity(store)
    tip = audited(store, Tip())
    assert tip.newest is not None
    audits = Judge(store, AUDIT_LOG, AUDITS, archive, TRUST)
    statements = Judge(store, LOG, statements_of(LOG), archive, TRUST)
    assert audits.holds(tip.newest, 0)
    assert not audits.holds(tip.newest, 1)
    found = read_manifest(store, LOG, 1, anything)
    assert statements.holds(found, 1)
    assert not statements.holds(found, 0)
    assert not audits.holds(found, 1)
