"""What the health of an installation is: values alone, without any request.

Rules:
- A number that is not known is None, never 0.
- A name ends in its unit. Counts are of records or statements.
- Everything that is wrong is a `Problem`, with what to do. `kind` and `level` are stable: programs may use them.
- Nothing here holds a secret, so all of it may be printed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from custody.format.audit import Verdict
from custody.format.times import duration_text, format_time, parse_time
from custody.store.protocol import CLOCK_SLACK

Level = Literal["ok", "warning", "failed"]
Kind = Literal[
    "archive-untrusted",
    "audit-failed",
    "audit-late",
    "audit-missing",
    "audit-unreadable",
    "alerts-nobody",
    "alerts-unreadable",
    "archive-unreachable",
    "clock",
    "heads-unchecked",
    "headroom",
    "index-cursor",
    "index-late",
    "index-unknown",
    "kafka-unreachable",
    "lag",
    "lag-unknown",
    "log-damaged",
    "log-unknown",
    "lost",
    "not-drained",
    "quarantined",
    "silent",
    "topic-changed",
    "topic-missing",
    "topic-refused",
    "topic-without-log",
    "unreadable",
]
LEVELS: Sequence[Level] = ("ok", "warning", "failed")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        level: `failed` needs somebody now; a `warning` can wait until the morning.
        kind: what is wrong, as a stable name.
        subject: what it is about: a log, a topic, `kafka`, `archive`, `search`, `audit` or `alerts`.
        message: what is wrong, in one sentence without a full stop.
        remedy: what to do.
    """

    level: Literal["warning", "failed"]
    kind: Kind
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Recent:
    """What the newest statements of a log account for.

    Attributes:
        statements: how many of them were read.
        events: events archived.
        quarantined: records put into quarantine.
        lost: offsets that the broker had deleted before they were read.
        unreadable: offsets that the broker holds, and that no client could decode.
        since: when the oldest of these statements was sealed.
        reason: the commonest reason of the quarantined records; None unless they are too many.
    """

    statements: int = 0
    events: int = 0
    quarantined: int = 0
    lost: int = 0
    unreadable: int = 0
    since: str | None = None
    reason: str | None = None

    @property
    def quarantined_share(self) -> float | None:
        """Which share of the records is in quarantine, from 0 to 1; None if there are no records."""
        records = self.events + self.quarantined
        return self.quarantined / records if records else None


@dataclass(frozen=True, slots=True)
class LogHealth:
    """One log.

    Attributes:
        log: `<log>/<partition>`.
        size: statements in it.
        root: root of the tree over them, in hex.
        next_offset: the first offset that the archive does not account for.
        sealed_at: when the newest statement was sealed.
        head_age_seconds: how long ago the newest statement was sealed whose time is not of the future; None if none of
            the newest ones is.
        lag_records: offsets from `next_offset` to the partition's read-uncommitted end.
        lag_seconds: how long the record at `next_offset` has been in Kafka; 0 if none waits, None if that is not known.
        headroom_seconds: how long until Kafka's retention deletes that record; None if none waits, without a limit, or
            if that is not known.
        index_delay_seconds: how long ago the first statement that cannot be searched yet was sealed; 0 if all can be.
        recent: what its newest statements account for.
        ended: whether a later epoch follows, so that nothing is archived here any more.
        drained: whether `kafka.topics` names its topic, so that its records are archived.
        problems: what is wrong with it.
    """

    log: str
    size: int = 0
    root: str = ""
    next_offset: int | None = None
    sealed_at: str | None = None
    head_age_seconds: float | None = None
    lag_records: int | None = None
    lag_seconds: float | None = None
    headroom_seconds: float | None = None
    index_delay_seconds: float | None = None
    recent: Recent = Recent()
    ended: bool = False
    drained: bool = True
    problems: tuple[Problem, ...] = ()

    @property
    def level(self) -> Level:
        """The worst level of its problems."""
        return worst(self.problems)


@dataclass(frozen=True, slots=True)
class TopicHealth:
    """A topic that `kafka.topics` names, with partitions that have no log yet.

    Attributes:
        topic: its name.
        partitions: how many partitions have no log.
        records: how many records wait in them; None if that is not known.
    """

    topic: str
    partitions: int
    records: int | None = None


@dataclass(frozen=True, slots=True)
class AuditHealth:
    """The newest audit.

    Attributes:
        sequence: its number.
        verdict: its verdict.
        audited_at: when it was signed.
        age_seconds: how long ago the newest audit was signed whose time is not of the future; None if there is none.
        findings: how many findings it has.
    """

    sequence: int
    verdict: Verdict
    audited_at: str
    age_seconds: float | None
    findings: int


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """A server that custody needs, as seen from here.

    Attributes:
        address: where it is.
        reachable: whether it answered.
    """

    address: str
    reachable: bool


@dataclass(frozen=True, slots=True)
class Health:
    """The health of an installation at one time.

    Attributes:
        archive: the archive's URL.
        at: the time, timezone-aware.
        kafka: the broker.
        search: Elasticsearch; None if the settings name none.
        logs: the archive's logs, in order.
        topics_without_log: topics with partitions that have no log; None if Kafka did not answer, or if the
            logs cannot be listed.
        audit: the newest audit; None if there is none, or if it cannot be read.
        alerts: who is alerted, such as `1 (slack)`: the place in `alert.urls`, and the kind; never a URL.
        general: problems that belong to no log.
    """

    archive: str
    at: datetime
    kafka: ServerHealth
    search: ServerHealth | None = None
    logs: tuple[LogHealth, ...] = ()
    topics_without_log: tuple[TopicHealth, ...] | None = None
    audit: AuditHealth | None = None
    alerts: tuple[str, ...] = ()
    general: tuple[Problem, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems, the worst first."""
        return tuple(sorted(self._each_problem(), key=lambda problem: -LEVELS.index(problem.level)))

    def _each_problem(self) -> Iterator[Problem]:
        yield from self.general
        for log in self.logs:
            yield from log.problems

    @property
    def level(self) -> Level:
        """The worst level of all problems."""
        return worst(self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON types (docs/commands.md, custody status)."""
        document = {"level": self.level, **asdict(self), "at": format_time(self.at)}
        del document["general"]
        document["problems"] = [asdict(problem) for problem in self.problems]
        for log, values in zip(self.logs, document["logs"], strict=True):
            del values["problems"]
            values["level"] = log.level
            values["recent"]["quarantined_share"] = log.recent.quarantined_share
        return document


def worst(problems: Sequence[Problem]) -> Level:
    """Return the worst level of problems; `ok` if there are none."""
    return max((problem.level for problem in problems), key=LEVELS.index, default="ok")


def age_seconds(moment: str, now: datetime) -> float | None:
    """Return how long ago something was signed, at least 0; None if it claims a time of the future."""
    age = now - parse_time(moment)
    return None if age < -CLOCK_SLACK else max(age, timedelta(0)).total_seconds()


def of_future(subject: str, noun: str, moment: str, now: datetime, age: float | None) -> Problem:
    """Return the problem of a signed time of the future.

    Args:
        subject: what it is about.
        noun: what was signed.
        moment: when it claims to have been.
        now: the time.
        age: how old the newest one with another time is; None if there is none, and then silence cannot be seen.
    """
    ahead = duration_text((parse_time(moment) - now).total_seconds())
    message = f"its newest {noun} was sealed at {moment}, which is {ahead} in the future"
    if age is None:
        message += ": how long nothing was written is not known"
    remedy = "correct the clock of the writer, or of this machine"
    return Problem("failed" if age is None else "warning", "clock", subject, message, remedy)
