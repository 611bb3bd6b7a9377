"""What of a log's objects could not be read, for the table `warnings`: one line for each log and kind."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from custody.format.manifest import Statement
from custody.format.times import parse_time
from custody.verify.work import Outcome, Work

_SHOWN = 3
_ARCHIVED = "archive storage class"
_ADVICE = {
    "damaged": "run `custody verify`",
    "archived": "restore them: `custody backfill` does so",
}


@dataclass(slots=True)
class Unread:
    """Collects the objects of a log that could not be read.

    Attributes:
        log: the log.
        keep_until: statements sealed before this time may be expired, without that being known here; None if all
            statements of the log are read, so that it is known.
        expired: statements before this one were declared expired.
    """

    log: str
    keep_until: datetime | None = None
    expired: int = 0
    _objects: list[tuple[str, Statement | Work, str, bool]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Note what is wrong with a statement's segment."""
        for key in outcome.missing:
            self.add_missing(outcome.work, key)
        for finding in outcome.findings:
            self.add_problem(outcome.work, f"{finding.key}: {finding.message}")

    def add_missing(self, statement: Statement | Work, key: str) -> None:
        """Note an object that is not there."""
        self._objects.append(("damaged", statement, f"{key} is missing", True))

    def add_problem(self, statement: Statement | Work, problem: str) -> None:
        """Note an object that is there, and is not what was signed or cannot be read now."""
        self._objects.append(("archived" if _ARCHIVED in problem else "damaged", statement, problem, False))

    def warnings(self) -> Iterator[tuple[str, str]]:
        """Yield a kind and a message for each kind. Objects that may be deleted because they expired are left out."""
        for kind, advice in _ADVICE.items():
            parts = {
                f"{self.log}/{statement.sequence}: {problem}{self._doubt(statement) if is_missing else ''}": None
                for of, statement, problem, is_missing in self._objects
                if of == kind and not (is_missing and statement.sequence < self.expired)
            }
            if parts:
                shown = "; ".join(list(parts)[:_SHOWN])
                more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
                yield kind, f"not all records are shown: {shown}{more}; {advice}"

    def _doubt(self, statement: Statement | Work) -> str:
        is_old = self.keep_until is not None and parse_time(statement.sealed_at) < self.keep_until
        return " (it may have expired)" if is_old else ""
