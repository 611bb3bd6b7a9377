"""Reads what the archive says of its logs: where each one ends, how old that is, and what its newest statements hold.

Rules:
- A log costs the same number of requests however old it is: its end, and `RECENT` statements. If too many of their
  records are in quarantine, a few of those objects are read too (`tasks.health.quarantine`).
- Metrics need less, each minute: a log's newest statement, and whether it still ends where it was counted. What lies
  behind that end is for `custody status`.
- With keys, a log's end is the newest statement that they signed, and a log that lacks statements is damaged. Without
  keys, signatures are not checked, which is a problem of its own. What `trust.json` pins and knows is checked anyway.
- One log that cannot be read hides no other, and logs that cannot be listed hide no other part.
- A time of the future is a problem, and hides no silence: ages are those of the newest time that can be believed.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby

from custody.archive.beyond import after_hole
from custody.archive.forms import statements_of
from custody.archive.guesses import nightly_audits
from custody.archive.reader import (
    Holds,
    Tip,
    find_tip,
    list_logs,
    named_logs,
    read_archive,
    read_manifest,
)
from custody.archive.resume import check_known, find_checked_tip, find_known_tip, rollback
from custody.archive.trusted import Judge, check_archive, standing
from custody.errors import (
    ConfigurationError,
    CustodyError,
    FormatError,
    HeadRollback,
    KeyUnavailable,
    NoArchive,
    NoBucket,
    ObjectMissing,
    StoreError,
    TransientStoreError,
    counted,
)
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.layout import Log
from custody.format.manifest import DIRECT, Manifest, Statement
from custody.format.times import duration_text
from custody.keys.open import keyring_path
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.store.s3_errors import KeyRefused
from custody.tlog.head import KnownHead
from tasks.drain.context import read_audited_heads
from tasks.drain.kafka import is_wanted
from tasks.drain.quarantine import is_excessive
from tasks.health.deadline import Deadline
from tasks.health.model import Kind, LogHealth, Problem, Recent, age_seconds, of_future
from tasks.health.quarantine import problem_of, read_commonest
from tasks.settings import Settings

RECENT = 10
"""Statements of a log that are read: its newest ones."""
_VERIFY = "run 'custody verify'"


@dataclass(frozen=True, slots=True)
class Opened:
    """The archive and what its statements are checked by.

    Attributes:
        store: its storage.
        file: `archive.json`; None if it is refused.
        trust: the keys; None if signatures are not checked.
        at_hand: what else is trusted if signatures are not checked, such as `trust.json` alone.
        heads: heads of logs that the newest audit and `trust.json` know.
        problems: why it is not trusted, or not checked.
        brief: whether only what metrics need is read.
        counted: known heads of logs that metrics have counted, if it is brief. A log that still ends there is not
            looked at any further.
    """

    store: Store
    file: ArchiveFile | None
    trust: Trust | None
    at_hand: Trust = field(default_factory=Trust)
    heads: Mapping[str, KnownHead] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    brief: bool = False
    counted: Mapping[str, KnownHead] = field(default_factory=dict)

    @property
    def is_trusted(self) -> bool:
        """Whether what its logs hold may be shown: not if another `archive.json` than the trusted one is there."""
        return all(problem.kind != "archive-untrusted" for problem in self.problems)

    @property
    def readable(self) -> Trust:
        """What decides which entries may be used."""
        return self.trust or self.at_hand

    def holds(self, log: Log) -> Holds[Manifest]:
        """Return the check whether a statement of a log may be used."""
        return standing(self.store, self.file.id if self.file else None, self.readable)(log)


def open_archive(settings: Settings, store: Store) -> Opened:
    """Read the archive's identity and the keys.

    Raises:
        NoArchive: there is no archive.
        NoBucket: there is no bucket of that name.
        KeyRefused: the archive's storage does not accept the credentials.
        TransientStoreError: it does not answer.
    """
    try:
        file = read_archive(store)
    except (TransientStoreError, NoBucket, KeyRefused):
        raise
    except CustodyError as error:
        if isinstance(error, NoArchive) and _has_no_logs(store):
            raise
        return Opened(store, None, None, problems=(_unchecked(f"signatures are not checked: {error}", _VERIFY),))
    try:
        trust = settings.own_trust()
        problem = check_archive(file, trust)
        nights = nightly_audits(file.statement.created, datetime.now(UTC))
        heads = {} if problem else read_audited_heads(store, file.id, trust, nights)
    except TransientStoreError:
        raise
    except CustodyError as error:
        return _without_keys(settings, store, file, error)
    if problem:
        return Opened(store, file, trust, problems=(_untrusted(problem),))
    return Opened(
        store, file, trust, heads=_known_outside(trust) | {name: head for name, head in heads.items() if head.size}
    )


def _without_keys(settings: Settings, store: Store, file: ArchiveFile, error: CustodyError) -> Opened:
    """Return an archive whose signatures cannot be checked; what `trust.json` pins and knows is, all the same."""
    at_hand = settings.trust_at_hand()
    problem = check_archive(file, at_hand) if at_hand.archive else None
    # The default keyring need not be there.
    unset = isinstance(error, ConfigurationError) and not settings.model_fields_set & {"keys", "checkpoint_keys"}
    keyring = keyring_path(settings.keys)
    if unset and keyring and not keyring.exists():
        unchecked = Problem(
            "warning",
            "heads-unchecked",
            "archive",
            f"signatures are not checked: there are no keys at {settings.keys}",
            "set keys to the keys that sign",
        )
    else:
        remedy = "correct the settings keys and trust"
        if "passphrase" in str(error):
            remedy = "set CUSTODY_KEYRING_PASSPHRASE to the passphrase of the keyring"
        unchecked = _unchecked(f"signatures are not checked: {error}", remedy)
    if problem:
        return Opened(store, file, None, at_hand, problems=(_untrusted(problem), unchecked))
    return Opened(store, file, None, at_hand, _known_outside(at_hand), (unchecked,))


def _known_outside(trust: Trust) -> dict[str, KnownHead]:
    return {name: KnownHead(head.size, head.root, "trust.json") for name, head in trust.heads.items() if head.size}


def _untrusted(problem: str) -> Problem:
    remedy = f"the archive is not used: correct the settings archive, keys and trust, or {_VERIFY}"
    return Problem("failed", "archive-untrusted", "archive", problem, remedy)


def _has_no_logs(store: Store) -> bool:
    """Return whether an archive surely has no logs: not if the process may not look."""
    try:
        return not list_logs(store)
    except TransientStoreError:
        raise
    except StoreError:
        return False


def _unchecked(message: str, remedy: str) -> Problem:
    return Problem("failed", "heads-unchecked", "archive", message, remedy)


@dataclass(frozen=True, slots=True)
class LogRead:
    """A log as the archive has it.

    Attributes:
        name: the log.
        health: its health so far.
        newest: its newest statement; None if it has none that counts.
    """

    name: Log
    health: LogHealth
    newest: Statement | None = None

    @property
    def is_current(self) -> bool:
        """Whether it should be compared with its partition: it is the newest epoch, and was made from Kafka."""
        return not self.health.ended and self.newest is not None and self.newest.log.cluster != DIRECT

    def with_health(self, health: LogHealth, *problems: Problem) -> "LogRead":
        """Return the log with another health, and with more problems."""
        return replace(self, health=replace(health, problems=(*health.problems, *problems)))


def read_logs(
    opened: Opened, settings: Settings, now: datetime, deadline: Deadline | None = None
) -> tuple[list[LogRead], tuple[Problem, ...]]:
    """Return each log of the archive that has a statement or a known head, in order; and why some may be missing.

    Args:
        opened: the archive.
        settings: the settings.
        now: the time.
        deadline: how long an answer is waited for; None without a limit.

    Raises:
        TransientStoreError: the logs were not listed in time.
    """
    deadline = deadline or Deadline()
    names, problems = deadline.call(lambda: _names(opened))
    if not opened.is_trusted:
        return [LogRead(name, LogHealth(str(name))) for name in names], problems
    done: dict[Log, LogRead | None] = {}
    share = settings.events.quarantined_share
    try:
        done.update(deadline.each(lambda name: _read_log(opened, name, now, share), names))
    except TransientStoreError as error:
        late = f"its head cannot be read: {error}"
        done |= {name: _with_problem(name, "log-unknown", late) for name in names if name not in done}
    reads = [read for name in names if (read := done[name]) is not None]
    current: list[LogRead] = []
    for _, group in groupby(reads, key=lambda read: (read.name.topic, read.name.partition)):
        epochs = list(group)
        # Only a statement shows that there is a later epoch.
        last = max((at for at, read in enumerate(epochs) if read.newest), default=0)
        current += [replace(read, health=replace(read.health, ended=True)) for read in epochs[:last]]
        current += [_check(opened, settings, read) for read in epochs[last:]]
    return current, problems


def _names(opened: Opened) -> tuple[list[Log], tuple[Problem, ...]]:
    """Return the logs that can be listed, and the problem if not all can: then those of the other sources."""
    try:
        return named_logs(opened.store, opened.heads), ()
    except StoreError as error:
        refused = Problem("failed", "log-unknown", "archive", f"its logs cannot be listed: {error}", _VERIFY)
    names = {log for log in map(layout.parse_log_text, opened.heads) if log is not None}
    for folder in (layout.MANIFESTS, layout.CHECKPOINTS):
        with suppress(StoreError):
            names.update(list_logs(opened.store, folder))
    return sorted(names - {layout.AUDIT_LOG}), (refused,)


def _check(opened: Opened, settings: Settings, read: LogRead) -> LogRead:
    """Return a log that has not ended, with what its statements show to be wrong."""
    health, name, recent = read.health, read.health.log, read.health.recent
    drained = read.is_current and is_wanted(read.name.topic, settings.kafka.topics)
    problems: list[Problem] = []
    heartbeat = opened.file.statement.heartbeat if opened.file else None
    age = health.head_age_seconds
    if drained and heartbeat and age is not None and age > 2 * heartbeat:
        message = f"no statement for {duration_text(age)}, but an idle log writes one every {duration_text(heartbeat)}"
        problems.append(Problem("failed", "silent", name, message, "check that the drain runs"))
    newest = f"its {counted(recent.statements, 'newest statement admits', 'newest statements admit')}"
    if recent.reason is not None:
        problems.append(problem_of(name, recent))
    if recent.lost:
        message = f"{newest} {counted(recent.lost, 'lost offset')}: Kafka deleted what was not read yet"
        problems.append(Problem("warning", "lost", name, message, "give the topic more retention, or drain more often"))
    if recent.unreadable:
        message = f"{newest} {counted(recent.unreadable, 'offset')} that cannot be decoded"
        remedy = "read them in Kafka while it keeps them (docs/large-records.md)"
        problems.append(Problem("warning", "unreadable", name, message, remedy))
    return read.with_health(replace(health, drained=drained), *problems)


def _read_log(opened: Opened, log: Log, now: datetime, share: float) -> LogRead | None:
    """Return a log, with the commonest reason if more than a share is in quarantine; None if nothing shows one."""
    name = str(log)
    try:
        tip = _find_tip(opened, log)
    except (StoreError, KeyUnavailable) as error:
        return _with_problem(log, "log-unknown", f"its head cannot be read: {error}")
    except CustodyError as error:
        return _with_problem(log, "log-damaged", str(error))
    if tip.newest is None:
        message = f"none of its {counted(tip.size, 'slot')} has a statement that counts"
        return _with_problem(log, "log-damaged", message) if tip.size else None
    statement = tip.newest.statement
    statements, problems = _read_recent(opened, log, tip.newest, now)
    ages = [age_seconds(statement.sealed_at, now) for statement in statements]
    age = next((age for age in ages if age is not None), None)
    if ages[0] is None:
        problems.append(of_future(name, "statement", statement.sealed_at, now, age))
    if tip.passed_over:
        key = layout.manifest_key(log, tip.head.size)
        slots = counted(len(tip.passed_over), "slot has", "slots have")
        message = f"after its head, from {key} on, {slots} no valid statement"
        problems.append(Problem("failed", "log-damaged", name, message, f"find out who wrote them, and {_VERIFY}"))
    health = LogHealth(
        name,
        tip.head.size,
        tip.head.root.hex(),
        statement.next_offset,
        statement.sealed_at,
        age,
        recent=Recent() if opened.brief else _sum_up(opened.store, statements, share),
        problems=tuple(problems),
    )
    return LogRead(log, health, statement)


def _with_problem(log: Log, kind: Kind, message: str) -> LogRead:
    return LogRead(log, LogHealth(str(log), problems=(Problem("failed", kind, str(log), message, _VERIFY),)))


def _find_tip(opened: Opened, log: Log) -> Tip[Manifest]:
    """Find where a log ends, and check it as far as the keys allow.

    Raises:
        CustodyError: as `find_checked_tip`; without keys, HeadRollback if there are more statements after a hole.
    """
    store, form = opened.store, statements_of(log)
    if opened.trust is not None and opened.file is not None:
        known = [opened.heads[str(log)]] if str(log) in opened.heads else []
        judge = Judge(store, log, form, opened.file.id, opened.trust)
        if str(log) in opened.counted:
            tip = find_known_tip(store, log, form, judge, opened.trust, [*known, opened.counted[str(log)]])
            if tip is not None:
                return tip
        return find_checked_tip(store, log, form, judge, opened.trust, known)
    holds = opened.holds(log)
    tip = find_tip(store, log, holds)
    sequence = after_hole(store, form, tip, holds)
    if sequence is not None:
        raise rollback(store, log, f"{form.key(tip.size)} is missing, but {form.key(sequence)} exists")
    if str(log) in opened.heads:
        judge = Judge(store, log, form, opened.file.id if opened.file else None, opened.at_hand)
        try:
            check_known(judge, tip, opened.heads[str(log)])
        except HeadRollback as error:
            raise rollback(store, log, str(error)) from None
    return tip


def _read_recent(opened: Opened, log: Log, newest: Manifest, now: datetime) -> tuple[list[Statement], list[Problem]]:
    """Return a log's newest statements, the newest one first, and the problems of reading them.

    For metrics, that is the newest one alone, unless it is of the future.
    """
    statements, problems = [newest.statement], []
    holds = opened.holds(log)
    sequence = newest.statement.sequence - len(newest.statement.passed_over) - 1
    while sequence >= 0 and len(statements) < RECENT:
        if opened.brief and age_seconds(statements[-1].sealed_at, now) is not None:
            break
        try:
            statement = read_manifest(opened.store, log, sequence, holds).statement
        except (ObjectMissing, FormatError) as error:
            problems.append(Problem("failed", "log-damaged", str(log), str(error), _VERIFY))
            break
        except StoreError as error:
            problems.append(Problem("failed", "log-unknown", str(log), str(error), _VERIFY))
            break
        statements.append(statement)
        sequence -= len(statement.passed_over) + 1
    return statements, problems


def _sum_up(store: Store, statements: Sequence[Statement], share: float) -> Recent:
    """Return what statements account for, and the commonest reason if more than a share is in quarantine."""
    recent = Recent(
        len(statements),
        sum(batch.events for statement in statements for batch in statement.batches),
        sum(statement.quarantine.records for statement in statements if statement.quarantine),
        sum(statement.lost[1] - statement.lost[0] for statement in statements if statement.lost),
        sum(span.to - span.from_ for statement in statements for span in statement.unreadable),
        statements[-1].sealed_at,
    )
    if is_excessive(recent.events, recent.quarantined, share):
        return replace(recent, reason=read_commonest(store, statements))
    return recent
