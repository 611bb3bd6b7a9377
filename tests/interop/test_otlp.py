"""OpenTelemetry's own reader, that of its collector, understands our document as it is meant."""

import json
import subprocess
from pathlib import Path

import pytest

from tasks.metrics import catalogue, otlp
from tasks.metrics.catalogue import BUCKETS
from tasks.metrics.samples import Distribution, Sample, Snapshot
from tests.servers.go import build

COUNTS = (1, *(0 for _ in BUCKETS[1:]), 4)
SNAPSHOT = Snapshot(
    "file:///archive",
    1_795_000_000.0,
    1_795_000_060.0,
    (
        Sample(catalogue.EVENTS, ("a/0", "auth_attempt"), 2**53 + 1),
        Sample(catalogue.LAG_SECONDS, ('a"\n/0',), 0.25),
        Sample(catalogue.AUDIT_OK, (), 1),
        Sample(catalogue.STEP, ("drain", "find"), Distribution(COUNTS, 7.5)),
    ),
)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def program() -> Path:
    return build(Path(__file__).parent / "otlp", "otlp", 500)


def read(program: Path, document: object) -> tuple[int, str]:
    ran = subprocess.run([program], input=json.dumps(document), capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stdout


def test_the_collector_understands_it(program: Path) -> None:
    """Names, units, types, labels and numbers arrive as they are; 64-bit integers are exact, totals cumulative."""
    code, shown = read(program, otlp.document(SNAPSHOT))
    assert code == 0, shown
    assert [json.loads(line) for line in shown.splitlines()] == [
        ["custody.events.archived", "{event}", "Sum", {"log": "a/0", "event_type": "auth_attempt"}, str(2**53 + 1)],
        ["custody.lag", "s", "Gauge", {"log": 'a"\n/0'}, 0.25],
        ["custody.audit.ok", "1", "Gauge", {}, "1"],
        [
            "custody.step.duration",
            "s",
            "Histogram",
            {"flow": "drain", "step": "find"},
            [5, 7.5, list(COUNTS), list(BUCKETS)],
        ],
    ]


def test_the_collector_refuses_what_is_wrong(program: Path) -> None:
    """A number of another type is refused: so its silence says something."""
    document = otlp.document(SNAPSHOT)
    document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"][0]["asInt"] = "many"
    assert read(program, document)[0] == 1
