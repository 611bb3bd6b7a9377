"""The result of a verification: a summary of each log, the findings, and the verdict in one sentence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from custody.errors import counted
from custody.findings import Finding, Severity
from custody.format import layout
from custody.format.archive_file import Pin
from custody.format.times import format_time
from custody.keys.trust import TrustedKey
from custody.tlog.head import Head
from custody.verify.accounting import LogAccount
from custody.verify.scope import Scope
from custody.verify.statement import Totals
from custody.version import version

__all__ = ["LogSummary", "Progress", "Report"]


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a verification."""

    events: int
    stored: int
    """Bytes of segments and quarantine objects read."""
    total: int
    """Bytes of segments and quarantine objects listed."""


@dataclass(frozen=True, slots=True)
class LogSummary:
    """The summary of a log."""

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
    """Whether a trusted key signed the head."""
    expired: int
    """The objects of sequences before this one may have been deleted."""
    pending: int = 0
    """The newest statements, which cannot be checked here and have no checkpoint yet: they are not verified."""
    unreadable: int = 0
    """Offsets that the broker had but no client could decode."""
    expired_from: int = 0
    """The first sequence that the checked expiries cover."""
    expired_events: int = 0
    """Events of statements whose objects expired and are gone."""
    expired_quarantined: int = 0
    """Quarantined records of such statements."""
    expired_sealed: tuple[str, str] | None = None
    """When the first and the last of these statements were sealed."""
    outside: int = 0
    """Statements whose objects were not read, because they were sealed outside the times that were asked for."""
    expired_at: str | None = None
    """When the newest expiry that counts was sealed, by its writer's clock."""


@dataclass(frozen=True, slots=True)
class Made:
    """How a verification was made, so that its output says something later.

    Attributes:
        at: when it began, by the verifier's clock.
        seconds: how long it took.
        keys: the keys that it trusted.
        version: of custody.
    """

    at: datetime
    seconds: float
    keys: Sequence[TrustedKey]
    version: str

    @classmethod
    def now(cls, at: datetime, seconds: float, keys: Sequence[TrustedKey]) -> "Made":
        """Return how this program made a verification."""
        return cls(at, seconds, keys, version())

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints in the verdict. No secret is in it."""
        return {
            "at": format_time(self.at),
            "seconds": round(self.seconds, 3),
            "version": self.version,
            "keys": [
                {
                    "id": key.id,
                    "algorithm": key.algorithm,
                    "public_sha256": sha256(key.public).hexdigest() if key.public else None,
                    "checkable": key.checkable,
                    "sources": list(key.sources),
                }
                for key in self.keys
            ],
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not in the part that a user chose.

    Attributes:
        logs: logs of which nothing was read.
        statements: their listed statements.
    """

    logs: int = 0
    statements: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a verification."""

    url: str
    archive: str | None
    findings: Sequence[Finding]
    """The worst first."""
    logs: Sequence[LogSummary]
    exit_code: int
    beyond: Mapping[Severity, int]
    """Findings that are too many to be listed, counted by severity."""
    scope: Scope
    made: Made
    left_out: LeftOut = LeftOut()
    pin: Pin | None = None
    """The pin of the verified archive.json."""
    audits: Head | None = None
    """The head of the log of audits, None if it must not be saved as a known head."""

    @property
    def verdict(self) -> str:
        """The result in one sentence. That of a part says first that it is one, and last what is outside."""
        if not self.scope.part:
            return self._verdict
        return f"of a part only ({self.scope.part}): {self._verdict}; {self._outside}"

    @property
    def _outside(self) -> str:
        """What is outside the part."""
        unread, left = sum(log.outside for log in self.logs), self.left_out
        outside = []
        if left.logs:
            logs, statements = counted(left.logs, "log"), counted(left.statements, "statement")
            outside.append(f"{logs} of {statements}, of which nothing was read")
        if unread:
            outside.append(
                f"{counted(unread, 'statement')} sealed at other times, whose chain was checked, but no event was read"
            )
        return f"not in this part: {', and '.join(outside)}" if outside else "nothing is outside this part"

    @property
    def _verdict(self) -> str:
        events, pending = (sum(getattr(log, name) for log in self.logs) for name in ("events", "pending"))
        expired = sum(log.expired - log.expired_from for log in self.logs)
        logs = counted(len(self.logs), "log")
        scope = f"{counted(events, 'event')} in {logs}{self._gone}"
        scope += f"; {counted(pending, 'statement waits', 'statements wait')} for a checkpoint" if pending else ""
        notices = sum(kept.severity is Severity.NOTICE for kept in self.findings) + self.beyond.get(Severity.NOTICE, 0)
        worse = len(self.findings) + sum(self.beyond.values()) - notices
        noticed = counted(notices, "notice")
        counts = f"{counted(worse, 'finding')}{f', {noticed}' if notices else ''}"
        empty = any(kept.finding == "empty" for kept in self.findings)
        match self.exit_code:
            case 0 if not self.scope.contents:
                statements = counted(expired, "statement was", "statements were")
                declared = f"; {statements} declared expired: their objects may be gone"
                return f"chain verified: {logs}; no segment was read{declared if expired else ''}"
            case 0 if expired:
                return f"verified: {scope}; all that is left was read, and every hash of it recomputed"
            case 0 if self.scope.part:
                return f"verified: {scope}; every hash of it recomputed, every line of it read"
            case 0:
                return f"verified: {scope}; every hash recomputed, every line read"
            case Severity.NOTICE:
                return f"{'nothing to verify' if empty else 'verified'}, with {noticed}: {scope}"
            case Severity.POLICY:
                return f"against policy: {counts}; {scope}"
            case Severity.INCOMPLETE:
                return f"incomplete: {counts}; {scope}"
            case Severity.UNVERIFIABLE:
                return f"unverifiable: {counts}; {scope}"
            case _:
                return f"TAMPERED: {counts}; {scope}"

    @property
    def _gone(self) -> str:
        """How many records expired and are gone, when they were sealed, and when they were declared expired."""
        events, records = (
            sum(getattr(log, name) for log in self.logs) for name in ("expired_events", "expired_quarantined")
        )
        counts = [f"{events:,} more"] if events else []
        counts += [counted(records, "quarantined record")] if records else []
        if not counts:
            return ""
        sealed = [moment for log in self.logs for moment in log.expired_sealed or ()]
        declared = [log.expired_at for log in self.logs if log.expired_sealed and log.expired_at]
        ages = f"sealed from {min(sealed)[:10]} to {max(sealed)[:10]}" if sealed else ""
        last = f", the last declared expired on {max(declared)[:10]}" if declared else ""
        verb = "has" if not events and records == 1 else "have"
        return f", {' and '.join(counts)} {verb} expired{f' ({ages}{last})' if ages else ''}"

    def to_dicts(self) -> Iterator[dict[str, Any]]:
        """Yield what `--json` prints, one object per line: the findings, the logs, the verdict."""
        for finding in self.findings:
            yield {"kind": "finding", **finding.to_dict()}
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
            "part": self.scope.part.to_dict() if self.scope.part else None,
            "left_out": asdict(self.left_out),
            **self.made.to_dict(),
        }


def summarize(accounts: Sequence[LogAccount]) -> LogSummary:
    """Return the summary of a log, from the accounts of its spans."""
    last, root = accounts[-1], accounts[-1].signed.root
    sealed = [moment for account in accounts for moment in account.expired_sealed or ()]
    declared = [
        expiry.sealed_at
        for account in accounts
        for expiry in account.expiries
        if any(first == expiry.first for first, _ in account.granted)
    ]
    # Without a gap from the first one on. Ranges behind a gap say nothing of the objects in it.
    ranges = sorted(granted for account in accounts for granted in account.granted)
    start = expired = ranges[0][0] if ranges else 0
    for first, end in ranges:
        expired = max(expired, end) if first <= expired else expired
    totals = {name: sum(getattr(account.totals, name) for account in accounts) for name in Totals.__slots__}
    return LogSummary(
        log=last.name,
        **totals,
        next_offset=last.next_offset,
        size=last.size,
        root=root.hex() if root is not None else None,
        sound=all(account.signed.sound for account in accounts),
        expired=expired,
        expired_from=start,
        pending=sum(account.pending for account in accounts),
        expired_events=sum(account.expired_events for account in accounts),
        expired_quarantined=sum(account.expired_quarantined for account in accounts),
        expired_sealed=(min(sealed), max(sealed)) if sealed else None,
        expired_at=format_time(max(declared)) if declared else None,
    )
