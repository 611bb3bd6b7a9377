"""Alerts: what a rule's matches become, so that people hear of each thing once.

Matches of one rule and group within its cool-down are one alert, whichever run finds them. So runs that are repeated,
late events, doubled events, and the nightly look at yesterday open no second one. A notice is what people get: when an
alert opens, when it has grown tenfold, and when it is over.

More than `storm` new alerts of a rule within `SPAN`, by the times of events, are a storm. It begins with the first
alert that is too many: those before it were told. A storm is an alert too, of the rule without a group: it opens, grows
with the number of alerts in it, and is over. Its alerts are recorded without notices of their own, and so are the
rule's new alerts until the cool-down after the last one that was too many. Hence a storm is one notice and not one a
minute, and a few alerts an hour never keep it alive.

The rules:

1. A match joins the alert of its rule and group that is nearest to it in time, if one is within the cool-down of its
   `first` or `last`. Otherwise it opens one. An alert keeps its id when late events make `first` earlier. Two alerts
   stay two, though a late match lies between them.
2. A match that an earlier run counted changes nothing in the alert that it belongs to but `metric`. If there is no such
   alert, then it was missed, and it opens one.
3. An alert is over when nothing happened in its cool-down. A late match makes it over once more, with new totals.
4. What is over is forgotten after `remember`, and what is too much beyond `KNOWN` alerts: the oldest of those that are
   over first, then those that were recorded only.
5. A match more than `AHEAD` after all that is known counts as if it were now, and only once: an event with a time of
   the future keeps no alert open, which would take in every later match of its group.

Matches that come in the order of their times give the same alerts, however runs are cut. If a match comes after a later
one of the same group, then only the id of an alert may depend on the cut: the first to be told gives it its id.

Everything here is a function of what is given: it asks no clock, and sends nothing. Times are UTC, without a zone.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Self

import msgspec

from custody.errors import CustodyError
from custody.format.times import EPOCH
from tasks.detect.rule import EVIDENCE, Group, Level, Match, Rule

Kind = Literal["opened", "grown", "over", "storm"]

KNOWN: Final = 5_000
"""Alerts that are remembered at most."""
REMEMBER: Final = timedelta(days=3)
"""How long an alert is remembered that is over: the look at yesterday reaches back two days, and windows a day more."""
AHEAD: Final = timedelta(minutes=15)
"""How far an application's clock may be ahead."""
SPAN: Final = timedelta(minutes=1)
"""Within which new alerts of a rule are at once."""
_GROWTH: Final = 10
_NONE: Final = timedelta(0)
_EPOCH: Final = EPOCH.replace(tzinfo=None)


class NotAnAlert(CustodyError):
    """JSON is not what `to_json` of an alert or notice gives."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an event is archived, so that `custody evidence` proves it."""

    log: str
    offset: int


class _Stored:
    """What a state has as JSON."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return fields

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Return what `to_json` was made of.

        Raises:
            NotAnAlert: a field is missing, of another type, or not known.
        """
        name = cls.__name__.lower()
        try:
            made = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise NotAnAlert(f"this is no {name} of custody's detection: {error}: make the state again") from None
        if made.to_json() != value:
            raise NotAnAlert(f"this is no {name} of custody's detection: it has fields of others: make the state again")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert(_Stored):
    """One thing that a rule has found.

    Attributes:
        id: 32 hexadecimal digits: of the SHA-256 of the rule's id, the group, and where its first match was completed.
        rule: the rule's name.
        rule_id: the rule's id.
        title: the rule's title.
        level: the rule's level.
        group: its group; empty for a storm.
        first: the time of its oldest event.
        last: the time of the event that completed its newest match.
        matches: how many matches it has; of a storm, how many alerts.
        metric: the largest of their metrics; of a storm, how many alerts.
        told: the metric at its first notice, or that times the power of ten that was told last.
        evidence: where its events are archived, the first 20.
        over: whether it is over, and a notice said so.
        recorded_only: whether no notice was sent of it, because the rule stormed.
        storm: whether it is a storm.
        cool_down: seconds.
        opened: the time of the event that completed its first match: by it, alerts are in a storm or not.
    """

    id: str
    rule: str
    rule_id: str
    title: str
    level: Level
    group: Group
    first: datetime
    last: datetime
    matches: int
    metric: float
    told: float
    evidence: tuple[Place, ...]
    cool_down: int
    over: bool = False
    recorded_only: bool = False
    storm: bool = False
    opened: datetime | None = None


@dataclass(frozen=True, slots=True)
class Notice(_Stored):
    """What people get to know. Its id is the same, however often it is sent.

    Attributes:
        id: 32 hexadecimal digits: of the alert, the kind, and how far it had grown.
        kind: see the module.
        alert: the alert, as it was then.
        advice: what to do; empty if the rule is gone.
        others: of a storm, how many alerts are recorded and not sent.
        threshold: what the rule compares the metric with, if it is a number.
    """

    id: str
    kind: Kind
    alert: Alert
    advice: str
    others: int = 0
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What a run's matches came to.

    Attributes:
        alerts: all alerts that may still change.
        notices: what is to be told, the oldest alert first.
        suppressed: of each rule, by its name, how many new alerts are recorded and not told.
    """

    alerts: tuple[Alert, ...]
    notices: tuple[Notice, ...]
    suppressed: Mapping[str, int] = field(default_factory=dict)


def judge(
    known: Sequence[Alert],
    matches: Sequence[tuple[Rule, Sequence[Match]]],
    evidence: Callable[[Rule, Match], Sequence[Place]],
    *,
    until: datetime,
    storm: int,
    counted_from: Callable[[Match], bool],
    remember: timedelta = REMEMBER,
) -> Judged:
    """Return the alerts and notices after a run.

    Args:
        known: alerts of earlier runs that may still change.
        matches: what each rule found, in order.
        evidence: returns where the events of a match are archived, oldest first. It is asked until an alert has 20,
            and never for alerts that are recorded only: of those, evidence is where their matches were completed.
        until: how far the archive is known, as a time of events: what was quiet until then is over.
        storm: how many new alerts of a rule are told within `SPAN`.
        counted_from: whether a match was not counted by an earlier run.
        remember: how long an alert is remembered that is over: as far back as matches may come again.
    """
    notices: list[Notice] = []
    suppressed: dict[str, int] = {}
    alerts = {alert.id: alert for alert in known}
    for rule, its_matches in matches:
        its_alerts = [alert for alert in alerts.values() if alert.rule_id == rule.id]
        run = _Run(rule, its_alerts, storm)
        for match, is_new in sorted(_believed(set(its_matches), until, counted_from), key=_order):
            run.add(match, is_new=is_new)
        if recorded := run.recorded:
            suppressed[rule.name] = recorded
        for alert in run.alerts(evidence):
            alerts[alert.id], told = _told(alert, rule, is_new=alert.id not in alerts)
            notices += told
    rules = {rule.id: rule for rule, _ in matches}
    for alert in list(alerts.values()):
        # A time may be of the year 9999: nothing is added to it.
        if not alert.over and until - alert.last > timedelta(seconds=alert.cool_down):
            alerts[alert.id] = ended = replace(alert, over=True)
            if not ended.recorded_only:
                notices.append(_notice("over", ended, rules.get(ended.rule_id), ended.matches))
    notices.sort(key=lambda notice: notice.alert.first)
    return Judged(_remembered(alerts.values(), until, remember), tuple(notices), suppressed)


def _order(believed: tuple[Match, bool]) -> tuple[Any, ...]:
    """Return what matches are sorted by: their own order. To compare tuples takes a fifth of the time."""
    match, _ = believed
    return match.time, match.log, match.offset, match.group, match.since, match.metric


def _believed(
    matches: Iterable[Match], until: datetime, counted_from: Callable[[Match], bool]
) -> Iterator[tuple[Match, bool]]:
    """Yield matches, and whether each is new, without times of the future."""
    for match in matches:
        is_new = counted_from(match)
        if match.time - until <= AHEAD:
            yield match, is_new
        elif is_new:
            yield replace(match, time=until, since=min(match.since, until)), is_new


@dataclass(slots=True)
class _Draft:
    """An alert in the making: what it was, if it was, and what this run adds. Many matches may be of one alert."""

    alert: Alert
    is_known: bool
    first: datetime
    last: datetime
    metric: float
    quiet: timedelta
    matches: list[Match] = field(default_factory=list)

    @classmethod
    def of(cls, alert: Alert, *, is_known: bool) -> "_Draft":
        return cls(alert, is_known, alert.first, alert.last, alert.metric, timedelta(seconds=alert.cool_down))

    def distance(self, time: datetime) -> timedelta:
        """Return how far a time is from `first` or `last`; zero between them."""
        return self.first - time if time < self.first else time - self.last if time > self.last else _NONE


class _Run:
    """What the matches of one rule become in one run."""

    def __init__(self, rule: Rule, known: Sequence[Alert], storm: int) -> None:
        self._rule, self._storm = rule, storm
        self._openings = sorted(alert.opened - _EPOCH for alert in known if alert.opened and not alert.storm)
        """When the rule's alerts opened. To a span of time more can be added than to a time."""
        self.recorded = 0
        """New alerts that are recorded only."""
        self._storms: list[_Draft] = []
        self._groups: dict[Group, list[_Draft]] = {}
        for alert in known:
            draft = _Draft.of(alert, is_known=True)
            (self._storms if alert.storm else self._groups.setdefault(alert.group, [])).append(draft)

    def add(self, match: Match, *, is_new: bool) -> None:
        """Add a match to the alert that it belongs to, or open one."""
        drafts = self._groups.setdefault(match.group, [])
        metric = match.metric if math.isfinite(match.metric) else 0.0
        near = [draft for draft in drafts if draft.distance(match.time) <= draft.quiet]
        if not near:
            draft = _Draft.of(_first(self._rule, match, metric), is_known=False)
            drafts.append(draft)
            self._limit(draft, match)
        else:
            # Windows may be longer than cool-downs, so that the newer alert of two begins before the older one ended.
            draft = min(near, key=lambda draft: (draft.distance(match.time), draft.last))
            draft.metric = max(draft.metric, metric)
        if is_new or not draft.is_known:
            draft.matches.append(match)
            draft.first, draft.last = min(draft.first, match.since), max(draft.last, match.time)

    def _limit(self, draft: _Draft, match: Match) -> None:
        """Record a new alert only, if it is in a storm that lasts or begins. What later runs find changes nothing."""
        opened = match.time - _EPOCH
        others = bisect_right(self._openings, opened + SPAN) - bisect_left(self._openings, opened - SPAN)
        insort(self._openings, opened)
        is_too_many = others >= self._storm
        near = [each for each in self._storms if each.distance(match.time) <= each.quiet]
        if not near and not is_too_many:
            return
        draft.alert = replace(draft.alert, recorded_only=True)
        self.recorded += 1
        if not near:
            near = [_Draft.of(_storm_of(draft.alert, match), is_known=False)]
            self._storms += near
        joined = near[-1]
        joined.metric += 1
        joined.matches.append(match)
        if is_too_many:
            joined.first, joined.last = min(joined.first, match.since), max(joined.last, match.time)

    def alerts(self, evidence: Callable[[Rule, Match], Sequence[Place]]) -> list[Alert]:
        """Return the alerts that this run changed or opened."""
        drafts = [draft for drafts in (*self._groups.values(), self._storms) for draft in drafts]
        changed = (draft for draft in drafts if draft.matches or draft.metric != draft.alert.metric)
        return [self._finish(draft, evidence) for draft in changed]

    def _finish(self, draft: _Draft, evidence: Callable[[Rule, Match], Sequence[Place]]) -> Alert:
        alert = draft.alert
        places = dict.fromkeys(alert.evidence)
        for match in draft.matches:
            if len(places) >= EVIDENCE:
                break
            completed = Place(match.log, match.offset)
            cheap = alert.storm or alert.recorded_only
            places.update(dict.fromkeys((() if cheap else evidence(self._rule, match)) or (completed,)))
        return replace(
            alert,
            first=draft.first,
            last=draft.last,
            matches=alert.matches + len(draft.matches),
            metric=draft.metric,
            told=alert.told if draft.is_known else draft.metric,
            evidence=tuple(places)[:EVIDENCE],
            over=alert.over and not draft.matches,
        )


def _first(rule: Rule, match: Match, metric: float) -> Alert:
    """Return the alert that a match opens. The match is not counted yet."""
    named = [rule.id, match.group, match.log, match.offset]
    return Alert(
        id=_digest(named),
        rule=rule.name,
        rule_id=rule.id,
        title=rule.title,
        level=rule.level,
        group=match.group,
        first=match.since,
        last=match.time,
        matches=0,
        metric=metric,
        told=metric,
        evidence=(),
        cool_down=int(rule.cool_down.total_seconds()),
        opened=match.time,
    )


def _storm_of(alert: Alert, match: Match) -> Alert:
    """Return the storm that an alert begins."""
    name = _digest([alert.rule_id, "storm", match.log, match.offset])
    return replace(alert, id=name, group=(), metric=0.0, recorded_only=False, storm=True)


def _told(alert: Alert, rule: Rule, *, is_new: bool) -> tuple[Alert, list[Notice]]:
    """Return an alert as it is once its notices are sent, and them: that it opened, or has grown tenfold."""
    if alert.recorded_only:
        return alert, []
    if is_new:
        return alert, [_notice("storm" if alert.storm else "opened", alert, rule)]
    told = alert.told if alert.told > 0 else 1.0
    steps = 0
    while alert.metric >= told * _GROWTH:
        told *= _GROWTH
        steps += 1
    if not steps:
        return alert, []
    grown = replace(alert, told=told)
    return grown, [_notice("grown", grown, rule, told)]


def _notice(kind: Kind, alert: Alert, rule: Rule | None, reached: float = 0) -> Notice:
    advice, threshold = (rule.advice, rule.threshold) if rule else ("", None)
    others = alert.matches if alert.storm else 0
    return Notice(_digest([alert.id, kind, reached]), kind, alert, advice, others, None if alert.storm else threshold)


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:32]


def _remembered(alerts: Iterable[Alert], until: datetime, remember: timedelta) -> tuple[Alert, ...]:
    """Return the alerts that may still change, the oldest first."""
    kept = [alert for alert in alerts if not alert.over or until - alert.last <= remember]
    if len(kept) > KNOWN:
        kept.sort(key=lambda alert: (not alert.over, not alert.recorded_only, alert.last, alert.id))
        kept = kept[-KNOWN:]
    return tuple(sorted(kept, key=lambda alert: (alert.first, alert.id)))
