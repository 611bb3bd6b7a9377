"""Sigma rules (specification 2.1.0) as rules of ours: one file, one alert.

A file has one rule; or several documents, of which one correlation refers to the others by their `name`. Correlations
are `event_count`, `value_count`, `temporal` and `temporal_ordered`, and one may count the matches of another. Windows
slide: a match is complete at an event, and looks back `timespan` from there. What is not understood is an error.

What Sigma has no field for stands under `custody`, which other tools skip:

    custody:
      group-by: [client_ip]       # of a rule without a correlation: matches of one group are one alert
      cool-down: 2h               # how long a group must be quiet until it is a new alert; 1h if not given
      advice: what to do about an alert
      tests:
        - name: ten failures in five minutes
          events: [{event_type: auth_attempt, timestamp: …, …}]     # or `repeat`, see `tasks.detect.examples`
          fires: [{client_ip: 192.0.2.1}]                           # empty: must not fire

An event whose group lacks a value is in no group, and does not count.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from custody.errors import ConfigurationError
from tasks.detect import correlation
from tasks.detect.condition import to_sql
from tasks.detect.correlation import Hits
from tasks.detect.detection import column, search_sql
from tasks.detect.examples import tests_of
from tasks.detect.header import LONGEST, columns_of_group, identity, level, text, texts, timespan
from tasks.detect.rule import COOL_DOWN, Rule

_COMMON: Final = frozenset(
    re.findall(
        "[a-z]+",
        "title id name status description references author date modified tags level falsepositives related license"
        " taxonomy scope fields custody",
    )
)
_OF_RULE: Final = _COMMON | {"logsource", "detection"}
_OF_CORRELATION: Final = _COMMON | {"correlation"}
_OWN: Final = frozenset(("group-by", "cool-down", "advice", "tests"))
_LOGSOURCE: Final = {"product": "custody", "service": "audit"}


@dataclass(frozen=True, slots=True)
class _Part:
    """A document: the events that it finds, or the matches of a correlation."""

    hits: Hits
    window: timedelta
    threshold: float | None = None


def rule_of(name: str, documents: Sequence[Mapping[str, Any]]) -> Rule:
    """Return the rule of a file.

    Args:
        name: the file's name, without its ending.
        documents: what the file has.

    Raises:
        ConfigurationError: it is no rule, or something is not understood.
    """
    for document in documents:
        _check_keys(document)
    named = _named(documents)
    used = {str(each) for document in documents for each in _correlation(document).get("rules", ())}
    if unknown := sorted(used - set(named)):
        raise ConfigurationError(f"the correlation refers to {unknown[0]!r}, which is not in this file")
    tops = [d for d in documents if not {str(d.get(key)) for key in ("name", "id") if key in d} & used]
    if len(tops) != 1:
        titles = ", ".join(repr(str(top.get("title"))[:100]) for top in tops) or "none"
        raise ConfigurationError(f"a file is one alert, but these are not part of a correlation: {titles}")
    top = tops[0]
    if any("custody" in document for document in documents if document is not top):
        raise ConfigurationError("'custody' stands in the document that is the alert, and in no other")
    part = _Compiler(named).part(top, ())
    own = top.get("custody")
    if not isinstance(own, Mapping):
        raise ConfigurationError("'custody' is missing: it needs 'advice' and 'tests'")
    group_by = part.hits.group_by
    if "correlation" not in top:
        group_by = columns_of_group(own)
        part = _Part(correlation.grouped(part.hits, group_by), timedelta(0))
    elif "group-by" in own:
        raise ConfigurationError("'group-by' stands in the correlation, not under 'custody'")
    return Rule(
        id=identity(top),
        name=name,
        title=text(top, "title"),
        level=level(top),
        description=text(top, "description"),
        false_positives=tuple(texts(top.get("falsepositives", []), "falsepositives")),
        advice=text(own, "advice"),
        group_by=group_by,
        window=part.window,
        query=part.hits.matches,
        hits=part.hits.events,
        threshold=part.threshold,
        cool_down=timespan(own["cool-down"], "cool-down") if "cool-down" in own else COOL_DOWN,
        kind="sigma",
        tests=tests_of(own.get("tests"), group_by, before=False),
    )


class _Compiler:
    """Writes the documents of a file as SQL."""

    def __init__(self, named: Mapping[str, Mapping[str, Any]]) -> None:
        self._named = named

    def part(self, document: Mapping[str, Any], above: tuple[Mapping[str, Any], ...]) -> _Part:
        """Return what a document finds. `above` are the correlations that refer to it."""
        if any(document is each for each in above):
            raise ConfigurationError(f"{str(document.get('title') or document.get('name'))!r} refers to itself")
        if "correlation" in document:
            return self._correlated(document["correlation"], (*above, document))
        return _Part(Hits.of_events(_where(document)), timedelta(0))

    def _correlated(self, spec: Any, above: tuple[Mapping[str, Any], ...]) -> _Part:
        kind, names, group_by, window = _read(spec)
        parts = [self.part(self._named[name], above) for name in names]
        aliases = _aliases(spec.get("aliases", {}), names, group_by)
        inputs = [
            correlation.grouped(part.hits, group_by, [aliases.get(field, {}).get(name, field) for field in group_by])
            for name, part in zip(names, parts, strict=True)
        ]
        whole = window + max(part.window for part in parts)
        if whole > LONGEST:
            raise ConfigurationError(
                f"the timespan is {whole}, more than {LONGEST}: what must be known for longer needs a rule in SQL"
            )
        if kind == "temporal_ordered":
            _only(spec, kind, condition=False)
            return _Part(correlation.in_order(inputs, group_by, window), whole)
        if kind == "temporal":
            _only(spec, kind, condition=False)
            return _Part(correlation.together(inputs, group_by, window), whole)
        condition = _condition(spec.get("condition"), kind)
        if condition.field in aliases:
            raise ConfigurationError(f"{condition.field!r} is an alias: a value_count counts a field of events")
        counted = correlation.counted(inputs, group_by, window, condition)
        return _Part(counted, whole, condition.least)


def _named(documents: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the documents by their names and ids."""
    named: dict[str, Mapping[str, Any]] = {}
    for document in documents:
        for name in {str(document[key]) for key in ("name", "id") if key in document}:
            if name in named:
                raise ConfigurationError(f"two documents are called {name!r}")
            named[name] = document
    return named


def _check_keys(document: Mapping[str, Any]) -> None:
    """Check that each key of a document is known."""
    known = _OF_CORRELATION if "correlation" in document else _OF_RULE
    if unknown := sorted(set(map(str, document)) - known):
        raise ConfigurationError(f"{', '.join(unknown)} is not known: a document has {', '.join(sorted(known))}")
    own = document.get("custody", {})
    if not isinstance(own, Mapping) or (unknown := sorted(set(map(str, own)) - _OWN)):
        raise ConfigurationError(f"'custody' is a map of {', '.join(sorted(_OWN))}, and of nothing else")


def _where(document: Mapping[str, Any]) -> str:
    """Return the condition of a rule as SQL."""
    source = document.get("logsource")
    if source != _LOGSOURCE:
        raise ConfigurationError(f"the logsource is {source!r}: rules of custody have {_LOGSOURCE}")
    detection = document.get("detection")
    if not isinstance(detection, Mapping) or "condition" not in detection:
        raise ConfigurationError("'detection' is a map with a 'condition'")
    searches = {}
    for name, search in detection.items():
        if name == "condition":
            continue
        if name == "timeframe":
            raise ConfigurationError("'timeframe' is of an older Sigma: use a correlation")
        try:
            searches[str(name)] = search_sql(search)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from None
    conditions = detection["condition"]
    if isinstance(conditions, list):
        raise ConfigurationError("a list of conditions is not known: join them by 'or'")
    return to_sql(str(conditions), searches)


def _correlation(document: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = document.get("correlation", {})
    if not isinstance(spec, Mapping) or not isinstance(spec.get("rules", []), list):
        raise ConfigurationError("'correlation' is a map, and its 'rules' are a list")
    return spec


def _read(spec: Mapping[str, Any]) -> tuple[str, list[str], tuple[str, ...], timedelta]:
    """Return the type, the names of rules, the group and the time span of a correlation."""
    known = {"type", "rules", "group-by", "timespan", "condition", "aliases", "generate"}
    if unknown := sorted(set(map(str, spec)) - known):
        raise ConfigurationError(f"the correlation's {', '.join(unknown)} is not known")
    kinds = ("event_count", "value_count", "temporal", "temporal_ordered")
    if spec.get("type") not in kinds:
        raise ConfigurationError(f"the correlation's type is {spec.get('type')!r}: {', '.join(kinds)} are known")
    if spec.get("generate"):
        raise ConfigurationError("'generate' is not known: a file is one alert")
    names = texts(spec.get("rules", []), "rules")
    if not names:
        raise ConfigurationError("the correlation has no rules")
    if len(set(names)) < len(names):
        raise ConfigurationError("the correlation names a rule twice")
    group_by = columns_of_group(spec)
    return spec["type"], names, group_by, timespan(spec.get("timespan"), "timespan")


def _aliases(given: Any, names: Sequence[str], group_by: tuple[str, ...]) -> dict[str, dict[str, str]]:
    if not isinstance(given, Mapping) or not all(isinstance(each, Mapping) for each in given.values()):
        raise ConfigurationError("'aliases' maps a name to a field for each rule")
    for alias, fields in given.items():
        if unknown := sorted(set(map(str, fields)) - set(names)):
            raise ConfigurationError(f"the alias {alias!r} names {', '.join(unknown)}, which is none of the rules")
        if alias not in group_by:
            raise ConfigurationError(f"the alias {alias!r} is not in 'group-by', which is what aliases are for")
        if missing := sorted(set(names) - set(map(str, fields))):
            raise ConfigurationError(f"the alias {alias!r} has no field for {', '.join(missing)}")
        for field in fields.values():
            column(str(field))
    return {str(alias): {str(rule): str(field) for rule, field in fields.items()} for alias, fields in given.items()}


def _only(spec: Mapping[str, Any], kind: str, *, condition: bool) -> None:
    if "condition" in spec and not condition:
        raise ConfigurationError(f"{kind} with a condition is not known: all rules must match")


def _condition(given: Any, kind: str) -> correlation.Condition:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{kind} needs a condition, such as gte: 10")
    compare = {str(name): value for name, value in given.items() if name != "field"}
    if not compare or set(compare) - set(correlation.COMPARE):
        raise ConfigurationError(f"the condition of {kind} has {', '.join(correlation.COMPARE)}, and 'field'")
    for value in compare.values():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
            raise ConfigurationError(f"the condition's {value!r} is no number of events")
    field = given.get("field")
    if (kind == "value_count") != (field is not None):
        needs = "needs" if kind == "value_count" else "has no"
        raise ConfigurationError(f"the condition of {kind} {needs} 'field'")
    if field is not None and not isinstance(field, str):
        raise ConfigurationError("one field is counted")
    condition = correlation.Condition(compare, field)
    if condition.least is None:
        raise ConfigurationError(f"the condition of {kind} is true without any event: use gte, gt or eq, of 1 or more")
    if condition.least > condition.most:
        raise ConfigurationError(f"the condition of {kind} is never true: no number is all of {compare}")
    return condition
