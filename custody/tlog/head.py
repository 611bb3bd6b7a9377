"""The head of a log: how many entries its tree has, and the root over them."""

from dataclasses import dataclass
from datetime import datetime

__all__ = ["Head", "KnownHead"]


@dataclass(frozen=True, slots=True)
class Head:
    """A size and a root."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A head that was seen of a log before.

    Attributes:
        size: entries of the tree.
        root: over them; None where only the size is known.
        origin: who remembers it, for messages.
        trusted: whether it was signed, or given from outside, so that what it covers counts as verified.
        checkpoint: the key of the checkpoint that it is.
        evidence: the signed text, whole.
        ends: when the span of the key that signed the checkpoint ends, None where it does not.
    """

    size: int
    root: bytes | None
    origin: str
    trusted: bool = False
    checkpoint: str | None = None
    evidence: str | None = None
    ends: datetime | None = None
