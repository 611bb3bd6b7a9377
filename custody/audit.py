"""The signed audit: its fields, its exact bytes, and strict parsing (FORMAT.md, Audit). Pure.

Audits are a log of their own, in the two-line form of manifests, signed over `custody/audit/1`. Each says of every log
how far it was when it was audited (`heads`), which statements were read (`covered`), and what was found. Like manifests
they are chained by `tree`, so that an audit that was changed or removed shows in the next one, and in a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from custody import manifest
from custody.errors import FormatError
from custody.manifest import Hex, Int, Signature, Time, Tree, Uuid

FORMAT: Literal["custody/audit/1"] = "custody/audit/1"
HEARTBEAT = "heartbeat"
"""The count that says the archive's heartbeat, in seconds: `archive.json` says it too, and is not signed."""
HEARTBEAT_LIMIT = 366 * 86_400
"""The longest heartbeat that an archive may have, in seconds; the shortest is one."""
FINDINGS_INLINE = 1000
"""Findings that stand in the statement itself; more go to an object of their own."""

Verdict = Literal["verified", "notices", "policy", "incomplete", "unverifiable", "tampered"]
Read = Literal["new", "again"]


class HeadRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a log ended."""

    size: Int
    root: Hex


class Covered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Statements `[from, to)` that were verified, with all that they name."""

    from_: Int
    to: Int
    read: Read


class FindingsRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object of findings, one JSON object a line."""

    key: str
    size: Int
    sha256: Hex


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Line 1 of an audit; field order is the format's."""

    format: Literal["custody/audit/1"]
    archive: Uuid
    sequence: Int
    tree: Tree
    started_at: Time
    sealed_at: Time
    writer: str
    heads: dict[str, HeadRef]
    covered: dict[str, list[Covered]]
    counts: dict[str, Int]
    findings: list[dict[str, Any]] | FindingsRef
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SignedAudit:
    """A parsed audit, with the statement's bytes exactly as stored."""

    statement: Audit
    line: bytes
    signatures: tuple[tuple[Signature, bytes], ...]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Audit)


def encode(statement: Audit) -> bytes:
    """Return the statement's line, compact and in ASCII, without the newline.

    Raises:
        FormatError: it is beyond a limit of the format.
    """
    line = manifest.to_ascii(_encoder.encode(statement))
    if len(line) > manifest.STATEMENT_LIMIT:
        raise FormatError(f"audit {statement.sequence} would have {len(line)} bytes (limit {manifest.STATEMENT_LIMIT})")
    return line


def parse(data: bytes) -> SignedAudit:
    """Parse an audit strictly.

    Raises:
        FormatError: the bytes are not an audit of this format; the message says which rule they break.
    """
    line, second = manifest.split_lines(data)
    statement: Audit = manifest.decode_strictly(_decoder, line, "the audit")
    manifest.check_hashes("the audit", [statement.tree.root, *statement.tree.edge])
    for name in ("started_at", "sealed_at"):
        manifest.check_time(name, getattr(statement, name))
    for name, spans in statement.covered.items():
        _check_spans(name, spans)
    return SignedAudit(statement, line, manifest.parse_signatures(second))


def _check_spans(name: str, spans: Sequence[Covered]) -> None:
    end = 0
    for span in spans:
        if span.from_ < end or span.to <= span.from_:
            raise FormatError(f"the audit: what it covered of {name[:300]!r} is not sorted, disjoint and not empty")
        end = span.to
