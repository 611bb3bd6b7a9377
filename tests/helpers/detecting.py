"""Rules over a stream of events, step by step, as a live run does it, but without an archive."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.detect import memory
from tasks.detect.alerts import Alert, Notice
from tasks.detect.memory import Memory
from tasks.detect.rule import Group, Rule
from tasks.detect.step import step
from tests.helpers import fortnight
from tests.helpers.fortnight import Sent

Told = tuple[str, Group]
STORM = 5


@dataclass(slots=True)
class Live:
    """What is known after some steps, and what was told in them."""

    memory: Memory = field(default_factory=memory.empty)
    alerts: tuple[Alert, ...] = ()
    offsets: list[int] = field(default_factory=lambda: [0] * fortnight.LOGS)
    until: float = 0.0
    notices: list[Notice] = field(default_factory=list)

    def copy(self) -> "Live":
        """Return it, to go on another way. What it told stays behind."""
        return Live(self.memory, self.alerts, list(self.offsets), self.until)

    def run(self, rules: Sequence[Rule], archived: Sequence[Sent], ends: Sequence[float]) -> "Live":
        """Run steps that end at some times of archiving."""
        begin = 0
        for end in ends:
            stop = begin
            while stop < len(archived) and archived[stop].archived < end:
                stop += 1
            if stop > begin:
                self._step(rules, archived[begin:stop])
            begin = stop
        assert begin == len(archived)
        return self

    def _step(self, rules: Sequence[Rule], archived: Sequence[Sent]) -> None:
        self.until = max(self.until, max(each.time for each in archived))
        events = fortnight.events_of(archived, self.offsets)
        until = fortnight.time_of(self.until)
        outcome = step(rules, self.memory, self.alerts, events, until=until, head_age=30.0, storm=STORM)
        assert not outcome.failed
        self.memory, self.alerts = outcome.memory, outcome.alerts
        self.notices += outcome.notices

    @property
    def told(self) -> list[Told]:
        """Rule and group of each alert that was told, in order."""
        return sorted((each.alert.rule, each.alert.group) for each in self.notices if each.kind in {"opened", "storm"})
