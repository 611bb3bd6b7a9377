"""The end of evidence: `expired` is signed first, and then the objects are deleted, by version.

So verification tells expiry from loss for ever (FORMAT.md, `expired`).

A run that dies between the two leaves objects that may go; the next one finds them, since it lists all days up to the
end of life, and deletes them. What is locked stays until its lock has ended.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta

from custody import layout, tables
from custody.archive import (
    Entry,
    LogWriter,
    find_audits,
    find_head,
    list_logs,
    read_archive,
    read_manifest,
    sealed_from,
    writer_name,
)
from custody.errors import CustodyError, ObjectMissing
from custody.keys import open_signers
from custody.layout import Log
from custody.settings import Settings
from custody.store import Store, open_store
from custody.trust import open_trust
from tasks.audit import EXPIRED
from tasks.roll import Action
from tasks.tiers import list_records


def expire(settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[Action]:
    """End the life of what is older than `tiers.life_days`.

    Args:
        settings: the settings.
        now: the time, aware.
        dry_run: say what would be done, and change nothing.

    Yields:
        One action for each log whose `expired` was signed, and one for all that was deleted of each.

    Raises:
        CustodyError: the archive or the keys cannot be opened, or the archive does not answer.
    """
    end_of_life = now - timedelta(days=settings.tiers.life_days)
    with closing(open_store(settings.archive, settings.s3)) as store:
        # Before anything is signed: what lies in a tier that is not mounted could not be deleted.
        store.names(layout.EVENTS)
        marks = _marks(store)
        ends: dict[Log, int] = {}
        sequences: dict[Log, int] = {}
        for log in list_logs(store):
            head = find_head(store, log)
            before = _expired(store, log, head.size, marks)
            until = sealed_from(store, log, head.size, end_of_life)
            if until > before:
                action = _sign(settings, store, log, before, until, now, dry_run=dry_run)
                yield action
                if action.outcome in {"done", "planned"}:
                    before = until
            if before:
                ends[log] = read_manifest(store, log, before - 1).statement.next_offset
                sequences[log] = before
        yield from _delete(store, ends, sequences, end_of_life, now, dry_run=dry_run)


def _marks(store: Store) -> Mapping[str, tuple[int, int]]:
    """Return by log what the newest audit says: the sequences expired then, and how many statements it saw."""
    newest = find_audits(store).newest
    if newest is None:
        return {}
    audit = newest.statement
    return {name: (audit.counts.get(f"{EXPIRED}{name}", 0), head.size) for name, head in audit.heads.items()}


def _expired(store: Store, log: Log, size: int, marks: Mapping[str, tuple[int, int]]) -> int:
    """Return the end of a log's last `expired`, from what an audit saw on."""
    expired, seen = marks.get(str(log), (0, 0))
    for sequence in range(min(seen, size), size):
        found = read_manifest(store, log, sequence).statement.expired
        if found:
            expired = max(expired, found[1])
    return expired


def _sign(settings: Settings, store: Store, log: Log, first: int, end: int, now: datetime, *, dry_run: bool) -> Action:
    target = f"{log}, statements {first} to {end - 1}"
    if dry_run:
        return Action("expire", target, "planned")
    passphrase = settings.passphrase()
    try:
        newest = read_manifest(store, log, end - 1).statement
        writer = LogWriter(
            store,
            read_archive(store),
            newest.log,
            signers=open_signers(settings.keys, now, passphrase),
            trust=open_trust([settings.keys], settings.trust, passphrase),
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
