"""The auditor: reads an archive through its store, recomputes everything, and says what it found.

It shares no code that writes. Rules are numbered as in FORMAT.md, Verification; where each is held:

- 1 to 6, one log's statements in order: `chain.py`, pure.
- 7 and 8, the stored bytes and the lines in them: `contents.py`, in worker processes.
- 10, objects that no manifest names: `orphans.py`. Versions and delete markers are not looked at yet.
- 1 and 11, memories of heads: `heads.py` (`--state`), `trust.json`, and the sizes in the keys of checkpoints. What a
  checkpoint says inside is not looked at yet.

This module lists first, reads manifests then, hands objects to workers, and adds up. Memory stays bounded at any size
of archive: manifests are streamed, a log's sequences are a bitmap, names of objects are digests that go to a temporary
file when they are many, and no more than a few segments are under way.
"""

import json
import multiprocessing
import os
import re
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec

from custody import layout, orphans
from custody.chain import Chain, Memory, Totals
from custody.contents import Outcome, Work, check_all
from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.findings import Finding, Findings, Severity, finding
from custody.heads import State
from custody.keys import Head, Trust
from custody.manifest import MANIFEST_LIMIT, Time, Uuid, check_time
from custody.store import Store

_ARCHIVE_LIMIT = 4096
_IN_PROCESS_BYTES = 8 * 1_048_576
"""Archives smaller than this are read in this process: starting others would take longer."""
_GROUP_BYTES = 4 * 1_048_576
_GROUP_WORKS = 64
_READ_AHEAD = 32
_BITMAP_LIMIT = 1 << 27
_SPARSE_LIMIT = 10_000
_MISSING_LIMIT = 100_000
_UNNAMED_LIMIT = 100_000
_BUCKETS = 256
_SPILL_NAMES = 2_000_000
_SOME_BIT = re.compile(rb"[^\x00]")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a verification is."""

    events: int
    stored: int
    """Bytes of segments and quarantine objects read."""
    total: int
    """Bytes of them listed."""


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What was verified of a log."""

    log: str
    statements: int
    events: int
    quarantined: int
    skipped: int
    lost: int
    stored: int
    inflated: int
    next_offset: int | None
    size: int
    root: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found."""

    url: str
    archive: str | None
    findings: Sequence[Finding]
    """The worst first."""
    logs: Sequence[LogSummary]
    exit_code: int
    beyond: Mapping[Severity, int]
    """Findings of each class that are too many to be listed."""

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        events = sum(log.events for log in self.logs)
        scope = f"{events:,} events in {len(self.logs)} log{'s' if len(self.logs) != 1 else ''}"
        count = len(self.findings) + sum(self.beyond.values())
        found = f"{count} finding{'s' if count != 1 else ''}"
        match self.exit_code:
            case 0:
                return f"verified: {scope}; every hash recomputed, every line read"
            case Severity.NOTICE:
                return f"verified, with notices only ({found}): {scope}"
            case Severity.POLICY:
                return f"against policy: {found}; {scope}"
            case Severity.INCOMPLETE:
                return f"incomplete: {found}; {scope}"
            case Severity.UNVERIFIABLE:
                return f"unverifiable: {found}; {scope}"
            case _:
                return f"TAMPERED: {found}; {scope}"

    def to_dicts(self) -> Iterator[dict[str, Any]]:
        """Yield what `--json` prints, one object a line: the findings, the logs, the verdict."""
        for one in self.findings:
            yield {"kind": "finding", **one.to_dict()}
        for log in self.logs:
            yield {"kind": "log", **asdict(log)}
        yield {
            "kind": "verdict",
            "url": self.url,
            "archive": self.archive,
            "exit_code": self.exit_code,
            "verdict": self.verdict,
            "findings": len(self.findings),
            "beyond": {severity.name.lower(): count for severity, count in self.beyond.items()},
        }


def verify(
    store: Store,
    trust: Trust,
    *,
    now: datetime,
    state: Path | None = None,
    live: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Verify an archive.

    Args:
        store: where it lies.
        trust: keys, heads and judged findings, from outside the archive.
        now: the time, aware.
        state: a file that remembers the heads seen.
        live: a writer may be at work; and an archive that has gone silent is `stale`.
        workers: processes that read segments; 0 reads them in this one. By default as many as there are processors,
            and none for a small archive.
        progress: called now and then with how far it is.

    Raises:
        ConfigurationError: the state file cannot be used.
    """
    return _Verification(store, trust, now, State(state) if state else None, live, progress).run(workers)


class _ArchiveFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/archive/1"]
    archive: Uuid
    created: Time
    heartbeat: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)]


class _Verification:
    """One run."""

    def __init__(
        self,
        store: Store,
        trust: Trust,
        now: datetime,
        state: State | None,
        live: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._store = store
        self._trust = trust
        self._now = now
        self._state = state
        self._live = live
        self._progress = progress
        self._findings = Findings(trust.accepted)
        self._chains: dict[layout.Log, Chain] = {}
        self._missing: dict[str, list[tuple[Work, str]]] = {}
        self._missing_count = 0
        self._events = 0
        self._stored = 0
        self._listing = _Listing()

    def run(self, workers: int | None) -> Report:
        archive = self._read_archive()
        with _Names() as names:
            complete = self._list(names)
            known = self._archive_id(archive)
            memories = self._memories(known)
            small = self._listing.stored <= _IN_PROCESS_BYTES
            count = workers if workers is not None else 0 if small else max(os.cpu_count() or 1, 2)
            heartbeat = timedelta(seconds=archive.heartbeat) if archive and self._live else None
            with _Pool(self._store, count, self._take) as pool, _Reader(self._store) as reader:
                for log in sorted({*self._listing.manifests, *memories}):
                    chain = Chain(
                        log,
                        known,
                        self._trust,
                        self._now,
                        self._findings,
                        memories.get(log, ()),
                        self._earlier(log),
                        heartbeat,
                    )
                    self._chains[log] = chain
                    self._follow(chain, reader, pool, names, complete=complete)
                    known = known or chain.archive
            self._judge_missing()
            if complete:
                self._judge_unnamed(names)
        if not memories and not any(chain.size for chain in self._chains.values()):
            self._findings.add(finding("empty", "the archive has no statement yet", key=layout.ARCHIVE))
        if self._state and known:
            self._state.remember(known, self._store.url, self._heads())
        return self._report(known)

    # --- what is there

    def _read_archive(self) -> _ArchiveFile | None:
        key = layout.ARCHIVE
        try:
            data = self._store.read(key, limit=_ARCHIVE_LIMIT)
            return _parse_archive(data)
        except ObjectMissing:
            self._findings.add(finding("archive", "there is no archive.json here", key=key))
        except FormatError as error:
            what = f"archive.json is not of its form: {error}"
            self._findings.add(finding("archive", what, severity=Severity.TAMPERED, key=key))
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"archive.json cannot be read: {error}", key=key))
        return None

    def _archive_id(self, archive: _ArchiveFile | None) -> str | None:
        """Return the id of the archive, and hold it against what is remembered of this place."""
        remembered = [("trust.json", self._trust.archive)]
        if self._state:
            remembered.append(("the state file", self._state.archive_at(self._store.url)))
        for origin, id_ in remembered:
            if archive and id_ and id_ != archive.archive:
                what = f"this is another archive than {origin} knows here"
                self._findings.add(finding("identity", what, key=layout.ARCHIVE, expected=id_, found=archive.archive))
        return archive.archive if archive else next((id_ for _, id_ in remembered if id_), None)

    def _list(self, names: "_Names") -> bool:
        """List everything; return whether that worked."""
        try:
            for info in self._store.list():
                if not self._listing.add(info.key, info.size, names):
                    self._findings.add(finding("unlisted", "an archive has no object of such a key", key=info.key))
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"the archive cannot be listed: {error}", key=""))
            return False
        return True

    def _memories(self, archive: str | None) -> dict[layout.Log, list[Memory]]:
        """Return what is remembered of each log's head."""
        found: dict[layout.Log, list[Memory]] = {}

        def remember(name: str, size: int, root: bytes | None, origin: str) -> None:
            topic, _, partition = name.rpartition("/")
            log = layout.parse_log(topic, int(partition)) if partition.isdecimal() else None
            if log is not None and size:
                found.setdefault(log, []).append(Memory(size, root, origin))

        for name, head in self._trust.heads.items():
            remember(name, head.size, head.root, "trust.json")
        for key in self._trust.keys.values():
            for name, head in key.until.items():
                remember(name, head.size, head.root, f"the end of the key {key.id!r}")
        if self._state and archive:
            for name, head in self._state.heads(archive).items():
                remember(name, head.size, head.root, "the state file")
        for log, size in self._listing.checkpoints.items():
            remember(str(log), size, None, "a checkpoint")
        return found

    def _earlier(self, log: layout.Log) -> Chain | None:
        lives = [
            chain
            for other, chain in self._chains.items()
            if (other.topic, other.partition) == (log.topic, log.partition)
            and other.life < log.life
            and chain.totals.statements
        ]
        return max(lives, key=lambda chain: chain.log.life, default=None)

    # --- rules 1 to 8

    def _follow(self, chain: Chain, reader: "_Reader", pool: "_Pool", names: "_Names", *, complete: bool) -> None:
        """Read a log's manifests in order, and hand on what they name."""
        listed = self._listing.manifests.get(chain.log, _Sequences())
        for sequence, answer in reader.manifests(chain.log, listed, onward=self._live or not complete):
            if sequence > chain.size:
                chain.gap(chain.size, sequence)
            if isinstance(answer, FormatError):
                chain.malformed(sequence, str(answer))
            elif isinstance(answer, CustodyError):
                chain.unreadable(sequence, str(answer))
            else:
                work = chain.step(sequence, answer)
                if work is not None:
                    for ref in (work.segment, work.quarantine):
                        if ref is not None:
                            names.name(ref.key)
                    pool.put(work)
        for sequence in listed.strays:
            what = f"a manifest of sequence {sequence} lies far beyond the others"
            key = layout.manifest_key(chain.log, sequence)
            self._findings.add(finding("sequence-gap", what, log=chain.name, sequence=sequence, key=key), row="stray")
        chain.end()

    def _take(self, outcome: Outcome) -> None:
        """Take what a worker found."""
        work = outcome.work
        chain = self._chain(work.log)
        for one in outcome.findings:
            self._findings.add(one)
        for key in outcome.missing:
            self._missing_count += 1
            if self._missing_count <= _MISSING_LIMIT:
                self._missing.setdefault(work.log, []).append((work, key))
        if outcome.missing and self._missing_count > _MISSING_LIMIT:
            self._findings.dropped[Severity.INCOMPLETE] += 1
        chain.totals.events += outcome.events
        chain.totals.stored += outcome.stored
        chain.totals.inflated += outcome.inflated
        self._events += outcome.events
        self._stored += outcome.stored
        if self._progress:
            self._progress(Progress(self._events, self._stored, self._listing.stored))

    def _chain(self, name: str) -> Chain:
        topic, _, partition = name.rpartition("/")
        log = layout.parse_log(topic, int(partition))
        if log is None:
            raise FormatError(f"{name!r} is no log")
        return self._chains[log]

    def _judge_missing(self) -> None:
        """Report objects that are not there, but for those that a statement let expire."""
        for name, works in self._missing.items():
            expired = self._chain(name).expired
            for work, key in works:
                if work.sequence >= expired:
                    kind = "segment" if key.startswith(layout.EVENTS) else "quarantine object"
                    records = f"offsets {work.first_offset} to {work.next_offset - 1}"
                    self._findings.add(
                        finding(
                            "segment-missing",
                            f"the {kind} of {records} is not there",
                            log=name,
                            sequence=work.sequence,
                            offset=work.first_offset,
                            key=key,
                        )
                    )

    # --- rule 10

    def _judge_unnamed(self, names: "_Names") -> None:
        """Find what no manifest names, and say what it is."""
        unnamed = names.unnamed()
        if not unnamed:
            return
        seen: set[str] = set()
        try:
            for prefix in (layout.EVENTS, layout.QUARANTINE):
                for info in self._store.list(prefix):
                    if names.holds(unnamed, info.key) and info.key not in seen:
                        self._judge_one(info.key, seen)
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"the archive cannot be listed again: {error}", key=layout.EVENTS))

    def _judge_one(self, key: str, seen: set[str]) -> None:
        if len(seen) >= _UNNAMED_LIMIT:
            self._findings.dropped[Severity.TAMPERED] += 1
            return
        seen.add(key)
        parsed = layout.parse_records_key(key)
        judged = orphans.judge(self._store, self._chains.get(parsed.log) if parsed else None, key, live=self._live)
        if judged:
            self._findings.add(judged)

    # --- the result

    def _heads(self) -> dict[str, Head]:
        return {
            chain.name: Head(chain.size, chain.root)
            for chain in self._chains.values()
            if chain.sound and chain.size and chain.root is not None
        }

    def _report(self, archive: str | None) -> Report:
        logs = [
            LogSummary(
                log=chain.name,
                **_counted(chain.totals),
                next_offset=chain.next_offset,
                size=chain.size,
                root=chain.root.hex() if chain.root is not None else None,
            )
            for chain in self._chains.values()
            if chain.size
        ]
        found = self._findings
        return Report(self._store.url, archive, found.sorted(), logs, found.exit_code, dict(found.dropped))


def _counted(totals: Totals) -> dict[str, int]:
    return {name: getattr(totals, name) for name in Totals.__slots__}


def _parse_archive(data: bytes) -> _ArchiveFile:
    names: list[str] = []
    try:
        found = msgspec.json.decode(data, type=_ArchiveFile)
        data.decode()
        json.loads(data, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(str(error)) from None
    if len(names) != len(set(names)):
        raise FormatError("a field stands twice")
    check_time("created", found.created)
    return found


class _Sequences:
    """Which sequences of a log were listed: a bitmap, whatever the order, and however often each was."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._strays: set[int] = set()

    def add(self, sequence: int) -> None:
        """Take note of one."""
        if sequence >= _BITMAP_LIMIT:
            if len(self._strays) < _SPARSE_LIMIT:
                self._strays.add(sequence)
            return
        byte = sequence >> 3
        if byte >= len(self._bits):
            self._bits.extend(bytes(max(byte + 1 - len(self._bits), min(len(self._bits), 65_536))))
        self._bits[byte] |= 1 << (sequence & 7)

    @property
    def strays(self) -> list[int]:
        """Sequences beyond any that a writer could have reached."""
        return sorted(self._strays)

    def next(self, sequence: int) -> int | None:
        """Return the first one listed from `sequence` on."""
        byte = sequence >> 3
        if byte < len(self._bits) and (rest := self._bits[byte] >> (sequence & 7)):
            return sequence + (rest & -rest).bit_length() - 1
        match = _SOME_BIT.search(self._bits, byte + 1)
        if not match:
            return None
        value = match[0][0]
        return (match.start() << 3) + (value & -value).bit_length() - 1


@dataclass(slots=True)
class _Listing:
    """What a listing shows, in little."""

    manifests: dict[layout.Log, _Sequences] = field(default_factory=dict)
    checkpoints: dict[layout.Log, int] = field(default_factory=dict)
    """The largest size of each log."""
    stored: int = 0

    def add(self, key: str, size: int, names: "_Names") -> bool:
        """Take note of an object; False if an archive has no such key."""
        if key.startswith((layout.EVENTS, layout.QUARANTINE)):
            names.list(key)
            self.stored += size
        elif manifest := layout.parse_manifest_key(key):
            log, sequence = manifest
            self.manifests.setdefault(log, _Sequences()).add(sequence)
        elif checkpoint := layout.parse_checkpoint_key(key):
            log, sequence = checkpoint
            # The log of audits has statements elsewhere.
            if log.topic != "audits":
                self.checkpoints[log] = max(self.checkpoints.get(log, 0), sequence)
        else:
            return key == layout.ARCHIVE or key.startswith((layout.AUDITS, *layout.REBUILDABLE))
        return True


class _Names:
    """Which objects are listed, and which are named: digests of 64 bits under a random key, in buckets.

    Where they are many, the buckets go to temporary files, and are compared one by one.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._listed = [array("Q") for _ in range(_BUCKETS)]
        self._named = [array("Q") for _ in range(_BUCKETS)]
        self._held = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder:
            self._folder.cleanup()

    def list(self, key: str) -> None:
        """Take note of an object that is there."""
        self._put(self._listed, key)

    def name(self, key: str) -> None:
        """Take note of an object that a manifest names."""
        self._put(self._named, key)

    def unnamed(self) -> frozenset[int]:
        """Return the digests of those that are there and that nothing names."""
        found: set[int] = set()
        for number in range(_BUCKETS):
            listed = set(self._load("listed", number, self._listed[number]))
            listed.difference_update(self._load("named", number, self._named[number]))
            found |= listed
        return frozenset(found)

    def holds(self, digests: frozenset[int], key: str) -> bool:
        """Say whether an object is one of those."""
        return self._digest(key) in digests

    def _digest(self, key: str) -> int:
        return int.from_bytes(blake2b(key.encode(), digest_size=8, key=self._key).digest(), "big")

    def _put(self, buckets: Sequence["array[int]"], key: str) -> None:
        digest = self._digest(key)
        buckets[digest % _BUCKETS].append(digest)
        self._held += 1
        if self._held >= _SPILL_NAMES:
            self._spill()

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="custody-")
        for kind, buckets in (("listed", self._listed), ("named", self._named)):
            for number, bucket in enumerate(buckets):
                with self._path(kind, number).open("ab") as file:
                    bucket.tofile(file)
                del bucket[:]
        self._held = 0

    def _path(self, kind: str, number: int) -> Path:
        return Path(self._folder.name if self._folder else "") / f"{kind}-{number}"

    def _load(self, kind: str, number: int, held: "array[int]") -> "array[int]":
        if not self._folder:
            return held
        loaded = array("Q", self._path(kind, number).read_bytes())
        loaded.extend(held)
        return loaded


class _Reader:
    """Reads a log's manifests in order; from a store that is far away, some ahead."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = None if store.url.startswith("file:") else ThreadPoolExecutor(_READ_AHEAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def manifests(
        self, log: layout.Log, listed: _Sequences, *, onward: bool
    ) -> Iterator[tuple[int, bytes | CustodyError]]:
        """Yield each sequence that is there, with its bytes or with the error that reading it gave.

        The first one that a listing leaves out is tried too: it may have come while the listing ran. `onward` goes on
        behind the last one listed, for a writer at work, or where no listing could be had.
        """
        ahead: deque[tuple[int, Future[bytes | CustodyError] | None]] = deque()
        wanted = self._wanted(listed)
        tried = -1
        while True:
            while len(ahead) < (_READ_AHEAD if self._threads else 1) and (sequence := next(wanted, None)) is not None:
                ahead.append((sequence, self._threads.submit(self._read, log, sequence) if self._threads else None))
            if not ahead:
                break
            tried, future = ahead.popleft()
            answer = future.result() if future else self._read(log, tried)
            if not isinstance(answer, ObjectMissing):
                yield tried, answer
        while onward and not isinstance(answer := self._read(log, tried := tried + 1), ObjectMissing):
            yield tried, answer
            # A store that answers nothing would be asked for ever.
            onward = not isinstance(answer, CustodyError)

    def _wanted(self, listed: _Sequences) -> Iterator[int]:
        sequence = 0
        while (following := listed.next(sequence)) is not None:
            if following != sequence:
                yield sequence
            yield following
            sequence = following + 1

    def _read(self, log: layout.Log, sequence: int) -> bytes | CustodyError:
        try:
            return self._store.read(layout.manifest_key(log, sequence), limit=MANIFEST_LIMIT)
        except CustodyError as error:
            return error


class _Pool:
    """Hands the objects of statements to worker processes, in groups, a few at a time."""

    def __init__(self, store: Store, workers: int, take: Callable[[Outcome], None]) -> None:
        self._store = store
        self._take = take
        self._bound = 2 * workers
        self._group: list[Work] = []
        self._weight = 0
        self._pending: dict[Future[list[Outcome]], list[Work]] = {}
        # Not forked from this process: it may have threads.
        context = multiprocessing.get_context("forkserver")
        self._processes = (
            ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=(store,)) if workers else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._send()
                while self._pending:
                    self._collect()
        finally:
            if self._processes:
                self._processes.shutdown(cancel_futures=True)

    def put(self, work: Work) -> None:
        """Have a statement's objects checked, now or soon."""
        self._group.append(work)
        self._weight += work.weight
        if self._weight >= _GROUP_BYTES or len(self._group) >= _GROUP_WORKS:
            self._send()

    def _send(self) -> None:
        group, self._group, self._weight = self._group, [], 0
        if not group:
            return
        if self._processes is not None:
            try:
                self._pending[self._processes.submit(_check_in_worker, group)] = group
            except BrokenProcessPool:
                self._processes = None
            else:
                while len(self._pending) > self._bound:
                    self._collect()
                return
        self._check_here(group)

    def _collect(self) -> None:
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in done:
            group = self._pending.pop(future)
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                # A worker was killed, or could not be started: what it had in hand is done here.
                self._processes = None
                self._check_here(group)
                continue
            for outcome in outcomes:
                self._take(outcome)

    def _check_here(self, group: Sequence[Work]) -> None:
        for work in group:
            for outcome in check_all(self._store, [work]):
                self._take(outcome)


_worker_store: Store | None = None


def _open(store: Store) -> None:
    """Begin a worker: a store arrives as its URL and options, and is opened again."""
    global _worker_store
    _worker_store = store


def _check_in_worker(works: Sequence[Work]) -> list[Outcome]:
    if _worker_store is None:
        raise FormatError("this process was not begun as a worker")
    return check_all(_worker_store, works)
