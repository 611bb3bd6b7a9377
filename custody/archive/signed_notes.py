"""Signed notes: files of the two-line form outside any log, in which tasks record what they have made.

Results of an audit's pieces, lists of tables, and notes of reports are such files. Anyone who can write into the
archive can put one there, so a note counts only if both of our keys signed it, within their validity. A key that has
ended never counts, because nothing proves when a note was made.
"""

from functools import partial
from typing import Protocol, TypeVar

import msgspec

from custody.archive.forms import AUDITS
from custody.errors import KeyUnavailable, SignatureInvalid
from custody.format import envelope, limits
from custody.format.envelope import Signer
from custody.format.times import check_time
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.signatures import OUTSIDE, check_file


class Note(Protocol):
    """Line 1 of a signed note."""

    @property
    def sealed_at(self) -> str:
        """When it was signed."""
        ...


N = TypeVar("N", bound=Note)


def seal(note: Note, form: str, signers: tuple[Signer, ...]) -> bytes:
    """Return the file of a note.

    Args:
        note: line 1.
        form: its `format`.
        signers: the HMAC-SHA256 and the Ed25519 key.

    Raises:
        FormatError: it is too large.
        KeyUnavailable: a signer cannot sign now.
    """
    return envelope.seal(envelope.encode_line(note, "a note"), form, signers)


def read(store: Store, key: str, kind: type[N], form: str, trust: Trust) -> N:
    """Read a note that trusted keys signed.

    Args:
        store: the archive.
        key: of the note.
        kind: what line 1 is.
        form: its `format`.
        trust: the keys.

    Raises:
        ObjectMissing: there is none.
        FormatError: the object is not such a note.
        SignatureInvalid: it does not count.
        KeyUnavailable: its signatures cannot be checked now.
        StoreError: the store does not give it.
    """
    decode = partial(envelope.decode_strictly, msgspec.json.Decoder(kind), subject=key)
    file = envelope.parse_file(store.read(key, limit=limits.FILE_BYTES), decode, form)
    note: N = file.statement
    verdict = check_file(
        file.message,
        file.signatures,
        trust.keys,
        wanted=AUDITS.wanted,
        position=OUTSIDE,
        sealed_at=check_time(f"{key}: sealed_at", note.sealed_at),
        subject="note",
    )
    if verdict.clean:
        return note
    if verdict.problems and all(problem.open for problem in verdict.problems):
        raise KeyUnavailable(f"no signature of {key} can be checked: {verdict.reason}")
    raise SignatureInvalid(f"{key} does not count: {verdict.reason}")
