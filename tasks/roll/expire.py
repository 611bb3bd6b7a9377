"""Expires evidence: signs `expired` first, with a checkpoint, and then deletes the objects, by version.

So verification can always tell expiry from loss (FORMAT.md, `expired`). Rules for deletions:

1. The retention is the largest of `tiers.life_days`, `archive.json`'s and `trust.json`'s `retention_days`. If
   `tiers.life_days` is set to fewer days than one of the others, nothing is signed or deleted.
2. A statement is old enough if it, and every statement before it, was sealed at least that long ago. So one statement
   with a wrong clock makes no other statement old.
3. No single clock decides. The time is the earliest of the host's clock, the newest audit, and the store's clock (when
   the newest manifest was put). A statement or an audit that jumps ahead of all before it is no clock: `clock.py`. If
   the host's clock is more than a day ahead of all others, nothing is signed or deleted, unless an operator confirms
   the host's clock. Then the host's clock is the time. The retention stays. A store that tells the time overrules the
   operator: `check_confirmed`.
4. Every statement that is used must be signed by a trusted key, within the key's span and end. Slots that a later
   statement passes over are skipped. At any other slot without such a statement the expiry fails, with a reason.
5. Objects are deleted only up to the end of signed expiries that the retention allows. Statements that an audit found
   expired and allowed are not read again. If the retention was made longer since, their objects are kept.

A run that dies between the signature and the deletion leaves objects. The next run finds them, because it lists all
days up to the end of the retention, and deletes them. A locked object stays until its lock ends.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from custody.archive.checkpoints import put_checkpoint
from custody.archive.forms import AUDITS, statements_of
from custody.archive.guesses import claimed_sizes, nightly_audits
from custody.archive.reader import Tip, list_logs, read_manifest
from custody.archive.trusted import Judge, find_trusted_audits, find_trusted_tip, read_trusted_archive
from custody.archive.writer import Entry, LogWriter, writer_name
from custody.errors import (
    ConfigurationError,
    CustodyError,
    FormatError,
    HeadRollback,
    KeyUnavailable,
    ObjectMissing,
    SignatureInvalid,
)
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.audit import Audit
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.times import format_time, parse_time, shift
from custody.keys.trust import Trust
from custody.query import tables
from custody.store.ahead import call_ahead
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, Store, host_ahead
from custody.tlog.head import KnownHead
from custody.tlog.signatures import KeyOrder
from tasks.audit.signed import clean_audit
from tasks.roll.clock import AHEAD, History
from tasks.roll.followed import Followed, keep_followed, read_followed
from tasks.roll.record import Action
from tasks.settings import Settings

T = TypeVar("T")

_LOGS, _PARALLEL = 8, 16
"""Logs that are looked at at once, and statements of each that are read at once: as many as S3 has connections."""
_CONFIRM = (
    "If the archive was silent on purpose and the clock is right, run `custody roll --confirm-clock`: it takes the"
    " host's clock as the time, and does not change the retention"
)


def expire(
    settings: Settings,
    now: datetime,
    *,
    dry_run: bool = False,
    confirm_clock: bool = False,
    clocks: Sequence[datetime] | None = None,
) -> Iterator[Action]:
    """Expire evidence that is older than the retention.

    Args:
        settings: the settings.
        now: the host's time, timezone-aware.
        dry_run: show what would be done; change nothing.
        confirm_clock: the operator confirms the host's clock. Used only if it is far ahead of all others.
        clocks: what `read_clocks` returned; by default it is called.

    Yields:
        One action for each log whose `expired` was signed or could not be signed, and one for each object. A failed one
        if there are logs, but no time of a statement is known.

    Raises:
        ConfigurationError: `tiers.life_days` is less than what `archive.json` or `trust.json` promises.
        CustodyError: the archive or the keys cannot be opened, or the archive does not answer.
    """
    trust = settings.own_trust()
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_trusted_archive(store, trust)
        days = settings.life_days(file.statement.retention_days, trust.retention_days)
        audit = clean_audit(store, file.id, trust, find_trusted_audits(store, file.id, trust))
        works: dict[Log, _Log] = {}
        for log, work in _of_each(store, list_logs(store), partial(_open_log, store, file.id, trust, audit)):
            if isinstance(work, CustodyError):
                yield _unknown(log, work)
            else:
                works[log] = work
        clocks = read_clocks(settings) if clocks is None else clocks
        if not clocks and not works:
            return
        if not clocks or now - max(clocks) > AHEAD:
            action = _clock(store.url, now, clocks, days, confirmed=confirm_clock, dry_run=dry_run)
            yield action
            if action.outcome == "failed":
                return
            clocks = [now]
        end_of_life = min(now, *clocks) - timedelta(days=days)
        # Objects that earlier rolls could not delete. There are few, so few logs are read from their start.
        left = {log for log, _ in _expired_keys(store, works, end_of_life)}
        expired: dict[Log, _Log] = {}
        found = _of_each(store, works, lambda log: works[log].find(end_of_life, days, left=log in left))
        for log, error in found:
            if error is not None:
                yield _unknown(log, error)
                continue
            work = works[log]
            try:
                if work.until > work.signed:
                    action = _sign(settings, store, trust, work, days, now, dry_run=dry_run)
                    yield action
                    if action.outcome in {"done", "planned"} and work.granted >= work.signed:
                        work.granted = work.until
                work.find_offset()
                if work.granted:
                    expired[log] = work
            except CustodyError as failure:
                yield _unknown(log, failure)
        yield from _delete(store, expired, end_of_life, now, dry_run=dry_run)


def _of_each(
    store: Store, logs: Collection[Log], function: Callable[[Log], T]
) -> Iterator[tuple[Log, T | CustodyError]]:
    """Yield each log with what a function returns for it, or with the error. It is called for several at once."""

    def attempt(log: Log) -> T | CustodyError:
        try:
            return function(log)
        except CustodyError as error:
            return error

    return zip(logs, call_ahead(store, attempt, logs, _LOGS), strict=True)


def _open_log(store: Store, archive: str, trust: Trust, audit: Audit | None, log: Log) -> "_Log":
    head = audit.heads.get(str(log)) if audit else None
    tip = find_trusted_tip(store, log, archive, trust, head.size if head else 0)
    work = _Log(store, log, tip, Judge(store, log, statements_of(log), archive, trust), audit)
    work.find_offset()
    return work


def _unknown(log: Log, error: CustodyError) -> Action:
    """Return the action for a log that cannot be checked, so that nothing of it expires."""
    if isinstance(error, SignatureInvalid | HeadRollback):
        return Action("expire", str(log), "failed", f"{error}: nothing of this log is deleted")
    return Action("expire", str(log), "failed", f"it is not known what has expired: {error}")


def check_confirmed(settings: Settings) -> None:
    """Check a host's clock that an operator confirms against the time that the store tells now, if it tells one.

    Raises:
        ConfigurationError: the host's clock is more than a day ahead of the store's.
        CustodyError: the archive cannot be opened, or does not answer.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        store.exists(layout.ARCHIVE)
        ahead = host_ahead(store)
    if ahead is not None and ahead > AHEAD:
        raise ConfigurationError(
            f"this host's clock is {ahead} ahead of the clock of {store.url}, so it cannot be confirmed: set the clock"
        )


def read_clocks(settings: Settings, *, keep: bool = False) -> list[datetime]:
    """Return the times that do not come from the host's clock; none if nothing is archived.

    Args:
        settings: the settings.
        keep: whether what was followed is written down for the next roll.

    Raises:
        CustodyError: the archive or the keys cannot be opened, or the archive does not answer.
    """
    trust = settings.own_trust()
    with closing(open_store(settings.archive, settings.s3)) as store:
        archive = read_trusted_archive(store, trust)
        sizes = claimed_sizes(store, nightly_audits(archive.statement.created, datetime.now(UTC)))

        def find(log: Log) -> Tip[Manifest]:
            return find_trusted_tip(store, log, archive.id, trust, sizes.get(str(log), 0))

        # The end of life reports a log that cannot be read.
        found = _of_each(store, list_logs(store), find)
        tips = {log: tip for log, tip in found if not isinstance(tip, CustodyError)}
        return _other_clocks(store, archive, trust, tips, settings if keep else None)


def _other_clocks(
    store: Store, archive: ArchiveFile, trust: Trust, tips: Mapping[Log, Tip[Manifest]], keep: Settings | None
) -> list[datetime]:
    """Return the store's time of the newest manifest and that of the newest audit; after a jump, the time before it."""
    sealed = [parse_time(tip.newest.statement.sealed_at) for tip in tips.values() if tip.newest]
    if not sealed:
        return []
    audits = find_trusted_audits(store, archive.id, trust)
    audit = clean_audit(store, archive.id, trust, audits)
    audited = [parse_time(audit.sealed_at)] if audit else []
    newest = max(sealed + audited)
    history = History(store, archive, trust, tips)
    known = read_followed(
        store, archive.id, trust, audits.head, Judge(store, layout.AUDIT_LOG, AUDITS, archive.id, trust)
    )
    if known is not None:
        history.resume(known)
    time, following = history.follow(audits.head.size, newest)
    if keep is not None and time is not None and audits.head.size:
        root, at = audits.head.root.hex(), format_time(time)
        note = Followed(archive=archive.id, sealed_at=at, audits=audits.head.size, root=root, time=at, next=following)
        keep_followed(keep, store, note, known)
    if not history.believes(newest):
        return [history.time or min(sealed)]
    keys = [layout.manifest_key(log, tip.head.size - 1) for log, tip in tips.items() if tip.newest]
    return [max(status.created for status in call_ahead(store, store.status, keys)), *audited]


def _clock(url: str, now: datetime, clocks: Sequence[datetime], days: int, *, confirmed: bool, dry_run: bool) -> Action:
    """Return the action for a host's clock that is far ahead of all others: failed, unless it is confirmed.

    It is failed in any case if there are logs, and no clock of a statement is known.
    """
    if not clocks:
        why = "no valid statement of any log was found, so no time but the host's is known: run `custody verify`"
        return Action("expire", url, "failed", why)
    newest = max(clocks)
    problem = f"the host's clock says {now:%Y-%m-%d %H:%M}, but the newest manifest and audit that do not jump"
    problem = f"{problem} ahead of those before are not later than {newest:%Y-%m-%d %H:%M}"
    if not confirmed:
        why = f"{problem}: set the clock, or find out why nothing is archived and audited. {_CONFIRM}"
        return Action("expire", url, "failed", why)
    why = f"{problem}; --confirm-clock says that the host's clock is right. The retention stays {days} days"
    return Action("clock", url, "planned" if dry_run else "done", why)


class _Log:
    """How far a log has expired, read as far as that needs.

    Attributes:
        until: statements before this sequence are old enough.
        signed: the sequence after the last one that a statement calls expired.
        granted: statements before this sequence are old enough and called expired, so their objects may be deleted.
        keys: sequences and keys of objects of old statements that no audit has found granted yet.
        offset: first offset of the first statement whose objects may not be deleted.
    """

    def __init__(self, store: Store, log: Log, tip: Tip[Manifest], judge: Judge, audit: Audit | None) -> None:
        self.log, self.tip, self.known = log, tip, list[KnownHead]()
        self._store, self._judge = store, judge
        self._size, self._seen, self._granted = tip.head.size, 0, 0
        head, marks = (audit.heads.get(str(log)), audit.marks.get(str(log))) if audit else (None, None)
        if audit and head:
            self._seen = min(head.size, self._size)
            self.known.append(KnownHead(head.size, bytes.fromhex(head.root), f"audit {audit.sequence}"))
        if marks:
            self._granted = min(marks.expired, self._size)
        self.until = self.signed = self.granted = self._granted
        self.keys: list[tuple[int, str]] = []
        self.offset = 0

    def find(self, end_of_life: datetime, days: int, *, left: bool = True) -> None:
        """Find how far the log has expired.

        Args:
            end_of_life: statements sealed up to this time are old enough.
            days: the retention.
            left: whether objects of statements are left that an audit found expired.

        Raises:
            SignatureInvalid: a statement that is needed does not count.
            KeyUnavailable: its signature cannot be checked now.
            StoreError: the archive does not answer.
        """
        for sequence, statement in self._statements(0) if left else ():
            if sequence >= self._granted:
                break
            if parse_time(statement.sealed_at) > end_of_life:
                # The retention was made longer: objects that may go only under the shorter one are kept.
                self.until = self.granted = sequence
                return
        latest = self._walk(end_of_life)
        for first, end, sealed_at in self._expiries() if self.until > self._granted else ():
            self.signed = max(self.signed, end)
            if first <= self.granted < end <= self.until:
                up_to_there = [moment for until, moment in latest.items() if until <= end]
                if all(moment <= shift(sealed_at, timedelta(days=-days)) for moment in up_to_there[-1:]):
                    self.granted = end

    def _walk(self, end_of_life: datetime) -> dict[int, datetime]:
        """Walk the statements while they are old enough, and return the latest sealing time up to each."""
        latest: dict[int, datetime] = {}
        last: datetime | None = None
        for sequence, statement in self._statements(self._granted):
            sealed_at = parse_time(statement.sealed_at)
            last = sealed_at if last is None else max(last, sealed_at)
            if last > end_of_life:
                break
            self.until = sequence + 1
            latest[self.until] = last
            self.keys += [(sequence, ref.key) for ref in (statement.segment, statement.quarantine) if ref]
        return latest

    def _expiries(self) -> list[tuple[int, int, datetime]]:
        """Return first, end and time of the log's expiries that no audit has found granted yet.

        If no audit has found any for this log, all statements are read. This happens once: the next audit finds one.
        """
        start = self._seen if self._granted else 0
        return [
            (*statement.expired, parse_time(statement.sealed_at))
            for _, statement in self._statements(start)
            if statement.expired
        ]

    def find_offset(self) -> None:
        """Find the first offset of the first statement whose objects may not be deleted; else the log's end."""
        if not self.granted:
            return
        kept = next((statement for _, statement in self._statements(self.granted)), None)
        if kept is not None:
            self.offset = kept.first_offset
        elif self.tip.newest is not None:
            self.offset = self.tip.newest.statement.next_offset

    def _statements(self, first: int) -> Iterator[tuple[int, Statement]]:
        """Yield the log's statements from a sequence on, if they are signed. Slots that were passed over are skipped.

        Raises:
            SignatureInvalid: a slot has no statement that counts, and was not passed over.
            KeyUnavailable: a signature cannot be checked now.
            StoreError: the archive does not answer.
        """
        empty: list[int] = []
        order = KeyOrder()
        for sequence, manifest in self._manifests(first):
            if manifest is None or not self._counts(manifest, sequence, order):
                empty.append(sequence)
                continue
            start = sequence - len(manifest.statement.passed_over)
            if empty and empty[0] < start:
                key = layout.manifest_key(self.log, empty[0])
                raise SignatureInvalid(
                    f"no trusted key signed {key} as the statement of that slot; run `custody verify` for details"
                )
            empty.clear()
            yield sequence, manifest.statement

    def _manifests(self, first: int) -> Iterator[tuple[int, Manifest | None]]:
        with ThreadPoolExecutor(_PARALLEL) as threads:
            several = 1
            while first < self._size:
                # Most logs have nothing that is old enough: their first statement says so.
                numbers: Sequence[int] = range(first, min(first + several, self._size))
                yield from zip(numbers, threads.map(self._read, numbers), strict=True)
                first, several = numbers[-1] + 1, min(2 * several, _PARALLEL)

    def _read(self, sequence: int) -> Manifest | None:
        try:
            return read_manifest(self._store, self.log, sequence, self._judge.is_of_place)
        except (ObjectMissing, FormatError):
            return None

    def _counts(self, manifest: Manifest, sequence: int, order: KeyOrder) -> bool:
        """Return whether a statement counts. If it does not, and its slot is not void, raise as `_statements`."""
        verdict = self._judge.verdict(manifest, sequence, order)
        if verdict.clean:
            return True
        if verdict.void:
            return False
        key = layout.manifest_key(self.log, sequence)
        if any(problem.kind == "unreadable" for problem in verdict.problems):
            raise KeyUnavailable(f"{key} cannot be checked: {verdict.reason}")
        raise SignatureInvalid(f"{key} does not count: {verdict.reason}")


def _sign(
    settings: Settings, store: Store, trust: Trust, work: _Log, days: int, now: datetime, *, dry_run: bool
) -> Action:
    """Sign that statements which are old enough have expired, if that is not signed yet."""
    target = f"{work.log}, statements {work.signed} to {work.until - 1}"
    if dry_run or work.tip.newest is None:
        return Action("expire", target, "planned")
    newest = work.tip.newest.statement
    try:
        signers = settings.signers(now)
        name = writer_name()
        writer = LogWriter(store, newest.archive, newest.log, signer=signers.hmac(), trust=trust, writer=name)
        writer.open(work.known)
        offset = writer.next_offset or 0
        writer.append(Entry(first_offset=offset, next_offset=offset, expired=(work.signed, work.until)))
        # With public keys only, an expiry counts if a checkpoint covers it.
        put_checkpoint(store, newest.archive, work.log, writer.tip.head, signers.ed25519(), writer.judge)
    except CustodyError as error:
        return Action("expire", target, "failed", f"{error}; the next roll tries again")
    return Action("expire", target, "done", f"sealed more than {days} days ago; signed")


def _delete(
    store: Store, expired: Mapping[Log, _Log], end_of_life: datetime, now: datetime, *, dry_run: bool
) -> Iterator[Action]:
    """Delete the objects of expired statements, and the tables made of them."""
    for log, key in _expired_keys(store, expired, end_of_life):
        if dry_run:
            yield Action("delete", key, "planned", f"expired, as stated in {log}")
            continue
        try:
            status = store.status(key)
            if status.legal_hold or (status.lock_until is not None and status.lock_until > now):
                why = "legal hold" if status.legal_hold else f"locked until {status.lock_until:%Y-%m-%d}"
                yield Action("delete", key, "refused", why)
                continue
            store.remove(key)
        except ObjectMissing:
            continue
        except CustodyError as error:
            yield Action("delete", key, "failed", str(error))
        else:
            yield Action("delete", key, "done", f"expired, as stated in {log}")


def _expired_keys(store: Store, expired: Mapping[Log, _Log], end_of_life: datetime) -> Iterator[tuple[Log, str]]:
    """Yield the keys that may be deleted: listed ones, and those in statements that name a much later day."""
    if not expired:
        return
    listed: set[str] = set()
    for info in _list_records(store, end_of_life):
        parsed = layout.parse_records_key(info.key)
        if parsed and parsed.log in expired and parsed.last < expired[parsed.log].offset:
            listed.add(info.key)
            yield parsed.log, info.key
    for log, of_log in expired.items():
        for sequence, key in of_log.keys:
            if sequence < of_log.granted and key not in listed:
                yield log, key
    for info in store.list(tables.TABLES):
        table, listing = tables.parse_table_key(info.key), tables.parse_list_key(info.key)
        of, end = (table.log, table.end) if table else (listing[0], listing[2]) if listing else (None, 0)
        if of is not None and of in expired and end <= expired[of].granted:
            yield of, info.key


def _list_records(store: Store, until: datetime) -> Iterator[ObjectInfo]:
    """Yield segments and quarantine objects whose keys name a day up to the day after a moment.

    The day in a key is Kafka's: records may have waited in Kafka before they were sealed. Later days are not listed.

    Raises:
        StoreError: the archive cannot be listed.
    """
    last = f"{until.astimezone(UTC) + timedelta(days=1):%Y/%m/%d}"
    for part in layout.RECORDS:
        folders = [""]
        # Years, months, days. A store lists in any order, so a listing cannot stop at the first day that is too young.
        for _ in range(3):
            inner = (f"{folder}{name}" for folder in folders for name in store.level(part + folder)[0])
            folders = [f"{folder}/" for folder in inner if re.fullmatch("[0-9/]+", folder) and folder <= last]
        for folder in folders:
            yield from store.list(part + folder)
