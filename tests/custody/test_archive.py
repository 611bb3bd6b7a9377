"""Appending to a log: its head is found with few requests, checked before anything is signed, and fenced."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody import manifest, merkle
from custody.archive import (
    ArchiveInfo,
    Entry,
    Head,
    LogWriter,
    Seen,
    append_audit,
    audited_heads,
    create_archive,
    find_audits,
    find_head,
    list_logs,
    read_archive,
    read_manifest,
)
from custody.audit import Audit, HeadRef
from custody.errors import (
    Fenced,
    FormatError,
    HeadRollback,
    KeyUnavailable,
    LogChanged,
    ObjectExists,
    ObjectMissing,
    TransientStoreError,
)
from custody.keys import HmacKey, Secret, new_keyring, open_signers
from custody.layout import Log, checkpoint_key, manifest_key
from custody.manifest import After, LogId, Tree
from custody.store import ObjectInfo, open_store
from custody.trust import Trust, open_trust
from custody.verify import verify
from tasks.assemble import Assembler
from tests.reading import read_archive_records
from tests.sample import Message, event

LOG = Log("audit.events", 0)
LOG_ID = LogId("cluster", "audit.events", "topic-id", 0, 1)
CLOCK = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Memory:
    """A store in memory that counts its calls, and lets a test come between."""

    objects: dict[str, bytes] = field(default_factory=dict)
    history: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)
    before: Callable[[str, str], None] | None = None
    url: str = "memory:"

    def _call(self, what: str, key: str) -> None:
        self.calls.append((what, key))
        if self.before is not None:
            self.before(what, key)

    def create(self, key: str, data: bytes) -> None:
        self._call("create", key)
        if self.objects.setdefault(key, data) != data:
            raise ObjectExists(f"{key} is there")

    def read(self, key: str, *, limit: int, start: int = 0, size: int | None = None) -> bytes:
        self._call("read", key)
        if key not in self.objects:
            raise ObjectMissing(f"{key} is not there")
        if len(self.objects[key]) > limit:
            raise FormatError(f"{key} is too large")
        return self.objects[key][start : None if size is None else start + size]

    def exists(self, key: str) -> bool:
        self._call("exists", key)
        return key in self.objects

    def list(self, prefix: str = "", *, after: str = "", without: Collection[str] = ()) -> Iterator[ObjectInfo]:
        self._call("list", prefix)
        return iter(
            [
                ObjectInfo(key, len(data))
                for key, data in self.objects.items()
                if key.startswith(prefix) and key > after and key[: key.find("/") + 1] not in without
            ]
        )

    def names(self, prefix: str) -> "list[str]":
        self._call("names", prefix)
        return sorted({key[len(prefix) :].split("/")[0] for key in self.objects if key.startswith(prefix)})

    def has_history(self, key: str) -> bool:
        self._call("has_history", key)
        return key in self.history

    def close(self) -> None:
        pass

    def copy(self) -> "Memory":
        return Memory(dict(self.objects))


@dataclass(frozen=True)
class Keys:
    """Keys, and who trusts them."""

    uri: str
    trust: Trust


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    path = tmp_path_factory.mktemp("keys") / "keyring.json"
    new_keyring(path, CLOCK - timedelta(days=1), ed25519=True)
    return Keys(f"file:{path}", open_trust([f"file:{path}"]))


def writer(store: Memory, keys: Keys, log_id: LogId = LOG_ID, name: str = "a test") -> LogWriter:
    return LogWriter(
        store,
        create_archive(store),
        log_id,
        signers=open_signers(keys.uri, CLOCK),
        trust=keys.trust,
        writer=name,
        clock=lambda: CLOCK,
    )


def opened(store: Memory, keys: Keys, log_id: LogId = LOG_ID, name: str = "a test") -> LogWriter:
    found = writer(store, keys, log_id, name)
    found.open()
    return found


def records(first: int, count: int, bad: int | None = None) -> Entry:
    """Return an entry with so many records, one of them perhaps no event."""
    assembler = Assembler(first, batch_events=4, segment_bytes=2**20, level=1)
    assembler.add([Message(at, b"no event" if at == bad else event(at)) for at in range(first, first + count)])
    return assembler.cut()


def grown(keys: Keys, size: int) -> tuple[Memory, list[Head]]:
    """Return a log of `size` statements, and its head at each size."""
    store = Memory()
    appending = opened(store, keys)
    heads = [appending.head]
    for sequence in range(size):
        appending.append(Entry(first_offset=sequence, next_offset=sequence + 1, skipped=[(sequence, sequence + 1)]))
        heads.append(appending.head)
    return store, heads


@pytest.fixture(scope="module")
def long(keys: Keys) -> tuple[Memory, list[Head]]:
    return grown(keys, 5000)


def prefix(store: Memory, size: int) -> Memory:
    """Return a store with the log's first statements only."""
    names = {manifest_key(LOG, sequence) for sequence in range(size)}
    return Memory(
        {key: data for key, data in store.objects.items() if not key.startswith("manifests/") or key in names}
    )


# --- where a log ends


@pytest.mark.parametrize("size", range(41))
def test_head_of_any_size(long: tuple[Memory, list[Head]], size: int) -> None:
    """The head of a log of any size is found, whatever size is hinted at: right, too small, or too large."""
    store, heads = long
    part = prefix(store, size)
    for hint in (0, 1, size - 1, size, size + 1, size + 2, 2 * size, 1000):
        head = find_head(part, LOG, hint)
        assert (head.size, head.root, head.edge) == (size, heads[size].root, heads[size].edge)
        assert (head.newest is None) is (size == 0)
        assert head.next_offset == (size or None)


def test_root_is_that_of_the_statements(long: tuple[Memory, list[Head]]) -> None:
    """The head's root is RFC 6962's over the statements as stored."""
    store, heads = long
    lines = [store.objects[manifest_key(LOG, sequence)].split(b"\n")[0] for sequence in range(100)]
    leaves = [merkle.leaf_hash(line) for line in lines]
    for size in (0, 1, 2, 3, 64, 99, 100):
        assert heads[size].root == merkle.root(leaves[:size]).hex()


@given(st.integers(0, 5000), st.integers(0, 10_000))
@settings(max_examples=60)
def test_requests_are_few(keys: Keys, size: int, hint: int) -> None:
    """A head among thousands is found with some twenty requests, and with three when the hint is right."""
    store = _long_once(keys)
    names = {manifest_key(LOG, sequence) for sequence in range(size)}
    part = Memory({key: data for key, data in store.objects.items() if key in names})
    assert find_head(part, LOG, hint).size == size
    assert len(part.calls) <= 2 * size.bit_length() + 4
    part.calls.clear()
    assert find_head(part, LOG, size).size == size
    assert len(part.calls) <= 3
    assert not any(what == "list" for what, _ in part.calls)


_once: list[Memory] = []


def _long_once(keys: Keys) -> Memory:
    if not _once:
        _once.append(grown(keys, 5000)[0])
    return _once[0]


def test_opening_is_cheap(long: tuple[Memory, list[Head]], keys: Keys) -> None:
    """Opening a log of 5,000 statements takes a search and a few listings that begin at the head."""
    store, heads = long
    store.calls.clear()
    appending = writer(store, keys)
    assert appending.open([Seen(4990, heads[4990].root, "an audit")]).size == 5000
    assert len(store.calls) < 30
    counts = Counter(what for what, _ in store.calls)
    assert counts["list"] == 2
    assert counts["read"] == 3


def test_batch_numbers_after_silence(long: tuple[Memory, list[Head]], keys: Keys) -> None:
    """A log that was idle for long numbers its next batch right: from the newest statement that had one."""
    store = Memory()
    appending = opened(store, keys)
    appending.append(records(0, 10))
    for _ in range(70):
        appending.append(Entry(first_offset=10, next_offset=10))
    again = opened(store, keys)
    assert [batch.number for batch in again.append(records(10, 5)).statement.batches] == [3, 4]
    assert [batch.number for batch in again.append(records(15, 1)).statement.batches] == [5]
    silent, _ = long
    assert [one.number for one in opened(silent.copy(), keys).append(records(5000, 1)).statement.batches] == [0]


def test_logs_are_listed(keys: Keys) -> None:
    """Every log with a manifest is listed, in order; what is no log's name is passed over."""
    store = Memory()
    for topic, partition, life in (("b", 10, 1), ("b", 9, 1), ("a", 0, 2), ("a", 0, 1)):
        opened(store, keys, LogId("cluster", topic, "id", partition, life)).append(Entry(first_offset=0, next_offset=0))
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
    store = Memory()
    info = create_archive(store, 60)
    assert create_archive(store, 3600) == info == read_archive(store)
    assert (info.heartbeat, info.format) == (60, "custody/archive/1")

    late = Memory()

    def somebody(what: str, key: str) -> None:
        if what == "create":
            late.objects.setdefault(key, store.objects["archive.json"])

    late.before = somebody
    assert create_archive(late) == info


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"format":"custody/archive/2","archive":"5a0c7a1e-1111-4222-8333-94b1ce1d2f3a","created":"2026-03-01T12:00:00.000000Z","heartbeat":1}',
        b'{"format":"custody/archive/1","archive":"x","created":"2026-03-01T12:00:00.000000Z","heartbeat":1}',
        b'{"format":"custody/archive/1","archive":"5a0c7a1e-1111-4222-8333-94b1ce1d2f3a","created":"now","heartbeat":1}',
        b"x" * 10_000,
    ],
)
def test_other_archive_files(data: bytes) -> None:
    """What is no `archive.json` of this format is a FormatError, and is not written over."""
    store = Memory({"archive.json": data})
    with pytest.raises(FormatError):
        read_archive(store)
    with pytest.raises(FormatError):
        create_archive(store)
    assert store.objects == {"archive.json": data}


def test_no_archive() -> None:
    """Where there is no archive, that is said."""
    with pytest.raises(ObjectMissing):
        read_archive(Memory())


def test_audited_heads(keys: Keys) -> None:
    """The newest audit's heads are what it saw; where there is none, nothing was seen."""
    store = Memory()
    assert audited_heads(store) == {}
    head = find_audits(store)
    for sequence, size in enumerate((3, 4, 5)):
        statement = Audit(
            format="custody/audit/1",
            archive="6f1ed002-ab59-4c4f-8b0c-d1a4c2b3e4f5",
            sequence=sequence,
            tree=Tree(head.size, head.root.hex(), [node.hex() for node in head.edge]),
            started_at="2026-03-01T00:00:00.000000Z",
            sealed_at="2026-03-01T00:00:01.000000Z",
            writer="a test",
            heads={"a/0": HeadRef(size, "00" * 32)},
            covered={},
            counts={},
            findings=[],
            verdict="verified",
        )
        written = append_audit(store, head, statement, open_signers(keys.uri, CLOCK))
        with pytest.raises(Fenced):
            append_audit(store, head, msgspec.structs.replace(statement, writer="another"), [])
        head = written
    store.objects["audits/000000000003.json.bak"] = b""
    assert find_audits(store) == head
    assert audited_heads(store) == {"a/0": Seen(5, "00" * 32, "audits/000000000002.json")}
    for data in (
        b"",
        b"{}\n{}\n",
        b"[]\n[]\n",
        b'{"heads":[]}\n{}\n',
        b"\xff\n\n",
        store.objects["audits/000000000002.json"],
    ):
        store.objects["audits/000000000003.json"] = data
        with pytest.raises(FormatError):
            audited_heads(store)


# --- appending


def test_order_of_puts(keys: Keys) -> None:
    """Segment first, quarantine next, manifest last; each is created, none read back."""
    store = Memory()
    appending = opened(store, keys)
    store.calls.clear()
    statement = appending.append(records(0, 10, bad=3)).statement
    assert statement.segment is not None
    assert statement.quarantine is not None
    assert store.calls == [
        ("create", statement.segment.key),
        ("create", statement.quarantine.key),
        ("create", manifest_key(LOG, 0)),
    ]


@pytest.mark.parametrize("step", range(3))
def test_what_a_failed_put_leaves(keys: Keys, step: int) -> None:
    """Where a put fails nothing after it is put, the head stays, and the same append may follow."""
    store = Memory()
    appending = opened(store, keys)
    appending.append(Entry(first_offset=0, next_offset=0))
    head, there = appending.head, set(store.objects)
    count = 0

    def fail(what: str, key: str) -> None:
        nonlocal count
        count += 1
        if count == step + 1:
            raise TransientStoreError(f"{what} {key}: no")

    store.before = fail
    with pytest.raises(TransientStoreError):
        appending.append(records(0, 10, bad=3))
    assert appending.head == head
    assert len(set(store.objects) - there) == step
    store.before = None
    appending.append(records(0, 10, bad=3))
    log = read_archive_records(store.objects)["audit.events/0"]
    assert [offset for offset, _ in log.events] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(store.objects) - len(there) == 3


def test_what_is_written_verifies(keys: Keys, tmp_path: Path) -> None:
    """A log with all kinds of statements is what both judges call sound."""
    store = Memory()
    appending = opened(store, keys)
    appending.append(Entry(first_offset=5, next_offset=5))
    appending.append(records(5, 10, bad=7))
    appending.append(Entry(first_offset=15, next_offset=15))
    appending.append(Entry(first_offset=15, next_offset=20, skipped=[(15, 20)]))
    appending.append(records(20, 3))
    log = read_archive_records(store.objects)["audit.events/0"]
    assert [offset for offset, _ in log.events] == [5, 6, *range(8, 15), 20, 21, 22]
    for key, data in store.objects.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(data)
    report = verify(open_store(str(tmp_path)), keys.trust, now=datetime.now(UTC), workers=0)
    assert report.exit_code == 0, list(report.findings)
    statement = read_manifest(store, LOG, 1).statement
    assert statement.sealed_at == "2026-03-01T12:00:00.000000Z"
    assert statement.writer == "a test"


def test_after_is_written_once(keys: Keys) -> None:
    """What a life goes on from stands in its first statement, where the entry says so."""
    store = Memory()
    appending = opened(store, keys, LogId("cluster", "audit.events", "other", 0, 2))
    after = After(1, 5, "00" * 32)
    assert appending.append(Entry(first_offset=0, next_offset=0, after=after)).statement.after == after
    assert appending.append(Entry(first_offset=0, next_offset=0)).statement.after is None


# --- refusals


def refuses(store: Memory, keys: Keys, match: str, seen: list[Seen] | None = None) -> None:
    """Opening is refused with a message that says what is wrong and what to do; nothing is written."""
    before = dict(store.objects)
    with pytest.raises(HeadRollback, match=match) as raised:
        writer(store, keys).open(seen or [])
    assert "custody verify" in str(raised.value)
    assert store.objects == before


def test_memory_of_a_larger_head(keys: Keys) -> None:
    """A head below one that somebody saw is refused, and the message says who saw it."""
    store, heads = grown(keys, 6)
    for size in range(7):
        assert writer(store, keys).open([Seen(size, heads[size].root, "an audit")]).size == 6
    refuses(store, keys, "the head has size 6, and an audit saw 7", [Seen(7, "00", "an audit")])
    refuses(prefix(store, 0), keys, "an audit saw 1", [Seen(1, heads[1].root, "an audit")])


def test_memory_of_another_root(keys: Keys) -> None:
    """A history other than the one that somebody saw is a fork, at the head and below it."""
    store, heads = grown(keys, 6)
    for size in (1, 3, 6):
        refuses(store, keys, "forked", [Seen(size, heads[size - 1].root, "an audit")])


def test_hole_below_a_later_manifest(keys: Keys) -> None:
    """A manifest beyond a hole is found, wherever the search ended."""
    store, _ = grown(keys, 12)
    for hole in range(12):
        holed = store.copy()
        del holed.objects[manifest_key(LOG, hole)]
        if hole == 11:
            assert writer(holed, keys).open().size == 11
        elif find_head(holed, LOG).size == 12:
            continue  # below the head, which is the verifier's to find
        else:
            refuses(holed, keys, "is missing although")


def test_checkpoint_beyond_the_head(keys: Keys) -> None:
    """A checkpoint of a size that the log does not have is a memory of more."""
    store, _ = grown(keys, 6)
    store.objects[checkpoint_key(LOG, 6)] = b""
    assert writer(store, keys).open().size == 6
    store.objects[checkpoint_key(LOG, 7)] = b""
    refuses(store, keys, "although the checkpoint")


def test_history_of_the_next_key(keys: Keys) -> None:
    """Where the bucket keeps a version of the next manifest, it was there once, and somebody took it away."""
    store, _ = grown(keys, 6)
    store.history.add(manifest_key(LOG, 6))
    refuses(store, keys, "was there once")


def edited(store: Memory, place: int, keys: Keys, **fields: object) -> Memory:
    """Return a copy in which one statement says something else, rightly signed."""
    bent = store.copy()
    found = read_manifest(bent, LOG, place)
    line = manifest.encode(msgspec.structs.replace(found.statement, **fields))
    bent.objects[manifest_key(LOG, place)] = manifest.seal(line, open_signers(keys.uri, CLOCK))
    return bent


def test_head_that_is_not_ours(keys: Keys) -> None:
    """A head of another archive, log or place, or whose tree does not hold together, is not gone on from."""
    store, heads = grown(keys, 4)
    found = read_manifest(store, LOG, 3).statement
    refuses(
        edited(store, 3, keys, archive="00000000-0000-4000-8000-000000000000"), keys, "is not of this log and place"
    )
    refuses(edited(store, 3, keys, sequence=2), keys, "is not of this log and place")
    other = msgspec.structs.replace(LOG_ID, partition=1)
    refuses(edited(store, 3, keys, log=other), keys, "is not of this log and place")
    tree = found.tree
    refuses(edited(store, 3, keys, tree=msgspec.structs.replace(tree, size=2)), keys, "does not hold together")
    refuses(edited(store, 3, keys, tree=msgspec.structs.replace(tree, root="00" * 32)), keys, "does not hold together")
    with pytest.raises(FormatError, match="edge"):
        writer(edited(store, 3, keys, tree=msgspec.structs.replace(tree, edge=tree.edge[:1])), keys).open()
    assert heads[4].size == 4


def test_head_that_is_not_signed(keys: Keys) -> None:
    """A head whose signature is wrong, unknown, or missing is not gone on from."""
    store, _ = grown(keys, 4)
    key = manifest_key(LOG, 3)
    line, second = store.objects[key].split(b"\n")[:2]

    def signed(signatures: list[dict[str, str]]) -> Memory:
        bent = store.copy()
        bent.objects[key] = (
            line + b"\n" + json.dumps({"signatures": signatures}, separators=(",", ":")).encode() + b"\n"
        )
        return bent

    first, other = json.loads(second)["signatures"]
    refuses(signed([]), keys, "no HMAC-SHA256 signature")
    refuses(signed([other]), keys, "no HMAC-SHA256 signature")
    refuses(signed([first | {"value": "A" * 43 + "="}, other]), keys, "cannot be relied on")
    refuses(signed([first, other | {"value": "A" * 86 + "=="}]), keys, "cannot be relied on")
    refuses(signed([first | {"key": "nobody"}]), keys, "keyring does not hold")
    assert writer(signed([first]), keys).open().size == 4
    foreign = store.copy()
    foreign.objects[key] = manifest.seal(line, [HmacKey("foreign", Secret(bytes(32)))])
    refuses(foreign, keys, "'foreign'")


def test_malformed_head(keys: Keys) -> None:
    """A head that does not parse is a FormatError that names it."""
    store, _ = grown(keys, 4)
    for data in (b"", b"x", b"{}\n{}\n", store.objects[manifest_key(LOG, 3)][:-1]):
        store.objects[manifest_key(LOG, 3)] = data
        with pytest.raises(FormatError, match=r"000000000003\.json"):
            writer(store, keys).open()


def test_another_topic_or_cluster(keys: Keys) -> None:
    """A log that was made from another topic or cluster is refused, with what to do."""
    store, _ = grown(keys, 2)
    for changed in (msgspec.structs.replace(LOG_ID, topic_id="new"), msgspec.structs.replace(LOG_ID, cluster="new")):
        with pytest.raises(LogChanged, match=r"custody new-life audit\.events"):
            writer(store, keys, changed).open()


# --- two writers at once


def test_loser_stops_quietly(keys: Keys) -> None:
    """Of two writers one wins the next manifest; the other checks the winner's, is fenced, and changes nothing."""
    store, _ = grown(keys, 5)
    one, two = opened(store, keys, name="one"), opened(store, keys, name="two")
    one.append(records(5, 10))
    winner = dict(store.objects)
    with pytest.raises(Fenced, match="another writer appended"):
        two.append(records(5, 12))
    left = {key for key in store.objects if key not in winner}
    assert [key.split("/")[0] for key in left] == ["events"]
    assert all(store.objects[key] == data for key, data in winner.items())
    assert two.head.size == 5
    one.append(records(15, 3))
    assert (
        len(read_archive_records({k: d for k, d in store.objects.items() if k not in left})["audit.events/0"].events)
        == 13
    )


def test_both_may_begin_a_log(keys: Keys) -> None:
    """Two writers that both see a new partition do not both write its statement 0."""
    store = Memory()
    one, two = opened(store, keys, name="one"), opened(store, keys, name="two")
    one.append(Entry(first_offset=0, next_offset=0))
    with pytest.raises(Fenced):
        two.append(Entry(first_offset=3, next_offset=3))


def winners(store: Memory, keys: Keys) -> dict[str, tuple[bytes, str]]:
    """Return manifests that somebody else might have put in our place, and what is said of each."""
    good = opened(store.copy(), keys, name="another")
    line = good.append(Entry(first_offset=5, next_offset=9, skipped=[(5, 9)])).line
    statement = manifest.parse(manifest.seal(line, open_signers(keys.uri, CLOCK))).statement

    def sealed(**fields: object) -> bytes:
        changed = msgspec.structs.replace(statement, **fields)
        return manifest.seal(manifest.encode(changed), open_signers(keys.uri, CLOCK))

    _, heads = grown(keys, 6)
    forked = msgspec.structs.replace(statement.tree, root=heads[5].root, edge=[node.hex() for node in heads[5].edge])
    return {
        "no manifest": (b"x", "does not parse"),
        "unsigned": (line + b'\n{"signatures":[]}\n', "no HMAC-SHA256 signature"),
        "of a foreign key": (manifest.seal(line, [HmacKey("foreign", Secret(bytes(32)))]), "'foreign'"),
        "of another archive": (sealed(archive="00000000-0000-4000-8000-000000000000"), "not of this log"),
        "of another place": (sealed(sequence=4), "not of this log"),
        "over another history": (sealed(tree=forked), "another history"),
        "with a gap": (sealed(first_offset=6, skipped=[(6, 9)]), "starts at offset 6, not 5"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "no manifest",
        "unsigned",
        "of a foreign key",
        "of another archive",
        "of another place",
        "over another history",
        "with a gap",
    ],
)
def test_winner_that_does_not_join(keys: Keys, kind: str) -> None:
    """A lost put ends quietly only if the winner's statement verifies and joins; else it is a head-rollback."""
    store, _ = grown(keys, 5)
    data, said = winners(store, keys)[kind]
    appending = opened(store, keys)
    store.objects[manifest_key(LOG, 5)] = data
    with pytest.raises(HeadRollback, match=said):
        appending.append(records(5, 1))
    assert store.objects[manifest_key(LOG, 5)] == data


def test_winner_of_another_topic(keys: Keys) -> None:
    """A winner that was made from another topic of the same name is said to be that."""
    store, _ = grown(keys, 5)
    appending = opened(store, keys)
    good = opened(store.copy(), keys)
    found = good.append(Entry(first_offset=5, next_offset=5)).statement
    changed = msgspec.structs.replace(found, log=msgspec.structs.replace(LOG_ID, topic_id="new"))
    store.objects[manifest_key(LOG, 5)] = manifest.seal(manifest.encode(changed), open_signers(keys.uri, CLOCK))
    with pytest.raises(LogChanged):
        appending.append(records(5, 1))


def test_winner_that_cannot_be_read(keys: Keys) -> None:
    """Where the winner cannot be read now, the loser stops all the same."""
    store, _ = grown(keys, 5)
    one, two = opened(store, keys, name="one"), opened(store, keys, name="two")
    one.append(Entry(first_offset=5, next_offset=5))

    def fail(what: str, key: str) -> None:
        if (what, key) == ("read", manifest_key(LOG, 5)):
            raise TransientStoreError(f"{key}: not now")

    store.before = fail
    with pytest.raises(Fenced, match="cannot be read now"):
        two.append(records(5, 1))


def test_head_found_while_another_writes(keys: Keys) -> None:
    """A manifest that another writer puts between search and listing is no hole; the next append is fenced."""
    store, _ = grown(keys, 5)
    other = opened(store, keys, name="other")

    def meanwhile(what: str, _: str) -> None:
        if what == "list":
            store.before = None
            for offset in range(5, 8):
                other.append(Entry(first_offset=offset, next_offset=offset + 1, skipped=[(offset, offset + 1)]))

    late = writer(store, keys)
    store.before = meanwhile
    assert late.open().size == 5
    with pytest.raises(Fenced):
        late.append(records(5, 1))


def test_signer_that_cannot_sign(keys: Keys) -> None:
    """Where the key cannot be had no manifest is put."""

    class Gone:
        key_id = "gone"
        algorithm = "HMAC-SHA256"

        def sign(self, _: bytes) -> bytes:
            raise KeyUnavailable("the key's service does not answer")

    store = Memory()
    info: ArchiveInfo = create_archive(store)
    appending = LogWriter(store, info, LOG_ID, signers=[Gone()], trust=keys.trust, writer="a test")  # type: ignore[list-item]
    appending.open()
    with pytest.raises(KeyUnavailable):
        appending.append(records(0, 3))
    assert not any(key.startswith("manifests/") for key in store.objects)


def test_statement_beyond_the_limit(keys: Keys) -> None:
    """A statement that would pass the format's limit is refused before it is put."""
    store = Memory()
    appending = opened(store, keys)
    skipped = [(2**60 + 2 * place, 2**60 + 2 * place + 1) for place in range(250_000)]
    with pytest.raises(FormatError, match="cut segments earlier"):
        appending.append(Entry(first_offset=2**60, next_offset=2**60 + 500_000, skipped=skipped))
    assert not any(key.startswith("manifests/") for key in store.objects)
