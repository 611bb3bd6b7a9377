"""Reads why the records of a quarantine object are no events."""

from custody.errors import FormatError, StoreError, TransientStoreError
from custody.format.manifest import QuarantineRef
from custody.format.quarantine import quarantine_lines
from custody.format.reasons import NOT_KNOWN, Reasons
from custody.store.pieces import read_stated
from custody.store.protocol import Store


def read_reasons(store: Store, ref: QuarantineRef) -> Reasons:
    """Return the reasons of a statement's quarantined records, as many as it states.

    Those that cannot be read are `not known`: the object has expired, may not be read, or is not what was signed.

    Raises:
        TransientStoreError: the archive's storage does not answer.
    """
    reasons, unknown = Reasons(), Reasons()
    unknown.note(NOT_KNOWN, ref.records)
    try:
        reasons.count(quarantine_lines(read_stated(store, ref.key, ref.size, ref.sha256), ref.size, ref.inflated))
    except TransientStoreError:
        raise
    except (StoreError, FormatError):
        return unknown
    return reasons if reasons.records == ref.records else unknown
