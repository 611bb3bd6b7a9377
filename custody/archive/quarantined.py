"""Reads why the records of a quarantine object are no events."""

from collections.abc import Iterator
from hashlib import sha256

from custody.errors import FormatError, StoreError, TransientStoreError
from custody.format.manifest import QuarantineRef
from custody.format.quarantine import quarantine_lines
from custody.format.reasons import NOT_KNOWN, Reasons
from custody.store.pieces import read_pieces
from custody.store.protocol import Store


def read_reasons(store: Store, ref: QuarantineRef) -> Reasons:
    """Return the reasons of a statement's quarantined records, as many as it states.

    Those that cannot be read are `not known`: the object has expired, may not be read, or is not what was signed.

    Raises:
        TransientStoreError: the archive's storage does not answer.
    """
    reasons, digest = Reasons(), sha256()

    def pieces() -> Iterator[bytes]:
        for piece in read_pieces(store, ref.key, ref.size + 1):
            digest.update(piece)
            yield piece

    try:
        reasons.count(quarantine_lines(pieces(), ref.size, ref.inflated))
    except TransientStoreError:
        raise
    except (StoreError, FormatError):
        return _not_known(ref)
    if digest.hexdigest() != ref.sha256 or reasons.records != ref.records:
        return _not_known(ref)
    return reasons


def _not_known(ref: QuarantineRef) -> Reasons:
    reasons = Reasons()
    reasons.note(NOT_KNOWN, ref.records)
    return reasons
