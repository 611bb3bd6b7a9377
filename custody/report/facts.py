"""Gathers what a report shows. Reads only: it verifies no contents, and signs nothing.

Rules:
- Verdicts are those of signed audits. What is seen besides, such as a slot that is empty now, is a problem: it can make
  the verdict of the page worse, never better.
- Statements are read for figures only, from the newest back to the beginning of the period. So a nightly report of some
  weeks costs no more because an archive is old.
- A log is in the report if it has objects, or a head that an audit or `trust.json` names, or a finding.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from custody.archive import reader, sources
from custody.archive.audit_findings import StatedFinding
from custody.archive.covered import Coverage
from custody.archive.forms import form_of, statements_of
from custody.archive.sources import Source
from custody.archive.trusted import Judge, beyond_end, check_archive, check_keys, empty_slots, known_heads, unverified
from custody.archive.writer import writer_name
from custody.errors import CustodyError, FormatError, HeadRollback, ObjectMissing
from custody.findings import Accepted, Severity
from custody.format import layout
from custody.format.audit import Audit
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.times import parse_time
from custody.keys.trust import Trust, TrustedKey
from custody.report.audits import Audits, Problem, Stored, walk
from custody.report.figures import Figures, State, Tally, tally_of
from custody.report.spans import LastRead, common, contains, length, merge, subtract
from custody.store.protocol import Store
from custody.tlog.signatures import check_checkpoint

_PARALLEL = 16
_CHUNK = 64
"""Statements of a log that are read at a time."""
_CHECKPOINTS_TRIED = 20


@dataclass(frozen=True, slots=True)
class CheckpointFact:
    """A log's newest checkpoint that its own key signed."""

    size: int
    root: str
    signers: tuple[str, ...]
    witnessed: tuple[tuple[str, int], ...]
    """Trusted witnesses that cosigned it, and when, in seconds since 1970."""


@dataclass(slots=True)
class LogFact:
    """What is known of one log.

    Attributes:
        name: `<log>/<partition>`.
        size: how many statements the audit signed.
        root: of the tree over them; None if no audit has a head of this log.
        severity: the worst finding about it, None without any.
        last_audit: the last audit that read any of its statements.
        end: where it ends now.
        tally: of the statements that were read for the period.
        last_sealed: when its newest statement was sealed.
        verified, pending, damaged, expired: how many statements of the whole log are in each state.
        checkpoint: the newest one that counts.
        checkpoint_problem: why there is none.
    """

    name: str
    size: int = 0
    root: str | None = None
    severity: Severity | None = None
    last_audit: int | None = None
    end: int = 0
    tally: Tally = field(default_factory=Tally)
    last_sealed: str | None = None
    verified: int = 0
    pending: int = 0
    damaged: int = 0
    expired: int = 0
    checkpoint: CheckpointFact | None = None
    checkpoint_problem: str = ""


@dataclass(slots=True)
class Facts:
    """All that a report shows.

    Attributes:
        url: the archive's address.
        archive: its id.
        created: when it was created.
        made_at: when the report was made.
        version: the program's name and version.
        audit: the audit that it shows.
        audits: what the walk over the audits has found.
        logs: each log.
        audit_log: the log of audits, for its checkpoint.
        problems: what was seen while the report was made.
        unverified: why signatures could not be checked; empty if all were.
        keys: the keys that the reader trusts.
        quorum: how many witnesses must cosign a checkpoint.
        witnesses: names of the trusted witnesses.
        accepted: the findings that somebody accepted.
        sources: the sources that the audit knows, those that lack most first; None if it says nothing of sources.
        figures: of the period's statements.
        since, until: the period that was asked for.
        reread_days: within how many days all is read again; None if this reader does not know.
    """

    url: str
    archive: str
    created: str
    made_at: datetime
    version: str
    audit: Stored
    audits: Audits
    logs: list[LogFact]
    audit_log: LogFact
    problems: list[Problem]
    unverified: list[str]
    keys: tuple[TrustedKey, ...]
    quorum: int
    witnesses: tuple[str, ...]
    accepted: tuple[Accepted, ...]
    sources: list[Source] | None
    figures: Figures
    since: datetime | None
    until: datetime | None
    reread_days: int | None

    @property
    def statement(self) -> Audit:
        """What the audit says."""
        return self.audit.statement

    @property
    def severity(self) -> Severity | None:
        """The worst of all: the audit's verdict, findings that are open, problems. None if nothing is wrong."""
        found = [each.severity for each in self.audits.findings]
        found += [each.severity for _, each in self.audits.open]
        found += [problem.severity for problem in self.problems]
        verdict = _VERDICTS.get(self.statement.verdict)
        return max([*found, *([verdict] if verdict else [])], default=None)

    @property
    def not_looked_at(self) -> list[str]:
        """Logs of which the audit read nothing: it was of a part of the archive, or could not read them."""
        return [log.name for log in self.logs if log.size and log.name not in self.statement.covered]


_VERDICTS = {
    "notices": Severity.NOTICE,
    "policy": Severity.POLICY,
    "incomplete": Severity.INCOMPLETE,
    "unverifiable": Severity.UNVERIFIABLE,
    "tampered": Severity.TAMPERED,
}


def gather(
    store: Store,
    trust: Trust,
    made_at: datetime,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    audit: int | None = None,
    reread_days: int | None = None,
) -> Facts:
    """Read the archive, and return what its report shows.

    Args:
        store: the archive.
        trust: the keys at hand; none is fine, and then the page says `unverified`.
        made_at: the time.
        since: figures are of statements sealed at this time or later.
        until: figures are of statements sealed before this time.
        audit: the sequence of the audit to show; None for the newest.
        reread_days: within how many days nightly audits read all again, if that is known.

    Raises:
        NoArchive: there is no archive here.
        ConfigurationError: the keys are those of another archive.
        CustodyError: it has no audit yet, or the store does not give it.
    """
    file = reader.read_archive(store)
    problem = check_archive(file, trust) if trust.keys else None
    if problem:
        # An archive.json that somebody replaced is shown on the page. With another archive's keys there is no page.
        with suppress(HeadRollback):
            check_keys(store, file, trust)
    archive = None if problem else file.id
    audits = walk(store, archive, trust, audit)
    problems = [Problem(Severity.UNVERIFIABLE, problem)] if problem else []
    problems += audits.problems
    if audits.newest is None:
        reasons = "".join(f" {each.message}." for each in problems[:3])
        raise CustodyError(
            f"{store.url} has no signed audit to report on: run `custody audit` first, or wait for the nightly"
            f" audit.{reasons} `custody verify` verifies the archive now"
        )
    statement = audits.newest.statement
    figures = Figures()
    gathering = _Gathering(store, archive, trust, made_at, audits, figures, problems, since, until)
    for each in (*audits.findings, *(each for _, each in audits.open)):
        gathering.about.setdefault(each.log or "", []).append(each)
    names = {str(log) for log in reader.named_logs(store, {*statement.heads, *trust.heads})}
    names |= gathering.about.keys() - {"", str(layout.AUDIT_LOG)}
    logs = [gathering.log(name) for name in sorted(names)]
    audit_log = gathering.audit_log(statement.sequence)
    unchecked = unverified(trust, gathering.unchecked, ", and no trusted checkpoint covers these statements")
    return Facts(
        url=store.url,
        archive=file.id,
        created=file.statement.created,
        made_at=made_at,
        version=writer_name().partition(",")[0],
        audit=audits.newest,
        audits=audits,
        logs=logs,
        audit_log=audit_log,
        problems=problems,
        unverified=[f"{log}: {message}" if log else message for log, message in unchecked],
        keys=tuple(trust.keys.values()),
        quorum=trust.quorum,
        witnesses=tuple(witness.name for witness in trust.witnesses),
        accepted=trust.accepted,
        sources=_sources(store, statement, problems),
        figures=figures,
        since=since,
        until=until,
        reread_days=reread_days,
    )


def _sources(store: Store, statement: Audit, problems: list[Problem]) -> list[Source] | None:
    try:
        known = sources.read(store, statement)
    except FormatError as error:
        # A finding of the next audit. No verdict rests on it.
        problems.append(Problem(Severity.NOTICE, f"what the audit knew of sources is not shown: {error}"))
        return None
    if known is None:
        return None
    return sorted(known.sources.values(), key=lambda source: (-source.missing, -source.repeats, source.name))


@dataclass(slots=True)
class _Gathering:
    """Reads logs for a report."""

    store: Store
    archive: str | None
    trust: Trust
    made_at: datetime
    audits: Audits
    figures: Figures
    problems: list[Problem]
    since: datetime | None
    until: datetime | None
    about: dict[str, list[StatedFinding]] = field(default_factory=dict)
    """Findings by log."""
    unchecked: dict[Log, int] = field(default_factory=dict)

    def log(self, name: str) -> LogFact:
        """Return what is known of a log, and add its statements of the period to the figures."""
        newest = self.audits.newest
        head = newest.statement.heads.get(name) if newest else None
        made = LogFact(name, head.size if head else 0, head.root if head else None)
        about = self.about.get(name, [])
        made.severity = max((each.severity for each in about), default=None)
        log = layout.parse_log_text(name)
        if log is None:
            return made
        states = self._states(name, about)
        judge = Judge(self.store, log, statements_of(log), self.archive, self.trust)
        known = any(key.algorithm in statements_of(log).wanted for key in self.trust.keys.values())
        holds: reader.Holds[Any] = partial(judge.may_stand, by_known_keys=known)
        made.end = self._end(log, holds, made.size)
        self._find_checkpoint(log, made, judge)
        self._count(made, states)
        coverage = Coverage(self.store, log, statements_of(log), judge, self.trust)
        self._read(log, made, holds, states, coverage)
        self._check_end(log, made, judge)
        self.unchecked[log] = coverage.uncovered
        return made

    def audit_log(self, newest: int) -> LogFact:
        """Return what is known of the log of audits."""
        log = layout.AUDIT_LOG
        made = LogFact(str(log), size=newest + 1, end=newest + 1)
        judge = Judge(self.store, log, form_of(log), self.archive, self.trust)
        self._check_end(log, made, judge)
        self._find_checkpoint(log, made, judge)
        return made

    def _states(self, name: str, about: Sequence[StatedFinding]) -> "_States":
        newest = self.audits.newest
        marks = newest.statement.marks.get(name) if newest else None
        damaged = [
            (each.sequence, max(each.sequence, each.through or 0) + 1)
            for each in about
            if each.sequence is not None and each.severity >= Severity.INCOMPLETE
        ]
        return _States(self.audits.read.get(name, LastRead()), merge(damaged), marks.expired if marks else 0)

    def _end(self, log: Log, holds: "reader.Holds[Any]", size: int) -> int:
        try:
            return reader.find_tip(self.store, log, holds, size).head.size
        except (FormatError, ObjectMissing) as error:
            message = f"the end of the log cannot be found: {error}"
            self.problems.append(Problem(Severity.UNVERIFIABLE, message, str(log)))
            return size

    def _count(self, made: LogFact, states: "_States") -> None:
        made.last_audit = states.read.newest()
        whole = (0, max(made.end, made.size, made.checkpoint.size if made.checkpoint else 0))
        expired = (0, min(states.expired, whole[1]))
        # Signed heads know statements after the end: they are gone.
        lost = merge([*states.damaged, (made.end, whole[1])])
        damaged = [part for span in common(lost, whole) for part in subtract(span, [expired])]
        read = [part for span in common(states.read.all, whole) for part in subtract(span, merge([expired, *damaged]))]
        made.expired, made.damaged, made.verified = expired[1], length(damaged), length(read)
        made.pending = whole[1] - made.expired - made.damaged - made.verified

    def _read(self, log: Log, made: LogFact, holds: "reader.Holds[Any]", states: "_States", coverage: Coverage) -> None:
        """Read a log's statements from the newest back, as far as the period goes."""
        missing: list[tuple[int, int]] = []
        passed_over = range(0)
        for chunk in self._chunks(log, max(made.end, made.size), holds):
            self._cover(chunk, coverage)
            for sequence, manifest in chunk:
                statement = manifest.statement if manifest else None
                if statement is None:
                    if sequence not in passed_over:
                        missing.append((sequence, sequence + 1))
                    continue
                if statement.passed_over:
                    passed_over = range(sequence - len(statement.passed_over), sequence)
                made.last_sealed = made.last_sealed or statement.sealed_at
                if not self._is_of_period(statement):
                    continue
                tally = tally_of(statement, states.of(sequence))
                made.tally.add(tally)
                self.figures.add(statement, tally)
        if missing:
            message = empty_slots(statements_of(log), merge(missing))
            self.problems.append(Problem(Severity.INCOMPLETE, message, str(log)))

    def _is_of_period(self, statement: Statement) -> bool:
        sealed_at = parse_time(statement.sealed_at)
        return not ((self.since and sealed_at < self.since) or (self.until and sealed_at >= self.until))

    def _cover(self, chunk: Sequence[tuple[int, Manifest | None]], coverage: Coverage) -> None:
        """Count the statements of the period, in a chunk from the newest back, that are not covered."""
        for sequence, manifest in reversed(chunk):
            if manifest is not None:
                coverage.add(sequence, manifest, counted=self._is_of_period(manifest.statement))
        coverage.end()

    def _chunks(self, log: Log, end: int, holds: "reader.Holds[Any]") -> Iterator[list[tuple[int, Manifest | None]]]:
        def read(sequence: int) -> Manifest | None:
            try:
                return reader.read_manifest(self.store, log, sequence, holds)
            except (ObjectMissing, FormatError):
                return None

        with ThreadPoolExecutor(_PARALLEL) as threads:
            while end > 0:
                several = range(end - 1, max(end - 1 - _CHUNK, -1), -1)
                chunk = list(zip(several, threads.map(read, several), strict=True))
                yield chunk
                end = several[-1]
                times = [manifest.statement.sealed_at for _, manifest in chunk if manifest]
                # A whole chunk before the period: what is older is not read.
                if self.since and times and all(parse_time(time) < self.since for time in times):
                    return

    def _check_end(self, log: Log, made: LogFact, judge: Judge) -> None:
        heads = [(head.size, origin) for origin, head in known_heads(self.trust, log)]
        if made.size and log != layout.AUDIT_LOG:
            heads.append((made.size, "the audit"))
        if (message := beyond_end(self.store, log, form_of(log), judge, made.end, heads)) is not None:
            self.problems.append(Problem(Severity.TAMPERED, message, str(log)))

    def _find_checkpoint(self, log: Log, made: LogFact, judge: Judge) -> None:
        sizes = reader.checkpoint_sizes(self.store, log)
        made.checkpoint_problem = "it has no checkpoint yet" if not sizes else "none of the newest ones counts"
        if not any(key.public for key in self.trust.keys.values()):
            made.checkpoint_problem = "no key is at hand that signs checkpoints"
            return
        for note, parsed in reader.read_checkpoints(self.store, log, sizes[: -_CHECKPOINTS_TRIED - 1 : -1]):
            if judge.refusal(note, parsed) is None:
                verdict = check_checkpoint(
                    note,
                    parsed,
                    str(log),
                    self.trust.keys,
                    within=lambda _: True,
                    witnesses=self.trust.witnesses,
                    quorum=self.trust.quorum,
                    now=self.made_at,
                )
                made.checkpoint = CheckpointFact(parsed.size, parsed.root.hex(), verdict.signers, verdict.witnessed)
                return


@dataclass(frozen=True, slots=True)
class _States:
    """Which state each statement of a log is in."""

    read: LastRead
    damaged: list[tuple[int, int]]
    expired: int

    def of(self, sequence: int) -> State:
        """Return the state of a statement."""
        if sequence < self.expired:
            return "expired"
        if contains(self.damaged, sequence):
            return "damaged"
        return "verified" if contains(self.read.all, sequence) else "pending"
