/*
title: A service sends no events any more
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a11
description: >
  All sources of a service are silent for more than three times the longest silence after the same hour of the day, give
  or take an hour, in the last 14 days, and for 15 minutes at least, while others send events. A service that is silent
  at this time on most days, such as a nightly job, may be so for three times as long. It must be known for ten days.
  `source` names the service, see docs/emit.md. Where all services are silent, or the archive's head is older than ten
  minutes, no service is the cause, and this rule finds nothing. The alert stays open while it lasts.
level: high
falsepositives:
  - A service that was shut down, or renamed.
  - A holiday, for a service that people use.
advice: >
  See whether the service runs, and whether it reaches Kafka. If it does both, somebody may have switched its audit events off.
group-by: [service]
window: 0
cool-down: 2h
measure: silence
tests:
  - name: a service that sends something each hour is silent for three hours, while another one is not
    before:
      - {event_type: own, timestamp: "2026-03-01T00:00:00Z", source: api/one/1-1, repeat: 310, every: 1h}
      - {event_type: own, timestamp: "2026-03-01T00:30:00Z", source: web/one/1-1, repeat: 310, every: 1h}
    events:
      - {event_type: own, timestamp: "2026-03-13T22:30:00Z", source: web/one/1-1, repeat: 4, every: 1h}
    fires: [{service: api}]
  - name: a nightly job that is deployed by day
    before:
      - {event_type: own, timestamp: "2026-03-01T02:00:00Z", source: job/one/1-1, repeat: 16, every: 1d}
      - {event_type: own, timestamp: "2026-03-01T00:30:00Z", source: web/one/1-1, repeat: 374, every: 1h}
      - {event_type: emitter_stopped, timestamp: "2026-03-16T14:00:00Z", source: job/one/1-1}
      - {event_type: emitter_started, timestamp: "2026-03-16T14:00:05Z", source: job/one/2-2}
    events:
      - {event_type: own, timestamp: "2026-03-16T14:30:00Z", source: web/one/1-1, repeat: 11, every: 1h}
    fires: []
  - name: two hours, all services, and a service that is new
    before:
      - {event_type: own, timestamp: "2026-03-01T00:00:00Z", source: api/one/1-1, repeat: 310, every: 1h}
      - {event_type: own, timestamp: "2026-03-10T00:00:10Z", source: new/one/1-1, repeat: 20, every: 30s}
      - {event_type: own, timestamp: "2026-03-01T00:30:00Z", source: web/one/1-1, repeat: 310, every: 1h}
    events:
      - {event_type: own, timestamp: "2026-03-13T22:30:00Z", source: web/one/1-1, repeat: 2, every: 1h}
      - {event_type: own, timestamp: "2026-03-14T00:00:00Z", source: api/two/2-2}
      - {event_type: own, timestamp: "2026-03-14T00:30:00Z", source: web/one/1-1}
    fires: []
*/
WITH last_known AS (
    SELECT service, max(last_seen) AS time FROM sources GROUP BY service
),
sent AS (
    SELECT service, time, lead(time) OVER (PARTITION BY service ORDER BY time) AS next
    FROM (
        SELECT split_part(source, '/', 1) AS service, time FROM events WHERE source IS NOT NULL
        UNION ALL
        SELECT service, time FROM last_known
    )
),
quiet AS (
    SELECT sent.service, sent.time, next
    FROM sent
    JOIN (SELECT service, min(first_seen) AS first_seen FROM sources GROUP BY service) AS known
        ON known.service = sent.service AND known.first_seen <= sent.time - INTERVAL 10 DAYS
    WHERE coalesce(next - sent.time > INTERVAL 15 MINUTES, true)
),
usual AS (
    SELECT quiet.service, quiet.time, next, coalesce(max(peak), 0) AS seconds
    FROM quiet
    LEFT JOIN peaks
        ON peaks.key_kind = 'service' AND peaks.key = quiet.service AND peaks.measure = 'silence'
        AND datediff('hour', peaks.hour, date_trunc('hour', quiet.time)) BETWEEN 23 AND 337
        AND (datediff('hour', peaks.hour, date_trunc('hour', quiet.time)) + 1) % 24 <= 2
    GROUP BY ALL
),
-- The silence in which a nightly job was at this time on most days. It may be deployed, or run once more, by day.
within AS (
    SELECT service, time, quantile_disc(longest, 0.5) AS seconds
    FROM (
        SELECT quiet.service, quiet.time, days, coalesce(max(peak), 0) AS longest
        FROM quiet
        CROSS JOIN (SELECT unnest(range(2, 16)) AS days)
        LEFT JOIN peaks
            ON peaks.key_kind = 'service' AND peaks.key = quiet.service AND peaks.measure = 'silence'
            AND quiet.time - to_days(days::INTEGER) BETWEEN peaks.hour AND peaks.hour + to_seconds(peak + 3600)
        GROUP BY ALL
    )
    GROUP BY ALL
),
allowed AS (
    SELECT usual.service, usual.time, next, greatest(900, 3 * greatest(usual.seconds, within.seconds)) AS seconds
    FROM usual JOIN within ON within.service = usual.service AND within.time = usual.time
),
-- Once when it is too long, and each hour after, so that the alert stays open.
moments AS (
    SELECT service, time AS since, time + to_seconds(seconds) + to_hours(hours) AS moment
    FROM (
        SELECT *, unnest(range(0, 336)) AS hours FROM allowed, now
        WHERE now.head_age <= 600 AND time + to_seconds(seconds) <= least(next, now.newest)
    ), now
    WHERE moment > coalesce(now.before, TIMESTAMP '1970-01-01')
        AND moment <= now.newest AND moment < coalesce(next, TIMESTAMP '9999-01-01')
)
-- The event of another service at which it was known.
SELECT
    moments.service, others.time, others.log, others."offset", since, epoch(moment) - epoch(since) AS metric
FROM moments
ASOF JOIN (SELECT time, log, "offset" FROM events) AS others ON others.time >= moments.moment
