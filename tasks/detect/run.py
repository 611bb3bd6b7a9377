"""A run of detection: what is new since the last one, step by step, and then what is to be looked at again.

- A step is committed as a whole: how far each log was read, what rules remember, alerts, and what is to be told. What
  is told is sent only after that. Runs may be missed, killed, or go on at the same time: nothing is lost, and nobody
  is told twice, but by the same notice with the same id if a run was killed after it was sent.
- A state with notices says until when its run tells them, `TELLING` from its commit. Until then other runs leave all
  to it: they do nothing. If that run was killed, the first one after that time tells them.
- The first run learns from the last `detect.warm_up_days` what is usual. It records what it finds there, and tells
  nobody of alerts that ended more than a day ago. So does a rebuild.
- Sigma rules with a window look again at the time of events that came late. And each night, after 01:00 UTC, all Sigma
  rules look again at yesterday: only alerts that were missing come out. Each has `LOOK_SECONDS` of its own in each run,
  and does a part at least. Both look back for at most a day before that time, also for rules with longer windows. Rules
  in SQL do not look again: what they remember is that of today.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec

from custody.archive.reader import read_archive
from custody.archive.trusted import check_keys, unverified
from custody.errors import CustodyError, FormatError, counted
from custody.store.open import open_store
from tasks.detect import folder
from tasks.detect.alerts import Alert, Notice
from tasks.detect.memory import SLACK
from tasks.detect.positions import Late
from tasks.detect.publish import Sent, send
from tasks.detect.reading import Chunk, Reading, merged
from tasks.detect.replay import replay, touches
from tasks.detect.rule import Match, Rule
from tasks.detect.state import State, States, Superseded
from tasks.detect.step import Outcome, step
from tasks.detect.views import plain
from tasks.settings import DetectSettings, Settings

LOOK_SECONDS: Final = 20.0
"""How long a run looks again at yesterday, and then at times of late events. The next run goes on."""
DAY: Final = timedelta(days=1)
NIGHT: Final = timedelta(hours=1)
"""When yesterday is looked at again: nearly all of its events are archived then."""
TELLING: Final = timedelta(minutes=2)
"""How long a run may tell what it committed: Kafka has 20 s of it, and people the rest."""
_TRIES: Final = 10
_NEVER: Final = datetime.min  # noqa: DTZ901 - times of events have no zone
_PROBLEMS: Final = 10

Announce = Callable[[Sequence[Notice]], None]
"""Tells people of notices. It raises nothing."""
Send = Callable[[Sequence[Notice]], Sent]
"""Sends notices to Kafka."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Result:
    """What a run did.

    Attributes:
        events: events that were read.
        steps: how often it committed.
        opened: the alerts that it opened, as JSON.
        suppressed: how many of them were recorded only, because a rule stormed.
        told: how many notices Kafka took.
        matches: of each rule, by its name, how many matches were counted.
        failed: the rules that failed, and why.
        late: how many events came too late to be looked at with those of their time.
        superseded: whether another run was first, so that the rest was left to it.
        problems: what went wrong, or was passed over, and what to do.
    """

    events: int = 0
    steps: int = 0
    opened: list[dict[str, Any]] = field(default_factory=list)
    suppressed: int = 0
    told: int = 0
    matches: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    late: int = 0
    superseded: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What happened, in a sentence."""
        more = f", {self.suppressed:,} of them recorded only" if self.suppressed else ""
        first = ", and left the rest to another run, which was first" if self.superseded else ""
        return (
            f"{counted(self.events, 'event')} read, {counted(len(self.opened), 'alert')} opened{more},"
            f" {counted(self.told, 'notice')} sent{first}."
        )


def nobody(_: Sequence[Notice]) -> None:
    """Do nothing: no people are told."""


def rules_of(settings: Settings) -> tuple[Rule, ...]:
    """Return the rules that the settings name.

    Raises:
        ConfigurationError: a file is no rule.
    """
    return folder.load(folder.named(settings.detect.rules))


def detect(
    settings: Settings, *, announce: Announce = nobody, send: Send | None = None, now: datetime | None = None
) -> Result:
    """Run the rules over what was archived since the last run.

    Args:
        settings: the settings.
        announce: tells people.
        send: sends to Kafka; by default to the topic of the settings.
        now: the time.

    Raises:
        ConfigurationError: a rule or a setting is wrong, or there is no archive.
        CustodyError: the archive cannot be read or written, or the state cannot be used.
    """
    with _opened(settings, announce, send, now) as run:
        try:
            run.go_on(run.states.newest() or run.first())
        except Superseded as error:
            # Its work is the other run's now.
            logger.info("%s", error)
            run.result.superseded = True
    return run.result


def rebuild(
    settings: Settings, *, announce: Announce = nobody, send: Send | None = None, now: datetime | None = None
) -> Result:
    """Make the state again from the archive, as the first run made it. Only which notices were sent is kept.

    Arguments and errors are those of `detect`.
    """
    with _opened(settings, announce, send, now) as run:
        state = run.first()
        try:
            before = run.states.newest()
        except FormatError as error:
            logger.warning("which notices were sent is not known, so some may be sent again: %s", error)
            before = None
        if before is not None:
            if run.is_told(before):
                raise CustodyError("another run sends alerts, or was killed: make the state again in two minutes")
            state = replace(state, outbox=before.outbox).with_facts(
                sent=before.facts.sent, announced=before.facts.announced, totals=before.facts.totals
            )
        for _ in range(_TRIES):
            try:
                run.go_on(state)
            except Superseded:
                # Either nothing of it was committed, or another run went on with it.
                newest = run.states.newest()
                state = newest if run.result.steps and newest is not None else state
                continue
            break
        else:
            raise CustodyError("other runs of detection are first again and again: stop them, and rebuild again")
    return run.result


@contextmanager
def _opened(settings: Settings, announce: Announce, send_: Send | None, now: datetime | None) -> Iterator["_Run"]:
    rules = rules_of(settings)
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_archive(store)
        trust = settings.trust_at_hand()
        check_keys(store, file, trust)
        for _, message in unverified(trust, {}):
            logger.warning("unverified: %s", message)
        to_kafka = send_ or partial(send, kafka=settings.kafka, topic=settings.detect.topic)
        run = _Run(
            settings.detect,
            rules,
            Reading(store, file.id, trust),
            States(store, file.id),
            _Channels(announce, to_kafka),
            now or datetime.now(UTC),
        )
        yield run
        run.conclude()


class _Channels:
    """The ways to people and to Kafka, and what went through them since the last commit."""

    def __init__(self, announce: Announce, send_: Send) -> None:
        self._announce, self._send = announce, send_
        self.announced: set[str] = set()
        self.sent: set[str] = set()
        self.problem: CustodyError | None = None
        self.unfit: dict[str, str] = {}

    def tell(self, state: State) -> int:
        """Send what waits in a state that is committed, and return how many notices Kafka took."""
        announced = {*state.facts.announced, *self.announced}
        if new := [notice for notice in state.outbox if notice.id not in announced]:
            self._announce(new)
            self.announced |= {notice.id for notice in new}
        waiting = [notice for notice in state.outbox if notice.id not in self.sent]
        if not waiting or self.problem is not None:
            # Kafka gets its time once in a run.
            return 0
        done = self._send(waiting)
        # Nobody ever takes what is unfit: it is as good as sent.
        self.sent |= {*done.ids, *done.unfit}
        self.unfit |= done.unfit
        self.problem = done.problem
        return len(done.ids)


class _Run:
    """One run. `state` is what was committed last."""

    def __init__(
        self,
        settings: DetectSettings,
        rules: Sequence[Rule],
        reading: Reading,
        states: States,
        channels: _Channels,
        now: datetime,
    ) -> None:
        self._settings, self._rules, self._reading = settings, rules, reading
        self._channels, self._now = channels, now
        self._longest = max((rule.window for rule in rules), default=timedelta(0))
        self._sigma = [rule for rule in rules if rule.kind == "sigma"]
        self._begun = time.monotonic()
        self._skipped = ""
        self.states, self.result = states, Result()
        self.state = State()

    def first(self) -> State:
        """Return the state before the first run: from where to learn what is usual."""
        now = plain(self._now)
        positions = self._reading.since(now - timedelta(days=self._settings.warm_up_days))
        return State().with_facts(positions=positions, told_from=now - DAY, looked_again=_midnight(now))

    def go_on(self, state: State) -> None:
        """Read what is behind a state, and look again at what came late and at yesterday.

        Raises:
            Superseded: another run was first.
        """
        if self.is_told(state):
            raise Superseded("another run of detection sends alerts: this one leaves the rest to it")
        self.state = state
        if state.outbox:
            # So that no other run tells them meanwhile.
            self._commit(state)
            self._tell()
        chunks = self._reading.chunks(
            state.facts.positions,
            state.facts.until,
            slack=SLACK,
            late=timedelta(hours=self._settings.late_hours),
        )
        for chunk in chunks:
            self._step(chunk)
        self._look_at_yesterday(time.monotonic() + LOOK_SECONDS)
        self._look_at_late(time.monotonic() + LOOK_SECONDS)
        if self._marked(self.state) != self.state or self.state.facts.telling_until:
            self._commit(self.state, tells=False)

    def is_told(self, state: State) -> bool:
        """Return whether another run tells what waits in a state. A time that no run can have set does not count."""
        return 0 < state.facts.telling_until - self._seconds() <= 2 * TELLING.total_seconds()

    def conclude(self) -> None:
        """Put what went wrong into the result."""
        problems = [f"not looked at: {problem}" for problem in self._reading.problems.values()]
        if len(problems) > _PROBLEMS:
            problems[_PROBLEMS:] = [f"{counted(len(problems) - _PROBLEMS, 'more problem')} like this"]
        problems += [f"a rule failed: {why}" for why in self.result.failed.values()]
        if unfit := self._channels.unfit:
            why = next(iter(unfit.values()))
            problems.append(f"{counted(len(unfit), 'notice')} given up, of which no event can be made: {why}")
        if self._skipped:
            problems.append(self._skipped)
        if self._channels.problem is not None:
            problems.append(f"alerts wait to be sent to Kafka: {self._channels.problem}")
        self.result.problems = problems + self.states.problems

    def _step(self, chunk: Chunk) -> None:
        state, facts = self.state, self.state.facts
        if chunk.until is None or chunk.sealed_at is None:
            return
        outcome = step(
            self._rules,
            state.memory,
            state.alerts,
            chunk.events,
            until=chunk.until,
            head_age=max((plain(self._now) - chunk.sealed_at).total_seconds(), 0.0),
            storm=self._settings.storm,
            kept_from=facts.until - self._longest - SLACK if facts.until else None,
        )
        self.result.events += chunk.events.count
        self.result.late += chunk.too_late
        for name, many in outcome.matches.items():
            self.result.matches[name] = self.result.matches.get(name, 0) + many
        late = merged([*facts.late, *chunk.late]) if any(rule.window for rule in self._sigma) else ()
        totals = msgspec.structs.replace(facts.totals, late=facts.totals.late + chunk.too_late)
        state = replace(state, memory=outcome.memory).with_facts(
            positions={**facts.positions, **chunk.positions},
            until=chunk.until,
            late=late,
            totals=totals,
            failed=dict(outcome.failed),
        )
        self._commit(self._settled(state, outcome))
        self._tell()

    def _settled(self, state: State, outcome: Outcome) -> State:
        """Return a state with the alerts of an outcome, and with those notices that are to be sent."""
        known = {alert.id for alert in state.alerts}
        opened = [alert for alert in outcome.alerts if alert.id not in known]
        self.result.failed |= outcome.failed
        self.result.opened += [alert.to_json() for alert in opened]
        self.result.suppressed += sum(outcome.suppressed.values())
        levels = {rule.name: f"{rule.name}/{rule.level}" for rule in self._rules}
        totals, told_from = state.facts.totals, state.facts.told_from or _NEVER
        present = [alert for alert in opened if not alert.storm and alert.last >= told_from]
        totals = msgspec.structs.replace(
            totals,
            alerts=_sum(totals.alerts, [f"{alert.rule}/{alert.level}" for alert in present], levels.values()),
            suppressed=_sum(
                totals.suppressed,
                [levels[name] for name, many in outcome.suppressed.items() for _ in range(many)],
                levels.values(),
            ),
            failures=_sum(totals.failures, outcome.failed, levels),
        )
        # After a rebuild, alerts open again of which people have heard.
        told = {*state.facts.sent, *(notice.id for notice in state.outbox)}
        alerts, held, notices = held_back(state, outcome)
        outbox = (*state.outbox, *(notice for notice in notices if notice.id not in told))
        return replace(state, alerts=alerts, held=held, outbox=outbox).with_facts(totals=totals)

    def _look_at_yesterday(self, end: float) -> None:
        """Look again at yesterday, until a time of the monotonic clock. Days before it are too old, and are named."""
        midnight = _midnight(plain(self._now - NIGHT))
        begin = looked = self.state.facts.looked_again or midnight
        if begin < midnight - DAY:
            begin = midnight - DAY
            self._skipped = (
                f"no run looked again at {looked:%Y-%m-%dT%H:%MZ} to {begin:%Y-%m-%dT%H:%MZ}, because none had the time"
                " or came: `custody detect backtest` over these days names what was missed"
            )
        if begin >= midnight:
            return
        for until in self._replay(self._sigma, begin, midnight, lambda _: True):
            self._commit(self.state.with_facts(looked_again=until))
            self._tell()
            # Parts before the begin are only read for their windows: a run that ended there would never get further.
            if until > begin and time.monotonic() > end:
                return

    def _look_at_late(self, end: float) -> None:
        """Look again at the times of late events, until a time of the monotonic clock."""
        windowed = [rule for rule in self._sigma if rule.window]
        for late in self.state.facts.late:
            last = late.last + min(self._longest, DAY)
            others = tuple(each for each in self.state.facts.late if each != late)
            for until in self._replay(windowed, late.first, last, touches(late)):
                rest = (Late(until, late.last),) if until < last else ()
                self._commit(self.state.with_facts(late=(*rest, *others)))
                self._tell()
                if until > late.first and time.monotonic() > end:
                    return

    def _replay(
        self, rules: Sequence[Rule], first: datetime, end: datetime, wanted: Callable[[Match], bool]
    ) -> Iterator[datetime]:
        """Run rules over events of the past, and yield after each part until when that was done. Commit nothing."""
        again = replay(
            self._reading,
            rules,
            self.state.facts.positions,
            lambda: self.state.alerts,
            first=first,
            end=end,
            wanted=wanted,
            known_until=self.state.facts.until,
            storm=self._settings.storm,
        )
        for until, outcome in again:
            self.state = self._settled(self.state, outcome)
            yield until

    def _commit(self, state: State, *, tells: bool = True) -> None:
        marked = self._marked(state)
        until = round(self._seconds() + TELLING.total_seconds()) if tells and marked.outbox else 0
        self.state = self.states.commit(marked.with_facts(telling_until=until), self._now)
        self.result.steps += 1

    def _seconds(self) -> float:
        """Return the time now, in seconds since 1970."""
        return self._now.timestamp() + time.monotonic() - self._begun

    def _marked(self, state: State) -> State:
        return state.marked(self._channels.announced, self._channels.sent)

    def _tell(self) -> None:
        self.result.told += self._channels.tell(self.state)


def held_back(state: State, outcome: Outcome) -> tuple[tuple[Alert, ...], tuple[Notice, ...], list[Notice]]:
    """Return the alerts of an outcome, the notices that are held back, and those that are to be sent.

    Notices of alerts that ended before `told_from` are held back, and sent if their alerts go on after it. Alerts that
    are over before are recorded only.
    """
    told_from = state.facts.told_from or _NEVER
    alerts = {alert.id: alert for alert in outcome.alerts}
    held = {notice.alert.id: notice for notice in state.held}
    notices = []
    for notice in outcome.notices:
        if notice.kind in {"opened", "storm"} and notice.alert.last < told_from:
            held[notice.alert.id] = notice
        elif notice.alert.id not in held:
            notices.append(notice)
    for name in list(held):
        alert = alerts.get(name)
        if alert is not None and alert.last >= told_from:
            notices.append(replace(held.pop(name), alert=alert))
        elif alert is None or alert.over:
            del held[name]
            if alert is not None:
                alerts[name] = replace(alert, recorded_only=True)
    return tuple(alerts.values()), tuple(held.values()), notices


def _midnight(time: datetime) -> datetime:
    return time.replace(hour=0, minute=0, second=0, microsecond=0)


def _sum(counts: Mapping[str, int], more: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """Return counts with more of them. Zeros too: Prometheus sees no increase in a total that begins above 0."""
    return {**dict.fromkeys(names, 0), **counts, **(Counter(counts) + Counter(list(more)))}
