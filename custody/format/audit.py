"""The signed audit: its fields, its exact bytes, and strict parsing (FORMAT.md, Audit). Pure.

Audits are a log of their own, in the two-line form of manifests, signed over `custody/audit/1`. Each says of every log
how far it was when it was audited (`heads`), which statements were read (`covered`), where the next audit continues
(`marks`), and what was found.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from custody.errors import FormatError
from custody.format import envelope
from custody.format.envelope import HeadRef, Hex, Int, SignedFile, Time, Tree, Uuid
from custody.format.times import check_time

__all__ = ["Audit", "SignedAudit", "parse"]

FORMAT: Literal["custody/audit/1"] = "custody/audit/1"
FINDINGS_INLINE = 1000
"""Findings that stand in the statement itself; more go to an object of their own."""

Verdict = Literal["verified", "notices", "policy", "incomplete", "unverifiable", "tampered"]
Read = Literal["new", "again"]


class Covered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Statements `[from, to)` that were verified, with all that they name."""

    from_: Int
    to: Int
    read: Read


class Marks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the next audit of a log continues.

    Attributes:
        expired: sequences before this one may have lost their objects.
        reread: where the next turn of reading old statements again begins.
        reread_at: when the last turn was.
        indexed: statements that Elasticsearch was seen to have; it never goes back.
    """

    expired: Int
    reread: Int
    reread_at: Time
    indexed: Int


class ObjectRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object that an audit refers to: its findings, one JSON object a line; its report; lists of tables."""

    key: str
    size: Int
    sha256: Hex


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Line 1 of an audit; field order is the format's."""

    format: Literal["custody/audit/1"]
    archive: Uuid
    sequence: Int
    tree: Tree
    passed_over: list[str]
    started_at: Time
    sealed_at: Time
    writer: str
    heads: dict[str, HeadRef]
    covered: dict[str, list[Covered]]
    marks: dict[str, Marks]
    counts: dict[str, Int]
    findings: list[dict[str, Any]] | ObjectRef
    objects: list[ObjectRef]
    verdict: Verdict


SignedAudit = SignedFile[Audit]
"""A parsed audit."""

_decoder = msgspec.json.Decoder(Audit)
_object_decoder = msgspec.json.Decoder(ObjectRef)


def parse_object(line: bytes) -> ObjectRef:
    """Parse a line of an object that lists others.

    Raises:
        FormatError: it is no such line.
    """
    ref: ObjectRef = envelope.decode_strictly(_object_decoder, line, "an object of an audit")
    return ref


def parse(data: bytes) -> SignedAudit:
    """Parse an audit strictly.

    Raises:
        FormatError: the bytes are not an audit of this format; the message says which rule they break.
    """
    return envelope.parse_file(data, _parse_statement, FORMAT)


def _parse_statement(line: bytes) -> Audit:
    statement: Audit = envelope.decode_strictly(_decoder, line, "the audit")
    envelope.check_passed_over("the audit", statement.passed_over, statement.sequence)
    hashes = [statement.tree.root, *statement.tree.compact_range, *statement.passed_over]
    envelope.check_hashes("the audit", hashes)
    for name in ("started_at", "sealed_at"):
        check_time(f"the audit: {name}", getattr(statement, name))
    for log, marks in statement.marks.items():
        check_time(f"the audit: reread_at of {log[:300]!r}", marks.reread_at)
    for log, spans in statement.covered.items():
        _check_spans(log, spans)
    return statement


def _check_spans(name: str, spans: Sequence[Covered]) -> None:
    end = 0
    for span in spans:
        if span.from_ < end or span.to <= span.from_:
            raise FormatError(f"the audit: what it covered of {name[:300]!r} is not sorted, disjoint and not empty")
        end = span.to
