"""Counts of writers as metrics, as a monitoring system gets them."""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from opentelemetry.metrics import CallbackOptions, NoOpMeter, Observation
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from custody.emit.builders import own
from custody.emit.errors import AuditError
from custody.emit.kafka import KafkaWriter
from custody.emit.metrics import MEASURES, opentelemetry_instruments, prometheus_collector
from custody.emit.writer import Options
from custody.errors import ConfigurationError

MOCK = {"test.mock.num.brokers": 1}


def test_every_counter_is_a_metric() -> None:
    """What a writer counts can be watched, and nothing else is promised."""
    with KafkaWriter("audit", MOCK, Options(service="shop")) as writer:
        assert {measure.counter for measure in MEASURES} == set(writer.counters())
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("custody_emit_") for name in names)


def test_the_page_names_every_metric() -> None:
    """docs/emit.md lists them as Prometheus shows them, each with its counter."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "emit.md").read_text()
    listed = re.findall(r"^\| `(custody_emit_\w+)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert listed == [
        (measure.name + ("_total" if measure.kind == "counter" else ""), measure.counter) for measure in MEASURES
    ]


def test_a_scrape_has_every_writers_counts() -> None:
    """Prometheus reads them over HTTP; to read them makes no source, so a process that emits nothing has no events."""
    registry = CollectorRegistry()
    quiet = KafkaWriter("audit", MOCK, Options(service="quiet"))
    with KafkaWriter("audit", MOCK, Options(service="shop")) as writer:
        registry.register(prometheus_collector({"orders": writer, "quiet": quiet}))
        for number in range(3):
            writer.write(own("order.paid", number=number))
        with pytest.raises(AuditError):
            writer.write(own("order.paid", source="mine"))
        assert writer.flush(10) == 0
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)
        assert not thread.is_alive()
    samples = {
        (sample.name, sample.labels["writer"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["custody_emit_written_events_total", "orders"] == 3
    assert samples["custody_emit_delivered_events_total", "orders"] == 4, "with emitter_started"
    assert samples["custody_emit_queued_events", "orders"] == 0
    assert {value for (_, name), value in samples.items() if name == "quiet"} == {0}
    assert {name for name, _ in samples} == {
        measure.name + ("_total" if measure.kind == "counter" else "") for measure in MEASURES
    }


class Recorder(NoOpMeter):
    """Keeps the instruments that are made of it: an SDK would call them at each export."""

    def __init__(self) -> None:
        super().__init__("custody.emit")
        self.made: dict[str, tuple[str, Any]] = {}

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        self.made[name] = ("counter", callbacks)
        return super().create_observable_counter(name, callbacks, unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> Any:
        self.made[name] = ("gauge", callbacks)
        return super().create_observable_up_down_counter(name, callbacks, unit, description)


def test_opentelemetry_observes_the_same_counts() -> None:
    """Each instrument gives one observation a writer, whenever it is exported."""
    meter = Recorder()
    with KafkaWriter("audit", MOCK, Options(service="shop")) as writer:
        opentelemetry_instruments({"orders": writer}, meter)
        opentelemetry_instruments({"orders": writer})
        writer.write(own("order.paid"))
        assert writer.flush(10) == 0
        assert {name: kind for name, (kind, _) in meter.made.items()} == {each.name: each.kind for each in MEASURES}
        for measure in MEASURES:
            callbacks: Sequence[Callable[[CallbackOptions], Iterable[Observation]]] = meter.made[measure.name][1]
            (observation,) = (seen for callback in callbacks for seen in callback(CallbackOptions()))
            expected = Observation(writer.counters()[measure.counter], {"writer": "orders"})
            assert observation == expected


@pytest.mark.parametrize(
    ("module", "make"), [("prometheus_client", prometheus_collector), ("opentelemetry", opentelemetry_instruments)]
)
def test_what_is_not_installed_is_named(
    module: str, make: Callable[[dict[str, Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a dependency of those who emit."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module] + [
        f"{module}.core",
        f"{module}.metrics",
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=module.partition("_")[0]):
        make({})
