"""All metrics, as data. What exports, the dashboard and the alert rules follow this list.

The table in docs/metrics.md is made of it.

Rules:
- A label has few values: logs, event types, kinds of reasons, flows, steps, servers, types of errors, and rules. Keys,
  addresses, requests and operations are never labels.
- A total counts what the archive holds, so it goes on across runs.
- With OpenTelemetry, a name has dots and no unit: Prometheus adds the unit and `_total` again when it reads OTLP.
"""

from dataclasses import dataclass
from typing import Literal

Source = Literal["statements", "statements and quarantine", "Kafka", "archive", "Elasticsearch", "runs", "detection"]
Unit = Literal["s", "{record}", "{event}", "{notice}", "{call}", "By", "1"]

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
        source: where its numbers come from.
        help: what it counts or measures, in one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Unit
    labels: tuple[str, ...]
    source: Source
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
    "statements",
    "Events that the statements of a log account for, by type; types that custody does not know are other.",
)
BYTES = Metric(
    "custody_bytes_archived_total",
    "counter",
    "By",
    ("log", "kind"),
    "statements",
    "Bytes of events that the statements of a log account for: raw as JSONL, gz as stored.",
)
QUARANTINED = Metric(
    "custody_quarantined_total",
    "counter",
    "{record}",
    ("log", "reason"),
    "statements and quarantine",
    "Records that the statements of a log put into quarantine, by kind of reason; each kind is there, also with 0.",
)
LAG_RECORDS = Metric(
    "custody_lag_records",
    "gauge",
    "{record}",
    ("log",),
    "Kafka",
    "Offsets in Kafka that are not archived yet.",
)
LAG_SECONDS = Metric(
    "custody_lag_seconds",
    "gauge",
    "s",
    ("log",),
    "Kafka",
    "How long the oldest record that is not archived has been in Kafka; 0 if none waits, absent if not known.",
)
HEADROOM = Metric(
    "custody_retention_headroom_seconds",
    "gauge",
    "s",
    ("log",),
    "Kafka",
    "How long until Kafka deletes the oldest record that is not archived; absent if none waits, if there is no"
    " limit, or if not known.",
)
HEAD_AGE = Metric(
    "custody_head_age_seconds",
    "gauge",
    "s",
    ("log",),
    "archive",
    "How long ago the newest statement was sealed whose time is not of the future.",
)
INDEX_DELAY = Metric(
    "custody_index_delay_seconds",
    "gauge",
    "s",
    ("log",),
    "Elasticsearch",
    "How long ago the oldest statement that cannot be searched yet was sealed; 0 if all can be.",
)
AUDIT_OK = Metric(
    "custody_audit_ok",
    "gauge",
    "1",
    (),
    "archive",
    "Whether the newest audit found nothing wrong: 1 or 0.",
)
AUDIT_AGE = Metric(
    "custody_audit_age_seconds",
    "gauge",
    "s",
    (),
    "archive",
    "How long ago the newest audit was signed whose time is not of the future.",
)
DETECT_ALERTS = Metric(
    "custody_detect_alerts_total",
    "counter",
    "1",
    ("rule", "level"),
    "detection",
    "Alerts that a rule opened, and those of a storm too; not those of the past that the first run recorded.",
)
DETECT_SUPPRESSED = Metric(
    "custody_detect_suppressed_total",
    "counter",
    "1",
    ("rule", "level"),
    "detection",
    "Alerts that were recorded and not told, because the rule opened too many at once.",
)
DETECT_FAILURES = Metric(
    "custody_detect_failures_total",
    "counter",
    "1",
    ("rule",),
    "detection",
    "How often a rule could not be run.",
)
DETECT_LATE = Metric(
    "custody_detect_late_events_total",
    "counter",
    "{event}",
    (),
    "detection",
    "Events that came too late to be looked at with those of their time.",
)
DETECT_DROPPED = Metric(
    "custody_detect_dropped_notices_total",
    "counter",
    "{notice}",
    (),
    "detection",
    "Notices of alerts that were never sent to Kafka, because too many waited.",
)
DETECT_LAG = Metric(
    "custody_detect_position_lag_seconds",
    "gauge",
    "s",
    ("log",),
    "detection",
    "How long ago the oldest statement was sealed that rules have not seen; 0 if they have seen all.",
)
STEP = Metric(
    "custody_step_duration_seconds",
    "histogram",
    "s",
    ("flow", "step"),
    "runs",
    "How long a step of a flow took.",
)
RETRIES = Metric(
    "custody_retries_total",
    "counter",
    "{call}",
    ("backend", "error_type"),
    "runs",
    "Calls to elasticsearch, kafka, kms or s3 that runs made again, by the type of the error before.",
)
LAST_SUCCESS = Metric(
    "custody_last_success_timestamp_seconds",
    "gauge",
    "s",
    ("flow",),
    "runs",
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
    DETECT_ALERTS,
    DETECT_SUPPRESSED,
    DETECT_FAILURES,
    DETECT_LATE,
    DETECT_DROPPED,
    DETECT_LAG,
    STEP,
    RETRIES,
    LAST_SUCCESS,
)
"""Every metric, in the order in which they are exported."""
