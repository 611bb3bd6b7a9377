"""What a check says: one line for each thing that was tried, with a remedy where something is wrong.

Nothing here holds a secret, so all of it may be printed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tasks.health.model import LEVELS, Level

Part = Literal["settings", "keys", "archive", "kafka", "retention", "clock", "search", "prefect", "alerts", "metrics"]
PARTS: Sequence[Part] = get_args(Part)
"""The parts, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was tried.

    Attributes:
        part: what it belongs to.
        subject: what was tried, in a few words: `conditional put`, or a topic.
        level: `ok`, `warning` or `failed`.
        message: what came of it, in one sentence without a full stop.
        remedy: what to do; empty if it is ok.
        passing: whether it may become right by itself, such as a server that does not answer now.
    """

    part: Part
    subject: str
    level: Level
    message: str
    remedy: str = ""
    passing: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types (docs/commands.md, custody check)."""
        return {name: getattr(self, name) for name in ("part", "subject", "level", "message", "remedy")}


@dataclass(frozen=True, slots=True)
class Reporter:
    """Makes the lines of one part."""

    part: Part

    def ok(self, subject: str, message: str) -> Line:
        """Return a line for what works."""
        return Line(self.part, subject, "ok", message)

    def warning(self, subject: str, message: str, remedy: str) -> Line:
        """Return a line for what works, but should not stay so."""
        return Line(self.part, subject, "warning", message, remedy)

    def failed(self, subject: str, message: str, remedy: str, *, passing: bool = False) -> Line:
        """Return a line for what does not work."""
        return Line(self.part, subject, "failed", message, remedy, passing)


def worst_level(lines: Iterable[Line]) -> Level:
    """Return the worst level of lines; `ok` if there are none."""
    return max((line.level for line in lines), key=LEVELS.index, default="ok")
