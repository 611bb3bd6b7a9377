"""Metrics as Prometheus' text, which node exporter reads from a file.

The text has no timestamps: node exporter refuses a file with any. It tells by itself when a file was written.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from custody.store.durable import replace_file
from tasks.metrics.catalogue import BUCKETS, CATALOGUE, Metric
from tasks.metrics.samples import Distribution, Sample, Snapshot
from tasks.metrics.state import not_written


def render(snapshot: Snapshot) -> bytes:
    """Return the samples as Prometheus' text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Families(snapshot))
    return generate_latest(registry)


def write(path: Path, snapshot: Snapshot) -> None:
    """Replace the text file in one step. Everybody may read it, since node exporter runs as a user of its own.

    Raises:
        CustodyError: it was not written.
    """
    text = render(snapshot)
    try:
        replace_file(path, text, mode=0o644)
    except OSError as error:
        raise not_written(path, error) from None


class _Families(Collector):
    """The metrics of a snapshot, as a registry collects them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Family]:
        """Yield each metric that has a sample."""
        for metric in CATALOGUE:
            samples = [sample for sample in self._snapshot.samples if sample.metric == metric]
            if samples:
                yield _family(metric, samples)


def _family(metric: Metric, samples: Sequence[Sample]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for sample in samples:
            if isinstance(sample.value, Distribution):
                bounds = [*map(str, BUCKETS), "+Inf"]
                counts = accumulate(sample.value.counts)
                histogram.add_metric(sample.labels, list(zip(bounds, counts, strict=True)), sample.value.sum)
        return histogram
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
        metric.name, metric.help, labels=metric.labels
    )
    for sample in samples:
        if not isinstance(sample.value, Distribution):
            family.add_metric(sample.labels, sample.value)
    return family
