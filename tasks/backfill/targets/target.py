"""The protocol of a target, which gets the chosen events of a part, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from custody.format.layout import Log
from custody.format.manifest import Batch, Statement
from tasks.search.bulk import Sent


class Part(msgspec.Struct, frozen=True):
    """A unit of the copy: a log's statements `[first, end)`, and of them the offsets `[first_offset, next_offset)`."""

    log: Log
    first: int
    end: int
    first_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Content:
    """Chosen events of one batch.

    Attributes:
        statement: the batch's statement.
        batch: the batch.
        member: its stored bytes, one gzip member.
        payload: its lines, each with its newline.
        lines: the chosen lines, without newlines.
        offsets: the offset of each chosen line.
        whole: whether all lines are chosen.
    """

    statement: Statement
    batch: Batch
    member: bytes
    payload: bytes
    lines: Sequence[bytes]
    offsets: Sequence[int]
    whole: bool


class Target(Protocol):
    """A target of a backfill. Not thread-safe."""

    def has(self, part: Part) -> bool:  # noqa: ARG002 - a target that can tell by the part overrides this
        """Return whether a part is known to be copied already, so that it need not be read."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Copy a part.

        Args:
            part: the part.
            contents: its chosen events, batch by batch.
            sent: counts the events, also if an error ends the copy.

        Raises:
            FormatError: an archived object cannot be copied. Errors from `contents` are passed on.
            CustodyError: the target does not accept the events; the next run continues.
        """

    def finish(self) -> None:
        """Finish after every part was copied."""
        return
