"""Gathers what a report shows. Reads only: it verifies no contents but those with alerts of rules, and signs nothing.

Rules:
- Verdicts are those of signed audits. What is seen besides, such as a slot that is empty now, is a problem: it can make
  the verdict of the page worse, never better.
- Statements are for figures only, and only those that the audit's time index does not put outside of the period. Those
  that it covers are taken from its rows, by hundreds (`custody.report.statements`). So a nightly report of some weeks
  costs no more because an archive is old, and little more because it has many statements.
- A log is in the report if it has objects, or a head that an audit or `trust.json` names, or a finding.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from custody.archive import reader, sources, time_index
from custody.archive.sources import Source
from custody.archive.trusted import check_archive, check_keys, unverified
from custody.archive.writer import writer_name
from custody.errors import CustodyError, FormatError, HeadRollback
from custody.findings import Accepted, Severity
from custody.format.archive_file import ArchiveFile
from custody.format.audit import Audit
from custody.format.times import parse_time, shift
from custody.keys.trust import Trust, TrustedKey
from custody.report.audits import Audits, Problem, Stored, walk
from custody.report.detections import Detections
from custody.report.figures import Figures
from custody.report.logs import LogFact, LogReader
from custody.report.statements import Period, Rows
from custody.store.protocol import Store


@dataclass(frozen=True, slots=True)
class Reader:
    """For whom a report is made: the keys that count, and what is known of the nightly audits.

    Attributes:
        keys: the keys that are trusted.
        quorum: how many witnesses must cosign a checkpoint.
        witnesses: names of the trusted witnesses.
        accepted: the findings that somebody accepted.
        reread_days: within how many days all is read again; None if it is not known.
    """

    keys: tuple[TrustedKey, ...]
    quorum: int
    witnesses: tuple[str, ...]
    accepted: tuple[Accepted, ...]
    reread_days: int | None


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
        audits: what the walk over the audits has given.
        logs: each log.
        audit_log: the log of audits, for its checkpoint.
        problems: what was seen while the report was made.
        unverified: why signatures could not be checked; empty if all were.
        reader: for whom it is.
        sources: the sources that the audit knows, those that lack most first; None if it says nothing of sources.
        detections: the alerts of rules that are archived in the period's statements.
        figures: of the period's statements.
        period: the period that was asked for.
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
    reader: Reader
    sources: list[Source] | None
    detections: Detections
    figures: Figures
    period: Period

    @property
    def statement(self) -> Audit:
        """What the audit says."""
        return self.audit.statement

    @property
    def severity(self) -> Severity | None:
        """The worst of all: the audit's verdict, findings that are open, problems. None if nothing is wrong."""
        severities = [each.severity for each in self.audits.findings]
        severities += [each.severity for _, each in self.audits.open]
        severities += [problem.severity for problem in self.problems]
        verdict = _VERDICTS.get(self.statement.verdict)
        return max([*severities, *([verdict] if verdict else [])], default=None)

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
    last: timedelta | None = None,
    audit: int | None = None,
    reread_days: int | None = None,
    rows: Rows | None = None,
) -> Facts:
    """Read the archive, and return what its report shows.

    Args:
        store: the archive.
        trust: the keys at hand; none is fine, and then the page says `unverified`.
        made_at: the time.
        since: figures are of statements sealed at this time or later.
        until: figures are of statements sealed before this time.
        last: without `since`, how long before `until`, or before the audit was signed, figures begin; None for all.
        audit: the sequence of the audit to show; None for the newest.
        reread_days: within how many days nightly audits read all again, if that is known.
        rows: reads the rows of the time index, which needs Arrow; None to read all statements one by one.

    Raises:
        NoArchive: there is no archive here.
        ConfigurationError: the keys are those of another archive.
        CustodyError: it has no audit yet, or the store does not give it.
    """
    file = reader.read_archive(store)
    problem = _check_archive(store, file, trust)
    archive = None if problem else file.id
    audits = walk(store, archive, trust, audit)
    problems = [*([problem] if problem else []), *audits.problems]
    newest = _require_audit(store, audits, problems)
    if since is None and last is not None:
        since = shift(until or parse_time(newest.statement.sealed_at), -last)
    index = time_index.read(store, newest.statement)
    reading = LogReader(store, archive, trust, made_at, audits, Period(since, until), index, rows, Figures(), problems)
    logs = reading.logs()
    audit_log = reading.audit_log(newest.statement.sequence)
    unchecked = unverified(trust, reading.unchecked, ", and no trusted checkpoint covers these statements")
    witnesses = tuple(witness.name for witness in trust.witnesses)
    return Facts(
        url=store.url,
        archive=file.id,
        created=file.statement.created,
        made_at=made_at,
        version=writer_name().partition(",")[0],
        audit=newest,
        audits=audits,
        logs=logs,
        audit_log=audit_log,
        problems=problems,
        unverified=[f"{log}: {message}" if log else message for log, message in unchecked],
        reader=Reader(tuple(trust.keys.values()), trust.quorum, witnesses, trust.accepted, reread_days),
        sources=_sources(store, newest.statement, problems),
        detections=reading.candidates.read(store),
        figures=reading.figures,
        period=reading.period,
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


def _check_archive(store: Store, file: ArchiveFile, trust: Trust) -> Problem | None:
    """Return the problem of an archive.json that somebody replaced: the page shows it.

    Raises:
        ConfigurationError: the keys are those of another archive, and there is no page.
    """
    message = check_archive(file, trust) if trust.keys else None
    if message is None:
        return None
    with suppress(HeadRollback):
        check_keys(store, file, trust)
    return Problem(Severity.UNVERIFIABLE, message)


def _require_audit(store: Store, audits: Audits, problems: Sequence[Problem]) -> Stored:
    """Return the audit to show.

    Raises:
        CustodyError: there is none.
    """
    if audits.newest is not None:
        return audits.newest
    reasons = "".join(f" {each.message}." for each in problems[:3])
    raise CustodyError(
        f"{store.url} has no signed audit to report on: run `custody audit` first, or wait for the nightly"
        f" audit.{reasons} `custody verify` verifies the archive now"
    )
