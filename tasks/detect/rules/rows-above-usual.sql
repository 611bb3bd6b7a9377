/*
title: A far larger result with an API key than usual
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a0d
description: >
  A key gets a result of 10,000 rows or more, and of more than five times as many as any of its results of the last
  14 days, today's aside. The key must have worked a week ago or earlier.
level: high
falsepositives:
  - A first export, or a report at the end of the year.
advice: See what was read, and whether its owner wanted it. If not, revoke the key. Somebody copies your data.
group-by: [api_key_id]
window: 0
cool-down: 2h
threshold: 10000
measure: rows
tests:
  - name: a larger result than ever
    before:
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, result_rows: 1999, repeat: 2, every: 9d}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T15:20:00Z", api_key_id: key-1, result_rows: 10000}
    fires: [{api_key_id: key-1}]
  - name: as usual, too little to matter, and a new key
    before:
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, result_rows: 10000, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-2, result_rows: 1, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-10T10:10:00Z", api_key_id: key-3, result_rows: 1}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T15:20:00Z", api_key_id: key-1, result_rows: 50000}
      - {event_type: query_executed, timestamp: "2026-03-12T15:22:00Z", api_key_id: key-2, result_rows: 9999}
      - {event_type: query_executed, timestamp: "2026-03-12T15:24:00Z", api_key_id: key-3, result_rows: 100000}
    fires: []
*/
WITH large AS (
    SELECT api_key_id, time, log, "offset", result_rows AS size
    FROM events JOIN seen ON seen.kind = 'key' AND seen.key = events.api_key_id
    WHERE event_type = 'query_executed' AND result_rows >= 10000 AND seen.first_seen <= events.time - INTERVAL 7 DAYS
),
usual AS (
    SELECT hours.api_key_id, hours.hour, max(peak) AS peak
    FROM (SELECT DISTINCT api_key_id, date_trunc('hour', time) AS hour FROM large) AS hours
    JOIN peaks
        ON peaks.key = hours.api_key_id AND peaks.measure = 'rows'
        AND datediff('hour', peaks.hour, hours.hour) BETWEEN 23 AND 337
    GROUP BY ALL
)
SELECT large.api_key_id, time, log, "offset", time AS since, size AS metric
FROM large
LEFT JOIN usual ON usual.api_key_id = large.api_key_id AND usual.hour = date_trunc('hour', large.time)
WHERE size > 5 * coalesce(usual.peak, 0)
