/*
title: A query with far more aliases with an API key than usual
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a0c
description: >
  A key runs a query with 30 aliases or more, and with more than three times as many as any of its queries of the last
  14 days, today's aside. The key must have worked a week ago or earlier. Only events of `custody.emit` say how many.
level: medium
falsepositives:
  - A client that puts many small queries into one, since a new version.
advice: See the query. One mutation under many aliases tries many passwords or codes in one request. Limit aliases in the server.
group-by: [api_key_id]
window: 0
cool-down: 2h
threshold: 30
measure: aliases
tests:
  - name: more aliases than ever
    before:
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, aliases: 9, repeat: 2, every: 9d}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T15:20:00Z", api_key_id: key-1, aliases: 30}
    fires: [{api_key_id: key-1}]
  - name: as usual, too little to matter, and a new key
    before:
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, aliases: 30, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-2, aliases: 1, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-10T10:10:00Z", api_key_id: key-3, aliases: 1}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T15:20:00Z", api_key_id: key-1, aliases: 90}
      - {event_type: query_executed, timestamp: "2026-03-12T15:22:00Z", api_key_id: key-2, aliases: 29}
      - {event_type: query_executed, timestamp: "2026-03-12T15:24:00Z", api_key_id: key-3, aliases: 300}
    fires: []
*/
WITH large AS (
    SELECT api_key_id, time, log, "offset", TRY_CAST(json_extract_string(event, '$.aliases') AS BIGINT) AS size
    FROM events JOIN seen ON seen.kind = 'key' AND seen.key = events.api_key_id
    WHERE event_type = 'query_executed' AND TRY_CAST(json_extract_string(event, '$.aliases') AS BIGINT) >= 30 AND seen.first_seen <= events.time - INTERVAL 7 DAYS
),
usual AS (
    SELECT hours.api_key_id, hours.hour, max(peak) AS peak
    FROM (SELECT DISTINCT api_key_id, date_trunc('hour', time) AS hour FROM large) AS hours
    JOIN peaks
        ON peaks.key = hours.api_key_id AND peaks.measure = 'aliases'
        AND datediff('hour', peaks.hour, hours.hour) BETWEEN 23 AND 337
    GROUP BY ALL
)
SELECT large.api_key_id, time, log, "offset", time AS since, size AS metric
FROM large
LEFT JOIN usual ON usual.api_key_id = large.api_key_id AND usual.hour = date_trunc('hour', large.time)
WHERE size > 3 * coalesce(usual.peak, 0)
