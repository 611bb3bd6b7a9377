"""`archive.json`: which archive this is, its promises, and the pin by which others know it (FORMAT.md). Pure.

It is signed like manifests and audits, but `from`, `to` and `until` of a key do not apply to it. What it says
counts where its SHA-256 is pinned, in `trust.json` or a verifier's state, or where a trusted key signed it.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

import msgspec

from custody.errors import FormatError
from custody.format import envelope, limits
from custody.format.envelope import SignedFile, Time, Uuid
from custody.format.times import check_time

__all__ = ["ArchiveFile", "ArchiveStatement", "Pin", "parse"]

FORMAT: Literal["custody/archive/1"] = "custody/archive/1"

Seconds = Annotated[int, msgspec.Meta(ge=1, le=limits.PROMISE_SECONDS)]
Days = Annotated[int, msgspec.Meta(ge=1, le=limits.RETENTION_DAYS)]


class ArchiveStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Line 1 of `archive.json`; field order is the format's."""

    format: Literal["custody/archive/1"] = FORMAT
    archive: Uuid
    created: Time
    heartbeat: Seconds
    """An idle log writes a statement this often."""
    checkpoint: Seconds
    """Each log that grew gets a checkpoint this often."""
    retention_days: Days
    """Evidence younger than this may not be deleted."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What identifies an archive: its id, and the SHA-256 of line 1 of its `archive.json`, in hex."""

    id: str
    sha256: str


class ArchiveFile(SignedFile[ArchiveStatement], frozen=True):
    """A parsed `archive.json`."""

    @property
    def id(self) -> str:
        """The archive's UUID."""
        return self.statement.archive

    @property
    def pin(self) -> Pin:
        """What a verifier pins."""
        return Pin(self.statement.archive, sha256(self.line).hexdigest())


_decoder = msgspec.json.Decoder(ArchiveStatement)


def parse(data: bytes) -> ArchiveFile:
    """Parse `archive.json` strictly.

    Raises:
        FormatError: the bytes are not of the format; the message says which rule they break.
    """
    line, second = envelope.split_lines(data)
    statement: ArchiveStatement = envelope.decode_strictly(_decoder, line, "archive.json")
    check_time("archive.json: created", statement.created)
    if statement.archive[14] != "4" or statement.archive[19] not in "89ab":
        raise FormatError(f"archive.json: {statement.archive} is no UUID of version 4")
    return ArchiveFile(statement, line, envelope.parse_signatures(second), envelope.message(line, FORMAT))
