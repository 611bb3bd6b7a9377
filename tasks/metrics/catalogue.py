"""All metrics, as data. What exports, the dashboard, the alert rules and docs/metrics.md follow this list.

Rules:
- A label has few values: logs, event types, kinds of reasons, flows, steps, servers and types of errors. Keys,
  addresses, requests and operations are never labels.
- A total counts what the archive holds, so it goes on across runs.
- With OpenTelemetry, a name has dots and no unit: Prometheus adds the unit and `_total` again when it reads OTLP.
"""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "{record}", "{event}", "{call}", "By", "1"]

BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Upper bounds of a step's duration, in seconds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: its name in Prometheus.
        kind: its type.
        unit: its unit, as UCUM has it.
        labels: the names of its labels.
        help: what it counts or measures, in one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Unit
    labels: tuple[str, ...]
    help: str

    @property
    def otel_name(self) -> str:
        """Its name in OpenTelemetry."""
        return self.name.removesuffix("_total").removesuffix("_seconds").replace("_", ".")


EVENTS = Metric(
    "custody_events_archived_total",
    "counter",
    "{event}",
    ("log", "event_type"),
    "Events that the statements of a log account for, by type.",
)
BYTES = Metric(
    "custody_bytes_archived_total",
    "counter",
    "By",
    ("log", "kind"),
    "Bytes of events that the statements of a log account for: raw as JSONL, gz as stored.",
)
QUARANTINED = Metric(
    "custody_quarantined_total",
    "counter",
    "{record}",
    ("log", "reason"),
    "Records that the statements of a log put into quarantine, by kind of reason.",
)
LAG_RECORDS = Metric(
    "custody_lag_records", "gauge", "{record}", ("log",), "Offsets in Kafka that are not archived yet."
)
LAG_SECONDS = Metric(
    "custody_lag_seconds",
    "gauge",
    "s",
    ("log",),
    "How long the oldest record that is not archived has been in Kafka; 0 if none waits.",
)
HEADROOM = Metric(
    "custody_retention_headroom_seconds",
    "gauge",
    "s",
    ("log",),
    "How long until Kafka deletes the oldest record that is not archived; absent if none waits.",
)
HEAD_AGE = Metric("custody_head_age_seconds", "gauge", "s", ("log",), "How long ago the newest statement was sealed.")
INDEX_DELAY = Metric(
    "custody_index_delay_seconds",
    "gauge",
    "s",
    ("log",),
    "How long ago the oldest statement that cannot be searched yet was sealed; 0 if all can be.",
)
AUDIT_OK = Metric("custody_audit_ok", "gauge", "1", (), "Whether the newest audit found nothing wrong: 1 or 0.")
AUDIT_AGE = Metric("custody_audit_age_seconds", "gauge", "s", (), "How long ago the newest audit was signed.")
STEP = Metric("custody_step_duration_seconds", "histogram", "s", ("flow", "step"), "How long a step of a flow took.")
RETRIES = Metric(
    "custody_retries_total",
    "counter",
    "{call}",
    ("backend", "error_type"),
    "Calls to a server that runs made again, by the type of the error before.",
)
LAST_SUCCESS = Metric(
    "custody_last_success_timestamp_seconds",
    "gauge",
    "s",
    ("flow",),
    "When a flow last ended well, in seconds since 1970.",
)

CATALOGUE = (
    EVENTS,
    BYTES,
    QUARANTINED,
    LAG_RECORDS,
    LAG_SECONDS,
    HEADROOM,
    HEAD_AGE,
    INDEX_DELAY,
    AUDIT_OK,
    AUDIT_AGE,
    STEP,
    RETRIES,
    LAST_SUCCESS,
)
"""Every metric, in the order in which they are exported."""
