/*
title: Events of a source are missing
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a12
description: >
  Numbers of a source (`source_seq`, see docs/events.md) are missing an hour after a higher one. So events were lost
  before Kafka, deleted, or are held back.
level: high
falsepositives:
  - A process that was killed and had its spool on a disk that is gone.
  - A partition of Kafka that is archived more than an hour later than the others.
advice: >
  Compare with `custody query` over the view `sources`, and with the metrics of the emitter: what it dropped, it counted.
  If it counted none, somebody may have removed events on their way.
group-by: [source]
window: 0
threshold: 1
tests:
  - name: two numbers are missing for an hour
    before:
      - {event_type: own, timestamp: "2026-03-01T10:00:00Z", source: api/one/1-1, source_seq: 1}
      - {event_type: own, timestamp: "2026-03-01T10:00:01Z", source: api/one/1-1, source_seq: 4}
    events:
      - {event_type: own, timestamp: "2026-03-01T11:00:00Z", source: api/one/1-1, source_seq: 5}
      - {event_type: own, timestamp: "2026-03-01T11:00:01Z", source: web/one/1-1, source_seq: 1}
    fires: [{source: api/one/1-1}]
  - name: they came late, another source begins in its middle, and the third lacks them for half an hour
    before:
      - {event_type: own, timestamp: "2026-03-01T10:00:00Z", source: api/one/1-1, source_seq: 1}
      - {event_type: own, timestamp: "2026-03-01T10:00:01Z", source: api/one/1-1, source_seq: 4}
      - {event_type: own, timestamp: "2026-03-01T10:00:01Z", source: api/two/1-1, source_seq: 400}
    events:
      - {event_type: own, timestamp: "2026-03-01T10:00:00Z", source: api/one/1-1, source_seq: 3}
      - {event_type: own, timestamp: "2026-03-01T10:00:00Z", source: api/one/1-1, source_seq: 2}
      - {event_type: own, timestamp: "2026-03-01T11:30:00Z", source: api/three/1-1, source_seq: 1}
      - {event_type: own, timestamp: "2026-03-01T11:30:01Z", source: api/three/1-1, source_seq: 9}
      - {event_type: own, timestamp: "2026-03-01T12:00:00Z", source: api/two/1-1, source_seq: 401}
    fires: []
*/
WITH overdue AS (
    SELECT source, since, since + INTERVAL 1 HOUR AS moment, last - first + 1 AS numbers
    FROM missing, now
    WHERE moment > coalesce(now.before, TIMESTAMP '1970-01-01') AND moment <= now.newest AND now.head_age <= 600
)
-- The event at which the hour was over.
SELECT source, others.time, others.log, others."offset", since, numbers AS metric
FROM overdue
ASOF JOIN (SELECT time, log, "offset" FROM events) AS others ON others.time >= overdue.moment
