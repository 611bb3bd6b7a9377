"""The auditor: reads an archive through its store, recomputes everything, and says what it found.

It shares the code that reads and defines the format with the writer, and none that writes an archive. Rules are
numbered as in FORMAT.md, Verification; where each is held:

- 1, 2, 3 and 5, signed logs: `tlog/log.py` and `tlog/signatures.py`, pure.
- 4 and 6, one log's statements in order: `chain.py`, pure. The log of audits: `audits.py`, pure.
- 7 to 9, the stored bytes and the lines in them: `contents.py`, in worker processes (`workers.py`).
- 10, objects that no manifest names: `orphans.py`; versions, delete markers, locks, lifecycle rules: `protection.py`.
- 1 and 11, known heads: `heads.py` (`--state`), `trust.json`, checkpoints and audits.

This module lists first, reads manifests then, hands objects to workers, and adds up. Memory stays bounded at any size
of archive: manifests are streamed, what a listing shows is kept in little (`listing.py`), and no more than a few
segments are under way. A `Scope` narrows it to a part; then memories of heads beyond that part are not asked.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from custody.archive.forms import form_of
from custody.archive.known_heads import State
from custody.archive.reader import Holds, first_sequence, read_manifest, stored_digest
from custody.archive.trusted import Judge, check_archive_signatures
from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.findings import Finding, Findings, Severity, finding, loss_digest
from custody.format import archive_file, layout
from custody.format.archive_file import ArchiveFile, Pin
from custody.format.audit import Audit, ObjectRef, parse_object
from custody.format.envelope import FILE_LIMIT
from custody.format.manifest import Manifest, Statement
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.store.protocol import ObjectInfo, Store
from custody.tlog import checkpoint, merkle
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head, KnownHead
from custody.tlog.proofs import Proofs
from custody.tlog.signatures import NOWHERE, KeyOrder, NoteVerdict, check_checkpoint, note_keys
from custody.verify import orphans
from custody.verify.accounting import RETENTION_GRACE, Chain, Expiry, Promises, Totals
from custody.verify.audits import AuditChain
from custody.verify.listing import Listing, Names, Sequences, list_others, list_statements
from custody.verify.pool import Pool, Reader
from custody.verify.protection import UNPROTECTED, Locks, Protection, check_lifecycle, originals
from custody.verify.work import Outcome, Sink, Work

T = TypeVar("T")

_IN_PROCESS_BYTES = 8 * 1_048_576
"""Archives smaller than this are read in this process: starting others would take longer."""
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
    pending: int = 0
    """The newest statements, that nobody here can check and no checkpoint covers: they do not count as verified."""
    unreadable: int = 0
    """Offsets that the broker held and no client could decode."""
    expired_from: int = 0
    """The first of those that an expiry which was looked at covers."""
    expired_events: int = 0
    """Events of statements whose objects expired and are gone."""


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
    pin: Pin | None = None
    """Which archive.json was verified."""
    audits: Head | None = None
    """The head of the log of audits, None where it may not be remembered."""

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        events, expired = (sum(getattr(log, name) for log in self.logs) for name in ("events", "expired_events"))
        pending = sum(log.pending for log in self.logs)
        scope = f"{events:,} events in {len(self.logs)} log{'s' if len(self.logs) != 1 else ''}"
        scope += f", {expired:,} more have expired" if expired else ""
        scope += f"; {pending:,} statement{'s wait' if pending != 1 else ' waits'} for a checkpoint" if pending else ""
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
        if self.audits is not None:
            root = self.audits.root.hex()
            yield {"kind": "audits", "log": str(layout.AUDIT_LOG), "size": self.audits.size, "root": root}
        yield {
            "kind": "verdict",
            "url": self.url,
            "archive": self.archive,
            "archive_sha256": self.pin.sha256 if self.pin else None,
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
    notes: Sequence[bytes] = (),
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
        notes: cosigned checkpoints of this archive's logs, from witnesses.

    Raises:
        ConfigurationError: the state file cannot be used.
    """
    memory = State(state) if state else None
    run = _Verification(store, trust, now, memory, live, progress, scope, sink, protection, notes)
    return run.run(0 if sink is not None else workers, others)


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
        notes: Sequence[bytes],
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
        self._notes = notes
        self._given: list[tuple[str, Head, str]] | None = None
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
        self._archive: ArchiveFile | None = None
        self._id: str | None = None
        self._pin: Pin | None = None
        """What the state file is to remember of archive.json."""
        self._judge = cache(self._judge_of)

    def run(self, workers: int | None, others: Iterable[Finding]) -> Report:
        if self._scope.listing:
            self._look_beneath()
        id_ = self._id = self._read_archive()
        count = workers if workers is not None else max(os.cpu_count() or 1, 2)
        with Names() as names, self._lister() as lister:
            records = lister.submit(self._list, names, list_others)
            if self._scope.contents:
                # What is there is listed before what names it, and how much it is says how to read it.
                wait([records])
            statements = self._list(names, list_statements)
            self._take_listed(statements)
            locks = Locks(self._store, self._protection, lambda one, row: self._findings.add(one, row=row))
            pool = Pool(self._store, self._pooled(workers, count), self._take, self._sink, self._trust.leaves)
            with pool, Reader(self._store) as reader, locks:
                locks.put(layout.ARCHIVE)
                audits = self._read_audits(id_, reader, locks, names)
                known = self._known_heads(id_, audits)
                logs = {*self._listing.manifests, *known} if self._scope.spans is None else self._scope.spans
                for log in sorted(logs):
                    spans = self._scope.spans[log] if self._scope.spans is not None else (Span(),)
                    signed = self._read_checkpoints(log, spans, id_, reader, locks)
                    heads = [*known.get(log, ()), *signed]
                    for span in spans:
                        chain = self._chain_of(log, id_, heads, span, reader)
                        self._chains.setdefault(log, []).append(chain)
                        hands = _Hands(reader, pool, names, locks)
                        self._follow(chain, span, hands, complete=self._scope.listing and statements.complete)
                        id_ = id_ or chain.archive
                self._take_listed(records.result())
            complete = self._scope.listing and statements.complete and records.result().complete
            self._judge_expiries()
            self._judge_missing()
            self._judge_history()
            if complete:
                self._judge_unnamed(names, audits)
        for one in others:
            self._findings.add(one)
        if complete and not any(known.values()) and not any(map(self._size, self._chains)):
            self._findings.add(finding("empty", "the archive has no statement yet", key=layout.ARCHIVE))
        if self._state and self._pin:
            self._state.remember(self._store.url, self._pin, self._heads(audits))
        return self._report(id_, audits)

    def _chain_of(
        self, log: layout.Log, archive: str | None, heads: Sequence[KnownHead], span: "Span", reader: Reader
    ) -> Chain:
        """Return the chain that a span of a log is verified by."""
        return Chain(
            log,
            archive,
            self._trust.keys,
            self._now,
            self._findings,
            heads,
            self._earlier(log),
            self._promises(),
            span.first,
            partial(self._following, reader, partial(layout.manifest_key, log), self._listing.manifests.get(log)),
            self._proofs(log).leads_to,
        )

    def _proofs(self, log: layout.Log) -> Proofs:
        """Return what makes proofs of a log, by entries that are valid as far as that is known."""
        return self._judge(log).proofs

    def _judge_of(self, log: layout.Log) -> Judge:
        return Judge(self._store, log, form_of(log), self._id, self._trust)

    def _holds(self, log: layout.Log) -> Holds[Manifest]:
        """Return what tells whether a manifest that is read again is one that was verified, and not passed over."""
        return self._judge(log).may_stand

    def _promises(self) -> Promises:
        """Return what archive.json and our trust promise of each log."""
        found = self._archive.statement if self._archive else None
        days = max(found.retention_days if found else 0, self._trust.retention_days or 0)
        return Promises(
            heartbeat=timedelta(seconds=found.heartbeat) if found else None,
            checkpoint=timedelta(seconds=found.checkpoint) if found else None,
            retention=timedelta(days=days) if days else None,
            kept=timedelta(days=days) if self._trust.retention_days else None,
            live=self._live,
        )

    def _following(
        self, reader: Reader, key: Callable[[int], str], listed: Sequences | None, first: int
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of a log from a sequence on, for looking ahead: those listed, or all without a listing."""
        sequence = first
        while True:
            following = listed.next(sequence) if listed is not None else sequence
            if following is None:
                return
            answer = reader.read(key(following))
            if isinstance(answer, bytes):
                yield following, answer
            elif listed is None:
                return
            sequence = following + 1

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

    def _read_archive(self) -> str | None:
        """Read archive.json, compare it with what is pinned, and return the archive's id as far as it is known."""
        key = layout.ARCHIVE
        pins = [("trust.json", self._trust.archive)]
        if self._state:
            pins.append(("the state file", self._state.pin(self._store.url)))
        pinned = [(origin, pin) for origin, pin in pins if pin is not None]
        id_ = pinned[0][1].id if pinned else None
        self._pin = pinned[-1][1] if pinned else None
        digest = None
        try:
            data = self._store.read(key, limit=archive_file.FILE_LIMIT)
            digest = sha256(data).hexdigest()
            file = archive_file.parse(data)
        except ObjectMissing:
            self._findings.add(finding("archive", "there is no archive.json here", key=key))
            return id_
        except FormatError as error:
            what = f"archive.json is not of its form: {error}"
            self._findings.add(finding("archive", what, severity=Severity.TAMPERED, key=key, sha256=digest))
            return id_
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"archive.json cannot be read: {error}", key=key))
            return id_
        accepted = True
        others = [(origin, pin) for origin, pin in pinned if pin != file.pin]
        if others:
            origins, pin = " and ".join(origin for origin, _ in others), others[0][1]
            one = finding(
                "archive",
                f"this is another archive.json than {origins} pin{'s' if len(others) == 1 else ''}",
                severity=Severity.TAMPERED,
                key=key,
                expected=f"{pin.id}, SHA-256 {pin.sha256}",
                found=f"{file.id}, SHA-256 {file.pin.sha256}",
                sha256=digest,
            )
            accepted = self._findings.add(one)
        if not accepted:
            # What is pinned goes on to count, so that this alarm stays until somebody accepts it.
            return id_
        if self._is_signed(file, digest) or pinned:
            self._archive, self._pin = file, file.pin
        return file.id

    def _is_signed(self, file: ArchiveFile, digest: str) -> bool:
        """Return whether trusted keys signed archive.json, and report what is wrong with its signatures."""
        verdict = check_archive_signatures(file, self._trust, pinned=self._pin == file.pin)
        for problem in verdict.problems:
            if problem.kind == "key-span":
                what = f"archive.json: {problem.what}; whoever knows that it is this one can pin it in trust.json"
                self._findings.add(finding("archive", what, key=layout.ARCHIVE, sha256=digest))
        wrong = [one.what for one in verdict.problems if not one.open and one.kind not in {"key-unknown", "key-span"}]
        if wrong:
            what = f"the signatures of archive.json do not hold: {'; '.join(wrong)}"
            severity = Severity.TAMPERED
            self._findings.add(finding("archive", what, severity=severity, key=layout.ARCHIVE, sha256=digest))
        for problem in verdict.problems:
            # A pin stands for a key that is not known here, and one signature that holds is enough to know who signed.
            needless = self._pin == file.pin if problem.kind == "key-unknown" else verdict.counts
            if (problem.open or problem.kind == "key-unknown") and not needless:
                self._findings.add(finding(problem.kind, f"archive.json: {problem.what}", key=layout.ARCHIVE))
        return verdict.counts

    def _list(self, names: Names, objects: _Lister) -> _Listed:
        """List statements, or all else, and judge nothing yet: it may go on while what is listed is read."""
        found = _Listed()
        if not self._scope.listing:
            return found

        def failed(prefix: str, error: CustodyError) -> None:
            found.complete = False
            what = f"the archive cannot be listed: {error}"
            found.findings.add(finding("unreadable", what, key=prefix), row="listing")

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

    # --- known heads

    def _known_heads(self, archive: str | None, audits: AuditChain) -> dict[layout.Log, list[KnownHead]]:
        """Return the known heads of each log, but for checkpoints in the archive."""
        found: dict[layout.Log, list[KnownHead]] = {}

        def add(name: str, head: Head, origin: str, *, trusted: bool = False, evidence: str | None = None) -> None:
            log = layout.parse_log_text(name)
            if log is not None and head.size:
                found.setdefault(log, []).append(KnownHead(head.size, head.root, origin, trusted, evidence=evidence))

        for name, head in self._trust.heads.items():
            add(name, head, "trust.json", trusted=True)
        for key in self._trust.keys.values():
            for name, head in (key.until or {}).items():
                add(name, head, f"the end of the key {key.id!r}")
        for name, head in self._remembered().items():
            add(name, head, "the state file", trusted=True)
        for name, head, note in self._cosigned(archive):
            add(name, head, "a cosigned checkpoint", trusted=True, evidence=note)
        if audits.newest:
            statement: Audit = audits.newest.statement
            origin = f"audit {statement.sequence}"
            for name, seen in statement.heads.items():
                quoted = f'{origin}, sealed {statement.sealed_at}: "{name}":{{"size":{seen.size},"root":"{seen.root}"}}'
                add(name, Head(seen.size, bytes.fromhex(seen.root)), origin, evidence=quoted)
        for log, sizes in self._listing.checkpoints.items():
            if sizes.next(0) is not None:
                found.setdefault(log, [])
        found.pop(layout.AUDIT_LOG, None)
        return found

    def _remembered(self) -> Mapping[str, Head]:
        return self._state.heads(self._store.url) if self._state else {}

    def _cosigned(self, archive: str | None) -> Sequence[tuple[str, Head, str]]:
        """Return log, head and text of the cosigned checkpoints that were given and count; report the others, once."""
        if self._given is None:
            self._given = list(self._judge_given(archive))
        return self._given

    def _judge_given(self, archive: str | None) -> Iterator[tuple[str, Head, str]]:
        for data in self._notes:
            digest = sha256(data).hexdigest()
            try:
                note = checkpoint.parse_note(data)
                found = checkpoint.parse_checkpoint(note.text)
            except FormatError as error:
                what = f"a checkpoint that was given is none: {error}"
                self._findings.add(finding("checkpoint", what, severity=Severity.POLICY, key=digest, sha256=digest))
                continue
            name = found.origin.removeprefix(f"custody/{archive}/")
            log = layout.parse_log_text(name)
            if log is None or found.origin != checkpoint.origin_of(archive or "", log):
                what = f"a checkpoint that was given is of {found.origin[:300]!r}, and not of this archive"
                self._findings.add(finding("checkpoint", what, severity=Severity.POLICY, key=digest, sha256=digest))
                continue
            verdict = self._judge_note(note, found, log)
            if verdict.counts:
                yield name, Head(found.size, found.root), data.decode()
            else:
                what = f"a checkpoint that was given does not count: {verdict.reason}"
                self._findings.add(finding("checkpoint", what, log=name, key=digest, sha256=digest))

    def _judge_note(self, note: Note, found: Checkpoint, log: layout.Log, order: KeyOrder | None = None) -> NoteVerdict:
        return check_checkpoint(
            note,
            found,
            str(log),
            self._trust.keys,
            within=lambda head: self._proofs(log).leads_to(found.size, found.root, head),
            witnesses=self._trust.witnesses,
            quorum=self._trust.quorum,
            now=self._now,
            order=order,
        )

    def _read_checkpoints(
        self, log: layout.Log, spans: Sequence[Span], archive: str | None, reader: Reader, locks: Locks
    ) -> Iterator[KnownHead]:
        """Yield the heads that a log's checkpoints sign (rule 11), and report those that do not hold."""
        listed = self._listing.checkpoints.get(log)
        if listed is None:
            return
        order = KeyOrder()
        sizes = (size for size in listed.all() if any(one.first <= size <= (one.end or size) for one in spans))
        for size, answer in reader.objects(partial(layout.checkpoint_key, log), sizes, checkpoint.NOTE_LIMIT):
            key = layout.checkpoint_key(log, size)
            where: dict[str, Any] = {"log": str(log), "sequence": max(size - 1, 0), "key": key}
            if isinstance(answer, CustodyError) and not isinstance(answer, FormatError):
                self._findings.add(finding("unreadable", f"the checkpoint cannot be read: {answer}", **where))
                continue
            locks.put(key, log=str(log))
            if isinstance(answer, bytes):
                where["sha256"] = sha256(answer).hexdigest()
            try:
                if isinstance(answer, CustodyError):
                    raise answer
                note = checkpoint.parse_note(answer)
                found = checkpoint.parse_checkpoint(note.text)
            except FormatError as error:
                what = f"the checkpoint does not hold: {error}"
                self._findings.add(finding("checkpoint", what, severity=Severity.POLICY, **where))
                continue
            wrong = _misplaced(found, size, log, archive)
            # A copy in another place says nothing of the order of keys.
            verdict = self._judge_note(note, found, log, None if wrong else order)
            if wrong:
                # Whoever has no key can put anything here; only one who has a key, or a copy, what names a trusted key.
                severity = Severity.POLICY if verdict.unsigned else None
                what = f"the checkpoint does not hold: {wrong}"
                self._findings.add(finding("checkpoint", what, severity=severity, **where))
                continue
            if self._report_note(verdict, where, archive):
                signers = [self._trust.keys[id_] for id_ in verdict.signers]
                yield KnownHead(
                    size,
                    found.root,
                    f"a checkpoint of size {size}",
                    verdict.counts,
                    key,
                    note.encode().decode(),
                    min((one.ended for one in signers if one.ended), default=None),
                )

    def _report_note(self, verdict: NoteVerdict, where: Mapping[str, Any], archive: str | None) -> bool:
        """Report what is wrong with a checkpoint's signatures; return whether the log's own key signed it."""
        if not note_keys(self._trust.keys):
            what = "no key is trusted to check the signatures of checkpoints by"
            self._findings.add(finding("unchecked-signature", what, log=where["log"]), row="checkpoints")
            return False
        for problem in verdict.problems:
            if problem.kind == "key-span":
                severity = None if problem.policy else Severity.TAMPERED
                one = finding("key-span", problem.what, severity=severity, **where)
                self._findings.add(one, row=f"checkpoints {problem.key} {problem.policy}")
            elif problem.open:
                self._findings.add(finding(problem.kind, problem.what, **where), row=problem.key)
            else:
                self._findings.add(finding("checkpoint", f"the checkpoint does not hold: {problem.what}", **where))
        if verdict.unsigned:
            what = f"the checkpoint does not hold: {verdict.reason}"
            self._findings.add(finding("checkpoint", what, severity=Severity.POLICY, **where))
        elif (
            verdict.signers
            and len(verdict.witnessed) < verdict.quorum
            and not any(name == where["log"] for name, _, _ in self._cosigned(archive))
        ):
            what = "checkpoints in the archive are not cosigned: give those of your witnesses (--checkpoint)"
            self._findings.add(finding("unchecked-signature", what, log=where["log"]), row="quorum")
        return bool(verdict.signers)

    def _read_audits(self, archive: str | None, reader: Reader, locks: Locks, names: Names) -> AuditChain:
        """Read the log of audits."""
        log = layout.AUDIT_LOG
        name = str(log)
        known = list(self._read_checkpoints(log, (Span(),), archive, reader, locks))
        heads = [("trust.json", self._trust.heads.get(name)), ("the state file", self._remembered().get(name))]
        heads += [(f"the end of the key {key.id!r}", (key.until or {}).get(name)) for key in self._trust.keys.values()]
        known += [KnownHead(head.size, head.root, origin) for origin, head in heads if head is not None]
        known += [
            KnownHead(head.size, head.root, "a cosigned checkpoint", evidence=note)
            for of, head, note in self._cosigned(archive)
            if of == name
        ]
        listed = self._listing.audits
        following = partial(self._following, reader, layout.audit_key, listed)
        audits = AuditChain(archive, self._trust.keys, self._findings, known, following, self._proofs(log).leads_to)
        if not self._scope.listing:
            return audits
        for sequence, answer in reader.objects(layout.audit_key, listed.all(), FILE_LIMIT):
            if sequence > audits.size:
                audits.gap(audits.size, sequence)
            if isinstance(answer, FormatError):
                self._take_large(audits, layout.audit_key(sequence), sequence, answer)
            elif isinstance(answer, CustodyError):
                audits.unreadable(sequence, str(answer))
            else:
                locks.put(layout.audit_key(sequence))
                before = audits.newest
                audits.step(sequence, answer)
                if audits.newest is not None and audits.newest is not before:
                    self._check_referred(audits.newest.statement, names, locks)
        audits.end()
        return audits

    def _check_referred(self, audit: Audit, names: Names, locks: Locks) -> None:
        """Check that what an audit refers to by hash is there, and is that."""
        refs = [*audit.objects, *([audit.findings] if isinstance(audit.findings, ObjectRef) else [])]
        if len(audit.objects) == 1:
            refs += self._listed_in(audit.objects[0])
        for ref in refs:
            digest = layout.parse_audit_object_key(ref.key)
            if digest is None:
                # What is made from the archive, and can be made again.
                continue
            names.name(ref.key)
            locks.put(ref.key)
            where: dict[str, Any] = {"log": str(layout.AUDIT_LOG), "sequence": audit.sequence, "key": ref.key}
            if digest != ref.sha256:
                what = "the audit refers to an object by another SHA-256 than its key has"
                self._findings.add(finding("audit", what, expected=ref.sha256, found=digest, sha256=digest, **where))
            elif self._scope.contents:
                self._check_object(ref, where)

    def _listed_in(self, ref: ObjectRef) -> list[ObjectRef]:
        """Return the objects that an audit's one object lists, a JSON object a line; none where it is no such list."""
        if layout.parse_audit_object_key(ref.key) is None or ref.size > FILE_LIMIT:
            return []
        try:
            data = self._store.read(ref.key, limit=ref.size)
            if sha256(data).hexdigest() != ref.sha256:
                return []
            return [parse_object(line) for line in data.splitlines()]
        except CustodyError:
            # That it is missing, or another, is said where it is looked at for itself.
            return []

    def _check_object(self, ref: ObjectRef, where: Mapping[str, Any]) -> None:
        try:
            data = self._store.read(ref.key, limit=ref.size)
        except (ObjectMissing, FormatError) as error:
            what = f"what the audit refers to is not there as it was: {error}"
            digest = loss_digest(ref.key, ref.sha256)
            self._findings.add(finding("audit", what, sha256=digest, **where))
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"what the audit refers to cannot be read: {error}", **where))
        else:
            found = sha256(data).hexdigest()
            if found != ref.sha256:
                what = "what the audit refers to is not what it was"
                self._findings.add(finding("audit", what, expected=ref.sha256, found=found, sha256=found, **where))

    def _earlier(self, log: layout.Log) -> Chain | None:
        epochs = [
            chains[-1]
            for other, chains in self._chains.items()
            if (other.topic, other.partition) == (log.topic, log.partition)
            and other.epoch < log.epoch
            and chains[-1].totals.statements
        ]
        return max(epochs, key=lambda chain: chain.log.epoch, default=None)

    # --- rules 1 to 9

    def _follow(self, chain: Chain, span: Span, hands: "_Hands", *, complete: bool) -> None:
        """Read a span of a log's manifests in order, and hand on what they name."""
        listed = self._listing.manifests.get(chain.log, Sequences()) if self._scope.listing else None
        onward = span.end is None and (self._live or not complete)
        if listed is not None and not complete:
            # What a listing that broke off leaves out may be there.
            listed = listed.filled()
        self._step(chain, hands, listed, span.first, span.end, onward=onward)
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
        read = hands.reader.manifests(chain.log, listed, first, end, onward=onward)
        for (sequence, answer), behind in _with_next(read):
            if sequence > chain.size:
                # What passes over the empty slots is the entry in hand, or one behind it.
                chain.signed.peek = (sequence, answer) if isinstance(answer, bytes) else None
                chain.gap(chain.size, sequence)
            chain.signed.peek = (behind[0], behind[1]) if behind and isinstance(behind[1], bytes) else None
            if isinstance(answer, FormatError):
                self._take_large(chain, layout.manifest_key(chain.log, sequence), sequence, answer)
            elif isinstance(answer, CustodyError):
                chain.unreadable(sequence, str(answer))
            else:
                if hands.locks.active:
                    hands.locks.put(layout.manifest_key(chain.log, sequence), log=chain.name)
                self._hand_on(chain.step(sequence, answer), hands)

    def _take_large(self, chain: Chain | AuditChain, key: str, sequence: int, error: FormatError) -> None:
        """Take a slot that holds more than an entry may have. Only its digest is asked for, and it is not kept."""
        try:
            chain.malformed(sequence, str(error), stored_digest(self._store, key))
        except CustodyError as failure:
            chain.unreadable(sequence, str(failure))

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
            # Of many objects that lie in an archived class, it is one finding.
            self._findings.add(one, row="deferred" if one.finding == "deferred" else None)
        for key in outcome.missing:
            self._missing.add(work, key)
        # What a delete marker hides is not kept on purpose, and of what could not be read it is not known.
        unread = {one.key for one in outcome.findings if one.finding == "unreadable"}
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

    def _judge_expiries(self) -> None:
        """Grant each signed expiry what it covers rightly, and report what it does not.

        It counts if its signature does, or a trusted head covers it; and over statements whose age is at least the
        retention: from the latest time that any statement up to there was sealed, to the expiry's own or ours,
        whichever is earlier.
        """
        for log, chains in self._chains.items():
            for chain in chains:
                for expiry in chain.expiries:
                    counts = any(id_ not in chain.signed.broken for id_ in expiry.signers)
                    counts = counts or chain.signed.covers(expiry.sequence)
                    end = self._granted_end(log, chain, expiry) if counts else 0
                    if end > expiry.first:
                        chain.granted.append((expiry.first, end))
                    if not counts or end >= expiry.end:
                        # What is wrong with the statement itself is a finding of its own.
                        continue
                    retention = chain.promises.retention
                    what = f"sequences {max(end, expiry.first)} to {expiry.end - 1} were let expire before their time"
                    where: dict[str, Any] = {"log": str(log), "sequence": expiry.sequence}
                    where["expected"] = f"after {retention.days} days" if retention else "a known retention"
                    where["found"] = f"sealed {min(expiry.sealed_at, self._now):%Y-%m-%dT%H:%M:%SZ}"
                    self._findings.add(finding("retention", what, **where))

    def _granted_end(self, log: layout.Log, chain: Chain, expiry: Expiry) -> int:
        """Return behind which sequence of its range an expiry no longer counts."""
        retention = chain.promises.retention
        if retention is None:
            return expiry.first
        moment = min(expiry.sealed_at, self._now) - retention

        def too_young(statement: Statement) -> bool:
            # Never falls from one statement to the next, so that halving finds the first one.
            return chain.steps_back.get(statement.sequence, parse_time(statement.sealed_at)) > moment

        end = expiry.end
        if chain.steps_back_from is not None:
            end = min(end, chain.steps_back_from)
        try:
            end = min(end, first_sequence(self._store, log, expiry.end, too_young, self._holds(log)))
        except CustodyError:
            # What is wrong with a statement on the way is a finding of its own.
            return expiry.first
        return max(end, expiry.first)

    def _judge_missing(self) -> None:
        """Report objects that are not there, but for those that an expiry covers."""
        for name, missing in self._missing.logs.items():
            chains = self._chains.get(layout.parse_log_text(name) or layout.AUDIT_LOG, ())
            for work, key in missing.objects:
                if any(chain.may_be_gone(work.sequence) for chain in chains):
                    if key.startswith(layout.EVENTS):
                        self._chain(work).expired_events += sum(batch.events for batch in work.batches)
                    continue
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
            if missing.beyond is None:
                continue
            first, end = missing.beyond
            granted = max((stop for chain in chains for start, stop in chain.granted if start <= first), default=0)
            if chains:
                chains[-1].expired_events += missing.events if granted >= end else 0
            if granted < end:
                what = "so many objects are not there that no more of them are listed one by one"
                first = max(first, granted)
                self._findings.add(finding("segment-missing", what, log=name, sequence=first, through=end - 1))

    def _statement(self, log: layout.Log, sequence: int) -> Statement | None:
        try:
            return read_manifest(self._store, log, sequence, self._holds(log)).statement
        except CustodyError:
            # A finding says so already.
            return None

    # --- rule 10

    def _judge_history(self) -> None:
        """Report what was put over evidence, but for what has expired."""
        gone: dict[layout.Log, list[tuple[int, int]]] = {}
        for key, one in self._history:
            parsed = layout.parse_records_key(key)
            if parsed is None:
                self._findings.add(one)
                continue
            if parsed.log not in gone:
                gone[parsed.log] = self._expired_offsets(parsed.log)
            if not any(first <= parsed.first and parsed.last < end for first, end in gone[parsed.log]):
                self._findings.add(one)

    def _expired_offsets(self, log: layout.Log) -> list[tuple[int, int]]:
        """Return the ranges of offsets whose objects may be gone."""
        ranges = []
        for first, end in (one for chain in self._chains.get(log, ()) for one in chain.granted):
            begin, last = self._statement(log, first), self._statement(log, end - 1)
            if begin and last:
                ranges.append((begin.first_offset, last.next_offset))
        return ranges

    def _judge_unnamed(self, names: Names, audits: AuditChain) -> None:
        """Find what no manifest names, and say what it is."""
        unnamed = names.unnamed()
        if not unnamed:
            return
        seen: set[str] = set()
        try:
            # What an audit that cannot be read refers to is not known.
            objects = (layout.AUDIT_OBJECTS,) if audits.signed.sound else ()
            for prefix in (layout.EVENTS, layout.QUARANTINE, *objects):
                for info in self._store.list(prefix):
                    if names.holds(unnamed, info.key) and info.key not in seen:
                        self._judge_one(info.key, seen)
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"the archive cannot be listed again: {error}", key=layout.EVENTS))

    def _judge_one(self, key: str, seen: set[str]) -> None:
        if len(seen) >= _UNNAMED_LIMIT:
            self._findings.dropped[Severity.TAMPERED] += 1
            return
        if digest := layout.parse_audit_object_key(key):
            seen.add(key)
            self._judge_audit_object(key, digest)
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
            judged = orphans.judge(self._store, chain, key, self._holds, live=self._live)
            if judged:
                self._findings.add(judged)

    def _judge_audit_object(self, key: str, digest: str) -> None:
        """Report an object that no audit refers to: left by an audit that died or is at work, or foreign."""
        try:
            found = sha256(self._store.read(key, limit=FILE_LIMIT)).hexdigest()
        except ObjectMissing:
            return
        except FormatError:
            found = ""
        except CustodyError as error:
            self._findings.add(finding("unreadable", f"the object cannot be read: {error}", key=key))
            return
        if found == digest:
            self._findings.add(finding("orphan", "no audit refers to it", key=key))
        else:
            what = "its bytes are not those that its key names, and no audit refers to it"
            self._findings.add(finding("unlisted", what, key=key, sha256=found or loss_digest(key)))

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
        heads = {chain.name: chain.head for chains in self._chains.values() for chain in chains}
        heads[str(layout.AUDIT_LOG)] = audits.head
        return {name: head for name, head in heads.items() if head is not None}

    def _report(self, archive: str | None, audits: AuditChain) -> Report:
        logs = [_summary(chains) for log, chains in self._chains.items() if self._size(log)]
        found = self._findings
        return Report(
            self._store.url,
            archive,
            found.sorted(),
            logs,
            found.exit_code,
            dict(found.dropped),
            self._scope,
            self._archive.pin if self._archive else None,
            NOWHERE if audits.signed.sound and not audits.size else audits.head,
        )


@dataclass(frozen=True, slots=True)
class _Hands:
    """What a chain's statements are handed to."""

    reader: Reader
    pool: Pool
    names: Names
    locks: Locks


@dataclass(slots=True)
class _MissingOfLog:
    objects: list[tuple[Work, str]]
    beyond: tuple[int, int] | None = None
    """From the first to behind the last sequence of those that are not among `objects`."""
    events: int = 0
    """Of segments that are not among `objects`."""


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
            found.events += sum(batch.events for batch in work.batches) if key.startswith(layout.EVENTS) else 0


def _with_next(items: Iterator[T]) -> Iterator[tuple[T, T | None]]:
    """Yield each item with the one behind it, None behind the last."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item, following
        item = following


def _root_in_bucket(url: str) -> str:
    """Return the prefix of an archive's keys in its bucket, empty or ending in a slash."""
    _, _, prefix = url.removeprefix("s3://").partition("/")
    return f"{prefix}/" if prefix else ""


def _misplaced(found: Checkpoint, size: int, log: layout.Log, archive: str | None) -> str | None:
    """Return what makes a checkpoint one of another place than where it lies, None if it is of this one."""
    if found.size != size:
        return f"it is of size {found.size}, and not of {size}"
    if not size and found.root != merkle.EMPTY_ROOT:
        return "it is of no statement, and its root is not that of the empty tree"
    id_ = archive or found.origin.removeprefix("custody/").partition("/")[0]
    if found.origin != checkpoint.origin_of(id_, log):
        return f"it is of {found.origin[:300]!r}, and not of this log"
    return None


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
        expired=max((end for chain in chains for _, end in chain.granted), default=0),
        expired_from=min((first for chain in chains for first, _ in chain.granted), default=0),
        pending=sum(chain.pending for chain in chains),
        expired_events=sum(chain.expired_events for chain in chains),
    )
