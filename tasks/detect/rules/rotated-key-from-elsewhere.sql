/*
title: An API key is rotated, and then used from elsewhere
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a10
description: >
  Within a day after a key was rotated, it works from a network (/24 of IPv4, /48 of IPv6) from which it did not work
  before it was rotated, or not for 90 days. The key must have worked before.
level: high
falsepositives:
  - A customer who rotates a key because servers move.
advice: Ask the key's owner who rotated it. Whoever did, and is not the owner, has the new secret. Revoke the key then.
group-by: [api_key_id]
window: 0
cool-down: 24h
tests:
  - name: rotated, and used from elsewhere an hour later
    before:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1, client_ip: 192.0.2.1}
      - {event_type: api_key_operation, timestamp: "2026-03-01T12:00:00Z", api_key_id: key-1, operation: rotated}
    events:
      - {event_type: auth_attempt, timestamp: "2026-03-01T13:00:00Z", api_key_id: key-1, client_ip: 203.0.113.9}
    fires: [{api_key_id: key-1}]
  - name: from where it was used before, two days later, and a key that was never used before
    before:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1, client_ip: 192.0.2.1}
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:01Z", api_key_id: key-2, client_ip: 192.0.2.1}
      - {event_type: api_key_operation, timestamp: "2026-03-01T12:00:00Z", api_key_id: key-2, operation: rotated}
    events:
      - {event_type: api_key_operation, timestamp: "2026-03-03T12:00:00Z", api_key_id: key-1, operation: rotated}
      - {event_type: auth_attempt, timestamp: "2026-03-03T12:10:00Z", api_key_id: key-1, client_ip: 192.0.2.77}
      - {event_type: auth_attempt, timestamp: "2026-03-03T13:00:00Z", api_key_id: key-2, client_ip: 203.0.113.9}
      - {event_type: api_key_operation, timestamp: "2026-03-03T13:00:00Z", api_key_id: key-3, operation: rotated}
      - {event_type: auth_attempt, timestamp: "2026-03-03T13:10:00Z", api_key_id: key-3, client_ip: 203.0.113.9}
    fires: []
*/
WITH done AS (
    SELECT api_key_id, operation, time FROM operations
    UNION ALL
    SELECT api_key_id, operation, time FROM events WHERE event_type = 'api_key_operation' AND api_key_id IS NOT NULL
),
after AS (
    SELECT uses.api_key_id, uses.time, log, "offset", network, done.time AS rotated
    FROM uses ASOF JOIN done ON done.api_key_id = uses.api_key_id AND done.time < uses.time
    WHERE network IS NOT NULL AND done.operation = 'rotated' AND uses.time - done.time <= INTERVAL 1 DAY
),
-- When keys worked from where, before this step and in it.
worked AS (
    SELECT key AS api_key_id, value AS network, first_seen, last_seen FROM seen WHERE kind = 'network'
    UNION ALL
    SELECT api_key_id, network, time, time FROM uses WHERE network IS NOT NULL
)
SELECT api_key_id, time, log, "offset", rotated AS since, 1 AS metric
FROM after
WHERE EXISTS (SELECT * FROM worked WHERE worked.api_key_id = after.api_key_id AND first_seen < rotated)
    AND NOT EXISTS (
        SELECT * FROM worked
        WHERE worked.api_key_id = after.api_key_id AND worked.network = after.network
            AND first_seen < rotated AND last_seen >= rotated - INTERVAL 90 DAYS
    )
