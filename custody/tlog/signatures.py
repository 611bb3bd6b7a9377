"""The one policy by which a signature counts (FORMAT.md: Signed files, Tree and checkpoint, Trust).

All code that reads a signature calls this module: for statements, audits, `archive.json`, checkpoints, cosignatures,
evidence, the writer that resumes, expiry, lists of tables. Nothing else calls a key's `verify`. A signature counts if
all of this is true:

1. Its key is trusted.
2. It is by the key's one algorithm, and the signed file wants one signature of that algorithm.
3. Its key has not ended before: a key with `until` counts only for what lies within the heads named there. A log that
   is not named ends at size 0.
4. No newer key of its algorithm has signed in this log before.
5. It is over these bytes.

A file counts if each signature that its form wants is there exactly once, nothing speaks against any of them, and at
least one could be checked. A key's span `[from, to)` is policy: a signature outside of it counts, and is reported.
Code that does something irreversible requires more: `Verdict.clean`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from custody.errors import KeyUnavailable, SignatureInvalid
from custody.format.envelope import Algorithm, Signatures
from custody.tlog.checkpoint import Checkpoint, Note, NoteKey, NoteSignature, is_name
from custody.tlog.head import Head
from custody.tlog.merkle import EMPTY_ROOT

NOWHERE = Head(0, EMPTY_ROOT)
"""The head of an empty log, and where a key with `until` ends in a log that is not named there."""

_CLOCK_SLACK = timedelta(minutes=5)

Kind = Literal["signature", "key-unknown", "key-algorithm", "key-span", "unreadable", "unchecked-signature"]
"""The fault of a signature, by the name of its finding."""


class Key(Protocol):
    """A trusted key."""

    @property
    def id(self) -> str:
        """Its name in signatures."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """Its one algorithm."""
        ...

    @property
    def until(self) -> Mapping[str, Head] | None:
        """The heads at which it ended, by log; None where it has not ended."""
        ...

    @property
    def began(self) -> datetime:
        """When its span begins: of two keys of one algorithm the older one began earlier."""
        ...

    @property
    def ended(self) -> datetime | None:
        """When its span ends, None where it does not."""
        ...

    @property
    def checkable(self) -> bool:
        """Whether there is anything to check a signature with."""
        ...

    @property
    def public(self) -> bytes | None:
        """The public half of an Ed25519 key, None of any other."""
        ...

    def holds(self, moment: datetime) -> bool:
        """Whether its span holds a moment."""
        ...

    def verify(self, message: bytes, value: bytes) -> None:
        """Check a signature; raises SignatureInvalid or KeyUnavailable."""
        ...


Keys = Mapping[str, Key]
"""Trusted keys by their ids."""


def newer_than(key: Key, keys: Keys) -> set[str]:
    """Return the ids of the keys of the same algorithm whose span begins later."""
    return {id_ for id_, other in keys.items() if other.algorithm == key.algorithm and other.began > key.began}


class Place(NamedTuple):
    """The log of a signed file, and its number there. A file outside of all logs has the log ''."""

    log: str
    sequence: int


OUTSIDE = Place("", 0)
"""The place of signed files that are in no log. An ended key counts for none of them."""

Within = Callable[[Head], bool]
"""Returns whether an entry, or a tree, is shown to lie within a head at which a key ended."""


def recomputed(_: Head) -> bool:
    """Return True: the caller recomputes the tree, and so sees itself whether an entry lies within the head."""
    return True


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of a signature.

    Attributes:
        kind: the finding's name.
        message: what happened, for people.
        key: the key's id; empty where no key is at fault.
        policy: whether a signature outside its key's span is all there is to it.
        expected: what should be, for `key-algorithm` and spans.
        found: what is.
    """

    kind: Kind
    message: str
    key: str = ""
    policy: bool = False
    expected: str | None = None
    found: str | None = None

    @property
    def open(self) -> bool:
        """Whether it says only that something could not be checked."""
        return self.kind in {"unchecked-signature", "unreadable"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a file's signatures: which count, and what is wrong with the others."""

    held: tuple[str, ...]
    """Keys whose signatures count."""
    problems: tuple[Problem, ...]

    @property
    def refused(self) -> bool:
        """Whether a signature is wrong, missing or not allowed: not merely unknown or unchecked."""
        return any(
            not problem.open and not problem.policy and problem.kind != "key-unknown" for problem in self.problems
        )

    @property
    def void(self) -> bool:
        """Whether no signature of it holds, whoever looks: a slot that holds such a file may be passed over."""
        kinds = {problem.kind for problem in self.problems if not problem.policy}
        return not self.good and bool(kinds & {"signature", "key-algorithm"})

    @property
    def good(self) -> bool:
        """Whether a signature of a trusted key is over these bytes, even if the key might not sign them."""
        return bool(self.held) or any(problem.kind == "key-span" and not problem.policy for problem in self.problems)

    @property
    def counts(self) -> bool:
        """Whether the file counts as signed."""
        return bool(self.held) and (
            not self.problems or all(problem.open or problem.policy for problem in self.problems)
        )

    @property
    def clean(self) -> bool:
        """Whether it counts, and no key signed outside its span."""
        return self.counts and not any(problem.policy for problem in self.problems)

    @property
    def unknown(self) -> bool:
        """Whether nothing is wrong but that a key is not trusted here: another verifier may know it."""
        return not self.refused and any(problem.kind == "key-unknown" for problem in self.problems)

    @property
    def reason(self) -> str:
        """What is wrong, in one line."""
        return "; ".join(problem.message for problem in self.problems) or "no signature could be checked"


@dataclass(slots=True)
class KeyOrder:
    """Which key of each algorithm signs a log: once a newer one has signed, an older one never signs again."""

    _signing: dict[Algorithm, Key] = field(default_factory=dict)
    _retired: set[str] = field(default_factory=set)

    def newer(self, key: Key) -> str | None:
        """Return the id of the newer key that has signed before, and None if there is none: then `key` signs now."""
        current = self._signing.get(key.algorithm)
        if current is not None and current.id != key.id:
            if key.id in self._retired or key.began < current.began:
                return current.id
            self._retired.add(current.id)
        self._signing[key.algorithm] = key
        return None


def check_file(
    message: bytes,
    signatures: Signatures,
    keys: Keys,
    *,
    wanted: tuple[Algorithm, ...],
    position: Place | None,
    sealed_at: datetime | None = None,
    within: Within = recomputed,
    order: KeyOrder | None = None,
    subject: str = "statement",
) -> Verdict:
    """Check the signatures of a two-line file.

    Args:
        message: what is signed.
        signatures: line 2.
        keys: those trusted.
        wanted: the algorithms of which there must be exactly one signature each, and no other.
        position: where it stands; `OUTSIDE` for what is in no log, None for an `archive.json` that is known otherwise,
            to which spans and `until` do not apply.
        sealed_at: when it says that it was sealed.
        within: shows whether it lies within a head; asked only of keys that have ended, of a place before that head.
        order: the order of keys so far in its log, where entries come in order.
        subject: how messages call it.
    """
    problems: list[Problem] = []
    held: list[str] = []
    given = tuple([signature.algorithm for signature, _ in signatures])
    if given != wanted:
        problems += _miscounted(given, wanted, subject)
    for signature, value in signatures:
        key = keys.get(signature.key)
        if key is None:
            fault = f"the key {signature.key[:200]!r} is not among those trusted"
            problems.append(Problem("key-unknown", fault, signature.key))
            continue
        if key.algorithm != signature.algorithm:
            fault = f"the key {signature.key!r} signs by an algorithm that it does not have"
            problems.append(Problem("key-algorithm", fault, key.id, expected=key.algorithm, found=signature.algorithm))
            continue
        problem = _verify(key, message, value, subject)
        if problem is None and position is not None:
            problem = _ended(key, position, within, subject) or _older(key, order)
        if problem is not None:
            problems.append(problem)
            continue
        held.append(key.id)
        if sealed_at is not None and position is not None and not key.holds(sealed_at):
            problems.append(
                Problem(
                    "key-span",
                    f"the key {key.id!r} signs outside its span",
                    key.id,
                    policy=True,
                    expected=f"sealed from {key.began if key.began.year > 1 else 'ever'} to {key.ended or 'ever'}",
                    found=f"{sealed_at:%Y-%m-%dT%H:%M:%S.%fZ}",
                )
            )
    return Verdict(tuple(held), tuple(problems)) if problems else _good(tuple(held))


@lru_cache(maxsize=64)
def _good(held: tuple[str, ...]) -> Verdict:
    """Return the verdict that nothing is wrong. Nearly all entries of a log have the same."""
    return Verdict(held, ())


def are_good(signatures: Iterable[tuple[str, bytes, bytes]], keys: Keys) -> bool:
    """Return whether each signature, given by its key's id, what is signed, and its value, is over these bytes.

    It is for signatures that `check_file` took as good in a process that lacks the secret.
    """
    return all(_verify(keys[id_], message, value, "") is None for id_, message, value in signatures)


def _miscounted(given: Sequence[Algorithm], wanted: Sequence[Algorithm], subject: str) -> Iterator[Problem]:
    for algorithm in wanted:
        if (count := given.count(algorithm)) != 1:
            yield Problem(
                "signature", f"the {subject} has {count or 'no'} {algorithm} signature{'s' if count > 1 else ''}"
            )
    for algorithm in dict.fromkeys(given):
        if algorithm not in wanted:
            yield Problem("signature", f"the {subject} has a signature by {algorithm}, which it may not have")


def _verify(key: Key, message: bytes, value: bytes, subject: str) -> Problem | None:
    try:
        key.verify(message, value)
    except SignatureInvalid:
        return Problem("signature", f"the signature of key {key.id!r} is not over this {subject}", key.id)
    except KeyUnavailable as error:
        if key.checkable:
            return Problem("unreadable", f"a signature could not be checked: {error}", key.id)
        return Problem("unchecked-signature", str(error), key.id)
    return None


def _ended(key: Key, position: Place, within: Within, subject: str) -> Problem | None:
    if key.until is None:
        return None
    head = key.until.get(position.log, NOWHERE)
    if position == OUTSIDE:
        fault = f"has ended, and nothing shows that it signed this {subject} before"
    elif position.sequence >= head.size:
        fault = f"ended at this log's size {head.size} and signs beyond it"
    elif not within(head):
        fault = f"ended at this log's size {head.size}, and this {subject} is not shown to lie within that head"
    else:
        return None
    return Problem("key-span", f"the key {key.id!r} {fault}", key.id)


def _older(key: Key, order: KeyOrder | None) -> Problem | None:
    newer = order.newer(key) if order else None
    if newer is None:
        return None
    return Problem("key-span", f"the older key {key.id!r} signs after the newer {newer!r}", key.id)


@dataclass(frozen=True, slots=True)
class NoteVerdict:
    """The verdict on a checkpoint's signatures.

    Attributes:
        signers: ids of trusted keys whose signatures count.
        witnessed: names of trusted witnesses whose cosignatures count, and when they saw it, in seconds since 1970.
        problems: what is wrong.
        quorum: how many witnesses must have cosigned.
    """

    signers: tuple[str, ...]
    witnessed: tuple[tuple[str, int], ...]
    problems: tuple[Problem, ...]
    quorum: int = 0

    @property
    def counts(self) -> bool:
        """Whether the checkpoint counts."""
        enough = len(self.witnessed) >= self.quorum
        return bool(self.signers) and enough and all(problem.policy for problem in self.problems)

    @property
    def unsigned(self) -> bool:
        """Whether no trusted key is even named: it speaks neither for nor against the log."""
        return not self.signers and not self.problems

    @property
    def reason(self) -> str:
        """Why it does not count, in one line."""
        reasons = [problem.message for problem in self.problems if not problem.policy]
        if not reasons and not self.signers:
            reasons = ["none of its signatures is by a trusted key"]
        if not reasons:
            reasons = [
                f"{len(self.witnessed)} of the {self.quorum} witnesses that trust.json asks for have cosigned it"
            ]
        return "; ".join(reasons)


def check_checkpoint(
    note: Note,
    checkpoint: Checkpoint,
    log: str,
    keys: Keys,
    *,
    within: Within,
    witnesses: Sequence[NoteKey] = (),
    quorum: int = 0,
    sealed_at: datetime | None = None,
    now: datetime | None = None,
    order: KeyOrder | None = None,
) -> NoteVerdict:
    """Check the signatures of a checkpoint. Lines by unknown keys and algorithms are ignored, as C2SP requires.

    Args:
        note: the signed note.
        checkpoint: what its text says.
        log: `<log>/<partition>`.
        keys: those trusted.
        within: shows whether its tree is a prefix of a head; asked only of keys that have ended, at or after its size.
        witnesses: those trusted.
        quorum: how many of them must have cosigned it.
        sealed_at: of the last statement that it covers, where that is known.
        now: the time; a cosignature from later does not count.
        order: the order of keys so far in this log's checkpoints, where they come in order of size.
    """
    signers: dict[str, None] = {}
    witnessed: dict[str, int] = {}
    problems: list[Problem] = []
    by_hash = {(key.name, key.key_hash): key for key in witnesses}
    for signature in note.signatures:
        witness = by_hash.get((signature.name, signature.key_hash))
        if witness is not None:
            time, problem = _cosigned(witness, note, signature, now)
            if time is not None:
                witnessed[witness.name] = time
        else:
            key = keys.get(signature.name)
            note_key = _note_key(key) if key is not None else None
            if key is None or note_key is None or note_key.key_hash != signature.key_hash:
                continue
            problem = _verify(key, note.text, signature.signature, "checkpoint")
            problem = problem or _ended(key, Place(log, max(checkpoint.size - 1, 0)), within, "checkpoint")
            problem = problem or _older(key, order)
            if problem is None:
                signers[key.id] = None
                if sealed_at is not None and key.ended is not None and sealed_at >= key.ended:
                    fault = f"the key {key.id!r} signs a checkpoint of statements sealed after its span"
                    problem = Problem("key-span", fault, key.id, policy=True)
        if problem is not None:
            problems.append(problem)
    return NoteVerdict(tuple(signers), tuple(witnessed.items()), tuple(problems), quorum)


def note_keys(keys: Keys) -> list[NoteKey]:
    """Return the trusted keys that can sign checkpoints, as notes name them."""
    return [note_key for key in keys.values() if (note_key := _note_key(key)) is not None]


def _note_key(key: Key) -> NoteKey | None:
    return NoteKey(key.id, key.public) if key.public is not None and is_name(key.id) else None


def _cosigned(
    witness: NoteKey, note: Note, signature: NoteSignature, now: datetime | None
) -> tuple[int | None, Problem | None]:
    try:
        time = witness.verify(note.text, signature.signature)
    except SignatureInvalid:
        return None, Problem(
            "signature", f"the cosignature of {witness.name!r} is not over this checkpoint", witness.name
        )
    if time is None:
        return None, None
    if now is not None and time > (now + _CLOCK_SLACK).timestamp():
        fault = f"the cosignature of {witness.name!r} is from the future, and does not count"
        return None, Problem("key-span", fault, witness.name, policy=True)
    return time, None
