"""What a target is: it gets the chosen events of a part, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from custody.format.layout import Log
from custody.format.manifest import Batch, Statement
from tasks.search.bulk import Sent


class Part(msgspec.Struct, frozen=True):
    """What is copied as a whole: a log's statements `[first, end)`; offsets `[first_offset, next_offset)` of them."""

    log: Log
    first: int
    end: int
    first_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Content:
    """Chosen events of one batch.

    Attributes:
        statement: what the batch belongs to.
        batch: the batch.
        member: its stored bytes, one gzip member.
        payload: its lines, each with its newline.
        lines: the chosen ones, without newlines.
        offsets: where each is in its log.
        whole: whether all are chosen.
    """

    statement: Statement
    batch: Batch
    member: bytes
    payload: bytes
    lines: Sequence[bytes]
    offsets: Sequence[int]
    whole: bool


class Target(Protocol):
    """Somewhere that events are copied to. Not thread-safe."""

    def has(self, part: Part) -> bool:  # noqa: ARG002 - a target that can tell by the part overrides this
        """Return whether a part is known to be there, so that it need not be read."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Copy a part.

        Args:
            part: the part.
            contents: its chosen events, batch by batch.
            sent: is counted up, also where an error ends it.

        Raises:
            FormatError: what the archive holds cannot be copied. What goes wrong in `contents` passes through.
            CustodyError: the target does not take it; the next run goes on.
        """

    def finish(self) -> None:
        """Take note that every part was copied."""
        return
