"""Metrics as lines of CloudWatch's embedded metric format: AWS makes metrics of them wherever it collects logs.

A line has the metrics of one set of labels, since its dimensions are of all metrics in it. A histogram becomes two
totals, `…_sum` and `…_count`.
"""

import json
from collections.abc import Iterator
from itertools import islice

from tasks.metrics.samples import Distribution, Sample, Snapshot

NAMESPACE = "custody"
MOST_METRICS = 100
"""Metrics that CloudWatch takes in a line."""
_UNITS = {"s": "Seconds", "By": "Bytes", "1": "None"}

Value = tuple[str, str, float]
"""A name, a unit and a number."""


def lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield the samples as lines of JSON."""
    groups: dict[tuple[tuple[str, str], ...], list[Value]] = {}
    for sample in snapshot.samples:
        groups.setdefault(tuple(sample.attributes.items()), []).extend(_values(sample))
    for labels, values in groups.items():
        rest = iter(values)
        while some := list(islice(rest, MOST_METRICS)):
            yield _line(snapshot.at, dict(labels), some)


def _values(sample: Sample) -> Iterator[Value]:
    name, unit, value = sample.metric.name, _UNITS.get(sample.metric.unit, "Count"), sample.value
    if isinstance(value, Distribution):
        yield f"{name}_sum", unit, value.sum
        yield f"{name}_count", "Count", value.count
    else:
        yield name, unit, value


def _line(at: float, labels: dict[str, str], values: list[Value]) -> str:
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [list(labels)],
        "Metrics": [{"Name": name, "Unit": unit} for name, unit, _ in values],
    }
    about = {"Timestamp": int(at * 1000), "CloudWatchMetrics": [directive]}
    numbers = {name: value for name, _, value in values}
    return json.dumps({"_aws": about, **labels, **numbers}, allow_nan=False)
