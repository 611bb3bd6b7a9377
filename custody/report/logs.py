"""Reads what a report shows of one log: its end, its newest checkpoint, the state and the figures of its statements."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from custody.archive import reader
from custody.archive.audit_findings import StatedFinding
from custody.archive.covered import Coverage
from custody.archive.forms import form_of, statements_of
from custody.archive.known_heads import to_heads
from custody.archive.rows import Row
from custody.archive.time_index import TimeIndex
from custody.archive.trusted import Judge, beyond_end, empty_slots, known_heads
from custody.errors import FormatError, ObjectMissing
from custody.findings import Severity
from custody.format import layout
from custody.format.layout import Log
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.report.audits import Audits, Problem
from custody.report.detections import Candidates
from custody.report.figures import Figures, State, Tally, sum_by_hour
from custody.report.spans import LastRead, common, contains, length, merge, subtract
from custody.report.statements import Period, Rows, Slot, StatementReader
from custody.store.ahead import call_ahead
from custody.store.protocol import Store
from custody.tlog.signatures import check_checkpoint

_CHECKPOINTS_TRIED = 20
_NEAR = 10_000
"""Statements before the end of a log in which its newest checkpoints are looked for first: a log has many."""


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
class LogReader:
    """Reads logs for a report.

    Attributes:
        store: the archive.
        archive: its id; None if it is not known and not checked.
        trust: the keys at hand.
        made_at: the time.
        audits: what the walk over the audits has given.
        period: whose statements are read for figures.
        index: the audit's time index.
        rows: reads its rows; None to read all statements one by one.
        figures: the statements of the period are added to them.
        problems: what is seen is added to them.
        candidates: the statements of the period that may have alerts of rules are added to them.
        unchecked: by log, how many statements of the period no trusted checkpoint or key covers.
    """

    store: Store
    archive: str | None
    trust: Trust
    made_at: datetime
    audits: Audits
    period: Period
    index: TimeIndex
    rows: Rows | None
    figures: Figures
    problems: list[Problem]
    candidates: Candidates = field(default_factory=Candidates)
    unchecked: dict[Log, int] = field(default_factory=dict)
    _about: dict[str, list[StatedFinding]] = field(default_factory=dict)
    """Findings by log."""

    def __post_init__(self) -> None:
        for each in (*self.audits.findings, *(each for _, each in self.audits.open)):
            self._about.setdefault(each.log or "", []).append(each)

    def names(self) -> list[str]:
        """Return the logs of the report: those that have objects, a head that somebody names, or a finding."""
        heads = self.audits.newest.statement.heads if self.audits.newest else {}
        names = {str(log) for log in reader.named_logs(self.store, {*heads, *self.trust.heads})}
        return sorted(names | (self._about.keys() - {"", str(layout.AUDIT_LOG)}))

    def logs(self) -> list[LogFact]:
        """Return what is known of each log, and add its statements of the period to the figures."""
        return [self._read(begun) for begun in call_ahead(self.store, self._begin, self.names())]

    def _begin(self, name: str) -> "_Begun":
        """Return what is known of a log before its statements are read. Threads call it for several logs at once."""
        newest = self.audits.newest
        head = newest.statement.heads.get(name) if newest else None
        made = LogFact(name, head.size if head else 0, head.root if head else None)
        about = self._about.get(name, [])
        made.severity = max((each.severity for each in about), default=None)
        begun = _Begun(made, self._states(name, about))
        log = layout.parse_log_text(name)
        if log is None:
            return begun
        judge = Judge(self.store, log, statements_of(log), self.archive, self.trust)
        known = any(key.algorithm in statements_of(log).wanted for key in self.trust.keys.values())
        holds: reader.Holds[Any] = partial(judge.may_stand, by_known_keys=known)
        made.end = self._end(log, holds, made.size, begun.problems)
        self._find_checkpoint(log, made, judge)
        self._count(made, begun.states)
        coverage = Coverage(self.store, log, statements_of(log), judge, self.trust, near=made.end)
        rows = self.rows if self._may_use_rows(log, coverage) else None
        begun.statements = StatementReader(self.store, log, holds, coverage, self.period, self.index, rows)
        begun.slots = begun.statements.slots(max(made.end, made.size))
        self._check_end(log, made, judge, begun.problems)
        return begun

    def audit_log(self, newest: int) -> LogFact:
        """Return what is known of the log of audits."""
        log = layout.AUDIT_LOG
        made = LogFact(str(log), size=newest + 1, end=newest + 1)
        judge = Judge(self.store, log, form_of(log), self.archive, self.trust)
        self._check_end(log, made, judge, self.problems)
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

    def _end(self, log: Log, holds: "reader.Holds[Any]", size: int, problems: list[Problem]) -> int:
        try:
            return reader.find_tip(self.store, log, holds, size).head.size
        except (FormatError, ObjectMissing) as error:
            message = f"the end of the log cannot be found: {error}"
            problems.append(Problem(Severity.UNVERIFIABLE, message, str(log)))
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

    def _may_use_rows(self, log: Log, coverage: Coverage) -> bool:
        """Return whether rows of a log count as its statements would.

        Either the keys at hand check all statements, or a trusted head covers what the audit signed. Without keys
        nothing is checked.
        """
        if not self.trust.keys or self.trust.checks_all(statements_of(log).wanted):
            return True
        head = to_heads(self.audits.newest.statement.heads).get(str(log)) if self.audits.newest else None
        return head is not None and coverage.shows(head)

    def _read(self, begun: "_Begun") -> LogFact:
        """Read a log's statements from the newest back, as far as the period goes, and return what is known of it."""
        made, statements = begun.made, begun.statements
        self.problems += begun.problems
        if statements is None:
            return made
        missing: list[tuple[int, int]] = []
        passed_over = range(0)
        for several in begun.slots:
            stated: list[tuple[State, Row]] = []
            for sequence, row, read in several:
                if row is None:
                    if sequence not in passed_over:
                        missing.append((sequence, sequence + 1))
                    continue
                if row.passed_over:
                    passed_over = range(sequence - row.passed_over, sequence)
                made.last_sealed = made.last_sealed or format_time(row.sealed_at)
                if self.period.has(row.sealed_at):
                    stated.append((begun.states.of(sequence), row))
                    self.candidates.add(row, read)
            for sums in sum_by_hour(stated):
                made.tally.add(sums.tally)
                self.figures.add(sums)
        if missing:
            message = empty_slots(statements_of(statements.log), merge(missing))
            self.problems.append(Problem(Severity.INCOMPLETE, message, made.name))
        self.unchecked[statements.log] = statements.coverage.uncovered
        return made

    def _check_end(self, log: Log, made: LogFact, judge: Judge, problems: list[Problem]) -> None:
        heads = [(head.size, origin) for origin, head in known_heads(self.trust, log)]
        if made.size and log != layout.AUDIT_LOG:
            heads.append((made.size, "the audit"))
        if (message := beyond_end(self.store, log, form_of(log), judge, made.end, heads)) is not None:
            problems.append(Problem(Severity.TAMPERED, message, str(log)))

    def _find_checkpoint(self, log: Log, made: LogFact, judge: Judge) -> None:
        newest = reader.checkpoint_sizes(self.store, log, max(made.end - _NEAR, -1))
        sizes = newest or reader.checkpoint_sizes(self.store, log)
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


@dataclass(slots=True)
class _Begun:
    """What is known of a log before its statements are read.

    Attributes:
        made: all but the statements of the period.
        states: of its statements.
        statements: reads them; None of what is no log.
        slots: where they are, some at a time.
        problems: what was seen.
    """

    made: LogFact
    states: "_States"
    statements: StatementReader | None = None
    slots: Iterable[Sequence[Slot]] = ()
    problems: list[Problem] = field(default_factory=list)


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
