"""What the roll did: each action, and the signed record of those that count, an audit of its own."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from custody.archive.reader import (
    Tip,
)
from custody.archive.trusted import find_trusted_audits, read_trusted_archive
from custody.archive.writer import append_audit, writer_name
from custody.errors import SearchError
from custody.findings import finding
from custody.format import audit
from custody.format.audit import Audit, SignedAudit
from custody.format.times import format_time
from custody.store.open import open_store
from tasks.audit.newest import clean_audit
from tasks.settings import Settings

RECORDED = 100
"""Findings of a roll that stand in its audit; all of them are counted there."""

What = Literal["create", "read-only", "merge", "warm", "delete", "policy", "rules", "expire", "step", "record"]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that the roll did, would do, or did not do.

    Attributes:
        what: the kind of thing.
        target: what it was done to.
        outcome: `planned` in a dry run, `refused` where a condition does not hold, `failed` where the server said no.
        why: the reason.
    """

    what: What
    target: str
    outcome: Literal["done", "planned", "refused", "failed"]
    why: str = ""


def act(what: What, target: str, do: Callable[[], object], *, dry_run: bool) -> Action:
    """Do something in Elasticsearch, but in a dry run, and return what became of it."""
    if dry_run:
        return Action(what, target, "planned")
    try:
        do()
    except SearchError as error:
        return Action(what, target, "failed", str(error))
    return Action(what, target, "done")


def record(settings: Settings, actions: Sequence[Action], now: datetime) -> int | None:
    """Sign what was deleted, what was to be and was not, what expired, and what ended a step, as an audit of its own.

    It covers nothing, and hands on what the audit before it says of heads and marks, if trusted keys signed that one
    within their spans.

    Returns:
        Its sequence; None where there is nothing to record.

    Raises:
        Fenced: another audit was written meanwhile, rightly.
        CustodyError: the archive does not take it, or no key can sign.
    """
    told = [one for one in actions if one.what in {"delete", "expire"} and one.outcome != "planned"]
    if not told:
        return None
    told = [*(one for one in actions if one.what == "step"), *told]
    counts = Counter(f"{one.what} {one.outcome}" for one in told)
    found = [
        finding("rolled", f"{one.what} {one.outcome}: {one.why}"[:1000], key=one.target[:500]).to_dict()
        for one in told[:RECORDED]
    ]
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = settings.own_trust()
        archive = read_trusted_archive(store, trust).id
        tip = find_trusted_audits(store, archive, trust)
        before = clean_audit(store, archive, trust, tip)

        def make(tip: Tip[SignedAudit]) -> Audit:
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
                findings=found,
                objects=[],
                verdict="notices",
            )

        return append_audit(store, tip, make, settings.signers(now).both(), trust).size - 1
