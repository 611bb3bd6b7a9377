"""Actions of the roll, and the signed audit that records deletions and expiries."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from custody.archive.reader import Tip
from custody.archive.trusted import find_trusted_audits, read_trusted_archive
from custody.archive.writer import writer_name
from custody.errors import SearchError
from custody.findings import finding
from custody.format import audit
from custody.format.audit import Audit, SignedAudit
from custody.format.times import format_time
from custody.store.open import open_store
from tasks.audit.objects import keep_report
from tasks.audit.signed import clean_audit, sign_behind
from tasks.settings import Settings

RECORDED = 100
"""Actions that a roll's audit lists; its counts are of all actions."""

What = Literal["create", "read-only", "merge", "warm", "delete", "rules", "expire", "clock", "step", "record"]


@dataclass(frozen=True, slots=True)
class Action:
    """An action that the roll did, would do, or did not do.

    Attributes:
        what: the kind of action.
        target: the object, index or log.
        outcome: `done`; `planned` in a dry run; `refused` if a lock, a setting or an audit that is due keeps it as it
            is; `failed`, so that the roll fails, if somebody must look: an error, a wrong clock, or what no trusted key
            signed.
        why: the reason.
    """

    what: What
    target: str
    outcome: Literal["done", "planned", "refused", "failed"]
    why: str = ""


def act(kind: What, target: str, do: Callable[[], object], why: str = "", *, dry_run: bool) -> Action:
    """Do something in Elasticsearch, unless it is a dry run, and return the action with its outcome."""
    if dry_run:
        return Action(kind, target, "planned", why)
    try:
        do()
    except SearchError as error:
        return Action(kind, target, "failed", str(error))
    return Action(kind, target, "done", why)


def record(settings: Settings, actions: Sequence[Action], now: datetime) -> int | None:
    """Sign deletions, expiries and confirmed clocks, and failed steps, as an audit of their own.

    Deletions and expiries are signed whether done, refused or failed.

    This audit covers no statements. It repeats the heads and marks of the previous audit, if trusted keys signed that
    one within their spans.

    Returns:
        The audit's sequence; None if there is nothing to record.

    Raises:
        Fenced: others wrote an audit each time that this one was to be written.
        CustodyError: the archive cannot be written, or no key can sign.
    """
    recorded = [
        action for action in actions if action.what in {"delete", "expire", "clock"} and action.outcome != "planned"
    ]
    if not recorded:
        return None
    recorded = [*(action for action in actions if action.what == "step"), *recorded]
    counts = Counter(f"{action.what} {action.outcome}" for action in recorded)
    findings = [
        finding("rolled", f"{action.what} {action.outcome}: {action.why}"[:1000], key=action.target[:500]).to_dict()
        for action in recorded[:RECORDED]
    ]
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = settings.own_trust()
        archive = read_trusted_archive(store, trust).id

        def make(tip: Tip[SignedAudit]) -> Audit:
            before = clean_audit(store, archive, trust, tip)
            return Audit(
                format=audit.FORMAT,
                archive=archive,
                sequence=tip.size,
                tree=tip.tree,
                passed_over=list(tip.passed_over),
                started_at=format_time(now),
                sealed_at=format_time(datetime.now(UTC)),
                writer=writer_name(),
                heads=before.heads if before else {},
                covered={},
                marks=before.marks if before else {},
                counts=dict(sorted(counts.items())),
                findings=findings,
                # This audit may be the next one after a report was made.
                objects=keep_report(store, trust, archive, tip.head.size - 1),
                verdict="notices",
            )

        # What was deleted must be signed, also if an audit takes the slot in the same moment.
        find = partial(find_trusted_audits, store, archive, trust)
        return sign_behind(store, find, make, settings.signers(now).both(), trust).size - 1
