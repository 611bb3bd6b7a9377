"""When a log's statements were sealed: the writer's clock, and the least age of a statement. Pure."""

from datetime import datetime, timedelta

from custody.format.manifest import Statement
from custody.format.times import duration_text, parse_time, shift
from custody.tlog.log import Fault

_SLACK = timedelta(minutes=5)
_STEPS_BACK_LIMIT = 10_000


class Clock:
    """The times of the statements read so far, in order.

    Attributes:
        sealed_at: when the last one was sealed.
        known_until: the first sequence whose latest time up to it is not known; None if there is none.
    """

    def __init__(self, now: datetime, heartbeat: timedelta | None) -> None:
        """Begin.

        Args:
            now: the verifier's time.
            heartbeat: how often a statement is written; None if silence is not reported.
        """
        self.sealed_at: datetime | None = None
        self.known_until: int | None = None
        self._now = now
        self._latest_possible = shift(now, _SLACK)
        self._heartbeat = heartbeat
        self._latest: datetime | None = None
        self._newest_past: datetime | None = None
        # For each statement sealed before an earlier one: the latest time of any statement up to it.
        self._steps_back: dict[int, datetime] = {}

    def step(self, statement: Statement, sealed_at: datetime) -> list[Fault]:
        """Add the next statement's time, and return its faults."""
        faults: list[Fault] = []
        before = self.sealed_at
        if before is not None and sealed_at < before:
            message, bound = "the writer's clock stepped back", f"not before {before:%Y-%m-%dT%H:%M:%S.%fZ}"
            faults.append(_at_fault("clock", message, "back", expected=bound, found=statement.sealed_at))
        if sealed_at > self._latest_possible:
            message, bound = "the statement was sealed in the future", f"not after {self._now:%Y-%m-%dT%H:%M:%S.%fZ}"
            faults.append(_at_fault("clock", message, "future", expected=bound, found=statement.sealed_at))
        if before is not None and self._heartbeat and sealed_at - before > 2 * self._heartbeat:
            silent = duration_text((sealed_at - before).total_seconds())
            faults.append(_at_fault("stale", f"nothing was written for {silent} before this statement", "silent"))
        self.sealed_at = sealed_at
        if sealed_at <= self._latest_possible:
            self._newest_past = sealed_at
        if self._latest is None or sealed_at >= self._latest:
            self._latest = sealed_at
        elif len(self._steps_back) < _STEPS_BACK_LIMIT:
            self._steps_back[statement.sequence] = self._latest
        elif self.known_until is None:
            self.known_until = statement.sequence
        return faults

    def silence(self) -> Fault | None:
        """Return a fault if too much time has passed since the last statement, else None."""
        # A statement from the future, by a wrong clock, does not hide that the log is silent.
        since = self._newest_past
        if not self._heartbeat or not since or self._now - since <= 2 * self._heartbeat:
            return None
        silent = duration_text((self._now - since).total_seconds())
        return Fault("stale", f"nothing has been written since {since:%Y-%m-%dT%H:%M:%SZ}, {silent} ago")

    def latest_up_to(self, statement: Statement) -> datetime:
        """Return the latest time at which any statement up to this one was sealed. It never decreases along a log."""
        return self._steps_back.get(statement.sequence) or parse_time(statement.sealed_at)


def _at_fault(name: str, message: str, group: str, **where: str) -> Fault:
    """Return a fault of a clock. It has no digest: it is about a time, not about bytes."""
    return Fault(name, message, {**where, "group": group, "sha256": None})
