"""Stores the report of an audit with a signed note; the next audit keeps it as evidence."""

from contextlib import closing, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

import msgspec

from custody.archive import signed_notes
from custody.archive.trusted import read_trusted_archive
from custody.errors import (
    FormatError,
    ObjectExists,
    ObjectMissing,
    SignatureInvalid,
)
from custody.format.audit import ObjectRef
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.audit.objects import audit_folder, put_object
from tasks.settings import Settings

REPORT_FORMAT: Literal["custody/report/1"] = "custody/report/1"


class ReportNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names the page that is an audit's report; line 1 of its object. The next audit keeps the page as evidence."""

    format: Literal["custody/report/1"]
    archive: str
    audit: int
    sealed_at: str
    size: int
    sha256: str


def put_report(settings: Settings, sequence: int, page: bytes) -> str:
    """Store the report of an audit, and a signed note that names it, so that the next audit keeps it as evidence.

    Returns:
        Its address.

    Raises:
        CustodyError: the archive cannot be written, or no key can sign.
    """
    now = datetime.now(UTC)
    digest = sha256(page).hexdigest()
    key = _page_key(sequence, digest)
    with closing(open_store(settings.archive, settings.s3)) as store:
        store.create(key, page)
        note = ReportNote(
            format=REPORT_FORMAT,
            archive=read_trusted_archive(store, settings.own_trust()).id,
            audit=sequence,
            sealed_at=format_time(now),
            size=len(page),
            sha256=digest,
        )
        data = signed_notes.seal(note, REPORT_FORMAT, settings.signers(now).both())
        # If another run stored a report of the same audit first, that one is kept.
        with suppress(ObjectExists):
            store.create(_report_key(sequence), data)
        return f"{store.url}/{key}"


def keep_report(store: Store, trust: Trust, archive: str, sequence: int) -> list[ObjectRef]:
    """Copy the report of an audit to where the next audit refers to it. Nothing if there is none, or it was changed."""
    if sequence < 0:
        return []
    try:
        note = signed_notes.read(store, _report_key(sequence), ReportNote, REPORT_FORMAT, trust)
        if (note.archive, note.audit) != (archive, sequence):
            return []
        page = store.read(_page_key(sequence, note.sha256), limit=note.size)
    except (ObjectMissing, FormatError, SignatureInvalid):
        return []
    return [put_object(store, page)] if sha256(page).hexdigest() == note.sha256 else []


def _page_key(sequence: int, digest: str) -> str:
    return f"{audit_folder(sequence)}integrity-{digest[:16]}.html"


def _report_key(sequence: int) -> str:
    return f"{audit_folder(sequence)}report.json"
