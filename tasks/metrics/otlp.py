"""Metrics by OTLP: one POST of JSON to a collector, as the protocol's HTTP/JSON form has it.

It needs no SDK: totals come from the archive and not from counters of this process, and a snapshot is one document.
Integers of 64 bits are strings there, and times are nanoseconds since 1970.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic import SecretStr

from custody.errors import CustodyError
from tasks.metrics.catalogue import BUCKETS, CATALOGUE, Metric
from tasks.metrics.samples import Distribution, Sample, Snapshot

SECONDS = 2.0
"""How long a collector may take, from the connection to its whole answer."""
_CUMULATIVE = 2


def document(snapshot: Snapshot) -> dict[str, Any]:
    """Return the samples as an `ExportMetricsServiceRequest` in JSON."""
    metrics = []
    for metric in CATALOGUE:
        points = [_point(sample, snapshot) for sample in snapshot.samples if sample.metric == metric]
        if points:
            metrics.append(_metric(metric, points))
    resource = {"service.name": "custody", "custody.archive": snapshot.archive}
    scope = {"scope": {"name": "custody"}, "metrics": metrics}
    return {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": [scope]}]}


def send(endpoint: str, headers: Mapping[str, SecretStr], snapshot: Snapshot, seconds: float = SECONDS) -> None:
    """Send the samples to `<endpoint>/v1/metrics`.

    Args:
        endpoint: the collector's URL.
        headers: what it wants to know who sends.
        snapshot: the samples.
        seconds: how long that may take.

    Raises:
        CustodyError: the collector did not take them. The message has no header.
    """
    url = f"{endpoint.rstrip('/')}/v1/metrics"
    sent = {name: value.get_secret_value() for name, value in headers.items()}
    body = json.dumps(document(snapshot), allow_nan=False).encode()
    problems: list[str] = [f"it did not answer within {seconds:g} s"]
    # Made here: reading all CA certificates is no part of the collector's time.
    client = httpx.Client(timeout=seconds)

    def post() -> None:
        try:
            with client:
                answer = client.post(url, content=body, headers={**sent, "Content-Type": "application/json"})
        except httpx.TimeoutException:
            # Its own limit may end before ours: the reason is the same.
            pass
        # A header that HTTP does not allow is a ValueError. An error's text may have it.
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            problems[:] = [type(error).__name__]
        else:
            problems[:] = [] if answer.is_success else [f"status {answer.status_code}"]

    # httpx limits each step alone, so a server that sends a byte a second would hold a run forever.
    poster = threading.Thread(target=post, name="otlp", daemon=True)
    poster.start()
    poster.join(seconds)
    if problems:
        raise CustodyError(f"the collector at {url} did not take them: {problems[0]}")


def _metric(metric: Metric, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # With `By`, Prometheus would add `_bytes` to the name, and it would no longer be that of the text file.
    unit = "{byte}" if metric.unit == "By" else metric.unit
    named = {"name": metric.otel_name, "description": metric.help, "unit": unit}
    if metric.kind == "gauge":
        return {**named, "gauge": {"dataPoints": points}}
    total: dict[str, Any] = {"dataPoints": points, "aggregationTemporality": _CUMULATIVE}
    return (
        {**named, "sum": {**total, "isMonotonic": True}} if metric.kind == "counter" else {**named, "histogram": total}
    )


def _point(sample: Sample, snapshot: Snapshot) -> dict[str, Any]:
    point: dict[str, Any] = {"attributes": _attributes(sample.attributes), "timeUnixNano": _nanoseconds(snapshot.at)}
    if sample.metric.kind != "gauge":
        point["startTimeUnixNano"] = _nanoseconds(snapshot.since)
    value = sample.value
    if isinstance(value, Distribution):
        counts = {"count": str(value.count), "sum": value.sum, "bucketCounts": [str(count) for count in value.counts]}
        return {**point, **counts, "explicitBounds": list(BUCKETS)}
    return {**point, "asInt": str(value)} if isinstance(value, int) else {**point, "asDouble": value}


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"stringValue": value}} for name, value in values.items()]


def _nanoseconds(seconds: float) -> str:
    # A float has no more than microseconds of a time.
    return str(round(seconds * 1_000_000) * 1000)
