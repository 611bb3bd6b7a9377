"""Each form of the metrics is what those who read it define, and has the same numbers."""

import json
import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tasks.metrics import catalogue, emf, otlp, textfile
from tasks.metrics.catalogue import BUCKETS, CATALOGUE, Metric
from tasks.metrics.samples import Distribution, Sample, Snapshot
from tests.helpers.metrics import values_of

HOSTILE = 'a"b\\c\nd/0'
COUNTS = (1, 0, 2, *(0 for _ in BUCKETS[3:]), 4)
SNAPSHOT = Snapshot(
    "file:///archive",
    1_795_000_000.5,
    1_795_000_060.25,
    (
        Sample(catalogue.EVENTS, ("a/0", "auth_attempt"), 2**53 + 1),
        Sample(catalogue.EVENTS, (HOSTILE, "other"), 3),
        Sample(catalogue.BYTES, ("a/0", "raw"), 1000),
        Sample(catalogue.QUARANTINED, ("a/0", "not JSON"), 0),
        Sample(catalogue.LAG_SECONDS, ("a/0",), 0.25),
        Sample(catalogue.AUDIT_OK, (), 1),
        Sample(catalogue.STEP, ("drain", "find"), Distribution(COUNTS, 7.5)),
        Sample(catalogue.LAST_SUCCESS, ("drain",), 1_795_000_050.0),
    ),
)


def each_of(kind: str) -> tuple[Sample, ...]:
    return tuple(sample for sample in SNAPSHOT.samples if sample.metric.kind == kind)


def test_names_follow_prometheus() -> None:
    """Names are unique, end in their unit, and only counters end in `_total`."""
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert re.fullmatch(r"custody_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith("_seconds") == (metric.unit == "s")
        assert metric.help.endswith(".")


def test_no_label_has_many_values() -> None:
    """Only these are labels: none is a key, an address, a request or an operation."""
    labels = {"log", "event_type", "kind", "reason", "flow", "step", "backend", "error_type", "rule", "level"}
    assert {label for metric in CATALOGUE for label in metric.labels} == labels


def test_prometheus_reads_the_text() -> None:
    """Its own parser reads names, types, help, labels and numbers as they are. No sample has a timestamp."""
    text = textfile.render(SNAPSHOT).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = [sample for family in families.values() for sample in family.samples]
    assert all(sample.timestamp is None for sample in samples)
    assert "_created" not in text
    plain = values_of(text.encode())
    for each in (*each_of("counter"), *each_of("gauge")):
        assert isinstance(each.value, int | float)
        assert plain[each.metric.name, *each.labels] == float(each.value)
    for metric in {sample.metric for sample in SNAPSHOT.samples}:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
    buckets = [sample for sample in samples if sample.name == "custody_step_duration_seconds_bucket"]
    assert [sample.value for sample in buckets] == [1, 1, *(3 for _ in BUCKETS[2:]), 7]
    assert [float(sample.labels["le"]) for sample in buckets] == [*BUCKETS, float("inf")]
    name = "custody_step_duration_seconds"
    assert (plain[f"{name}_count", "drain", "find"], plain[f"{name}_sum", "drain", "find"]) == (7, 7.5)


def points_of(metric: dict[str, Any]) -> list[dict[str, Any]]:
    (data,) = (metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)
    points: list[dict[str, Any]] = data["dataPoints"]
    return points


def test_the_otlp_document() -> None:
    """It is an ExportMetricsServiceRequest in JSON: 64-bit integers and times are strings, totals are cumulative."""
    (resource,) = json.loads(json.dumps(otlp.document(SNAPSHOT)))["resourceMetrics"]
    assert {"key": "service.name", "value": {"stringValue": "custody"}} in resource["resource"]["attributes"]
    (scope,) = resource["scopeMetrics"]
    metrics = {metric["name"]: metric for metric in scope["metrics"]}
    assert set(metrics) == {sample.metric.otel_name for sample in SNAPSHOT.samples}
    events = metrics["custody.events.archived"]["sum"]
    assert (events["aggregationTemporality"], events["isMonotonic"]) == (2, True)
    assert events["dataPoints"][0] == {
        "attributes": [
            {"key": "log", "value": {"stringValue": "a/0"}},
            {"key": "event_type", "value": {"stringValue": "auth_attempt"}},
        ],
        "startTimeUnixNano": "1795000000500000000",
        "timeUnixNano": "1795000060250000000",
        "asInt": "9007199254740993",
    }
    assert events["dataPoints"][1]["attributes"][0]["value"]["stringValue"] == HOSTILE
    (lag,) = points_of(metrics["custody.lag"])
    assert (metrics["custody.lag"]["unit"], lag["asDouble"], "startTimeUnixNano" in lag) == ("s", 0.25, False)
    (step,) = points_of(metrics["custody.step.duration"])
    assert (step["count"], step["sum"], step["explicitBounds"]) == ("7", 7.5, list(BUCKETS))
    assert step["bucketCounts"] == [str(count) for count in COUNTS]
    assert len(step["bucketCounts"]) == len(step["explicitBounds"]) + 1


def prometheus_name(metric: Metric) -> str:
    """Return the name that Prometheus makes of a metric that it gets by OTLP."""
    suffix = {"counter": "_total"}.get(metric.kind, "")
    return metric.otel_name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "") + suffix


def test_otlp_gives_prometheus_the_same_names() -> None:
    """One dashboard does for both ways."""
    assert [prometheus_name(metric) for metric in CATALOGUE] == [metric.name for metric in CATALOGUE]


def test_lines_for_cloudwatch() -> None:
    """Each line is what the specification of the embedded metric format wants, and each number is in one of them."""
    values: dict[tuple[str, ...], float] = {}
    for line in emf.lines(SNAPSHOT):
        assert "\n" not in line
        document = json.loads(line)
        about = document.pop("_aws")
        assert set(about) == {"Timestamp", "CloudWatchMetrics"}
        assert about["Timestamp"] == 1_795_000_060_250
        (directive,) = about["CloudWatchMetrics"]
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert directive["Namespace"] == "custody"
        (dimensions,) = directive["Dimensions"]
        assert len(dimensions) <= 30
        assert all(document[name] and isinstance(document[name], str) for name in dimensions)
        assert 1 <= len(directive["Metrics"]) <= 100
        for metric in directive["Metrics"]:
            assert metric["Unit"] in {"Seconds", "Bytes", "Count", "None"}
            values[metric["Name"], *(document[name] for name in dimensions)] = document[metric["Name"]]
        assert set(document) == {*dimensions, *(metric["Name"] for metric in directive["Metrics"])}
    wanted = {(each.metric.name, *each.labels): each.value for each in (*each_of("counter"), *each_of("gauge"))}
    name = "custody_step_duration_seconds"
    assert values == wanted | {(f"{name}_sum", "drain", "find"): 7.5, (f"{name}_count", "drain", "find"): 7}


def test_a_line_for_cloudwatch_has_a_hundred_metrics_at_most() -> None:
    """More metrics of the same labels go into more lines."""
    samples = [
        Sample(Metric(f"custody_m{number}", "gauge", "1", ("log",), "runs", "A test."), ("a/0",), number)
        for number in range(250)
    ]
    lines = [json.loads(line) for line in emf.lines(Snapshot("a", 0.0, 1.0, tuple(samples)))]
    assert [len(line["_aws"]["CloudWatchMetrics"][0]["Metrics"]) for line in lines] == [100, 100, 50]
    assert {name for line in lines for name in line if name.startswith("custody_m")} == {
        sample.metric.name for sample in samples
    }
