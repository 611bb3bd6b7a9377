/*
title: More queries with an API key than usual
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a0a
description: >
  A key runs 60 queries or more within a minute of the clock, and more than twice as many as in any minute of the same hour of the
  day, give or take an hour, of the last 14 days. The key must have worked a week ago or earlier.
level: medium
falsepositives:
  - A new job of the customer, an import, a load test.
  - A key that is used anew, or at another time of the day.
advice: See which queries they are. The same one with ever other arguments, or pages without end, copies your data.
group-by: [api_key_id]
window: 0
cool-down: 1h
threshold: 60
measure: queries
tests:
  - name: 70 in a minute, by a key that runs 30 a minute at most at this time, and more in the night
    before:
      - {event_type: query_executed, timestamp: "2026-03-03T10:20:00Z", api_key_id: key-1, repeat: 30, every: 1s}
      - {event_type: query_executed, timestamp: "2026-03-06T11:20:00Z", api_key_id: key-1, repeat: 30, every: 1s}
      - {event_type: query_executed, timestamp: "2026-03-07T03:20:00Z", api_key_id: key-1, repeat: 200, every: 0s}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T10:20:00Z", api_key_id: key-1, repeat: 29, every: 1s}
      - {event_type: query_executed, timestamp: "2026-03-12T10:20:30Z", api_key_id: key-1, repeat: 41, every: 0s}
    fires: [{api_key_id: key-1}]
  - name: twice as many, 59, and 100 by a new key
    before:
      - {event_type: query_executed, timestamp: "2026-03-05T09:20:00Z", api_key_id: key-1, repeat: 50, every: 1s}
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-2, repeat: 2, every: 9d}
      - {event_type: query_executed, timestamp: "2026-03-10T10:10:00Z", api_key_id: key-3}
    events:
      - {event_type: query_executed, timestamp: "2026-03-12T10:20:00Z", api_key_id: key-1, repeat: 100, every: 0s}
      - {event_type: query_executed, timestamp: "2026-03-12T10:22:00Z", api_key_id: key-2, repeat: 59, every: 1s}
      - {event_type: query_executed, timestamp: "2026-03-12T10:24:00Z", api_key_id: key-3, repeat: 100, every: 0s}
    fires: []
*/
WITH counted AS (
    -- Each event with how many there were in its minute until then, in this step and in earlier ones.
    SELECT api_key_id, time, log, "offset", new.minute, many + coalesce(minutes.value, 0) AS many
    FROM (
        SELECT
            api_key_id, time, log, "offset", date_trunc('minute', time) AS minute,
            count(*) OVER (
                PARTITION BY api_key_id, date_trunc('minute', time) ORDER BY time, log, "offset" ROWS UNBOUNDED PRECEDING
            ) AS many
        FROM events
        WHERE event_type = 'query_executed'
    ) AS new
    LEFT JOIN minutes
        ON minutes.key = new.api_key_id AND minutes.minute = new.minute AND minutes.measure = 'queries'
),
many AS (
    SELECT counted.*
    FROM counted JOIN seen ON seen.kind = 'key' AND seen.key = counted.api_key_id
    WHERE many >= 60 AND seen.first_seen <= counted.time - INTERVAL 7 DAYS
),
usual AS (
    SELECT hours.api_key_id, hours.hour, max(peak) AS peak
    FROM (SELECT DISTINCT api_key_id, date_trunc('hour', time) AS hour FROM many) AS hours
    JOIN peaks
        ON peaks.key = hours.api_key_id AND peaks.measure = 'queries'
        AND datediff('hour', peaks.hour, hours.hour) BETWEEN 23 AND 337
        AND (datediff('hour', peaks.hour, hours.hour) + 1) % 24 <= 2
    GROUP BY ALL
)
SELECT many.api_key_id, time, log, "offset", minute AS since, many AS metric
FROM many
LEFT JOIN usual ON usual.api_key_id = many.api_key_id AND usual.hour = date_trunc('hour', many.time)
WHERE many > 2 * coalesce(usual.peak, 0)
