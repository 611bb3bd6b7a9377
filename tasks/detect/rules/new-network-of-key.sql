/*
title: An API key is used from a new network
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a0e
description: >
  A key that worked a week ago or earlier works from a network (/24 of IPv4, /48 of IPv6) from which it never did, or
  not for 90 days.
level: medium
falsepositives:
  - People who travel, work from home, or use a mobile network.
  - Servers of the customer that moved, or have changing addresses in a cloud.
advice: Ask the key's owner whether it is theirs. If not, revoke the key, and see what it did.
group-by: [api_key_id]
window: 0
cool-down: 24h
tests:
  - name: a network that the key never used, and one that it did not use for 90 days
    before:
      - {event_type: auth_attempt, timestamp: "2026-01-01T10:00:00Z", api_key_id: key-2, client_ip: 203.0.113.9}
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1, client_ip: 192.0.2.1}
      - {event_type: auth_attempt, timestamp: "2026-03-31T10:00:00Z", api_key_id: key-2, client_ip: 192.0.2.1}
    events:
      - {event_type: auth_attempt, timestamp: "2026-04-08T10:00:00Z", api_key_id: key-1, client_ip: 203.0.113.9}
      - {event_type: auth_attempt, timestamp: "2026-04-08T10:00:01Z", api_key_id: key-2, client_ip: 203.0.113.9}
    fires: [{api_key_id: key-1}, {api_key_id: key-2}]
  - name: another address of the network, failures, and a key that is known for six days
    before:
      - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1, client_ip: 192.0.2.1}
      - {event_type: auth_attempt, timestamp: "2026-03-10T12:00:00Z", api_key_id: key-2, client_ip: 192.0.2.1}
    events:
      - {event_type: auth_attempt, timestamp: "2026-03-16T10:00:00Z", api_key_id: key-1, client_ip: 192.0.2.200}
      - {event_type: auth_attempt, timestamp: "2026-03-16T10:00:01Z", api_key_id: key-1, client_ip: "::ffff:192.0.2.9"}
      - {event_type: auth_attempt, timestamp: "2026-03-16T10:00:02Z", api_key_id: key-1, client_ip: 203.0.113.9, status: failure}
      - {event_type: query_executed, timestamp: "2026-03-16T10:00:03Z", api_key_id: key-2, client_ip: 203.0.113.9}
    fires: []
*/
SELECT used.api_key_id, time, log, "offset", time AS since, 1 AS metric
FROM (
    SELECT
        *,
        lag(time) OVER (PARTITION BY api_key_id, network ORDER BY time, log, "offset") AS earlier,
        min(time) OVER (PARTITION BY api_key_id) AS oldest
    FROM uses
    WHERE network IS NOT NULL
) AS used
LEFT JOIN seen AS networks
    ON networks.kind = 'network' AND networks.key = used.api_key_id AND networks.value = used.network
LEFT JOIN seen AS keys ON keys.kind = 'key' AND keys.key = used.api_key_id
WHERE least(coalesce(keys.first_seen, oldest), oldest) <= time - INTERVAL 7 DAYS
    AND coalesce(greatest(networks.last_seen, earlier) < time - INTERVAL 90 DAYS, true)
