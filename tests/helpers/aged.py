"""An archive of any age that makes its objects when they are asked for, and counts what is asked: no millions of files.

One statement a minute, each with a real segment and a real signature; a checkpoint an hour; an audit a day. A statement
states the tree before it, so the tree's nodes are made once, kept in a file, and read by their places. All else follows
from a statement's sequence. What is put into the archive later lies in a folder beside it.

Requests are counted as S3 has them: a listing of up to 1,000 keys is one, and so is a listing of versions. It cannot
show how long a server takes, nor what its client costs; what making an object takes is in the caller's processor time.
"""

import json
import mmap
import os
import struct
import threading
import uuid
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from hashlib import sha256
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

import custody.store.open
from custody.archive import time_index, time_merge, time_parts
from custody.archive.rows import batches_of, row_of
from custody.archive.time_spans import Span
from custody.archive.writer import DEFAULT_CHECKPOINT, DEFAULT_HEARTBEAT
from custody.errors import TerminalStoreError
from custody.format import archive_file, audit, envelope, layout, manifest
from custody.format.archive_file import ArchiveStatement
from custody.format.audit import Audit, Covered, Marks, ObjectRef
from custody.format.envelope import HeadRef, Tree
from custody.format.layout import AUDIT_LOG, Log
from custody.format.times import EPOCH, format_time
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.keys.signers import Signers
from custody.query import parquet
from custody.query.statements import Name, Rows, file_ref, file_row
from custody.store.folder import FolderStore
from custody.store.protocol import (
    Capabilities,
    ObjectInfo,
    ObjectStatus,
    S3Options,
    Store,
    Version,
    occupied,
    too_large,
)
from custody.store.s3 import S3Store
from custody.tlog import merkle
from custody.tlog.checkpoint import sign_checkpoint
from custody.tlog.head import Head
from custody.verify.work import work_of
from tasks.audit import turn
from tasks.audit.tables import TableWriter
from tasks.audit.turn import Turn
from tests.helpers.memory import MemoryStore

DAY = 1440
"""Statements of a day, and so of an audit."""
HOUR = 60
"""Statements between two checkpoints."""
EACH = 2
"""Events of a statement."""
FIRST_OFFSET = 1_000_000_000
"""Of each log, so that offsets have the same number of digits at any age, and manifests have sizes that are known."""
RETENTION_DAYS = 3650
"""More than any age here: what expires is another command's cost."""
PAGE = 1000
"""Keys of a listing's page, as S3 has them."""
BUCKET = "s3://aged"
"""The URL of such an archive is this and its folder: settings take it for one in S3."""
MOST = 1.2
"""How many times the requests may be, of ten times the age."""
_HASH = 32
REREAD = 3000
"""Statements at the begin whose spans have their files: audits read these again first."""
_REREAD_DAYS = 30
"""Within how many nights audits read old statements again."""
_PIECE = 480
"""Statements to which the share of a night is rounded up."""
_TABLED = 40
"""Whole days at the end whose spans have their files: reports and queries read these, and a report is of a month."""
_WRITER = "tests.helpers.aged"
_EVENT = b'{"event_type":"query_executed","timestamp":"%b","user_id":"user-%04d","request_id":"%012d"}\n'
_GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


@dataclass(frozen=True, slots=True)
class Source:
    """The topic that an archive's logs are of: its name, its cluster and its id there."""

    topic: str = "audit"
    cluster: str = "cluster"
    topic_id: str = "topic-1"


_AUDIT = Source()


@dataclass(frozen=True, slots=True)
class Spec:
    """Which archive it is.

    Attributes:
        archive: its id.
        begin: when its first minute begins.
        statements: of each log.
        topic: its logs' topic.
        logs: how many partitions.
        cluster: where the topic is.
        topic_id: its id there.
    """

    archive: str
    begin: datetime
    statements: int
    topic: str
    logs: int
    cluster: str
    topic_id: str

    @property
    def source(self) -> Source:
        """Its topic."""
        return Source(self.topic, self.cluster, self.topic_id)

    @property
    def names(self) -> list[Log]:
        """Its logs, in the order of their segments' keys within a second."""
        return sorted((Log(self.topic, number) for number in range(self.logs)), key=lambda log: f"{log.partition}-")


_opened: dict[Path, "AgedStore"] = {}
_journal: list[Path | None] = [None]


def open_aged(url: str, options: S3Options | None = None) -> Store:
    """Return the store of a URL: of an archive here the one that this process has, so that its requests are counted."""
    if not url.startswith(f"{BUCKET}/"):
        return S3Store(url, options or S3Options())
    folder = Path(url.removeprefix(BUCKET))
    return AgedStore.opened(folder)


def journal_to(path: Path) -> None:
    """Let archives that are opened by their URL from now on write their requests to a file, for all processes."""
    _journal.append(path)


def use_aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all of custody open archives that are made here, by their URL, until the test is over."""
    monkeypatch.setattr(custody.store.open, "S3Store", open_aged)


def check_flat(
    call: Callable[["AgedStore"], object], young: "AgedStore", old: "AgedStore", *, most: float = MOST
) -> None:
    """Assert that a call takes hardly more requests of an old archive than of a young one.

    Args:
        call: takes the store.
        young: an archive.
        old: one of ten times its age.
        most: how many times the requests of the young one the old one may take.
    """
    counts = []
    for store in (young, old):
        store.requests.clear()
        call(store)
        counts.append(store.requests.by_folder)
    before, after = (sum(count.values()) for count in counts)
    assert after <= most * before, f"{before} requests became {after}: {counts[0]}, {counts[1]}"


class Requests:
    """Counts requests by kind and folder. Processes that share a journal are counted together."""

    def __init__(self, journal: Path | None = None) -> None:
        self.journal = journal
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._bytes = 0
        self._file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if journal else None

    def count(self, kind: str, key: str, size: int = 0) -> None:
        """Count a request for a key or a prefix."""
        if self._file is not None:
            os.write(self._file, f"{kind} {size} {key}\n".encode())
            return
        with self._lock:
            self._counts[kind, key.partition("/")[0]] += 1
            self._bytes += size if kind == "GET" else 0

    def clear(self) -> None:
        """Begin to count anew."""
        self._counts.clear()
        self._bytes = 0

    @property
    def by_folder(self) -> Mapping[tuple[str, str], int]:
        """How many of each kind in each folder of the root."""
        return dict(self._counts)

    @property
    def by_kind(self) -> dict[str, int]:
        """How many of each kind: GET, HEAD, LIST, VERSIONS (a listing of them), PUT, DELETE."""
        kinds: Counter[str] = Counter()
        for (kind, _), number in self._counts.items():
            kinds[kind] += number
        return dict(kinds)

    @property
    def total(self) -> int:
        """How many."""
        return sum(self._counts.values())

    @property
    def read_bytes(self) -> int:
        """The bytes of objects that were read."""
        return self._bytes

    @classmethod
    def of_journal(cls, journal: Path) -> "Requests":
        """Return what all processes with this journal counted."""
        counted = cls()
        with journal.open() as lines:
            for line in lines:
                kind, size, key = line.rstrip("\n").split(" ", 2)
                counted.count(kind, key, int(size))
        return counted


class Nodes:
    """The nodes of a log's tree: of each level, those whose subtree is complete."""

    def __init__(self, levels: Sequence[bytearray | memoryview]) -> None:
        self._levels = levels

    def compact_range(self, size: int) -> merkle.CompactRange:
        """Return the compact range of the tree over the first `size` entries."""
        ends = ((level, (size >> level) * _HASH) for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1)
        return tuple(bytes(self._levels[level][end - _HASH : end]) for level, end in ends)

    def head(self, size: int) -> Head:
        """Return the head of the first `size` entries."""
        return Head(size, merkle.range_root(self.compact_range(size)))

    def tree(self, size: int) -> Tree:
        """Return what the entry after the first `size` ones states of them."""
        before = self.compact_range(size)
        return Tree(size, merkle.range_root(before).hex(), [node.hex() for node in before])

    @classmethod
    def open(cls, path: Path, size: int) -> "Nodes":
        """Return the nodes of a tree that was saved."""
        if not size:
            return cls([])
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        levels: list[memoryview] = []
        start = 0
        while count := size >> len(levels):
            levels.append(mapped[start : start + count * _HASH])
            start += count * _HASH
        return cls(levels)


class GrowingNodes(Nodes):
    """The nodes of a tree that is being made."""

    def __init__(self) -> None:
        self._growing: list[bytearray] = []
        super().__init__(self._growing)
        self.size = 0
        self._range: list[bytes] = []
        self._hex: list[str] = []

    def append(self, message: bytes) -> None:
        """Append an entry, as it is signed."""
        node, level, size = merkle.leaf_hash(message), 0, self.size
        while True:
            if level == len(self._growing):
                self._growing.append(bytearray())
            self._growing[level] += node
            if not size >> level & 1:
                break
            node = merkle.node_hash(self._range.pop(), node)
            self._hex.pop()
            level += 1
        self._range.append(node)
        self._hex.append(node.hex())
        self.size += 1

    def next_tree(self) -> Tree:
        """Return what the next entry states of those before it."""
        return Tree(self.size, merkle.range_root(tuple(self._range)).hex(), list(self._hex))

    def save(self, path: Path) -> None:
        """Write the nodes to a file, level after level."""
        with path.open("wb") as file:
            for level in self._growing:
                file.write(level)


class Maker:
    """Makes the objects of one log from their sequences."""

    def __init__(self, spec: Spec, log: Log) -> None:
        self.spec, self.log = spec, log
        self.identity = manifest.LogId(spec.cluster, log.topic, spec.topic_id, log.partition, 1)
        self._minute = int(spec.begin.timestamp()) // 60

    def first_offset(self, sequence: int) -> int:
        """Return the offset of a statement's first event."""
        return FIRST_OFFSET + sequence * EACH

    def sealed_at(self, sequence: int) -> datetime:
        """Return when a statement was sealed: at the end of its minute."""
        return self.spec.begin + timedelta(minutes=sequence + 1)

    def _minute_text(self, sequence: int) -> str:
        """Return when a statement's minute begins, without its seconds."""
        day, minute = divmod(self._minute + sequence, DAY)
        return f"{_day_text(day)}T{minute // 60:02}:{minute % 60:02}:"

    def times(self, sequence: int) -> list[str]:
        """Return the times of a statement's events."""
        text = self._minute_text(sequence)
        return [f"{text}{second:02}.000000Z" for second in range(10, 10 + EACH)]

    def lines(self, sequence: int) -> bytes:
        """Return the events of a statement."""
        return self._lines(sequence, self.times(sequence))

    def _lines(self, sequence: int, times: Sequence[str]) -> bytes:
        offset = self.first_offset(sequence)
        return b"".join(
            _EVENT % (moment.encode(), (offset + number) % 10_000, offset + number)
            for number, moment in enumerate(times)
        )

    def segment(self, sequence: int) -> bytes:
        """Return the segment of a statement: one gzip member, whose lines are stored as they are."""
        return _member(self.lines(sequence))

    def segment_key(self, sequence: int) -> str:
        """Return the key of a statement's segment."""
        times = self.times(sequence)
        return self._key(sequence, times, sha256(_member(self._lines(sequence, times))).hexdigest())

    def _key(self, sequence: int, times: Sequence[str], digest: str) -> str:
        first = self.first_offset(sequence)
        offsets = f"{first:020}-{first + EACH - 1:020}"
        date = times[0][:19].translate(_TO_PATH)
        return f"events/{date}-{self.log.name}-{self.log.partition}-{offsets}-{digest[:16]}.jsonl.gz"

    def line(self, sequence: int, tree: Tree) -> bytes:
        """Return line 1 of a statement, by the tree before it."""
        times = self.times(sequence)
        lines = self._lines(sequence, times)
        member = _member(lines)
        digest = sha256(member).hexdigest()
        first = self.first_offset(sequence)
        kafka_ms = (self._minute + sequence) * 60_000 + 10_000
        batch = manifest.Batch(
            number=sequence,
            first_offset=first,
            next_offset=first + EACH,
            events=EACH,
            start=0,
            size=len(member),
            inflated=len(lines),
            sha256=sha256(lines).hexdigest(),
            min_time=times[0],
            max_time=times[-1],
            kafka_time=manifest.KafkaTime("create", kafka_ms, kafka_ms + 1000 * (EACH - 1)),
            leaves=None,
        )
        return manifest.encode(
            manifest.Statement(
                archive=self.spec.archive,
                log=self.identity,
                sequence=sequence,
                tree=tree,
                previous_epoch=None,
                first_offset=first,
                next_offset=first + EACH,
                last_record=manifest.LastRecord(first + EACH - 1, 0),
                skipped=[],
                lost=None,
                unreadable=[],
                passed_over=[],
                sealed_at=f"{self._minute_text(sequence + 1)}00.000000Z",
                writer=_WRITER,
                segment=manifest.SegmentRef(self._key(sequence, times, digest), len(member), digest),
                batches=[batch],
                quarantine=None,
                expired=None,
                types={"query_executed": EACH},
            )
        )

    def spans(self, end: int, step: int) -> Iterator[Span]:
        """Yield the spans of the first `end` statements, as an audit makes them."""
        stored, inflated = len(self.segment(0)), len(self.lines(0))
        for first in range(0, end, step):
            stop = min(first + step, end)
            begin_us, end_us = ((self._minute + number) * 60_000_000 for number in (first, stop))
            last_us = end_us - 60_000_000 + (9 + EACH) * 1_000_000
            yield Span(
                log=str(self.log),
                first=first,
                end=stop,
                sealed=(begin_us + 60_000_000, end_us),
                event_times=(begin_us + 10_000_000, last_us),
                kafka_times=(begin_us // 1000 + 10_000, last_us // 1000),
                first_offset=self.first_offset(first),
                next_offset=self.first_offset(stop),
                events=(stop - first) * EACH,
                stored=(stop - first) * stored,
                inflated=(stop - first) * inflated,
                manifests=self._file(first, stop, "manifests"),
                batches=self._file(first, stop, "batches"),
            )

    def _file(self, first: int, end: int, name: str) -> ObjectRef:
        digest = sha256(f"{self.log} {first} {end} {name}".encode()).hexdigest()
        key = f"{self.log.name}-{self.log.partition}-{first:012}-{end:012}-{name}-{digest[:16]}.parquet"
        return ObjectRef(f"{time_parts.FOLDER}statements/{key}", 20_000, digest)


_TO_PATH = str.maketrans("-T:", "///")


@lru_cache(maxsize=8)
def _day_text(day: int) -> str:
    return f"{EPOCH + timedelta(days=day):%Y-%m-%d}"


def _member(lines: bytes) -> bytes:
    size = struct.pack("<HH", len(lines), len(lines) ^ 0xFFFF)
    return _GZIP + b"\x01" + size + lines + struct.pack("<II", zlib.crc32(lines), len(lines))


def make_archive(
    folder: Path,
    statements: int,
    *,
    logs: int = 1,
    source: Source = _AUDIT,
    end: datetime,
    unaudited: int = 0,
    span: int | None = None,
) -> "AgedStore":
    """Make an archive whose newest statement was sealed at `end`, and return its store.

    Args:
        folder: for its keyring, its trees, and what is put into it later.
        statements: of each log.
        logs: partitions of its topic.
        source: its topic.
        end: a whole minute.
        unaudited: whole days at the end without an audit.
        span: statements of each span of the time index, and of each table; None for neither. Of the files that spans
            name, those of the first statements and of the last weeks are there. Who needs others reads statements.
    """
    begin = end - timedelta(minutes=statements)
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"file:{folder / 'keyring.json'}"
    new_keyring(folder / "keyring.json", begin - timedelta(days=1))
    signers = open_signers(uri, datetime.now(UTC))
    # Files that are written at once, without waiting for the disk: there are hundreds.
    put = MemoryStore()
    archive = _create_archive(put, signers, begin)
    spec = Spec(archive, begin, statements, source.topic, logs, source.cluster, source.topic_id)
    trees = []
    for log in spec.names:
        nodes, maker = GrowingNodes(), Maker(spec, log)
        for sequence in range(statements):
            nodes.append(envelope.message(maker.line(sequence, nodes.next_tree()), manifest.FORMAT))
        nodes.save(folder / f"nodes-{log.partition}")
        trees.append(nodes)
    audits = statements // DAY - unaudited
    objects = [*_make_index(put, spec, trees, signers, audits, span), _make_turn(put, spec, audits)] if span else []
    _make_audits(folder, spec, trees, signers, audits, objects)
    for key, data in put.objects.items():
        (folder / "put" / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / "put" / key).write_bytes(data)
    # Last: an archive without it is not whole.
    (folder / "spec.json").write_text(json.dumps(asdict(spec) | {"begin": begin.isoformat()}))
    return AgedStore.opened(folder)


def _create_archive(put: Store, signers: Signers, begin: datetime) -> str:
    """Write an `archive.json` that is as old as the archive, and return its id."""
    statement = ArchiveStatement(
        archive=str(uuid.uuid4()),
        created=format_time(begin),
        heartbeat=DEFAULT_HEARTBEAT,
        checkpoint=DEFAULT_CHECKPOINT,
        retention_days=RETENTION_DAYS,
    )
    put.create(layout.ARCHIVE, envelope.seal(envelope.encode_line(statement), archive_file.FORMAT, signers.both()))
    return statement.archive


def _make_index(
    put: Store, spec: Spec, trees: Sequence[Nodes], signers: Signers, audits: int, span: int
) -> list[ObjectRef]:
    """Write the time index of what was audited, with the files and tables of its first and its last spans."""
    spans: list[Span] = []
    for log, tree in zip(spec.names, trees, strict=True):
        maker = Maker(spec, log)
        of_log = list(maker.spans(audits * DAY, span))
        for number, each in enumerate(of_log):
            if REREAD <= each.first < (audits - _TABLED) * DAY:
                continue
            rows: dict[Name, Rows] = {"manifests": Rows("manifests"), "batches": Rows("batches")}
            refs: dict[str, ObjectRef | None] = {}
            with TableWriter(put, log, each.first, each.end, archive=spec.archive, signers=signers.both()) as writer:
                for sequence in range(each.first, each.end):
                    statement = manifest.parse_statement(maker.line(sequence, tree.tree(sequence)))
                    rows["manifests"].add(file_row(row_of(str(log), statement)))
                    for row in batches_of(str(log), statement):
                        rows["batches"].add(row)
                    writer.add(work_of(statement, str(log)), statement.batches[0], maker.lines(sequence))
                writer.finish()
                refs["tables"] = writer.listed
            for name, of_name in rows.items():
                data = parquet.encode(of_name.table())
                refs[name] = ref = file_ref(name, log, each.first, each.end, data)
                put.create(ref.key, data)
            of_log[number] = msgspec.structs.replace(each, **refs)
        spans += of_log
    map_ref, made = time_merge.extend(spec.archive, audits - 1, time_index.EMPTY, spans)
    for key, data in made.items():
        put.create(key, data)
    return [map_ref] if map_ref else []


def _make_turn(put: Store, spec: Spec, audits: int) -> ObjectRef:
    """Write what the newest audit hands on: that all was listed and read again by then."""
    at = format_time(spec.begin + timedelta(minutes=audits * DAY))
    sizes = {str(log): audits * DAY for log in spec.names}
    return turn.put(put, audits - 1, Turn(archive=spec.archive, listed=(("", at),), audits_at=at, sizes=sizes))


def _make_audits(
    folder: Path, spec: Spec, trees: Sequence[Nodes], signers: Signers, count: int, objects: list[ObjectRef]
) -> None:
    """Write the audits: one a day, of the statements of that day, and of a share of those before, all within 30 days.

    The newest one refers to some objects.
    """
    nodes = GrowingNodes()
    sizes = []
    position = 0
    with (folder / "audits").open("wb") as file:
        for number in range(count):
            size = (number + 1) * DAY
            at = format_time(spec.begin + timedelta(minutes=size))
            heads = dict(zip(map(str, spec.names), (tree.head(size) for tree in trees), strict=True))
            old = size - DAY
            again = turn.share_of(position, old, max(old - DAY, 0), 1 / _REREAD_DAYS, _PIECE)
            position = again[0][1] if again else 0
            spans = [*(Covered(first, end, "again") for first, end in again if first < end), Covered(old, size, "new")]
            statement = Audit(
                format=audit.FORMAT,
                archive=spec.archive,
                sequence=number,
                tree=nodes.tree(number),
                passed_over=[],
                started_at=at,
                sealed_at=at,
                writer=_WRITER,
                heads={name: HeadRef(head.size, head.root.hex()) for name, head in sorted(heads.items())},
                covered=dict.fromkeys(sorted(heads), spans),
                marks={name: Marks(0, 0, at, 0) for name in sorted(heads)},
                counts={"events": EACH * DAY * spec.logs, "findings": 0},
                findings=[],
                objects=objects if number == count - 1 else [],
                verdict="verified",
            )
            line = envelope.encode_line(statement)
            nodes.append(envelope.message(line, audit.FORMAT))
            sizes.append(file.write(envelope.seal(line, audit.FORMAT, signers.both())))
    nodes.save(folder / "nodes-audits")
    (folder / "audit-sizes").write_bytes(struct.pack(f"<{len(sizes)}I", *sizes))


@dataclass(frozen=True, slots=True)
class Family:
    """Objects whose keys follow from a number, in order of keys.

    Attributes:
        prefix: all keys begin with it.
        count: how many there are.
        key: returns the key of a number.
        size: returns the size of an object.
        data: returns its bytes.
        parse: returns the number that a key would have; raises ValueError.
    """

    prefix: str
    count: int
    key: Callable[[int], str]
    size: Callable[[int], int]
    data: Callable[[int], bytes]
    parse: Callable[[str], int]

    def after(self, key: str) -> int:
        """Return the number of the first key that is greater."""
        return bisect_right(range(self.count), key, key=self.key)

    def find(self, key: str) -> int | None:
        """Return the number of a key, None if there is no such object."""
        if not key.startswith(self.prefix):
            return None
        try:
            number = self.parse(key)
        except ValueError:
            return None
        return number if 0 <= number < self.count and self.key(number) == key else None

    def infos(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`."""
        first = self.after(after) if after >= prefix else bisect_left(range(self.count), prefix, key=self.key)
        for number in range(first, self.count):
            key = self.key(number)
            if key.startswith(prefix):
                yield ObjectInfo(key, self.size(number), "STANDARD")
            elif key > prefix:
                return


class AgedStore:
    """The store of an archive that `make_archive` made. Of S3's capabilities it has versions."""

    def __init__(self, folder: Path, journal: Path | None = None) -> None:
        self.folder = folder
        self.url = f"{BUCKET}{folder}"
        self.requests = Requests(journal)
        stored = json.loads((folder / "spec.json").read_text())
        self.spec = Spec(**stored | {"begin": datetime.fromisoformat(stored["begin"])})
        self._put = FolderStore(str(folder / "put"))
        self.capabilities = Capabilities(versions=self)

    @classmethod
    def opened(cls, folder: Path) -> "AgedStore":
        """Return the store that this process has of a folder."""
        if folder not in _opened:
            _opened[folder] = cls(folder, _journal[-1])
        return _opened[folder]

    def __reduce__(self) -> tuple[Any, ...]:
        return AgedStore, (self.folder, self.requests.journal)

    @property
    def keys(self) -> str:
        """The URI of its keyring."""
        return f"file:{self.folder / 'keyring.json'}"

    def nodes(self, log: Log) -> Nodes:
        """Return the tree of a log."""
        return Nodes.open(self.folder / f"nodes-{log.partition}", self.spec.statements)

    def statements(self, log: Log, numbers: range) -> Iterator[tuple[str, bytes, str, bytes]]:
        """Yield the key and the bytes of manifests, each with those of its segment: faster than by their keys."""
        maker, nodes, signer = Maker(self.spec, log), self.nodes(log), self._signers.hmac()
        for sequence in numbers:
            sealed = envelope.seal(maker.line(sequence, nodes.tree(sequence)), manifest.FORMAT, [signer])
            segment = maker.segment(sequence), maker.segment_key(sequence)
            yield layout.manifest_key(log, sequence), sealed, segment[1], segment[0]

    @cached_property
    def _signers(self) -> Signers:
        return open_signers(self.keys, datetime.now(UTC))

    @cached_property
    def _families(self) -> list[Family]:
        """All objects that are made here, in order of keys."""
        spec, size = self.spec, self.spec.statements
        makers = [Maker(spec, log) for log in spec.names]
        trees = [self.nodes(log) for log in spec.names]
        statements = [self._statements(maker, tree) for maker, tree in zip(makers, trees, strict=True)]
        checkpoints = [self._checkpoints(log, tree, size, HOUR) for log, tree in zip(spec.names, trees, strict=True)]
        audits = self._audits()
        nodes = Nodes.open(self.folder / "nodes-audits", audits.count)
        checkpoints.append(self._checkpoints(AUDIT_LOG, nodes, audits.count, 1))
        count = len(makers)
        stored = len(makers[0].segment(0))
        segments = Family(
            layout.EVENTS,
            size * count,
            lambda number: makers[number % count].segment_key(number // count),
            lambda _: stored,
            lambda number: makers[number % count].segment(number // count),
            lambda key: _segment_number(key, spec.names),
        )
        return sorted([audits, *checkpoints, segments, *statements], key=lambda family: family.prefix)

    def _statements(self, maker: Maker, nodes: Nodes) -> Family:
        signer = self._signers.hmac()

        def data(sequence: int) -> bytes:
            return envelope.seal(maker.line(sequence, nodes.tree(sequence)), manifest.FORMAT, [signer])

        def varying(sequence: int) -> int:
            # Three numbers, and the compact range.
            hashes = sequence.bit_count()
            return 3 * len(str(sequence)) + (2 * _HASH + 2) * hashes + max(hashes - 1, 0)

        constant = len(data(0)) - varying(0)
        return Family(
            layout.log_prefix(maker.log),
            self.spec.statements,
            lambda sequence: layout.manifest_key(maker.log, sequence),
            lambda sequence: constant + varying(sequence),
            data,
            lambda key: int(key[-len("000000000000.json") : -len(".json")]),
        )

    def _checkpoints(self, log: Log, nodes: Nodes, size: int, step: int) -> Family:
        """Return the checkpoints at each multiple of `step`, and at the end."""

        def size_of(number: int) -> int:
            return min((number + 1) * step, size)

        def data(number: int) -> bytes:
            head = nodes.head(size_of(number))
            return sign_checkpoint(self._signers.ed25519(), self.spec.archive, log, head).encode()

        constant = len(data(0)) - len(str(size_of(0))) if size else 0
        return Family(
            layout.checkpoint_prefix(log),
            -(-size // step),
            lambda number: layout.checkpoint_key(log, size_of(number)),
            lambda number: constant + len(str(size_of(number))),
            data,
            lambda key: -(-int(key[-12:]) // step) - 1,
        )

    def _audits(self) -> Family:
        packed = (self.folder / "audit-sizes").read_bytes()
        sizes = struct.unpack(f"<{len(packed) // 4}I", packed)

        def data(number: int) -> bytes:
            with (self.folder / "audits").open("rb") as file:
                file.seek(sum(sizes[:number]))
                return file.read(sizes[number])

        return Family(
            f"{layout.AUDITS}0",
            len(sizes),
            layout.audit_key,
            lambda number: sizes[number],
            data,
            lambda key: int(key.removeprefix(layout.AUDITS).removesuffix(".json")),
        )

    def _made(self, key: str) -> tuple[Family, int] | None:
        for family in self._families:
            number = family.find(key)
            if number is not None:
                return family, number
        return None

    def create(self, key: str, data: bytes) -> None:
        """Create an object."""
        self.requests.count("PUT", key, len(data))
        made = self._made(key)
        if made is None:
            self._put.create(key, data)
        elif made[0].data(made[1]) != data:
            raise occupied(f"{self.url}/{key}")

    def read(self, key: str, *, limit: int, start: int = 0, size: int | None = None, restored: bool = False) -> bytes:
        """Return the bytes of an object."""
        data = b""
        try:
            made = self._made(key)
            if made is None:
                data = self._put.read(key, limit=limit, start=start, size=size, restored=restored)
            else:
                data = made[0].data(made[1])[start : None if size is None else start + size]
        finally:
            self.requests.count("GET", key, len(data))
        if len(data) > limit:
            raise too_large(f"{self.url}/{key}", limit)
        return data

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        self.requests.count("HEAD", key)
        return self._made(key) is not None or self._put.exists(key)

    def status(self, key: str) -> ObjectStatus:
        """Return an object's metadata."""
        self.requests.count("HEAD", key)
        made = self._made(key)
        if made is None:
            return self._put.status(key)
        data = made[0].data(made[1])
        return ObjectStatus(len(data), self.spec.begin, "STANDARD", sha256=sha256(data).hexdigest())

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Return the folders and the objects directly under a prefix."""
        folders, objects = self._put.level(prefix)
        names, plain = set(folders), list(objects)
        for family in self._families:
            names_of, plain_of = _level(family, prefix)
            names.update(names_of)
            plain.extend(plain_of)
        for _ in range(max(1, -(-(len(names) + len(plain)) // PAGE))):
            self.requests.count("LIST", prefix)
        return sorted(names), plain

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        """Yield objects in order of keys. What is left out by `without` is on pages nevertheless, as in S3."""
        infos = merge(
            *(family.infos(prefix, after) for family in self._families if _overlap(family.prefix, prefix)),
            sorted(self._put.list(prefix, after=after), key=_key),
            key=_key,
        )
        while True:
            self.requests.count("LIST", prefix)
            page = list(islice(infos, PAGE))
            within = [info for info in page if not through or info.key <= through]
            yield from (info for info in within if info.key[: info.key.find("/") + 1] not in without)
            if len(within) < PAGE:
                return

    def remove(self, key: str) -> None:
        """Delete an object that was put."""
        self.requests.count("VERSIONS", key)
        self.requests.count("DELETE", key)
        if self._made(key) is not None:
            raise TerminalStoreError(f"{key} is made when it is asked for, and cannot be deleted")
        self._put.remove(key)

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def history(self, prefix: str = "", *, after: str = "", through: str = "") -> Iterator[Version]:
        """Yield nothing, since each key has one version; that takes a page for each 1,000 keys."""
        count = sum(1 for _ in self._put.list(prefix, after=after, through=through))
        first, last = max(prefix, after), min(prefix + "\x7f", through or "\x7f")
        for family in self._families:
            if prefix.startswith(family.prefix) or family.prefix.startswith(prefix):
                count += max(0, family.after(last) - family.after(first))
        for _ in range(max(1, -(-count // PAGE))):
            self.requests.count("VERSIONS", prefix)
        return iter(())

    def has_history(self, key: str) -> bool:
        """Return whether there are versions of a key: each object has its own."""
        self.requests.count("VERSIONS", key)
        return self._made(key) is not None or self._put.exists(key)

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:  # noqa: ARG002
        """Return this store: nothing was ever replaced."""
        return self


def _segment_number(key: str, names: Sequence[Log]) -> int:
    """Return the number of a segment's key. Raises ValueError if it is of no log here."""
    parsed = layout.parse_records_key(key)
    if parsed is None:
        raise ValueError(key)
    return (parsed.first - FIRST_OFFSET) // EACH * len(names) + names.index(parsed.log)


def _key(info: ObjectInfo) -> str:
    return info.key


def _overlap(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)


def _level(family: Family, prefix: str) -> tuple[Iterable[str], Iterable[ObjectInfo]]:
    """Return the folders and objects of a family directly under a prefix, by going from folder to folder."""
    if family.prefix.startswith(prefix) and "/" in family.prefix[len(prefix) :]:
        return ([family.prefix[len(prefix) :].partition("/")[0]] if family.count else [], [])
    if not prefix.startswith(family.prefix.rpartition("/")[0]):
        return [], []
    folders, objects = [], []
    number = family.after(prefix)
    while number < family.count and (key := family.key(number)).startswith(prefix):
        name, deeper, _ = key[len(prefix) :].partition("/")
        if deeper:
            folders.append(name)
            number = family.after(f"{prefix}{name}/\x7f")
        else:
            objects.append(ObjectInfo(key, family.size(number), "STANDARD"))
            number += 1
    return folders, objects


@pytest.fixture(scope="session")
def aged(tmp_path_factory: pytest.TempPathFactory) -> tuple[AgedStore, AgedStore]:
    """Archives of one log, of two days and of twenty, up to this minute. Nobody puts into them."""
    folder, end = tmp_path_factory.mktemp("aged"), datetime.now(UTC).replace(second=0, microsecond=0)
    young, old = (make_archive(folder / f"{days}", days * DAY + 10, end=end) for days in (2, 20))
    return young, old
