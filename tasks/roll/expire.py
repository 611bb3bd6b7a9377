"""The end of evidence: `expired` is signed first, with a checkpoint, and then the objects are deleted, by version.

So verification tells expiry from loss for ever (FORMAT.md, `expired`). What decides on a deletion:

1. The retention is the largest of `tiers.life_days`, `archive.json`'s and `trust.json`'s `retention_days`.
2. A statement is old enough once the latest time at which any statement up to it was sealed is that long ago: a single
   statement of a wrong clock makes no other one old.
3. No single clock decides. The time is the earliest of the host's, the newest audit's, and the store's own (when the
   newest manifest was put). Where the host's is more than a day ahead of both others, nothing is signed or deleted.
4. Every statement that is relied on is signed by a trusted key, within its span and end. Slots that a later statement
   passes over are stepped over. Any other slot without such a statement ends what can expire, with a reason.
5. Objects are deleted as far as signed expiries reach that this policy grants. What an audit has seen granted is not
   read again; what a longer retention was set for since is kept.

A run that dies between the two leaves objects that may go; the next one finds them, since it lists all days up to the
end of life, and deletes them. What is locked stays until its lock has ended.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from custody.archive.forms import statements_of
from custody.archive.reader import Tip, list_logs, read_manifest, sealed_from
from custody.archive.trusted import Judge, find_trusted_audits, find_trusted_tip, read_trusted_archive
from custody.archive.writer import Entry, LogWriter, put_checkpoint, writer_name
from custody.errors import CustodyError, FormatError, HeadRollback, KeyUnavailable, ObjectMissing, SignatureInvalid
from custody.format import layout
from custody.format.audit import Audit
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.query import tables
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, Store
from custody.tlog.head import KnownHead
from custody.tlog.signatures import KeyOrder
from tasks.audit.newest import clean_audit
from tasks.roll.record import Action
from tasks.settings import Settings

AHEAD = timedelta(days=1)
"""How far the host's clock may be ahead of all others."""
_PARALLEL = 32


def expire(settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[Action]:
    """End the life of what is older than the retention.

    Args:
        settings: the settings.
        now: the host's time, aware.
        dry_run: say what would be done, and change nothing.

    Yields:
        One action for each log whose `expired` was signed, or could not be, and one for each object.

    Raises:
        CustodyError: the archive or the keys cannot be opened, or the archive does not answer.
    """
    trust = settings.own_trust()
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_trusted_archive(store, trust)
        days = max(settings.tiers.life_days, file.statement.retention_days, trust.retention_days or 0)
        audit = clean_audit(store, file.id, trust, find_trusted_audits(store, file.id, trust))
        tips: dict[Log, Tip[Manifest]] = {}
        for log in list_logs(store):
            try:
                tips[log] = find_trusted_tip(store, log, file.id, trust)
            except CustodyError as error:
                yield _unknown(log, error)
        clocks = _other_clocks(store, tips, audit)
        if not clocks:
            return
        if now - max(clocks) > AHEAD:
            what = f"the host's clock says {now:%Y-%m-%d %H:%M}, and all else that can be seen is from before"
            why = f"{what} {max(clocks):%Y-%m-%d %H:%M}: set the clock, or see why nothing is archived and audited"
            yield Action("expire", store.url, "refused", why)
            return
        end_of_life = min(now, *clocks) - timedelta(days=days)
        expired: dict[Log, _Expired] = {}
        for log, tip in tips.items():
            work = _Log(store, log, tip, Judge(store, log, statements_of(log), file.id, trust), audit)
            try:
                found = work.find(end_of_life, days)
                if found.until > found.signed:
                    action = _sign(settings, store, trust, work, found, days, now, dry_run=dry_run)
                    yield action
                    if action.outcome in {"done", "planned"} and found.granted >= found.signed:
                        found.granted = found.until
                if found.granted:
                    found.offset = work.first_offset(found.granted)
                    expired[log] = found
            except CustodyError as error:
                yield _unknown(log, error)
        yield from _delete(store, expired, end_of_life, now, dry_run=dry_run)


def _unknown(log: Log, error: CustodyError) -> Action:
    """Return why nothing of a log can expire."""
    if isinstance(error, SignatureInvalid | HeadRollback):
        return Action("expire", str(log), "refused", f"{error}: nothing of this log is deleted")
    return Action("expire", str(log), "failed", f"it cannot be said what has expired: {error}")


def _other_clocks(store: Store, tips: Mapping[Log, Tip[Manifest]], audit: Audit | None) -> list[datetime]:
    """Return the times that are not the host's own at this moment: the store's newest manifest, the newest audit."""
    keys = [layout.manifest_key(log, tip.head.size - 1) for log, tip in tips.items() if tip.head.size]
    clocks = [max(store.status(key).created for key in keys)] if keys else []
    return [*clocks, parse_time(audit.sealed_at)] if clocks and audit else clocks


@dataclass(slots=True)
class _Expired:
    """How far a log has expired.

    Attributes:
        until: statements before this one are old enough.
        signed: behind the last sequence that a statement calls expired.
        granted: statements before this one are old enough, and signed to be expired.
        keys: objects of those that no audit has seen granted yet, by sequence.
        offset: where the first statement begins that has not expired.
    """

    until: int = 0
    signed: int = 0
    granted: int = 0
    keys: list[tuple[int, str]] = field(default_factory=list)
    offset: int = 0


class _Log:
    """One log, read as far as deletions depend on it."""

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

    def find(self, end_of_life: datetime, days: int) -> _Expired:
        """Return how far the log has expired.

        Args:
            end_of_life: what was sealed until then is old enough.
            days: the retention.

        Raises:
            SignatureInvalid: a statement on the way does not count.
            KeyUnavailable: its signature cannot be checked now.
            StoreError: the archive does not answer.
        """
        found = _Expired(signed=self._granted)
        moment = end_of_life + timedelta(microseconds=1)
        kept = sealed_from(self._store, self.log, self._granted, moment, self._judge.holds)
        if kept < self._granted:
            # A longer retention was set since: what an audit has seen granted under a shorter one is kept.
            found.until = found.granted = kept
            return found
        latest = self._walk(found, end_of_life)
        expiries = self._expiries() if found.until > self._granted else []
        found.signed = max([found.signed, *(end for _, end, _ in expiries)])
        found.granted = self._granted
        for first, end, sealed_at in expiries:
            if first <= found.granted < end <= found.until:
                up_to_there = [moment for until, moment in latest.items() if until <= end]
                if all(moment <= sealed_at - timedelta(days=days) for moment in up_to_there[-1:]):
                    found.granted = end
        return found

    def _walk(self, found: _Expired, end_of_life: datetime) -> dict[int, datetime]:
        """Go over statements while they are old enough; return the latest time of sealing up to each."""
        found.until = self._granted
        latest: dict[int, datetime] = {}
        last: datetime | None = None
        for sequence, statement in self._statements(self._granted):
            sealed_at = parse_time(statement.sealed_at)
            last = sealed_at if last is None else max(last, sealed_at)
            if last > end_of_life:
                break
            found.until = sequence + 1
            latest[found.until] = last
            found.keys += [(sequence, ref.key) for ref in (statement.segment, statement.quarantine) if ref]
        return latest

    def _expiries(self) -> list[tuple[int, int, datetime]]:
        """Return first, end and time of the log's expiries that no audit has seen granted.

        Of a log of which no audit has seen any, all statements are looked at: once, for the next audit sees one.
        """
        start = self._seen if self._granted else 0
        return [
            (*statement.expired, parse_time(statement.sealed_at))
            for _, statement in self._statements(start)
            if statement.expired
        ]

    def first_offset(self, sequence: int) -> int:
        """Return where a statement begins, or the log ends if there is none."""
        for _, statement in self._statements(sequence):
            return statement.first_offset
        return self.tip.newest.statement.next_offset if self.tip.newest else 0

    def newest(self) -> Manifest:
        """Return the newest statement, which says what the log is of."""
        if self.tip.newest is None:
            raise FormatError(f"{self.log} has no statement")
        return self.tip.newest

    def _statements(self, first: int) -> Iterator[tuple[int, Statement]]:
        """Yield the log's statements from a sequence on, each signed, stepping over slots that were passed over.

        Raises:
            SignatureInvalid: a slot holds none that counts, and was not passed over.
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
                    f"no trusted key signed {key} as what it is there for; `custody verify` says more"
                )
            empty.clear()
            yield sequence, manifest.statement

    def _manifests(self, first: int) -> Iterator[tuple[int, Manifest | None]]:
        with ThreadPoolExecutor(_PARALLEL) as threads:
            for start in range(first, self._size, _PARALLEL):
                numbers: Sequence[int] = range(start, min(start + _PARALLEL, self._size))
                yield from zip(numbers, threads.map(self._read, numbers), strict=True)

    def _read(self, sequence: int) -> Manifest | None:
        try:
            return read_manifest(self._store, self.log, sequence, self._judge.is_of_place)
        except (ObjectMissing, FormatError):
            return None

    def _counts(self, manifest: Manifest, sequence: int, order: KeyOrder) -> bool:
        """Return whether a statement counts in its slot; raises as `_statements` where the slot is not void."""
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
    settings: Settings,
    store: Store,
    trust: Trust,
    work: _Log,
    found: _Expired,
    days: int,
    now: datetime,
    *,
    dry_run: bool,
) -> Action:
    """Call expired what is old enough, and is not called so yet."""
    target = f"{work.log}, statements {found.signed} to {found.until - 1}"
    if dry_run:
        return Action("expire", target, "planned")
    try:
        newest, signers = work.newest().statement, settings.signers(now)
        writer = LogWriter(
            store,
            newest.archive,
            newest.log,
            signer=signers.hmac(),
            trust=trust,
            writer=writer_name(),
        )
        writer.open(work.known)
        offset = writer.next_offset or 0
        writer.append(Entry(first_offset=offset, next_offset=offset, expired=(found.signed, found.until)))
        # Who has public keys alone believes an expiry that a checkpoint covers.
        put_checkpoint(store, newest.archive, work.log, writer.tip.head, signers.ed25519(), writer.judge)
    except CustodyError as error:
        return Action("expire", target, "failed", f"{error}; the next roll tries again")
    return Action("expire", target, "done", f"sealed more than {days} days ago; signed")


def _delete(
    store: Store, expired: Mapping[Log, _Expired], end_of_life: datetime, now: datetime, *, dry_run: bool
) -> Iterator[Action]:
    """Delete the objects of expired statements, and the tables made of them."""
    for log, key in _expired_keys(store, expired, end_of_life):
        if dry_run:
            yield Action("delete", key, "planned", f"{log} has called it expired")
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
            yield Action("delete", key, "done", f"{log} has called it expired")


def _expired_keys(store: Store, expired: Mapping[Log, _Expired], end_of_life: datetime) -> Iterator[tuple[Log, str]]:
    """Yield what may be deleted: what is listed, and what statements name whose keys hold a day far ahead."""
    if not expired:
        return
    listed: set[str] = set()
    for info in _list_records(store, end_of_life):
        parsed = layout.parse_records_key(info.key)
        if parsed and parsed.log in expired and parsed.last < expired[parsed.log].offset:
            listed.add(info.key)
            yield parsed.log, info.key
    for log, found in expired.items():
        for sequence, key in found.keys:
            if sequence < found.granted and key not in listed:
                yield log, key
    for info in store.list(tables.TABLES):
        table, listing = tables.parse_table_key(info.key), tables.parse_list_key(info.key)
        of, end = (table.log, table.end) if table else (listing[0], listing[2]) if listing else (None, 0)
        if of is not None and of in expired and end <= expired[of].granted:
            yield of, info.key


def _list_records(store: Store, until: datetime) -> Iterator[ObjectInfo]:
    """Yield segments and quarantine objects whose keys' day is not after a moment's, and the one after it.

    The day in a key is Kafka's; records may lie there for a while before they are sealed. Younger days are not listed.

    Raises:
        StoreError: the archive cannot be listed.
    """
    last = f"{until.astimezone(UTC) + timedelta(days=1):%Y/%m/%d}"
    for part in layout.RECORDS:
        folders = [""]
        # Years, months, days. A store lists in any order, so that no listing can be left at the first day too young.
        for _ in range(3):
            inner = (f"{folder}{name}" for folder in folders for name in store.level(part + folder)[0])
            folders = [f"{folder}/" for folder in inner if re.fullmatch("[0-9/]+", folder) and folder <= last]
        for folder in folders:
            yield from store.list(part + folder)
