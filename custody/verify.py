"""The auditor: reads an archive through its store, recomputes everything, and says what it found.

It shares no code that writes. Rules are numbered as in FORMAT.md, Verification; where each is held:

- 1 to 6, one log's statements in order: `chain.py`, pure. The log of audits: `audits.py`, pure.
- 7 to 9, the stored bytes and the lines in them: `contents.py`, in worker processes (`workers.py`).
- 10, objects that no manifest names: `orphans.py`; versions, delete markers, locks, lifecycle rules: `protection.py`.
- 1 and 11, memories of heads: `heads.py` (`--state`), `trust.json`, checkpoints (`checkpoint.py`) and audits.

This module lists first, reads manifests then, hands objects to workers, and adds up. Memory stays bounded at any size
of archive: manifests are streamed, what a listing shows is kept in little (`listing.py`), and no more than a few
segments are under way. A `Scope` narrows it to a part; then memories of heads beyond that part are not asked.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from custody import checkpoint, layout, merkle, orphans
from custody.ahead import Ahead, Piece
from custody.audit import HEARTBEAT_LIMIT, Audit
from custody.audits import AuditChain
from custody.chain import RETENTION_GRACE, Chain, Memory, Totals
from custody.contents import Outcome, Sink, Work
from custody.errors import CustodyError, FormatError, ObjectMissing, SignatureInvalid, TierUnmounted
from custody.findings import Finding, Findings, Severity, finding, loss_digest
from custody.heads import State
from custody.listing import Listing, Names, Sequences, list_others, list_statements
from custody.manifest import MANIFEST_LIMIT, Statement, Time, Uuid, check_time, parse, parse_time
from custody.protection import UNPROTECTED, Locks, Protection, check_lifecycle, originals
from custody.store import ObjectInfo, Store
from custody.trust import Head, Trust
from custody.workers import Pool, Reader

_ARCHIVE_LIMIT = 4096
_IN_PROCESS_BYTES = 8 * 1_048_576
"""Archives smaller than this are read in this process: starting others would take longer."""
_IN_PROCESS_STATEMENTS = 5_000
"""The same for archives of fewer statements, where they alone are read."""
_OF_PLACES = frozenset({"deferred", "unmounted"})
"""Findings about where objects lie: of many objects, they are one."""
_LATER_LIMIT = 10_000
"""Statements that are looked at behind the last one verified, for what they name."""
_MISSING_LIMIT = 100_000
_UNNAMED_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class Span:
    """Statements `[first, end)` of a log.

    Attributes:
        first: sequence of the first one.
        end: behind the last one; None for all there are.
    """

    first: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What is verified.

    Attributes:
        spans: which statements of which logs, in order; None for all of all.
        contents: whether objects are read, and not the chain alone.
        listing: whether the archive is listed, for what only a listing shows: objects that no statement names,
            checkpoints, audits, versions, lifecycle rules. Without it, spans must be given.
    """

    spans: Mapping[layout.Log, Sequence[Span]] | None = None
    contents: bool = True
    listing: bool = True


EVERYTHING = Scope()


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
    sound: bool
    """Whether the head is what a trusted key signed."""
    expired: int
    """Sequences before this one may have lost their objects."""


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
    scope: Scope

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        events = sum(log.events for log in self.logs)
        scope = f"{events:,} events in {len(self.logs)} log{'s' if len(self.logs) != 1 else ''}"
        count = len(self.findings) + sum(self.beyond.values())
        found = f"{count} finding{'s' if count != 1 else ''}"
        match self.exit_code:
            case 0 if not self.scope.contents:
                return f"chain verified: {len(self.logs)} logs; no segment was read"
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
    scope: Scope = EVERYTHING,
    sink: Sink | None = None,
    protection: Protection = UNPROTECTED,
    others: Iterable[Finding] = (),
) -> Report:
    """Verify an archive.

    Args:
        store: where it lies.
        trust: keys, heads and judged findings, from outside the archive.
        now: the time, aware.
        state: a file that remembers the heads seen.
        live: a writer may be at work; and an archive that has gone silent is `stale`.
        workers: processes that read segments, or statements where no segment is read; 0 reads them in this one. By
            default as many as there are processors, and none for a small archive.
        progress: called now and then with how far it is.
        scope: what is verified; by default everything.
        sink: takes the batches that were inflated; they are read in this process then.
        protection: how the bucket is meant to protect the evidence.
        others: what else was found, by checks that are not of this package; judged and sorted with the rest.

    Raises:
        ConfigurationError: the state file cannot be used.
    """
    run = _Verification(store, trust, now, State(state) if state else None, live, progress, scope, sink, protection)
    return run.run(0 if sink is not None else workers, others)


class _ArchiveFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/archive/1"]
    archive: Uuid
    created: Time
    heartbeat: Annotated[int, msgspec.Meta(ge=1, le=HEARTBEAT_LIMIT)]


@dataclass(slots=True)
class _Listed:
    """How a listing went: whether it is whole, how many objects it had, and what is wrong with them."""

    complete: bool = True
    number: int = 0
    findings: Findings = field(default_factory=Findings)


_Lister = Callable[[Store, Callable[[str, CustodyError], None]], Iterator[ObjectInfo]]


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
        scope: Scope,
        sink: Sink | None,
        protection: Protection,
    ) -> None:
        self._store = store
        self._trust = trust
        self._now = now
        self._state = state
        self._live = live
        self._progress = progress
        self._scope = scope
        self._sink = sink
        self._protection = protection
        self._retention = timedelta(days=trust.retention_days) if trust.retention_days else None
        self._findings = Findings(trust.accepted)
        self._history: list[tuple[str, Finding]] = []
        self._touched: frozenset[str] = frozenset()
        self._chains: dict[layout.Log, list[Chain]] = {}
        self._missing = _Missing()
        self._events = 0
        self._stored = 0
        self._listing = Listing()
        self._over = False
        self._named_since: dict[layout.Log, frozenset[str]] = {}
        self._archive_digest = ""

    def run(self, workers: int | None, others: Iterable[Finding]) -> Report:
        if self._scope.listing:
            self._look_beneath()
        archive = self._read_archive()
        count = workers if workers is not None else max(os.cpu_count() or 1, 2)
        # Either there are objects to be read by other processes, or statements.
        ahead_of = 0 if self._scope.contents else count
        with (
            Names() as names,
            Ahead(self._store, self._trust, self._now, ahead_of) as ahead,
            self._lister() as lister,
        ):
            if workers is not None:
                ahead.start()
            if self._scope.contents:
                # What is there is listed before what names it, and how much it is says how to read it.
                wait([records := lister.submit(self._list, names, list_others)])
            statements = self._list(names, list_statements)
            if not self._scope.contents:
                records = lister.submit(self._list, names, list_others)
            self._take_listed(statements)
            if statements.number > _IN_PROCESS_STATEMENTS:
                ahead.start()
            known = self._archive_id(archive)
            locks = Locks(self._store, self._protection, lambda one, row: self._findings.add(one, row=row))
            with (
                Pool(self._store, self._pooled(workers, count), self._take, self._sink) as pool,
                Reader(self._store) as reader,
                locks,
            ):
                locks.put(layout.ARCHIVE)
                audits = self._read_audits(known, reader, locks)
                heartbeat = self._heartbeat(archive, audits)
                memories = self._memories(known, audits)
                logs = {*self._listing.manifests, *memories} if self._scope.spans is None else self._scope.spans
                for log in sorted(logs):
                    spans = self._scope.spans[log] if self._scope.spans is not None else (Span(),)
                    signed = self._read_checkpoints(log, spans, known, reader, locks)
                    remembered = [*memories.get(log, ()), *signed]
                    for span in spans:
                        chain = Chain(
                            log,
                            known,
                            self._trust,
                            self._now,
                            self._findings,
                            remembered,
                            self._earlier(log),
                            heartbeat,
                            self._retention,
                            span.first,
                        )
                        self._chains.setdefault(log, []).append(chain)
                        hands = _Hands(reader, pool, ahead, names, locks)
                        self._follow(chain, span, hands, complete=self._scope.listing and statements.complete)
                        known = known or chain.archive
                self._take_listed(records.result())
            complete = self._scope.listing and statements.complete and records.result().complete
            self._judge_missing()
            self._judge_expiries()
            self._judge_history()
            if complete:
                self._judge_unnamed(names)
        for one in others:
            self._findings.add(one)
        known_any = any(memories.values()) or audits.size
        if complete and not known_any and not any(map(self._size, self._chains)):
            self._findings.add(finding("empty", "the archive has no statement yet", key=layout.ARCHIVE))
        if self._state and known:
            self._state.remember(known, self._store.url, self._heads(audits))
        return self._report(known)

    # --- what is there

    def _look_beneath(self) -> None:
        """Find what was put over objects, and go on with what lies beneath."""
        try:
            first, self._history = originals(self._store)
            rules = self._store.lifecycle()
        except CustodyError as error:
            what = f"the bucket's versions and rules cannot be looked at: {error}"
            self._findings.add(finding("unreadable", what, key=""))
            return
        for one in check_lifecycle(rules, self._protection, _root_in_bucket(self._store.url)):
            self._findings.add(one)
        self._touched = frozenset(first)
        if first:
            self._store = self._store.at_versions(first)

    def _read_archive(self) -> _ArchiveFile | None:
        key = layout.ARCHIVE
        try:
            data = self._store.read(key, limit=_ARCHIVE_LIMIT)
            self._archive_digest = sha256(data).hexdigest()
            return _parse_archive(data)
        except ObjectMissing:
            self._findings.add(finding("archive", "there is no archive.json here", key=key))
        except FormatError as error:
            what = f"archive.json is not of its form: {error}"
            digest = self._archive_digest or None
            self._findings.add(finding("archive", what, severity=Severity.TAMPERED, key=key, sha256=digest))
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

    def _heartbeat(self, archive: _ArchiveFile | None, audits: AuditChain) -> timedelta | None:
        """Return how long a log may be silent, None where that is not looked at.

        archive.json is not signed, and who raises its heartbeat would hide that nothing is written. So the one that the
        first audit signed is what counts, and archive.json must say the same.
        """
        stated = archive.heartbeat if archive else None
        signed, sequence = audits.heartbeat or (None, 0)
        if stated is not None and signed is not None and stated != signed:
            where = {"expected": f"{signed} s", "found": f"{stated} s", "sha256": self._archive_digest}
            what = f"archive.json was changed: the heartbeat is another than audit {sequence} signed"
            one = finding("archive", what, severity=Severity.TAMPERED, key=layout.ARCHIVE, **where)
            self._findings.add(one)
        seconds = signed or stated
        return timedelta(seconds=seconds) if seconds and self._live else None

    def _list(self, names: Names, objects: _Lister) -> _Listed:
        """List statements, or all else, and judge nothing yet: it may go on while what is listed is read."""
        found = _Listed()
        if not self._scope.listing:
            return found

        def failed(prefix: str, error: CustodyError) -> None:
            found.complete = False
            name = "unmounted" if isinstance(error, TierUnmounted) else "unreadable"
            what = f"the archive cannot be listed: {error}"
            found.findings.add(finding(name, what, key=prefix), row="listing")

        for info in objects(self._store, failed):
            if self._over:
                break
            found.number += 1
            if not self._listing.add(info.key, info.size, names):
                what, digest = "an archive has no object of such a key", loss_digest(info.key, info.size)
                found.findings.add(finding("unlisted", what, key=info.key, sha256=digest))
        return found

    @contextmanager
    def _lister(self) -> Iterator[ThreadPoolExecutor]:
        """Return a thread to list in: the chain needs none of what records are, and listing them may take as long."""
        with ThreadPoolExecutor(1) as thread:
            try:
                yield thread
            finally:
                self._over = True

    def _take_listed(self, listed: _Listed) -> None:
        for one, row in listed.findings.rows():
            self._findings.add(one, row=row)
        self._findings.dropped.update(listed.findings.dropped)

    def _pooled(self, workers: int | None, most: int) -> int:
        """Return how many processes are to read objects."""
        small = self._scope.listing and self._listing.stored <= _IN_PROCESS_BYTES
        return most if self._scope.contents and (workers is not None or not small) else 0

    # --- memories of heads

    def _memories(self, archive: str | None, audits: AuditChain) -> dict[layout.Log, list[Memory]]:
        """Return what is remembered of each log's head, but for checkpoints."""
        found: dict[layout.Log, list[Memory]] = {}

        def remember(name: str, head: Head, origin: str, *, trusted: bool = False, evidence: str | None = None) -> None:
            log = layout.parse_log_text(name)
            if log is not None and head.size:
                found.setdefault(log, []).append(Memory(head.size, head.root, origin, trusted, evidence=evidence))

        for name, head in self._trust.heads.items():
            remember(name, head, "trust.json", trusted=True)
        for key in self._trust.keys.values():
            for name, head in key.until.items():
                remember(name, head, f"the end of the key {key.id!r}")
        if self._state and archive:
            for name, head in self._state.heads(archive).items():
                remember(name, head, "the state file", trusted=True)
        if audits.newest:
            statement: Audit = audits.newest.statement
            origin = f"audit {statement.sequence}"
            for name, seen in statement.heads.items():
                quoted = f'{origin}, sealed {statement.sealed_at}: "{name}":{{"size":{seen.size},"root":"{seen.root}"}}'
                remember(name, Head(seen.size, bytes.fromhex(seen.root)), origin, evidence=quoted)
        for log, sizes in self._listing.checkpoints.items():
            if sizes.next(0) is not None:
                found.setdefault(log, [])
        found.pop(layout.AUDIT_LOG, None)
        return found

    def _read_checkpoints(
        self, log: layout.Log, spans: Sequence[Span], archive: str | None, reader: Reader, locks: Locks
    ) -> Iterator[Memory]:
        """Yield the heads that a log's checkpoints sign (rule 11), and report those that do not hold."""
        listed = self._listing.checkpoints.get(log)
        if listed is None:
            return
        keys = checkpoint.checkpoint_keys(self._trust)
        sizes = (size for size in listed.all() if any(one.first <= size <= (one.end or size) for one in spans))
        for size, answer in reader.objects(lambda one: layout.checkpoint_key(log, one), sizes, checkpoint.NOTE_LIMIT):
            key = layout.checkpoint_key(log, size)
            where: dict[str, Any] = {"log": str(log), "sequence": max(size - 1, 0), "key": key}
            if isinstance(answer, CustodyError) and not isinstance(answer, FormatError):
                self._findings.add(finding("unreadable", f"the checkpoint cannot be read: {answer}", **where))
                continue
            locks.put(key, log=str(log))
            try:
                if isinstance(answer, CustodyError):
                    raise answer
                memory = _memory_of(answer, size, key, log, archive, keys)
            except (FormatError, SignatureInvalid) as error:
                digest = sha256(answer).hexdigest() if isinstance(answer, bytes) else None
                what = f"the checkpoint does not hold: {error}"
                self._findings.add(finding("checkpoint", what, sha256=digest, **where))
                continue
            if not memory.trusted:
                what = "no key is trusted to check the signatures of checkpoints by"
                self._findings.add(finding("unchecked-signature", what, log=str(log)), row="checkpoints")
            yield memory

    def _read_audits(self, archive: str | None, reader: Reader, locks: Locks) -> AuditChain:
        """Read the log of audits."""
        log = layout.AUDIT_LOG
        name = str(log)
        memories = list(self._read_checkpoints(log, (Span(),), archive, reader, locks))
        if head := self._trust.heads.get(name):
            memories.append(Memory(head.size, head.root, "trust.json"))
        if self._state and archive and (head := self._state.heads(archive).get(name)):
            memories.append(Memory(head.size, head.root, "the state file"))
        audits = AuditChain(archive, self._trust, self._findings, memories)
        if not self._scope.listing:
            return audits
        for sequence, answer in reader.objects(layout.audit_key, self._listing.audits.all(), MANIFEST_LIMIT):
            if sequence > audits.size:
                audits.gap(audits.size, sequence)
            if isinstance(answer, CustodyError) and not isinstance(answer, FormatError):
                audits.unreadable(sequence, str(answer))
            else:
                locks.put(layout.audit_key(sequence))
                # What is too large to be one parses as none.
                audits.step(sequence, b"" if isinstance(answer, CustodyError) else answer)
        audits.end()
        return audits

    def _earlier(self, log: layout.Log) -> Chain | None:
        lives = [
            chains[-1]
            for other, chains in self._chains.items()
            if (other.topic, other.partition) == (log.topic, log.partition)
            and other.life < log.life
            and chains[-1].totals.statements
        ]
        return max(lives, key=lambda chain: chain.log.life, default=None)

    # --- rules 1 to 9

    def _follow(self, chain: Chain, span: Span, hands: "_Hands", *, complete: bool) -> None:
        """Read a span of a log's manifests in order, and hand on what they name."""
        listed = self._listing.manifests.get(chain.log, Sequences()) if self._scope.listing else None
        onward = span.end is None and (self._live or not complete)
        if listed is not None and not complete:
            # What a listing that broke off leaves out may be there.
            listed = listed.filled()
        first = span.first
        if listed is not None and complete:
            for begin, end, future in hands.ahead.pieces(chain, listed, first, span.end):
                # The first one of a piece is stepped over here, with what lies between it and the last one.
                self._step(chain, hands, listed, first, begin + 1)
                first = begin + 1
                if (piece := hands.ahead.join(chain, future)) is not None:
                    self._name(chain, hands, piece, first, end)
                    first = end
        self._step(chain, hands, listed, first, span.end, onward=onward)
        if span.end is not None:
            if chain.size < span.end:
                chain.gap(chain.size, span.end)
            behind = hands.reader.manifest(chain.log, span.end)
            if isinstance(behind, bytes):
                chain.seam(behind)
        elif listed is not None:
            for sequence in listed.strays:
                what = f"a manifest of sequence {sequence} lies far beyond the others"
                key = layout.manifest_key(chain.log, sequence)
                self._findings.add(
                    finding("sequence-gap", what, log=chain.name, sequence=sequence, key=key), row="stray"
                )
        chain.end(whole=span.end is None)

    def _step(
        self,
        chain: Chain,
        hands: "_Hands",
        listed: Sequences | None,
        first: int,
        end: int | None,
        *,
        onward: bool = False,
    ) -> None:
        """Read manifests `[first, end)` and step over each."""
        for sequence, answer in hands.reader.manifests(chain.log, listed, first, end, onward=onward):
            if sequence > chain.size:
                chain.gap(chain.size, sequence)
            if isinstance(answer, FormatError):
                chain.malformed(sequence, str(answer))
            elif isinstance(answer, CustodyError):
                chain.unreadable(sequence, str(answer))
            else:
                if hands.locks.active:
                    hands.locks.put(layout.manifest_key(chain.log, sequence), log=chain.name)
                self._hand_on(chain.step(sequence, answer), hands)

    def _name(self, chain: Chain, hands: "_Hands", piece: Piece, first: int, end: int) -> None:
        """Take note of what the statements `[first, end)` of a piece name, in their order."""
        for _, key in piece.objects:
            hands.names.name(key)
        if not hands.locks.active:
            return
        objects = deque(piece.objects)
        for sequence in range(first, end):
            hands.locks.put(layout.manifest_key(chain.log, sequence), log=chain.name)
            while objects and objects[0][0] == sequence:
                hands.locks.put(objects.popleft()[1], log=chain.name, sequence=sequence)

    def _hand_on(self, work: Work | None, hands: "_Hands") -> None:
        if work is None:
            return
        for ref in (work.segment, work.quarantine):
            if ref is not None:
                hands.names.name(ref.key)
                hands.locks.put(ref.key, log=work.log, sequence=work.sequence)
        if self._scope.contents:
            hands.pool.put(work)

    def _take(self, outcome: Outcome) -> None:
        """Take what a worker found."""
        work = outcome.work
        chain = self._chain(work)
        for one in outcome.findings:
            self._findings.add(one, row=one.finding if one.finding in _OF_PLACES else None)
        for key in outcome.missing:
            self._missing.add(work, key)
        # What a delete marker hides is not kept on purpose, and of what could not be read it is not known.
        unread = {one.key for one in outcome.findings if one.finding in {"unreadable", "unmounted"}}
        kept = {ref.key for ref in (work.segment, work.quarantine) if ref} - {*outcome.missing, *unread} - self._touched
        if work.overdue and kept:
            what = f"objects are still there {RETENTION_GRACE.days} days after their retention ended"
            one = finding("retention", what, log=work.log, sequence=work.sequence)
            self._findings.add(one, row="kept")
        chain.totals.events += outcome.events
        chain.totals.stored += outcome.stored
        chain.totals.inflated += outcome.inflated
        self._events += outcome.events
        self._stored += outcome.stored
        if self._progress:
            self._progress(Progress(self._events, self._stored, self._listing.stored))

    def _chain(self, work: Work) -> Chain:
        log = layout.parse_log_text(work.log)
        if log is None:
            raise FormatError(f"{work.log!r} is no log")
        return next(chain for chain in reversed(self._chains[log]) if chain.begin <= work.sequence)

    def _judge_missing(self) -> None:
        """Report objects that are not there, but for those that a statement let expire."""
        for name, missing in self._missing.logs.items():
            expired = max(
                (chain.expired for chain in self._chains.get(layout.parse_log_text(name) or layout.AUDIT_LOG, ())),
                default=0,
            )
            for work, key in missing.objects:
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
            if missing.beyond is not None and missing.beyond[1] > expired:
                first, end = max(missing.beyond[0], expired), missing.beyond[1]
                what = "so many objects are not there that no more of them are listed one by one"
                self._findings.add(finding("segment-missing", what, log=name, sequence=first, through=end - 1))

    def _judge_expiries(self) -> None:
        """Hold each signed expiry to the age that the retention asks."""
        if self._retention is None:
            return
        for log, chains in self._chains.items():
            for expiry in (one for chain in chains for one in chain.expiries):
                youngest = self._statement(log, expiry.end - 1)
                if youngest is None:
                    continue
                age = expiry.sealed_at - parse_time(youngest.sealed_at)
                if age < self._retention:
                    what = f"sequences {expiry.first} to {expiry.end - 1} were let expire before their time"
                    where: dict[str, Any] = {"log": str(log), "sequence": expiry.sequence}
                    expected, found = f"after {self._retention.days} days", f"after {age.days} days"
                    self._findings.add(finding("retention", what, expected=expected, found=found, **where))

    def _statement(self, log: layout.Log, sequence: int) -> Statement | None:
        try:
            return parse(self._store.read(layout.manifest_key(log, sequence), limit=MANIFEST_LIMIT)).statement
        except CustodyError:
            # A finding says so already.
            return None

    # --- rule 10

    def _judge_history(self) -> None:
        """Report what was put over evidence, but for what has expired."""
        ends: dict[layout.Log, int] = {}
        for key, one in self._history:
            parsed = layout.parse_records_key(key)
            if parsed is None:
                self._findings.add(one)
                continue
            if parsed.log not in ends:
                expired = max((chain.expired for chain in self._chains.get(parsed.log, ())), default=0)
                last = self._statement(parsed.log, expired - 1) if expired else None
                ends[parsed.log] = last.next_offset if last else 0
            if parsed.last >= ends[parsed.log]:
                self._findings.add(one)

    def _judge_unnamed(self, names: Names) -> None:
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
        parsed = layout.parse_records_key(key)
        chains: Sequence[Chain | None] = (parsed and self._chains.get(parsed.log)) or (None,)
        if self._scope.spans is not None and parsed and chains == (None,) and parsed.log in self._listing.manifests:
            # Of a log that is out of scope.
            return
        newest = chains[-1]
        if parsed and (newest is None or parsed.last >= (newest.next_offset or 0)) and key in self._later(parsed.log):
            return
        seen.add(key)
        # Each span of a log calls all that lies outside it a hole.
        for chain in chains:
            judged = orphans.judge(self._store, chain, key, live=self._live)
            if judged:
                self._findings.add(judged)

    def _later(self, log: layout.Log) -> frozenset[str]:
        """Return what is named by statements that came since a log was read: the next verification judges those."""
        if log not in self._named_since:
            found: set[str] = set()
            first = max((chain.size for chain in self._chains.get(log, ())), default=0)
            for sequence in range(first, first + _LATER_LIMIT):
                if (statement := self._statement(log, sequence)) is None:
                    break
                found.update(ref.key for ref in (statement.segment, statement.quarantine) if ref)
            self._named_since[log] = frozenset(found)
        return self._named_since[log]

    # --- the result

    def _size(self, log: layout.Log) -> int:
        return max(chain.size for chain in self._chains[log])

    def _heads(self, audits: AuditChain) -> dict[str, Head]:
        heads = {
            chain.name: Head(chain.size, chain.root)
            for chains in self._chains.values()
            for chain in chains
            if chain.sound and chain.size and chain.root is not None
        }
        if audits.sound and audits.size and audits.root is not None:
            heads[str(layout.AUDIT_LOG)] = Head(audits.size, audits.root)
        return heads

    def _report(self, archive: str | None) -> Report:
        logs = [_summary(chains) for log, chains in self._chains.items() if self._size(log)]
        found = self._findings
        return Report(self._store.url, archive, found.sorted(), logs, found.exit_code, dict(found.dropped), self._scope)


@dataclass(frozen=True, slots=True)
class _Hands:
    """What a chain's statements are handed to."""

    reader: Reader
    pool: Pool
    ahead: Ahead
    names: Names
    locks: Locks


@dataclass(slots=True)
class _MissingOfLog:
    objects: list[tuple[Work, str]]
    beyond: tuple[int, int] | None = None
    """From the first to behind the last sequence of those that are not among `objects`."""


class _Missing:
    """Objects that are not there, by log: one by one up to a limit, for after an expiry they are many."""

    def __init__(self) -> None:
        self.logs: dict[str, _MissingOfLog] = {}
        self._count = 0

    def add(self, work: Work, key: str) -> None:
        """Take note of one."""
        found = self.logs.setdefault(work.log, _MissingOfLog([]))
        if self._count < _MISSING_LIMIT:
            self._count += 1
            found.objects.append((work, key))
        else:
            first = found.beyond[0] if found.beyond else work.sequence
            found.beyond = min(first, work.sequence), max(found.beyond[1] if found.beyond else 0, work.sequence + 1)


def _root_in_bucket(url: str) -> str:
    """Return the prefix of an archive's keys in its bucket, empty or ending in a slash."""
    _, _, prefix = url.removeprefix("s3://").partition("/")
    return f"{prefix}/" if prefix else ""


def _memory_of(
    data: bytes,
    size: int,
    key: str,
    log: layout.Log,
    archive: str | None,
    keys: Mapping[tuple[str, bytes], checkpoint.NoteKey],
) -> Memory:
    """Return the head that a checkpoint signs.

    Raises:
        FormatError: it is none, or not of this place.
        SignatureInvalid: no trusted key signed it, or one that it names did not.
    """
    note = checkpoint.parse_note(data)
    found = checkpoint.parse_checkpoint(note.text)
    if found.size != size:
        raise FormatError(f"it is of size {found.size}, and not of {size}")
    if not size and found.root != merkle.EMPTY_ROOT:
        raise FormatError("it is of no statement, and its root is not that of the empty tree")
    place = f"/{archive}/{log}" if archive else f"/{log}"
    if not found.origin.endswith(place) or found.origin == place:
        raise FormatError(f"it is of {found.origin[:300]!r}, and not of this log")
    if keys:
        checkpoint.verify_note(note, keys)
    return Memory(size, found.root, f"a checkpoint of size {size}", bool(keys), key, data.decode())


def _summary(chains: Sequence[Chain]) -> LogSummary:
    last = chains[-1]
    totals = {name: sum(getattr(chain.totals, name) for chain in chains) for name in Totals.__slots__}
    return LogSummary(
        log=last.name,
        **totals,
        next_offset=last.next_offset,
        size=last.size,
        root=last.root.hex() if last.root is not None else None,
        sound=all(chain.sound for chain in chains),
        expired=max(chain.expired for chain in chains),
    )


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
