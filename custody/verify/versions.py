"""Rule 10 of FORMAT.md, Verification: the bucket's versions of evidence, and its lifecycle rules."""

from collections.abc import Sequence
from dataclasses import dataclass

from custody.errors import CustodyError
from custody.findings import Finding, Findings, finding
from custody.format import layout
from custody.store.protocol import Store
from custody.verify.accounts import Accounts
from custody.verify.logs import Logs
from custody.verify.protection import Protection, check_lifecycle, originals


@dataclass(frozen=True, slots=True)
class Beneath:
    """The first versions of the evidence.

    Attributes:
        store: the archive as it was first written.
        touched: keys that were overwritten or deleted.
        history: keys, each with the finding about what was done to it.
    """

    store: Store
    touched: frozenset[str] = frozenset()
    history: Sequence[tuple[str, Finding]] = ()


def look_beneath(store: Store, protection: Protection, findings: Findings) -> Beneath:
    """Find overwritten and deleted objects and their first versions. Report problems with the bucket's rules."""
    try:
        first, history = originals(store)
        rules = lifecycle.rules() if (lifecycle := store.capabilities.lifecycle) else None
    except CustodyError as error:
        message = f"the bucket's versions and lifecycle rules cannot be read: {error}"
        findings.add(finding("unreadable", message, key=""))
        return Beneath(store)
    for one in check_lifecycle(rules, protection, _root_in_bucket(store.url)):
        findings.add(one)
    versions = store.capabilities.versions
    return Beneath(versions.at_versions(first) if first and versions else store, frozenset(first), history)


def _root_in_bucket(url: str) -> str:
    """Return the prefix of an archive's keys in its bucket, empty or ending in a slash."""
    _, _, prefix = url.removeprefix("s3://").partition("/")
    return f"{prefix}/" if prefix else ""


def report_history(history: Sequence[tuple[str, Finding]], accounts: Accounts, logs: Logs, findings: Findings) -> None:
    """Report overwritten and deleted evidence, except what has expired."""
    gone: dict[layout.Log, list[tuple[int, int]]] = {}
    for key, one in history:
        parsed = layout.parse_records_key(key)
        if parsed is None:
            findings.add(one)
            continue
        if parsed.log not in gone:
            gone[parsed.log] = _expired_offsets(parsed.log, accounts, logs)
        if not any(first <= parsed.first and parsed.last < end for first, end in gone[parsed.log]):
            findings.add(one)


def _expired_offsets(log: layout.Log, accounts: Accounts, logs: Logs) -> list[tuple[int, int]]:
    """Return the ranges of offsets whose objects may have been deleted."""
    ranges = []
    for first, end in (granted for account in accounts.of(log) for granted in account.granted):
        begin, last = logs.statement(log, first), logs.statement(log, end - 1)
        if begin and last:
            ranges.append((begin.first_offset, last.next_offset))
    return ranges
