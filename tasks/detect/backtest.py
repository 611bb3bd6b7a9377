"""Runs rules over the past, as live runs did or would have done, and compares their alerts with those that were sent.

- The past is read by when it was archived, as live runs read it: from `since` on and before `until`. What was archived
  in `detect.warm_up_days` before is read first, so that rules know what is usual; its alerts do not count.
- Each chunk is one `step`, the same as in a live run. The times of late events are looked at again after each day of
  events, and at the end. Nothing is sent, and nothing is written.
- Alerts that were sent are security events in the archive. Those of the range's end are archived a little later, so
  the hour behind it is searched for them too.
- At no time is more in memory than a chunk, what rules remember, and the ids of the alerts.

An alert is known by its id. If events came late, then its id depends on how runs were cut, so what is left over on both
sides is the same alert if it has the same group and began within the cool-down.

A live run may have had other rules or settings, may have been behind, and looks again sooner at late events. So
differences are something to look at, and not wrong in themselves.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from custody.archive.reader import read_archive
from custody.archive.trusted import check_keys
from custody.errors import ConfigurationError
from custody.format.times import as_utc, format_time
from custody.store.open import open_store
from tasks.detect import memory
from tasks.detect.alerts import Alert, Notice
from tasks.detect.positions import Late
from tasks.detect.publish import details_of
from tasks.detect.reading import Chunk, Reading, merged
from tasks.detect.replay import reach_of, replay, touches
from tasks.detect.rule import Group, Level, Rule
from tasks.detect.step import Outcome, step
from tasks.detect.views import OWN, Events, plain
from tasks.settings import Settings

EXAMPLES: Final = 10
SENT_WITHIN: Final = timedelta(hours=1)
"""How long after its match an alert that was sent is archived at the latest."""
_GROUPS: Final = 10_000
"""Different groups of a rule that are counted."""
_OPENS: Final = frozenset(("opened", "storm"))
"""Kinds of notices that are the first of their alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An alert that there would have been."""

    alert_id: str
    first: str
    last: str
    group: Mapping[str, str]
    metric: float
    evidence: tuple[str, ...]
    storm: bool


@dataclass(slots=True, kw_only=True)
class RuleResult:
    """What a rule found.

    Attributes:
        rule: its name.
        level: its level.
        alerts: how many alerts people would have been told of.
        recorded: how many more there were in storms.
        by_day: alerts by the day of their first event.
        groups: how many different groups they had.
        noisiest: the group with most alerts, and how many these were.
        examples: the first alerts.
        sent: how many alerts of the range were sent.
        only_sent: ids of alerts that were sent, and that the backtest did not find.
        only_found: ids of alerts that the backtest found, and that were not sent.
        failed: why the rule could not be run, if so.
    """

    rule: str
    level: Level
    alerts: int = 0
    recorded: int = 0
    by_day: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    noisiest: tuple[Mapping[str, str], int] | None = None
    examples: list[Example] = field(default_factory=list)
    sent: int = 0
    only_sent: list[str] = field(default_factory=list)
    only_found: list[str] = field(default_factory=list)
    failed: str | None = None


@dataclass(slots=True, kw_only=True)
class Result:
    """What a backtest found.

    Attributes:
        since: the range's begin.
        until: its end.
        events: events in the range.
        warm_up: events that were read before, to know what is usual.
        seconds: how long it took.
        rules: what each rule found.
        problems: what could not be read.
    """

    since: str
    until: str
    events: int = 0
    warm_up: int = 0
    seconds: float = 0.0
    rules: list[RuleResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a backtest is: when the newest statement that was read was sealed, and how many events were read."""

    sealed_at: datetime
    events: int


def backtest(
    settings: Settings,
    rules: Sequence[Rule],
    since: datetime,
    until: datetime,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Run rules over a range of the past.

    Args:
        settings: the settings.
        rules: the rules.
        since: only what was archived at this time or later.
        until: only what was archived before this time.
        progress: called after each chunk.

    Raises:
        ConfigurationError: the range is empty, or there is no archive.
        CustodyError: the archive cannot be read.
    """
    if since >= until:
        raise ConfigurationError("`--until` must be later than `--since`")
    started = time.monotonic()
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_archive(store)
        trust = settings.trust_at_hand()
        check_keys(store, file, trust)
        reading = Reading(store, file.id, trust)
        run = _Backtest(settings, rules, reading, progress)
        result = run.over(plain(as_utc(since)), plain(as_utc(until)))
    result.seconds = round(time.monotonic() - started, 3)
    return result


class _Backtest:
    """One backtest."""

    def __init__(
        self, settings: Settings, rules: Sequence[Rule], reading: Reading, progress: Callable[[Progress], None]
    ) -> None:
        self._settings, self._rules, self._reading, self._progress = settings.detect, rules, reading, progress
        self._longest = max((rule.window for rule in rules), default=timedelta(0))
        self._memory = memory.empty()
        self._alerts: tuple[Alert, ...] = ()
        self._until: datetime | None = None
        self._late: list[Late] = []
        self._events = 0
        self._founds = {rule.id: _Found() for rule in rules}
        self._failed: dict[str, str] = {}

    def over(self, since: datetime, until: datetime) -> Result:
        """Return what the rules find in what was archived from a time on and before another one."""
        positions = self._reading.since(since - timedelta(days=self._settings.warm_up_days))
        for chunk in self._chunks(positions, since):
            self._step(chunk, counts=False)
        warm_up, day = self._events, since.date()
        for chunk in self._chunks(positions, until):
            self._step(chunk, counts=True)
            self._note_sent(chunk.events, late=False)
            self._late += chunk.late
            if self._late and self._until and self._until.date() > day:
                self._look_again({**positions, **chunk.positions})
            day = self._until.date() if self._until else day
        self._look_again(positions)
        events = self._events - warm_up
        for chunk in self._chunks(positions, until + SENT_WITHIN):
            self._note_sent(chunk.events, late=True)
        return Result(
            since=format_time(as_utc(since)),
            until=format_time(as_utc(until)),
            events=events,
            warm_up=warm_up,
            rules=[self._founds[rule.id].result(rule, self._failed.get(rule.name)) for rule in self._rules],
            problems=[f"not looked at: {problem}" for problem in self._reading.problems.values()],
        )

    def _chunks(self, positions: dict[str, int], sealed_before: datetime) -> Iterator[Chunk]:
        """Yield what was sealed before a time, and move the positions behind it."""
        late = timedelta(hours=self._settings.late_hours)
        chunks = self._reading.chunks(
            positions, self._until, slack=memory.SLACK, late=late, sealed_before=sealed_before
        )
        for chunk in chunks:
            yield chunk
            positions |= chunk.positions
            if chunk.sealed_at is not None:
                self._progress(Progress(chunk.sealed_at, self._events))

    def _step(self, chunk: Chunk, *, counts: bool) -> None:
        if chunk.until is None:
            return
        kept_from = self._until - self._longest - memory.SLACK if self._until else None
        outcome = step(
            self._rules,
            self._memory,
            self._alerts,
            chunk.events,
            until=chunk.until,
            # As if each run had come when its statements were sealed.
            head_age=0.0,
            storm=self._settings.storm,
            kept_from=kept_from,
        )
        self._note_found(outcome, counts=counts)
        self._memory, self._alerts, self._until = outcome.memory, outcome.alerts, chunk.until
        self._events += chunk.events.count
        self._failed = {**outcome.failed, **self._failed}

    def _look_again(self, positions: Mapping[str, int]) -> None:
        """Look at the times of late events, together with those of their time."""
        rules = [rule for rule in self._rules if rule.kind == "sigma" and rule.window]
        for late in merged(self._late) if rules else ():
            again = replay(
                self._reading,
                rules,
                positions,
                lambda: self._alerts,
                first=late.first,
                end=late.last + reach_of(rules),
                wanted=touches(late),
                known_until=self._until,
                storm=self._settings.storm,
            )
            for _, outcome in again:
                self._note_found(outcome, counts=True)
                self._alerts = outcome.alerts
        self._late = []

    def _note_found(self, outcome: Outcome, *, counts: bool) -> None:
        known = {alert.id for alert in self._alerts}
        recorded = [alert for alert in outcome.alerts if alert.recorded_only and alert.id not in known]
        opened = [notice.alert for notice in outcome.notices if notice.kind in _OPENS]
        for alert in (*opened, *recorded):
            if found := self._founds.get(alert.rule_id):
                found.add(alert, counts=counts)

    def _note_sent(self, events: Events, *, late: bool) -> None:
        """Note alerts that were sent. Behind the range's end, they count if they were found before it."""
        for rule_id, alert_id, about in _sent(events):
            if (found := self._founds.get(rule_id)) and (not late or alert_id in found.ids):
                found.sent[alert_id] = about


class _About(NamedTuple):
    """What an alert is about, as its event says: its group as JSON, and the time of its first event."""

    group: str
    first: datetime


@dataclass(slots=True)
class _Found:
    """What was found of a rule, and what was sent."""

    ids: dict[str, _About] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    """Ids of alerts before the range, of which notices may be archived in it."""
    sent: dict[str, _About] = field(default_factory=dict)
    recorded: int = 0
    groups: Counter[Group] = field(default_factory=Counter)
    by_day: Counter[str] = field(default_factory=Counter)
    examples: list[Alert] = field(default_factory=list)

    def add(self, alert: Alert, *, counts: bool) -> None:
        """Add an alert that opened. One that was recorded only was never sent."""
        if not counts:
            self.before.add(alert.id)
            return
        if not alert.storm and (alert.group in self.groups or len(self.groups) < _GROUPS):
            self.groups[alert.group] += 1
        if alert.recorded_only:
            self.recorded += 1
            return
        self.ids[alert.id] = _about(details_of(Notice("", "opened", alert, ""))["group"], alert.first)
        self.by_day[f"{alert.first:%Y-%m-%d}"] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(alert)

    def result(self, rule: Rule, failed: str | None) -> RuleResult:
        """Return the result of the rule."""
        sent = {alert: about for alert, about in self.sent.items() if alert not in self.before}
        only_sent, only_found = _differences(sent, self.ids, rule.cool_down)
        noisiest = self.groups.most_common(1)
        return RuleResult(
            rule=rule.name,
            level=rule.level,
            alerts=len(self.ids),
            recorded=self.recorded,
            by_day=dict(sorted(self.by_day.items())),
            groups=len(self.groups),
            noisiest=(dict(noisiest[0][0]), noisiest[0][1]) if noisiest else None,
            examples=[_example(alert) for alert in self.examples],
            sent=len(sent),
            only_sent=only_sent,
            only_found=only_found,
            failed=failed,
        )


def _differences(
    sent: Mapping[str, _About], found: Mapping[str, _About], cool_down: timedelta
) -> tuple[list[str], list[str]]:
    """Return the ids of alerts that were only sent, and of those that were only found."""
    only_sent = sorted(sent.keys() - found.keys(), key=lambda alert: sent[alert].first)
    only_found: defaultdict[str, list[str]] = defaultdict(list)
    for alert in sorted(found.keys() - sent.keys(), key=lambda alert: found[alert].first):
        only_found[found[alert].group].append(alert)
    missed = []
    for alert in only_sent:
        group, first = sent[alert]
        near = [other for other in only_found[group] if abs(found[other].first - first) <= cool_down]
        if near:
            only_found[group].remove(near[0])
        else:
            missed.append(alert)
    return missed, [alert for alerts in only_found.values() for alert in alerts]


def _about(group: Mapping[str, str], first: datetime) -> _About:
    return _About(json.dumps(group, sort_keys=True), first)


def _example(alert: Alert) -> Example:
    return Example(
        alert_id=alert.id,
        first=format_time(as_utc(alert.first)),
        last=format_time(as_utc(alert.last)),
        group=dict(alert.group),
        metric=alert.metric,
        evidence=tuple(f"{event.log}@{event.offset}" for event in alert.evidence),
        storm=alert.storm,
    )


class _Details(msgspec.Struct):
    kind: str
    alert_id: str
    rule_id: str
    group: dict[str, str]
    first: datetime


class _Sent(msgspec.Struct):
    event_type: str
    alert_type: str
    details: _Details


_sent_event: msgspec.json.Decoder[_Sent] = msgspec.json.Decoder(_Sent)


def _sent(events: Events) -> Iterator[tuple[str, str, _About]]:
    """Yield of each first notice of an alert among events the rule's id, the alert's id, and what it is about."""
    for line in events.own():
        try:
            event = _sent_event.decode(line)
        except (msgspec.MsgspecError, RecursionError):
            # Others may write events that look like ours.
            continue
        details = event.details
        if event.event_type != "security_event" or not event.alert_type.startswith(OWN) or details.kind not in _OPENS:
            continue
        if details.first.tzinfo is not None:
            yield details.rule_id, details.alert_id, _about(details.group, plain(details.first))
