"""What trusted keys signed of an archive: its `archive.json`, the entries of its logs, where these end, checkpoints.

The policy is `custody.tlog.signatures`; here it is applied to what lies in a store. Nothing that is not signed decides
anything: whoever can write into the store, and has no key, can raise alarms and no more.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import TypeVar

from custody.archive.forms import AUDITS, statements_of
from custody.archive.reader import Holds, Tip, find_end, read_archive
from custody.errors import FormatError, HeadRollback, KeyUnavailable, ObjectMissing
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.audit import SignedAudit
from custody.format.envelope import FILE_LIMIT
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog import checkpoint
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.log import Entry, Form
from custody.tlog.proofs import Proofs
from custody.tlog.signatures import (
    OUTSIDE,
    KeyOrder,
    Keys,
    NoteVerdict,
    Place,
    Verdict,
    check_checkpoint,
    check_file,
    newer_than,
)

E = TypeVar("E", bound=Entry)


def check_archive(file: ArchiveFile, trust: Trust) -> str | None:
    """Return why an `archive.json` is not the one that is trusted, None if it is.

    It is where its pin is the trusted one; without a pin, where trusted keys signed it.
    """
    if trust.archive is not None:
        if file.pin == trust.archive:
            return None
        return (
            f"archive.json is not the one that trust.json pins: archive {file.id} with SHA-256 {file.pin.sha256}, and"
            f" {trust.archive.id} with {trust.archive.sha256} is pinned"
        )
    verdict = check_archive_signatures(file, trust, pinned=False)
    if verdict.counts:
        return None
    ended = "; pin it in trust.json if you know that it is this one" if verdict.good and not verdict.held else ""
    return f"archive.json is not signed by trusted keys: {verdict.reason}{ended}"


def read_trusted_archive(store: Store, trust: Trust) -> ArchiveFile:
    """Read `archive.json`, and check that it is the one that is trusted.

    Raises:
        HeadRollback: it is another one.
        ObjectMissing: there is no archive here.
        FormatError: it is not of this format.
        StoreError: the store does not give it.
    """
    file = read_archive(store)
    problem = check_archive(file, trust)
    if problem is not None:
        raise HeadRollback(f"{store.url}: {problem}. Nothing is done with it; `custody verify` says more")
    return file


def check_archive_signatures(file: ArchiveFile, trust: Trust, *, pinned: bool) -> Verdict:
    """Return what the policy says of the signatures of `archive.json`.

    Nothing shows when it was signed. So a key that has ended speaks for it only where it is known otherwise to be this
    one; else the other key must hold.

    Args:
        file: the file.
        trust: the keys.
        pinned: whether its pin is the one that `trust.json`, or a memory of this place, has.
    """
    place = None if pinned else OUTSIDE
    verdict = check_file(
        file.message, file.signatures, trust.keys, wanted=AUDITS.wanted, place=place, what="archive.json"
    )
    if not verdict.held:
        return verdict
    return replace(verdict, problems=tuple(one for one in verdict.problems if one.kind != "key-span"))


class Judge:
    """Tells what counts of what lies in a log's slots, by the one policy.

    A statement that an ended key signed counts if it is shown to lie in the tree at which the key ended.
    """

    def __init__(self, store: Store, log: Log, form: Form[Entry], archive: str | None, trust: Trust) -> None:
        """Prepare to judge.

        Args:
            store: the archive's storage.
            log: whose slots they are.
            form: what the log is as a signed log.
            archive: the archive's id; None where it is not known, and not asked for.
            trust: the keys.
        """
        self._store, self._log, self._form, self._archive, self._trust = store, log, form, archive, trust
        self._at_hand = trust.at_hand
        self.proofs = Proofs(store, str(log), form, self.is_valid)

    def verdict(self, entry: Entry, sequence: int, order: KeyOrder | None = None) -> Verdict:
        """Return what the policy says of an entry; with the order of keys so far, where entries are read in order."""
        return check_file(
            entry.message,
            entry.signatures,
            self._trust.keys,
            wanted=self._form.wanted,
            place=Place(str(self._log), sequence),
            sealed_at=parse_time(entry.statement.sealed_at),
            within=lambda head: self.proofs.holds(sequence, entry.message, head),
            order=order,
            what=self._form.noun,
        )

    def holds(self, entry: Entry, sequence: int) -> bool:
        """Return whether an entry counts in its slot. False: nothing holds of it, and the slot may be passed over.

        Raises:
            HeadRollback: it may not be passed over: a good signature that does not count, or a key not known here that
                nobody has judged to be no writer's.
            KeyUnavailable: no signature of it can be checked now.
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
            digest = self._digest(key)
            if self._is_accepted(sequence, digest):
                return False
            raise HeadRollback(
                f"{key} does not count: {verdict.reason}. If a writer has this key, give it to this one; if none has,"
                f" `custody accept --finding key-unknown --log {self._log} --sequence {sequence} --sha256 {digest}`"
                " lets the slot be passed over"
            )
        if verdict.refused:
            raise HeadRollback(f"{key} does not count: {verdict.reason}")
        raise KeyUnavailable(f"no signature of {key} can be checked: {verdict.reason}")

    def newer_before(self, entry: Entry, sequence: int) -> str | None:
        """Return the id of a key that signed before an entry, and is newer than one that signed it; None if none did.

        The entries 1, 2, 4, 8 … places before it are asked, and none where no newer key is known. By keys without a
        span, which have no order of their own, only who reads all entries can tell.
        """
        newer: set[str] = set()
        for signature, _ in entry.signatures:
            key = self._trust.keys.get(signature.key)
            newer |= newer_than(key, self._trust.keys) if key else set()
        step = 1
        while newer and step <= sequence:
            before = sequence - step
            step *= 2
            try:
                found = self._form.parse(self._store.read(self._form.key(before), limit=FILE_LIMIT))
            except (ObjectMissing, FormatError):
                continue
            for signature, _ in found.signatures:
                if signature.key in newer and self.is_valid(found, before):
                    return signature.key
        return None

    def _digest(self, key: str) -> str:
        """Return the SHA-256 of what is stored, in hex; empty where only an older version of it is."""
        try:
            return sha256(self._store.read(key, limit=FILE_LIMIT)).hexdigest()
        except ObjectMissing:
            return ""

    def _is_accepted(self, sequence: int, digest: str) -> bool:
        """Return whether somebody has judged that no writer has the key that signed what lies in a slot."""
        place = ("key-unknown", str(self._log), sequence, digest)
        return any((one.finding, one.log, one.sequence, one.sha256) == place for one in self._trust.accepted)

    def is_valid(self, entry: Entry, sequence: int) -> bool | None:
        """Return whether an entry is valid in its slot, by the keys at hand; None where that cannot be said.

        Whether it lies within the head at which its key ended is not asked.
        """
        if not self.is_of_place(entry, sequence):
            return False
        verdict = self._verdict_of_keys(entry, sequence, self._at_hand)
        return False if verdict.void else True if verdict.held else None

    def _verdict_of_keys(self, entry: Entry, sequence: int, keys: Keys) -> Verdict:
        place = Place(str(self._log), sequence)
        return check_file(
            entry.message, entry.signatures, keys, wanted=self._form.wanted, place=place, what=self._form.noun
        )

    def stands(self, entry: Entry, sequence: int) -> bool:
        """Return whether tasks may go by an entry: as `may_stand`, but for what unknown or ended keys signed.

        Whoever trusts no key at all knows of none.
        """
        if not self.is_of_place(entry, sequence):
            return False
        verdict = self._verdict_of_keys(entry, sequence, self._trust.keys)
        if self._trust.keys and (verdict.refused or verdict.unknown):
            return False
        return self._may_stand(verdict, sequence)

    def may_stand(self, entry: Entry, sequence: int) -> bool:
        """Return whether readers may go by an entry. Never raises because of a signature.

        No, where a signature is wrong and none is good. What cannot be checked here is believed, unless a later entry
        passes over the slot.
        """
        if not self.is_of_place(entry, sequence):
            return False
        return self._may_stand(self._verdict_of_keys(entry, sequence, self._trust.keys), sequence)

    def _may_stand(self, verdict: Verdict, sequence: int) -> bool:
        return verdict.good or (not verdict.void and not self.proofs.is_passed_over(sequence))

    def is_of_place(self, entry: Entry, sequence: int) -> bool:
        """Return whether an entry says of itself that it is of this archive, log and slot."""
        statement = entry.statement
        placed = statement.sequence == sequence
        if self._archive is not None:
            placed = placed and getattr(statement, "archive", None) == self._archive
        of = getattr(statement, "log", None)
        return placed and (of is None or Log(of.topic, of.partition, of.epoch) == self._log)

    def checkpoint_verdict(self, note: Note, found: Checkpoint) -> NoteVerdict:
        """Return what the policy says of a checkpoint of this log, without asking for a quorum of witnesses."""
        return check_checkpoint(
            note,
            found,
            str(self._log),
            self._trust.keys,
            within=lambda head: self.proofs.leads_to(found.size, found.root, head),
            witnesses=self._trust.witnesses,
        )

    def refusal(self, note: Note, found: Checkpoint) -> str | None:
        """Return why a checkpoint does not count, None if the log's own key signed it, and it is of this log."""
        if found.origin != checkpoint.origin_of(self._archive or "", self._log):
            return f"it is of {found.origin[:300]!r}, and not of this archive's log {self._log}"
        verdict = self.checkpoint_verdict(note, found)
        return None if verdict.counts else verdict.reason

    def counts_checkpoint(self, note: Note, found: Checkpoint) -> bool:
        """Return whether the log's own key signed a checkpoint, and it is of this log."""
        return self.refusal(note, found) is None


def standing(store: Store, archive: str | None, trust: Trust) -> Callable[[Log], Holds[Manifest]]:
    """Return what tells, of each log, whether tasks may go by a statement where it stands: `Judge.stands`.

    Args:
        store: the archive's storage.
        archive: the archive's id; None where it is not known, and not asked for.
        trust: the keys; none where none are at hand.
    """

    @cache
    def holds(log: Log) -> Holds[Manifest]:
        return Judge(store, log, statements_of(log), archive, trust).stands

    return holds


def find_signed_end(store: Store, form: Form[E], judge: "Judge", hint: int = 0) -> Tip[E]:
    """Find where a log ends, by what trusted keys signed, in the order of these keys.

    Raises:
        HeadRollback: the newest entry does not count, and may not be passed over.
        KeyUnavailable: its signature cannot be checked now.
        FormatError: its tree does not hold together.
        StoreError: the store does not answer.
    """
    tip = find_end(store, form, judge.holds, hint)
    newer = judge.newer_before(tip.newest, tip.head.size - 1) if tip.newest else None
    if newer is not None:
        key = form.key(tip.head.size - 1)
        raise HeadRollback(f"{key} does not count: an older key signs it after the newer {newer!r}")
    return tip


def find_trusted_tip(store: Store, log: Log, archive: str, trust: Trust, hint: int = 0) -> Tip[Manifest]:
    """Find where a log of statements ends; raises as `find_signed_end`."""
    form = statements_of(log)
    return find_signed_end(store, form, Judge(store, log, form, archive, trust), hint)


def find_trusted_audits(store: Store, archive: str, trust: Trust) -> Tip[SignedAudit]:
    """Find where the log of audits ends; raises as `find_signed_end`."""
    return find_signed_end(store, AUDITS, Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust))
