"""The signed audits: the newest one, which statements they have verified, and how the next one is signed."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from custody.archive.forms import AUDITS
from custody.archive.reader import Tip, read_audit
from custody.archive.readings import is_of_roll
from custody.archive.resume import find_checked_tip
from custody.archive.trusted import Judge, find_trusted_audits, read_trusted_archive
from custody.archive.writer import append_audit
from custody.errors import Fenced, FormatError, KeyUnavailable, ObjectMissing
from custody.format import layout
from custody.format.audit import Audit, SignedAudit
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import KnownHead

GOOD = frozenset({"verified", "notices"})
"""Verdicts of an audit that found nothing wrong."""
_ATTEMPTS = 5
"""How often an audit, or a roll's record, tries to sign behind one that has just taken its slot."""


def find_audits(store: Store, archive: str, trust: Trust, known: Sequence[KnownHead] = ()) -> Tip[SignedAudit]:
    """Return the tip of the audits, after which the next one is signed. Raises as `find_checked_tip`."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    return find_checked_tip(store, layout.AUDIT_LOG, AUDITS, judge, trust, known)


def sign_behind(
    store: Store,
    find: Callable[[], Tip[SignedAudit]],
    make: Callable[[Tip[SignedAudit]], Audit],
    signers: Sequence[Signer],
    trust: Trust,
) -> Tip[SignedAudit]:
    """Sign and write an audit, behind those that others write in the same moment, and return the tip after it.

    Args:
        store: the archive.
        find: returns where the audits end, each time that one is to be written.
        make: returns the audit after a tip.
        signers: the HMAC-SHA256 and the Ed25519 key.
        trust: decides if another audit in the slot is valid.

    Raises:
        Fenced: others wrote an audit each time.
        HeadRollback: as `append_audit`; so do KeyUnavailable and StoreError. Besides, what `find` raises.
    """
    for _ in range(_ATTEMPTS):
        tip = find()
        with suppress(Fenced):
            return append_audit(store, tip, make, signers, trust)
    raise Fenced("others wrote an audit each time that this one was to be written")


def clean_audit(store: Store, archive: str, trust: Trust, tip: Tip[SignedAudit]) -> Audit | None:
    """Return the newest audit; None if there is none, or if a key signed it outside its span.

    Args:
        store: the archive.
        archive: its id.
        trust: the keys.
        tip: the tip of the audits that trusted keys signed.
    """
    if tip.newest is None:
        return None
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    return tip.newest.statement if judge.verdict(tip.newest, tip.head.size - 1).clean else None


def are_of_rolls(store: Store, archive: str, trust: Trust, sequences: Iterable[int]) -> bool:
    """Return whether each of some audits is a record of a roll, and counts. Raises StoreError."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    for sequence in sequences:
        try:
            signed = read_audit(store, sequence, judge.is_of_place)
        except (ObjectMissing, FormatError):
            return False
        if not is_of_roll(signed.statement) or not judge.verdict(signed, sequence).clean:
            return False
    return True


def old_before(before: Audit | None) -> dict[str, int]:
    """Return how many old statements of each log there were in the audit before, by what it says itself."""
    if before is None:
        return {}
    sizes = {name: head.size for name, head in before.heads.items()}
    return sizes | {
        name: span.from_
        for name, spans in before.covered.items()
        for span in spans
        if span.read == "new" and span.from_
    }


class Coverage:
    """Statements that signed audits have verified, with a good verdict.

    Audits are read from the newest back, each once, and only as far as needed. An audit is ignored if it is missing,
    does not parse, belongs to another archive or slot, does not count, or was signed outside its key's span.
    """

    def __init__(self, store: Store, trust: Trust) -> None:
        """Find the newest audit.

        Raises:
            HeadRollback: the archive is another one, or its newest audit does not count and may not be passed over.
            StoreError: the audits cannot be read.
        """
        archive = read_trusted_archive(store, trust).id
        self._store, self._judge = store, Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
        self._left = find_trusted_audits(store, archive, trust).head.size
        self._spans: dict[str, list[tuple[int, int]]] = {}

    def gap(self, log: Log, first: int, end: int) -> int | None:
        """Return the first statement in `[first, end)` of a log that no audit has verified; None if all are.

        Raises:
            KeyUnavailable: an audit's signature cannot be checked now.
            StoreError: the audits cannot be read. A later call continues with the audit that failed.
        """
        while (gap := _first_gap(self._spans.get(str(log), ()), first, end)) is not None and self._left:
            self._read(self._left - 1)
            self._left -= 1
        return gap

    def _read(self, sequence: int) -> None:
        try:
            signed = read_audit(self._store, sequence, self._judge.is_of_place)
        except (ObjectMissing, FormatError):
            return
        audit = signed.statement
        if audit.verdict not in GOOD:
            return
        verdict = self._judge.verdict(signed, sequence)
        if verdict.clean:
            for name, covered in audit.covered.items():
                self._spans.setdefault(name, []).extend((part.from_, part.to) for part in covered)
        elif any(problem.kind == "unreadable" for problem in verdict.problems):
            raise KeyUnavailable(f"audit {sequence} cannot be checked: {verdict.reason}")


def _first_gap(spans: Sequence[tuple[int, int]], first: int, end: int) -> int | None:
    """Return the first number in `[first, end)` that is in no span."""
    for begin, stop in sorted(spans):
        if begin > first:
            break
        first = max(first, stop)
    return first if first < end else None
