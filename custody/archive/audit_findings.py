"""Reads the findings of an audit as typed values, and lists of its objects.

Where no key checks the audit, anybody may have written them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from custody.errors import FormatError, ObjectMissing, counted
from custody.findings import Severity
from custody.format import audit, layout, limits
from custody.format.audit import Audit, ObjectRef
from custody.store.protocol import Store

_LIMIT = 64 * limits.MIB
_Int = Annotated[int, msgspec.Meta(ge=0, le=limits.INT_MAX)]
_SEVERITIES = {severity.name.lower(): severity for severity in Severity}


class StatedFinding(msgspec.Struct, frozen=True, kw_only=True, rename={"stated": "severity"}):
    """A finding, as an audit states it: the fields of `Finding`. Another version's names and fields may be unknown."""

    finding: str
    stated: str = ""
    """The severity in words, which may be unknown here."""
    log: str | None = None
    sequence: _Int | None = None
    through: _Int | None = None
    batch: _Int | None = None
    offset: _Int | None = None
    byte: _Int | None = None
    key: str | None = None
    expected: str | None = None
    found: str | None = None
    sha256: str | None = None
    accepted: str | None = None
    evidence: tuple[str, ...] = ()
    count: _Int = 1
    message: str = ""
    action: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is. A severity that is not known is as bad as what cannot be verified."""
        return _SEVERITIES.get(self.stated, Severity.UNVERIFIABLE)


@dataclass(frozen=True, slots=True)
class AuditFindings:
    """The findings of an audit.

    Attributes:
        findings: those that can be shown.
        whole: the object that holds all of them, if they are not in the audit itself.
        problems: why not all can be shown, and how bad that is.
    """

    findings: tuple[StatedFinding, ...] = ()
    whole: ObjectRef | None = None
    problems: tuple[tuple[Severity, str], ...] = ()


def read_findings(store: Store, statement: Audit) -> AuditFindings:
    """Return an audit's findings.

    Raises:
        StoreError: the store does not give their object now.
    """
    ref = statement.findings
    if not isinstance(ref, ObjectRef):
        return _typed(statement, list(ref), None)
    if ref.size > _LIMIT:
        message = f"the findings of audit {statement.sequence} are not shown: {ref.key} is larger than {_LIMIT} bytes"
        return AuditFindings((), ref, ((Severity.UNVERIFIABLE, message),))
    try:
        # A byte more than was signed is an error of the format.
        data = store.read(ref.key, limit=ref.size)
        if sha256(data).hexdigest() == ref.sha256:
            return _typed(statement, list(_parsed(data)), ref)
        reason = "its bytes differ from the signed digest"
    except (ObjectMissing, FormatError) as error:
        reason = str(error)
    message = f"the findings of audit {statement.sequence} are not those that were signed: {ref.key}: {reason}"
    return AuditFindings((), ref, ((Severity.TAMPERED, message),))


def listed_objects(store: Store, ref: ObjectRef) -> Iterator[ObjectRef]:
    """Yield the objects that an object lists; nothing if it is no list, or not as it was signed."""
    if not ref.key.startswith(layout.AUDITS):
        return
    try:
        data = store.read(ref.key, limit=_LIMIT)
        if sha256(data).hexdigest() == ref.sha256 and data.startswith(b'{"key"'):
            yield from map(audit.parse_object, data.splitlines())
    except (FormatError, ObjectMissing):
        return


def _parsed(data: bytes) -> Iterator[Any]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


def _typed(statement: Audit, stated: list[Any], whole: ObjectRef | None) -> AuditFindings:
    typed = []
    for fields in stated:
        try:
            typed.append(msgspec.convert(fields, StatedFinding))
        except msgspec.ValidationError:
            continue
    odd = len(stated) - len(typed)
    message = (
        f"{odd:,} of {counted(len(stated), 'finding')} of audit {statement.sequence} {'is' if odd == 1 else 'are'} not"
        " well formed, and not shown"
    )
    return AuditFindings(tuple(typed), whole, ((Severity.UNVERIFIABLE, message),) if odd else ())
