/*
title: A far more complex query with an API key than usual
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a0b
description: >
  A key runs a query of a complexity of 1,000 or more, and of more than three times that of any of its queries of the
  last 14 days, today's aside. The key must have worked a week ago or earlier.
level: medium
falsepositives:
  - A new report of the customer.
  - A new version of the server, which computes complexity in another way.
advice: See the query. Nested lists that multiply each other are made to bring the server down. Limit complexity in the server.
group-by: [api_key_id]
window: 0
cool-down: 2h
threshold: 1000
measure: complexity
tests:
  - name: more complex than ever
    before:
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, complexity: 332, repeat: 2, every: 9d}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T15:20:00Z", api_key_id: key-1, complexity: 1000}
    fires: [{api_key_id: key-1}]
  - name: as usual, too little to matter, and a new key
    before:
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, complexity: 1000, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-2, complexity: 1, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-10T10:10:00Z", api_key_id: key-3, complexity: 1}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T15:20:00Z", api_key_id: key-1, complexity: 3000}
      - {event_type: query_executed, timestamp: "2026-03-12T15:22:00Z", api_key_id: key-2, complexity: 999}
      - {event_type: query_executed, timestamp: "2026-03-12T15:24:00Z", api_key_id: key-3, complexity: 10000}
    fires: []
*/
WITH large AS (
    SELECT api_key_id, time, log, "offset", complexity AS size
    FROM events JOIN seen ON seen.kind = 'key' AND seen.key = events.api_key_id
    WHERE event_type = 'query_executed' AND complexity >= 1000 AND seen.first_seen <= events.time - INTERVAL 7 DAYS
),
usual AS (
    SELECT hours.api_key_id, hours.hour, max(peak) AS peak
    FROM (SELECT DISTINCT api_key_id, date_trunc('hour', time) AS hour FROM large) AS hours
    JOIN peaks
        ON peaks.key = hours.api_key_id AND peaks.measure = 'complexity'
        AND datediff('hour', peaks.hour, hours.hour) BETWEEN 23 AND 337
    GROUP BY ALL
)
SELECT large.api_key_id, time, log, "offset", time AS since, size AS metric
FROM large
LEFT JOIN usual ON usual.api_key_id = large.api_key_id AND usual.hour = date_trunc('hour', large.time)
WHERE size > 3 * coalesce(usual.peak, 0)
