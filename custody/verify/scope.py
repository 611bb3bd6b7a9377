"""Which part of an archive is verified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from custody.format import layout

__all__ = ["EVERYTHING", "Scope", "Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """Statements `[first, end)` of a log.

    Attributes:
        first: the first sequence.
        end: the sequence after the last one; None for all.
    """

    first: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What is verified.

    Attributes:
        spans: which statements of which logs, in order; None for all logs.
        contents: whether objects are read, or only the chain is checked.
        listing: whether the archive is listed. Only with a listing are these checked: objects that no statement names,
            checkpoints, audits, versions, lifecycle rules. Without it, spans must be given.
        expired: for each log, the sequence before which an audit found that objects may be gone.
    """

    spans: Mapping[layout.Log, Sequence[Span]] | None = None
    contents: bool = True
    listing: bool = True
    expired: Mapping[layout.Log, int] = field(default_factory=dict)

    def spans_of(self, log: layout.Log) -> Sequence[Span]:
        """Return the spans of a log."""
        return self.spans[log] if self.spans is not None else (Span(),)


EVERYTHING = Scope()
