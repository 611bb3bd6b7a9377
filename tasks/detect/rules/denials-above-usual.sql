/*
title: More denied accesses with an API key than usual
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a09
description: >
  A key is denied 20 times or more within a minute of the clock, and more than one and a half times as often as in any minute of the
  same hour of the day, give or take an hour, of the last 14 days. The key must have worked a week ago or earlier.
level: medium
falsepositives:
  - A client that was given fewer permissions, or a new version of it that asks for more.
  - A key that is used anew, or at another time of the day.
advice: See what was asked for. Many different resources are a search for what the key may do.
group-by: [api_key_id]
window: 0
cool-down: 1h
threshold: 20
measure: denials
tests:
  - name: 25 in a minute, by a key that is denied 5 times a minute at most
    before:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, repeat: 2, every: 9d}
      - {event_type: authz_check, timestamp: "2026-03-05T10:20:00Z", api_key_id: key-1, permission_granted: false, repeat: 5, every: 1s}
      - {event_type: authz_check, timestamp: "2026-03-06T11:20:00Z", api_key_id: key-1, permission_granted: false, repeat: 5, every: 1s}
    events:
      - {event_type: authz_check, timestamp: "2026-03-12T10:20:00Z", api_key_id: key-1, permission_granted: false, repeat: 25, every: 2s}
    fires: [{api_key_id: key-1}]
  - name: 25 in a minute, by a key that was denied 20 times a minute at that time, and by a new one
    before:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, repeat: 2, every: 9d}
      - {event_type: authz_check, timestamp: "2026-03-05T11:20:00Z", api_key_id: key-1, permission_granted: false, repeat: 20, every: 1s}
      - {event_type: auth_attempt, timestamp: "2026-03-10T10:10:00Z", api_key_id: key-2}
    events:
      - {event_type: authz_check, timestamp: "2026-03-12T10:20:00Z", api_key_id: key-1, permission_granted: false, repeat: 25, every: 2s}
      - {event_type: authz_check, timestamp: "2026-03-12T10:22:00Z", api_key_id: key-2, permission_granted: false, repeat: 25, every: 2s}
      - {event_type: authz_check, timestamp: "2026-03-12T10:24:00Z", api_key_id: key-1, permission_granted: true, repeat: 50, every: 1s}
    fires: []
  - name: 25 in five minutes
    before:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:10:00Z", api_key_id: key-1, repeat: 2, every: 9d}
    events:
      - {event_type: authz_check, timestamp: "2026-03-12T10:20:00Z", api_key_id: key-1, permission_granted: false, repeat: 25, every: 12s}
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
        WHERE event_type = 'authz_check' AND NOT permission_granted
    ) AS new
    LEFT JOIN minutes
        ON minutes.key = new.api_key_id AND minutes.minute = new.minute AND minutes.measure = 'denials'
),
many AS (
    SELECT counted.*
    FROM counted JOIN seen ON seen.kind = 'key' AND seen.key = counted.api_key_id
    WHERE many >= 20 AND seen.first_seen <= counted.time - INTERVAL 7 DAYS
),
usual AS (
    SELECT hours.api_key_id, hours.hour, max(peak) AS peak
    FROM (SELECT DISTINCT api_key_id, date_trunc('hour', time) AS hour FROM many) AS hours
    JOIN peaks
        ON peaks.key = hours.api_key_id AND peaks.measure = 'denials'
        AND datediff('hour', peaks.hour, hours.hour) BETWEEN 23 AND 337
        AND (datediff('hour', peaks.hour, hours.hour) + 1) % 24 <= 2
    GROUP BY ALL
)
SELECT many.api_key_id, time, log, "offset", minute AS since, many AS metric
FROM many
LEFT JOIN usual ON usual.api_key_id = many.api_key_id AND usual.hour = date_trunc('hour', many.time)
WHERE many > 1.5 * coalesce(usual.peak, 0)
