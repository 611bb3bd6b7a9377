"""The end of evidence: `expired` is signed first, and then the objects are deleted, by version.

So verification tells expiry from loss for ever (FORMAT.md, `expired`). What decides on a deletion is signed by a
trusted key: the audit or statement that carries `expired`, and the newest statement that it ends. That one was sealed
before the end of life, and so was all before it, whatever else lies in the archive.

A run that dies between the two leaves objects that may go; the next one finds them, since it lists all days up to the
end of life, and deletes them. What is locked stays until its lock has ended.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta

from custody import layout, tables
from custody.archive import (
    Entry,
    LogWriter,
    find_head,
    list_logs,
    read_archive,
    read_manifest,
    sealed_from,
    writer_name,
)
from custody.audit import Audit
from custody.audits import is_signed
from custody.errors import CustodyError, ObjectMissing, SignatureInvalid
from custody.keys import open_signers
from custody.layout import Log
from custody.manifest import Manifest, Statement, message, parse_time
from custody.settings import Settings
from custody.store import Store, open_store
from custody.trust import Trust, open_trust
from tasks.audit import EXPIRED, last_trusted_audit
from tasks.roll import Action
from tasks.tiers import list_records


def expire(settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[Action]:
    """End the life of what is older than `tiers.life_days`.

    Args:
        settings: the settings.
        now: the time, aware.
        dry_run: say what would be done, and change nothing.

    Yields:
        One action for each log whose `expired` was signed, or could not be, and one for each object.

    Raises:
        CustodyError: the archive or the keys cannot be opened, or the archive does not answer.
    """
    end_of_life = now - timedelta(days=settings.tiers.life_days)
    trust = open_trust([settings.keys], settings.trust, settings.passphrase())
    with closing(open_store(settings.archive, settings.s3)) as store:
        # Before anything is signed: what lies in a tier that is not mounted could not be deleted.
        store.names(layout.EVENTS)
        newest = last_trusted_audit(store, trust).newest
        reader = _Reader(store, trust, read_archive(store).archive, newest.statement if newest else None)
        ends: dict[Log, int] = {}
        sequences: dict[Log, int] = {}
        for log in list_logs(store):
            try:
                size = find_head(store, log).size
                until = sealed_from(store, log, size, end_of_life)
                # What a longer life was set for since is not deleted, whatever was once called expired.
                before = min(reader.expired(log, size), until)
                if until > before:
                    last = reader.sealed_before(end_of_life, log, until - 1)
                    action = _sign(settings, store, trust, log, last, before, now, dry_run=dry_run)
                    yield action
                    if action.outcome in {"done", "planned"}:
                        before = until
                if before:
                    ends[log] = reader.sealed_before(end_of_life, log, before - 1).next_offset
                    sequences[log] = before
            except SignatureInvalid as error:
                yield Action("expire", str(log), "refused", f"{error}: nothing of this log is deleted")
            except CustodyError as error:
                yield Action("expire", str(log), "failed", f"it cannot be said what has expired: {error}")
        yield from _delete(store, ends, sequences, end_of_life, now, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads what decides on deletions: nothing that no trusted key signed does."""

    store: Store
    trust: Trust
    archive: str
    audit: Audit | None

    def expired(self, log: Log, size: int) -> int:
        """Return the end of a log's last `expired`, from what the last audit saw on."""
        expired, seen = 0, 0
        if self.audit is not None and (head := self.audit.heads.get(str(log))):
            expired, seen = self.audit.counts.get(f"{EXPIRED}{log}", 0), head.size
        for sequence in range(min(seen, size), size):
            found = read_manifest(self.store, log, sequence)
            if found.statement.expired:
                self._check(found, log, sequence)
                expired = max(expired, found.statement.expired[1])
        return expired

    def sealed_before(self, moment: datetime, log: Log, sequence: int) -> Statement:
        """Return a statement that is signed, and was sealed before a moment; what comes before it was so, too.

        Raises:
            SignatureInvalid: it is not.
        """
        found = read_manifest(self.store, log, sequence)
        self._check(found, log, sequence)
        if parse_time(found.statement.sealed_at) >= moment:
            raise SignatureInvalid(f"{layout.manifest_key(log, sequence)} was sealed too late to have expired")
        return found.statement

    def _check(self, found: Manifest, log: Log, sequence: int) -> None:
        one = found.statement
        source = Log(one.log.topic, one.log.partition, one.log.life)
        placed = (one.archive, source, one.sequence) == (self.archive, log, sequence)
        if not placed or not is_signed(self.trust, message(found.line), found.signatures, sequence, one.sealed_at, log):
            key = layout.manifest_key(log, sequence)
            raise SignatureInvalid(f"no trusted key signed {key} as what it is there for; `custody verify` says more")


def _sign(
    settings: Settings,
    store: Store,
    trust: Trust,
    log: Log,
    last: Statement,
    first: int,
    now: datetime,
    *,
    dry_run: bool,
) -> Action:
    """Call expired what is from a sequence to the last statement that was sealed before the end of life."""
    end = last.sequence + 1
    target = f"{log}, statements {first} to {end - 1}"
    if dry_run:
        return Action("expire", target, "planned")
    try:
        writer = LogWriter(
            store,
            read_archive(store),
            last.log,
            signers=open_signers(settings.keys, now, settings.passphrase()),
            trust=trust,
            writer=writer_name(),
        )
        head = writer.open()
        if head.next_offset is None:
            return Action("expire", target, "refused", "the log has no statement")
        writer.append(Entry(first_offset=head.next_offset, next_offset=head.next_offset, expired=(first, end)))
    except CustodyError as error:
        return Action("expire", target, "failed", f"{error}; the next roll tries again")
    return Action("expire", target, "done", f"sealed more than {settings.tiers.life_days} days ago; signed")


def _delete(
    store: Store,
    ends: Mapping[Log, int],
    sequences: Mapping[Log, int],
    end_of_life: datetime,
    now: datetime,
    *,
    dry_run: bool,
) -> Iterator[Action]:
    """Delete the objects of expired statements, and the tables made of them."""
    for log, key in _expired_keys(store, ends, sequences, end_of_life):
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


def _expired_keys(
    store: Store, ends: Mapping[Log, int], sequences: Mapping[Log, int], end_of_life: datetime
) -> Iterator[tuple[Log, str]]:
    """Yield what may be deleted."""
    if not ends:
        return
    for info in list_records(store, end_of_life):
        parsed = layout.parse_records_key(info.key)
        if parsed and parsed.last < ends.get(parsed.log, 0):
            yield parsed.log, info.key
    for info in store.list(tables.TABLES):
        table, listed = tables.parse_table_key(info.key), tables.parse_list_key(info.key)
        log, end = (table.log, table.end) if table else (listed[0], listed[2]) if listed else (None, 0)
        if log and end <= sequences.get(log, 0):
            yield log, info.key
