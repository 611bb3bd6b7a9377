"""What trusted keys signed in an archive: its `archive.json`, the entries of its logs, the logs' ends, checkpoints.

The policy is in `custody.tlog.signatures`; here it is applied to objects in a store. Unsigned data decides nothing: an
attacker who can write into the store, but has no key, can only raise alarms. `docs/guarantees.md` lists each such
input, with what it may do. Where it is held back:

- `archive.json` and its id: `check_archive`; memories are kept by URL (`known_heads.State`, `witness`).
- names of folders and objects, their order: `reader.named_logs` and `slots.sequence_of` only propose.
- statements, audits, checkpoints: `Judge`; ends of logs: `find_signed_end`, and `resume.find_checked_tip` to append;
  `resume.find_known_tip` where nothing is.
- heads in committed offsets: `tasks.drain.committed_heads`.
- tables and their lists, results of pieces, reports: `signed_notes.read`; findings' objects: by SHA-256 in an audit.
- Elasticsearch's documents and cursors: `tasks.search.reconcile`; the broker's answers: `tasks.drain.resume`, `change`.
- times of objects: `tasks.roll.clock`; versions, locks and rules: `verify.protection`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import TypeVar

from custody.archive import reader
from custody.archive.forms import AUDITS, form_of, statements_of
from custody.archive.guesses import checkpoints_back
from custody.archive.slots import end_of
from custody.errors import ConfigurationError, FormatError, HeadRollback, KeyUnavailable, ObjectMissing, counted
from custody.format import layout, limits
from custody.format.archive_file import ArchiveFile
from custody.format.audit import SignedAudit
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog import checkpoint, signatures
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head
from custody.tlog.log import Entry, Form
from custody.tlog.proofs import Proofs

E = TypeVar("E", bound=Entry)

_RANGES_SHOWN = 5


def check_archive(file: ArchiveFile, trust: Trust) -> str | None:
    """Return why an `archive.json` is not the trusted one, None if it is.

    It is trusted if its pin is the one in the trust; or, if there is no pin, if trusted keys signed it.
    """
    if trust.archive is not None:
        if file.pin == trust.archive:
            return None
        return (
            f"archive.json is not the one pinned in trust.json: it is archive {file.id} with SHA-256 {file.pin.sha256},"
            f" but {trust.archive.id} with {trust.archive.sha256} is pinned"
        )
    verdict = check_archive_signatures(file, trust, pinned=False)
    if verdict.counts:
        return None
    if trust.keys and _is_foreign(verdict):
        return _foreign(file, trust)
    ended = "; if you know that it is the right one, pin it in trust.json" if verdict.good and not verdict.held else ""
    return f"archive.json is not signed by trusted keys: {verdict.reason}{ended}"


def read_trusted_archive(store: Store, trust: Trust) -> ArchiveFile:
    """Read `archive.json`, and check that it is the trusted one.

    Raises:
        HeadRollback: it is not the trusted one.
        NoArchive: there is no archive here.
        ConfigurationError: the keys are those of another archive.
        FormatError: it is not of this format.
        StoreError: the store does not give it.
    """
    file = reader.read_archive(store)
    require_trusted(store, file, trust)
    return file


def require_trusted(store: Store, file: ArchiveFile, trust: Trust) -> None:
    """Check that an `archive.json` is the trusted one.

    Raises:
        HeadRollback: it is not.
        ConfigurationError: the keys are those of another archive: see `check_keys`.
        StoreError: the store does not say whose keys signed its logs.
    """
    problem = check_archive(file, trust)
    if problem is not None:
        check_keys(store, file, trust)
        raise HeadRollback(f"{store.url}: {problem}. The archive is not used; run `custody verify`")


def check_keys(store: Store, file: ArchiveFile, trust: Trust) -> None:
    """Check that the keys may be those of this archive, where there are keys, and it is not the pinned one.

    They are not if none of them signed its `archive.json` or anything in its logs. With such keys nothing is known of
    the archive, so no command calls that tampering.

    Raises:
        ConfigurationError: they are those of another archive.
        HeadRollback: they signed its logs, and somebody else its `archive.json`.
        StoreError: the store does not say whose keys signed its logs.
    """
    if not trust.keys or trust.archive == file.pin:
        return
    if not _is_foreign(check_archive_signatures(file, trust, pinned=False)):
        return
    log = _log_signed(store, trust)
    if log is not None:
        raise HeadRollback(
            f"{store.url}: trusted keys signed the log {log}, but other keys signed archive.json: find out who replaced"
            " it, and restore it. The archive is not used; run `custody verify`"
        )
    raise ConfigurationError(f"{store.url}: {_foreign(file, trust)}: correct `keys` and `trust`, or `archive`")


def _is_foreign(verdict: signatures.Verdict) -> bool:
    """Return whether a file was signed, and only by keys that are not trusted here."""
    kinds = {problem.kind for problem in verdict.problems}
    return not verdict.held and kinds == {"key-unknown"}


def _foreign(file: ArchiveFile, trust: Trust) -> str:
    """Return the message about an `archive.json` that only other keys signed."""
    signers = " and ".join(f"{signature.key[:200]!r}" for signature, _ in file.signatures)
    return (
        f"archive.json is not signed by trusted keys: {signers} signed it, so the keys of"
        f" {' and '.join(trust.sources) or 'the settings'} may not be those of this archive"
    )


def _log_signed(store: Store, trust: Trust) -> Log | None:
    """Return a log in which a trusted key signed an entry: among the newest, or the first; None if there is none."""
    for log in [layout.AUDIT_LOG, *reader.list_logs(store)]:
        form = form_of(log)
        judge = Judge(store, log, form, None, replace(trust, keys=trust.at_hand))

        def is_ours(entry: Entry, sequence: int, judge: "Judge" = judge) -> bool:
            verdict = judge.verdict(entry, sequence)
            # The secret of a trusted key need not be here.
            return verdict.good or any(problem.open for problem in verdict.problems)

        if reader.before_garbage(store, form, is_ours) is not None:
            return log
        with suppress(FormatError):
            if reader.find_end(store, form, is_ours).newest is not None:
                return log
    return None


def check_archive_signatures(file: ArchiveFile, trust: Trust, *, pinned: bool) -> signatures.Verdict:
    """Return the policy's verdict on the signatures of `archive.json`.

    Nothing proves when it was signed. So a key that has ended counts only if the file is pinned; otherwise the other
    key's signature must be valid.

    Args:
        file: the file.
        trust: the keys.
        pinned: whether its pin is in `trust.json` or in the state file.
    """
    position = None if pinned else signatures.OUTSIDE
    verdict = signatures.check_file(
        file.message, file.signatures, trust.keys, wanted=AUDITS.wanted, position=position, subject="archive.json"
    )
    if not verdict.held:
        return verdict
    return replace(verdict, problems=tuple(problem for problem in verdict.problems if problem.kind != "key-span"))


class Judge:
    """Decides which entries in a log's slots count, by the signature policy.

    A statement that an ended key signed counts if it is proved to be in the tree at which the key ended.
    """

    def __init__(self, store: Store, log: Log, form: Form[Entry], archive: str | None, trust: Trust) -> None:
        """Set up.

        Args:
            store: the archive's storage.
            log: the log.
            form: the form of the log's entries.
            archive: the archive's id; None if it is not known and not checked.
            trust: the keys.
        """
        self._store, self._log, self._form, self._archive, self._trust = store, log, form, archive, trust
        self._at_hand = trust.at_hand
        self.proofs = Proofs(store, str(log), form, self.is_valid, end_of(store, form))
        self.unchecked = 0
        """How many entries `may_stand` has accepted without a signature that it could check."""

    def verdict(self, entry: Entry, sequence: int, order: signatures.KeyOrder | None = None) -> signatures.Verdict:
        """Return the policy's verdict on an entry. Pass the order of keys so far if entries are read in order."""
        return signatures.check_file(
            entry.message,
            entry.signatures,
            self._trust.keys,
            wanted=self._form.wanted,
            position=signatures.Place(str(self._log), sequence),
            sealed_at=parse_time(entry.statement.sealed_at),
            within=lambda head: self.proofs.holds(sequence, entry.message, head),
            order=order,
            subject=self._form.noun,
        )

    def holds(self, entry: Entry, sequence: int) -> bool:
        """Return whether an entry counts in its slot. If not, it has no valid signature, and may be passed over.

        Raises:
            HeadRollback: it must not be passed over: it has a good signature that does not count, or is signed by an
                unknown key, which was not accepted.
            KeyUnavailable: none of its signatures can be checked now.
        """
        if not self.is_of_place(entry, sequence):
            return False
        verdict = self.verdict(entry, sequence)
        if verdict.counts:
            return True
        if verdict.void:
            return False
        key = self._form.key(sequence)
        if verdict.unknown:
            digest = ""
            # Without the object, there is only an older version.
            with suppress(ObjectMissing):
                digest = reader.stored_digest(self._store, key)
            wanted = ("key-unknown", str(self._log), sequence, digest)
            if any(
                (accepted.finding, accepted.log, accepted.sequence, accepted.sha256) == wanted
                for accepted in self._trust.accepted
            ):
                return False
            raise HeadRollback(
                f"{key} does not count: {verdict.reason}. If this is a writer's key, give it to this writer too."
                " If not, run"
                f" `custody accept --finding key-unknown --log {self._log} --sequence {sequence} --sha256 {digest}`"
                " to pass over the slot"
            )
        if verdict.refused:
            raise HeadRollback(f"{key} does not count: {verdict.reason}")
        raise KeyUnavailable(f"no signature of {key} can be checked: {verdict.reason}")

    def newer_before(self, entry: Entry, sequence: int) -> str | None:
        """Return the id of a key that signed earlier but is newer than a key of this entry; None if there is none.

        Only the entries 1, 2, 4, 8 … before it are read, and none if no newer key is known. Keys without a validity
        period have no order of their own: for these, all entries must be read.
        """
        newer: set[str] = set()
        for signature, _ in entry.signatures:
            key = self._trust.keys.get(signature.key)
            newer |= signatures.newer_than(key, self._trust.keys) if key else set()
        step = 1
        while newer and step <= sequence:
            before = sequence - step
            step *= 2
            try:
                earlier = self._form.parse(self._store.read(self._form.key(before), limit=limits.FILE_BYTES))
            except (ObjectMissing, FormatError):
                continue
            for signature, _ in earlier.signatures:
                if signature.key in newer and self.is_valid(earlier, before):
                    return signature.key
        return None

    def is_valid(self, entry: Entry, sequence: int) -> bool | None:
        """Return whether an entry is valid in its slot, by the available keys; None if that cannot be decided.

        Does not check whether it is within the head at which its key ended.
        """
        if not self.is_of_place(entry, sequence):
            return False
        verdict = self._verdict_of_keys(entry, sequence, self._at_hand)
        return False if verdict.void else True if verdict.held else None

    def _verdict_of_keys(self, entry: Entry, sequence: int, keys: signatures.Keys) -> signatures.Verdict:
        position = signatures.Place(str(self._log), sequence)
        return signatures.check_file(
            entry.message, entry.signatures, keys, wanted=self._form.wanted, position=position, subject=self._form.noun
        )

    def stands(self, entry: Entry, sequence: int) -> bool:
        """Return whether tasks may use an entry: as `may_stand`, but not if unknown or ended keys signed it.

        With an empty trust, no key counts as unknown.
        """
        return self.may_stand(entry, sequence, by_known_keys=bool(self._trust.keys))

    def may_stand(self, entry: Entry, sequence: int, *, by_known_keys: bool = False) -> bool:
        """Return whether readers may use an entry. Never raises because of a signature.

        False if a signature is wrong and none is good. An entry that cannot be checked here is accepted, unless a later
        entry passes over its slot, or it must be signed by known keys.
        """
        if not self.is_of_place(entry, sequence):
            return False
        verdict = self._verdict_of_keys(entry, sequence, self._trust.keys)
        if by_known_keys and (verdict.refused or verdict.unknown):
            return False
        if verdict.good:
            return True
        if verdict.void or self.proofs.is_passed_over(sequence):
            return False
        self.unchecked += 1
        return True

    def is_of_place(self, entry: Entry, sequence: int) -> bool:
        """Return whether an entry claims to be of this archive, log and slot."""
        statement = entry.statement
        placed = statement.sequence == sequence
        if self._archive is not None:
            placed = placed and getattr(statement, "archive", None) == self._archive
        of = getattr(statement, "log", None)
        return placed and (of is None or Log(of.topic, of.partition, of.epoch) == self._log)

    def open_problems(self, entry: Entry, sequence: int) -> tuple[signatures.Problem, ...]:
        """Return why no signature of an entry could be checked; nothing if one is good."""
        verdict = self._verdict_of_keys(entry, sequence, self._trust.keys)
        return () if verdict.good else verdict.problems

    def refusal(self, note: Note, parsed: Checkpoint) -> str | None:
        """Return why a checkpoint does not count, None if the log's own key signed it, and it is of this log."""
        verdict = self.note_verdict(note, parsed)
        if verdict is None:
            return f"it is of {parsed.origin[:300]!r}, not of this archive's log {self._log}"
        verdict = replace(verdict, quorum=0)
        return None if verdict.counts else verdict.reason

    def note_verdict(
        self, note: Note, parsed: Checkpoint, now: datetime | None = None
    ) -> signatures.NoteVerdict | None:
        """Return the policy's verdict on a checkpoint and its cosignatures; None if it is not of this log.

        Args:
            note: the signed note.
            parsed: what its text says.
            now: the time, for cosignatures; None to compare none.
        """
        if parsed.origin != checkpoint.origin_of(self._archive or "", self._log):
            return None
        return signatures.check_checkpoint(
            note,
            parsed,
            str(self._log),
            self._trust.keys,
            within=lambda head: self.proofs.leads_to(parsed.size, parsed.root, head),
            witnesses=self._trust.witnesses,
            quorum=self._trust.quorum,
            now=now,
        )

    def checkpoints(self, sizes: Iterable[int]) -> Iterator[tuple[Note, Checkpoint]]:
        """Yield those of the checkpoints of these sizes that the log's own key signed.

        Raises:
            StoreError: the store does not give one.
        """
        for note, parsed in reader.read_checkpoints(self._store, self._log, sizes):
            if self.refusal(note, parsed) is None:
                yield note, parsed


def known_heads(trust: Trust, log: Log) -> list[tuple[str, Head]]:
    """Return the known heads of a log from outside its archive, with their origins. Ends of keys are included."""
    name = str(log)
    heads = [("trust.json", trust.heads.get(name))]
    heads += [(f"the end of the key {key.id!r}", key.until.get(name)) for key in trust.keys.values() if key.until]
    return [(origin, head) for origin, head in heads if head is not None]


def standing(store: Store, archive: str | None, trust: Trust) -> Callable[[Log], reader.Holds[Manifest]]:
    """Return a function that gives, for each log, the check whether tasks may use a statement: `Judge.stands`.

    Args:
        store: the archive's storage.
        archive: the archive's id; None if it is not known and not checked.
        trust: the available keys.
    """

    @cache
    def holds(log: Log) -> reader.Holds[Manifest]:
        return Judge(store, log, statements_of(log), archive, trust).stands

    return holds


def unverified(trust: Trust, unchecked: Mapping[Log, int], more: str = "") -> list[tuple[Log | None, str]]:
    """Return why what was read is unverified, and of which log; nothing if all signatures were checked.

    Args:
        trust: the available keys.
        unchecked: how many entries of each log were accepted without a signature that could be checked.
        more: what else is said about them.
    """
    if not trust.keys:
        return [(None, "no keys are at hand, so no signature was checked; set `keys`, or `trust`")]
    logs = {log: many for log, many in unchecked.items() if many}
    if not logs:
        return []
    total = sum(logs.values())
    message = f"{counted(total, 'signature')} could not be checked with the keys at hand{more}"
    log = min(logs)
    return [(log, message)] if len(logs) == 1 else [(None, f"{counted(len(logs), 'log')}, such as {log}: {message}")]


def empty_slots(form: Form[E], slots: Sequence[tuple[int, int]]) -> str:
    """Return the message about slots without a valid entry. `slots` are ranges, without their ends."""
    shown = ", ".join(f"{start} to {stop - 1}" for start, stop in slots[:_RANGES_SHOWN])
    more = f" and {counted(len(slots) - _RANGES_SHOWN, 'more range')}" if len(slots) > _RANGES_SHOWN else ""
    return f"no valid {form.noun} in the slots {shown}{more}; run `custody verify`"


def beyond_end(
    store: Store, log: Log, form: Form[E], judge: Judge, size: int, heads: Sequence[tuple[int, str]]
) -> str | None:
    """Return what shows that a log was longer than it is now: a known head or a signed checkpoint; None if nothing.

    Args:
        store: the archive's storage.
        log: the log.
        form: the form of its entries.
        judge: of the log.
        size: where it ends.
        heads: sizes that are known, and from where.
    """
    sizes = reader.checkpoint_sizes(store, log, size)
    if sizes and store.exists(form.key(size)):
        # A writer at work may have put statements since they were listed.
        sizes = [larger for larger in sizes if not store.exists(form.key(larger - 1))]
    signed = [(parsed.size, "a checkpoint") for _, parsed in judge.checkpoints(sizes)]
    known, origin = max([*heads, *signed], default=(0, ""))
    if known > size:
        return f"it ends at size {size}, but {origin} knows size {known}; run `custody verify`"
    if sizes and not size:
        return f"it has checkpoints, but no valid {form.noun}; run `custody verify`"
    return None


def find_signed_end(store: Store, form: Form[E], judge: "Judge", hint: int = 0) -> reader.Tip[E]:
    """Find where a log ends, by the entries that trusted keys signed, in the order of these keys.

    Raises:
        HeadRollback: the newest entry does not count, and must not be passed over.
        KeyUnavailable: its signature cannot be checked now.
        FormatError: its tree is inconsistent.
        StoreError: the store does not answer.
    """
    tip = reader.find_end(store, form, judge.holds, hint)
    newer = judge.newer_before(tip.newest, tip.head.size - 1) if tip.newest else None
    if newer is not None:
        key = form.key(tip.head.size - 1)
        raise HeadRollback(f"{key} does not count: an older key signed it after the newer {newer!r} was in use")
    return tip


def find_trusted_tip(store: Store, log: Log, archive: str, trust: Trust, hint: int = 0) -> reader.Tip[Manifest]:
    """Find where a log of statements ends. Raises as `find_signed_end`."""
    form = statements_of(log)
    return find_signed_end(store, form, Judge(store, log, form, archive, trust), hint)


def find_trusted_audits(store: Store, archive: str, trust: Trust) -> reader.Tip[SignedAudit]:
    """Find where the log of audits ends. Raises as `find_signed_end`."""
    return find_signed_end(store, AUDITS, Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust))


def newest_checkpoint(
    store: Store, log: Log, archive: str, trust: Trust | None = None, near: int = 0
) -> tuple[Note | None, int]:
    """Return a log's largest checkpoint, None if it has none; and how many larger objects are there that do not count.

    Args:
        store: the archive.
        log: the log.
        archive: the archive's id.
        trust: only checkpoints that these keys signed count; without it, any well-formed one.
        near: a size that the log may have; a wrong one only costs requests.

    Raises:
        StoreError: the store does not give it.
    """
    judge = Judge(store, log, form_of(log), archive, trust) if trust else None
    larger = 0
    for size in checkpoints_back(store, log, near):
        notes = judge.checkpoints([size]) if judge else reader.read_checkpoints(store, log, [size])
        for note, _ in notes:
            return note, larger
        larger += 1
    return None, larger
