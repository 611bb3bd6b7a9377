/*
title: A revoked API key still works
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a0f
description: >
  A key works although the last thing that was done to it, however long ago, was to revoke it. A minute is allowed for
  the servers to learn of it. What the server refuses does not count.
level: critical
falsepositives:
  - A server that caches keys for longer than a minute.
  - A server whose clock is wrong.
advice: Find out why the server takes the key, and stop it there. Then see what the key did since it was revoked.
group-by: [api_key_id]
window: 0
tests:
  - name: revoked months ago, and two minutes ago
    before:
      - {event_type: api_key_operation, timestamp: "2025-10-01T10:00:00Z", api_key_id: key-1, operation: revoked}
    events:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1}
      - {event_type: api_key_operation, timestamp: "2026-03-01T11:00:00Z", api_key_id: key-2, operation: revoked}
      - {event_type: query_executed, timestamp: "2026-03-01T11:02:00Z", api_key_id: key-2}
    fires: [{api_key_id: key-1}, {api_key_id: key-2}]
  - name: used before and just after it was revoked, refused, and made anew
    before:
      - {event_type: api_key_operation, timestamp: "2026-02-01T10:00:00Z", api_key_id: key-2, operation: revoked}
      - {event_type: api_key_operation, timestamp: "2026-02-02T10:00:00Z", api_key_id: key-3, operation: revoked}
      - {event_type: api_key_operation, timestamp: "2026-02-03T10:00:00Z", api_key_id: key-3, operation: created}
    events:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1}
      - {event_type: api_key_operation, timestamp: "2026-03-01T11:00:00Z", api_key_id: key-1, operation: revoked}
      - {event_type: query_executed, timestamp: "2026-03-01T11:00:59Z", api_key_id: key-1}
      - {event_type: auth_attempt, timestamp: "2026-03-01T11:01:00Z", api_key_id: key-2, status: failure}
      - {event_type: auth_attempt, timestamp: "2026-03-01T11:02:00Z", api_key_id: key-3}
    fires: []
*/
WITH done AS (
    SELECT api_key_id, operation, time FROM operations
    UNION ALL
    SELECT api_key_id, operation, time FROM events WHERE event_type = 'api_key_operation' AND api_key_id IS NOT NULL
)
SELECT uses.api_key_id, uses.time, log, "offset", uses.time AS since, 1 AS metric
FROM uses ASOF JOIN done ON done.api_key_id = uses.api_key_id AND done.time < uses.time
WHERE done.operation = 'revoked' AND uses.time - done.time > INTERVAL 1 MINUTE
