"""Counts of writers as metrics: for Prometheus, or by OpenTelemetry, whichever the application has installed.

Reading them starts nothing: a writer that has written nothing yet has zeros. Each process counts its own events.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from custody.emit.writer import AuditWriter
from custody.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

__all__ = ["MEASURES", "Measure", "opentelemetry_instruments", "prometheus_collector"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric.

    Attributes:
        counter: its name in `AuditWriter.counters`.
        name: its name as a metric. Prometheus adds `_total` to a counter's.
        kind: `counter` only grows; `gauge` is what there is now.
        meaning: what is counted.
    """

    counter: str
    name: str
    kind: Literal["counter", "gauge"]
    meaning: str


MEASURES = (
    Measure("written", "custody_emit_written_events", "counter", "Events and requests that were given to the writer"),
    Measure("delivered", "custody_emit_delivered_events", "counter", "Events that the backend has"),
    Measure("replayed", "custody_emit_replayed_events", "counter", "Delivered events that came from the spool"),
    Measure("spooled", "custody_emit_spooled_events", "counter", "Events that were written to the spool"),
    Measure("failed", "custody_emit_failed_sends", "counter", "Sends that failed and are made again"),
    Measure(
        "refused", "custody_emit_refused_events", "counter", "Events that are not valid, or that the backend refuses"
    ),
    Measure("turned_away", "custody_emit_turned_away_events", "counter", "Events for which `write` raised: no room"),
    Measure("dropped", "custody_emit_dropped_events", "counter", "Events for which there was no room"),
    Measure("lost", "custody_emit_lost_events", "counter", "Events that were neither delivered nor spooled at the end"),
    Measure("bad_segments", "custody_emit_bad_segments", "counter", "Damaged files of the spool, put aside"),
    Measure("lost_segments", "custody_emit_lost_segments", "counter", "Files of the spool that others deleted"),
    Measure("faults", "custody_emit_faults", "counter", "Errors of the writer itself, after which it went on"),
    Measure("queued", "custody_emit_queued_events", "gauge", "Events and requests in memory that are not passed on"),
    Measure("queued_bytes", "custody_emit_queued_bytes", "gauge", "Their size"),
    Measure("in_flight", "custody_emit_in_flight_events", "gauge", "Events on their way to the backend"),
    Measure("spool_events", "custody_emit_spool_events", "gauge", "Events of this process in the spool"),
    Measure("spool_bytes", "custody_emit_spool_bytes", "gauge", "Size of the spool, of all processes of the host"),
)
"""All metrics. Each has the label `writer`."""


def prometheus_collector(writers: Mapping[str, AuditWriter]) -> "Collector":
    """Return a collector for `prometheus_client.REGISTRY.register`.

    Args:
        writers: by the value of the label `writer`.

    Raises:
        ConfigurationError: prometheus_client is not installed.
    """
    try:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.registry import Collector
    except ImportError:
        raise _missing("prometheus-client") from None

    class WritersCollector(Collector):
        def describe(self) -> Iterator["Metric"]:
            return _families({})

        def collect(self) -> Iterator["Metric"]:
            return _families({name: writer.counters() for name, writer in writers.items()})

    def _families(counts: Mapping[str, Mapping[str, int]]) -> Iterator["Metric"]:
        for measure in MEASURES:
            make = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
            family = make(measure.name, measure.meaning, labels=["writer"])
            for name, counters in counts.items():
                family.add_metric([name], counters[measure.counter])
            yield family

    return WritersCollector()


def opentelemetry_instruments(writers: Mapping[str, AuditWriter], meter: "Meter | None" = None) -> None:
    """Make an observable instrument for each metric.

    Args:
        writers: by the value of the attribute `writer`.
        meter: makes the instruments; the global provider's meter `custody.emit` if None.

    Raises:
        ConfigurationError: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import Observation, get_meter
    except ImportError:
        raise _missing("opentelemetry-api") from None
    meter = meter or get_meter("custody.emit")

    def observe(counter: str) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        return lambda _: [Observation(writer.counters()[counter], {"writer": name}) for name, writer in writers.items()]

    for measure in MEASURES:
        # What is in a queue may be added up over processes, which a gauge of OpenTelemetry may not.
        make = meter.create_observable_counter if measure.kind == "counter" else meter.create_observable_up_down_counter
        unit = "By" if measure.name.endswith("_bytes") else "1"
        make(measure.name, [observe(measure.counter)], unit, measure.meaning)


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(f"the package {package} is not installed; install it, or leave these metrics out")
