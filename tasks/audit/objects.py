"""Objects of an audit: those that it refers to by their digest, its folder in `reports/`, and its report.

An audit is signed before its report is made. So the report is stored with a signed note, and the next audit keeps it as
evidence.
"""

import json
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal

import msgspec

from custody.archive import signed_notes
from custody.archive.trusted import read_trusted_archive
from custody.errors import FormatError, ObjectExists, ObjectMissing, SignatureInvalid
from custody.format import layout
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.settings import Settings

OBJECTS_INLINE = 1000
"""Objects that an audit names itself. If there are more, it names one object that lists them."""
REPORT_FORMAT: Literal["custody/report/1"] = "custody/report/1"


def put_lines(store: Store, lines: Sequence[Any]) -> ObjectRef:
    """Store values that are too many for an audit, as JSON lines, under the name of their SHA-256."""
    encoded = (json.dumps(msgspec.to_builtins(line), separators=(",", ":")).encode() + b"\n" for line in lines)
    return put_object(store, b"".join(encoded))


def put_object(store: Store, data: bytes) -> ObjectRef:
    """Store bytes under the name of their SHA-256, and return the reference for an audit."""
    digest = sha256(data).hexdigest()
    key = layout.audit_object_key(digest)
    store.create(key, data)
    return ObjectRef(key, len(data), digest)


def refer_to(store: Store, objects: Sequence[ObjectRef]) -> list[ObjectRef]:
    """Return the references for an audit: its objects, or one object that lists them if they are many."""
    return list(objects) if len(objects) <= OBJECTS_INLINE else [put_lines(store, objects)]


def audit_folder(sequence: int) -> str:
    """Return the folder for the results of an audit's runs."""
    return f"reports/audits/{sequence:012}/"


def log_named(name: str) -> Log:
    """Return the log with the name `<log>/<partition>`.

    Raises:
        FormatError: the name is invalid.
    """
    log = layout.parse_log_text(name)
    if log is None:
        raise FormatError(f"{name!r} is not the name of a log")
    return log


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
