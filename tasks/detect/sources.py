"""What is known of each source: how far its numbers go, which of them are missing, and how long it was silent.

A source is a process that numbers its events 1, 2, 3 … (`custody.format.sources`). Its events are spread over logs, so
a number that is missing may only be on its way. `sources` has, for each:

- `source`, `service`, `first_seen`, `last_seen`, and `log` and `offset` of the event that was seen last,
- `started` and `stopped`: the times of `emitter_started` and `emitter_stopped`,
- `first_seq` and `last_seq`: its lowest and highest number,
- `missing`: ranges of numbers between these that did not come: `first` and `last`; `since`, the time of an event with a
  higher number, and where that one is: `log` and `offset`. Of many ranges the highest 100 are known.

The view `missing` is about all of them after the events of this step: a row for each range, with its `source` and
`service`. Nobody has checked what a source calls itself, and whether its numbers are true.
"""

from typing import Final

import pyarrow as pa

from custody.format.sources import STARTED, STOPPED
from tasks.detect.views import NEW

MOST_RANGES: Final = 100
NOTED: Final = 60
"""Seconds of the shortest silence that is noted."""

_RANGE = pa.struct(
    [
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("since", pa.timestamp("us")),
        ("log", pa.string()),
        ("offset", pa.int64()),
    ]
)
SCHEMA: Final = pa.schema(
    [
        ("source", pa.string()),
        ("service", pa.string()),
        ("first_seen", pa.timestamp("us")),
        ("last_seen", pa.timestamp("us")),
        ("log", pa.string()),
        ("offset", pa.int64()),
        ("started", pa.timestamp("us")),
        ("stopped", pa.timestamp("us")),
        ("first_seq", pa.int64()),
        ("last_seq", pa.int64()),
        ("missing", pa.list_(_RANGE)),
    ]
)

SILENCES: Final = f"""
SELECT 'service' AS key_kind, service AS key, 'silence' AS measure, date_trunc('minute', before) AS minute,
    max(epoch(time) - epoch(before)) AS value, false AS alerted
FROM (
    SELECT service, time, lag(time) OVER (PARTITION BY service ORDER BY time) AS before FROM (
        SELECT split_part(source, '/', 1) AS service, time FROM {NEW} WHERE source IS NOT NULL
        UNION ALL SELECT service, max(last_seen) FROM sources GROUP BY service
    )
) WHERE epoch(time) - epoch(before) >= {NOTED} GROUP BY ALL
"""
"""How long services were silent, as rows of `minutes`. A late event may make a silence look longer than it was."""

_RANGES = f"""
came AS (
    SELECT source, source_seq AS number, min(time) AS time, arg_min(log, time) AS log,
        arg_min("offset", time) AS "offset"
    FROM {NEW} WHERE source IS NOT NULL AND source_seq IS NOT NULL GROUP BY ALL
),
new_ranges AS (
    SELECT source, min(number) AS low, max(number) AS high, min(time) AS time, arg_min(log, time) AS log,
        arg_min("offset", time) AS "offset"
    FROM (SELECT *, number - row_number() OVER (PARTITION BY source ORDER BY number) AS island FROM came)
    GROUP BY source, island
),
old_missing AS (
    SELECT source, unnest(missing, recursive := true) FROM sources WHERE source IN (SELECT source FROM came)
),
old_ranges AS (
    SELECT source, coalesce(lag(old_missing.last) OVER (PARTITION BY source ORDER BY old_missing.first) + 1, first_seq)
        AS low, old_missing.first - 1 AS high
    FROM old_missing JOIN (SELECT source, first_seq FROM sources) USING (source)
    UNION ALL
    SELECT source, coalesce(list_max(list_transform(missing, lambda each: each.last)) + 1, first_seq), last_seq
    FROM sources WHERE source IN (SELECT source FROM came) AND first_seq IS NOT NULL
),
ranges AS (
    SELECT source, low, high, min(time) OVER above AS since, arg_min(log, time) OVER above AS log,
        arg_min("offset", time) OVER above AS "offset"
    FROM new_ranges WINDOW above AS (PARTITION BY source ORDER BY low DESC)
    UNION ALL SELECT source, low, high, NULL, NULL, NULL FROM old_ranges
),
gaps AS (
    SELECT source, below + 1 AS first, low - 1 AS last, since, log, "offset" FROM (
        SELECT *, max(high) OVER (PARTITION BY source ORDER BY low, high ROWS BETWEEN UNBOUNDED PRECEDING AND
            1 PRECEDING) AS below FROM ranges
    ) WHERE low - 1 > below
),
changed AS (
    -- A gap below the lowest number that was known: all that was known is higher.
    SELECT gaps.source, gaps.first, gaps.last, coalesce(known.since, gaps.since, sources.last_seen) AS since,
        coalesce(known.log, gaps.log, sources.log) AS log,
        coalesce(known."offset", gaps."offset", sources."offset") AS "offset"
    FROM gaps LEFT JOIN old_missing AS known
        ON gaps.source = known.source AND gaps.first BETWEEN known.first AND known.last
    LEFT JOIN sources ON sources.source = gaps.source
    QUALIFY row_number() OVER (PARTITION BY gaps.source ORDER BY gaps.first DESC) <= {MOST_RANGES}
)
"""
"""Ranges of numbers that came and that did not, of the sources that have events in this step."""

VIEW: Final = f"""
CREATE OR REPLACE TEMP VIEW missing AS WITH {_RANGES}
SELECT source, split_part(source, '/', 1) AS service, first, last, since, log, "offset" FROM (
    FROM changed UNION ALL
    SELECT source, unnest(missing, recursive := true) FROM sources WHERE source NOT IN (SELECT source FROM came)
)
"""
"""Makes the view `missing`."""

AFTER: Final = f"""
SELECT source, any_value(service) AS service, min(first_seen) AS first_seen, max(last_seen) AS last_seen,
    arg_max(log, (last_seen, log, "offset")) AS log, arg_max("offset", (last_seen, log, "offset")) AS "offset",
    min(started) AS started, max(stopped) AS stopped, min(first_seq) AS first_seq, max(last_seq) AS last_seq,
    any_value(coalesce(now_missing.missing, [])) AS missing
FROM (
    SELECT * EXCLUDE (missing) FROM sources WHERE last_seen >= $forgotten
    UNION ALL
    SELECT source, split_part(source, '/', 1), min(time), max(time), arg_max(log, (time, log, "offset")),
        arg_max("offset", (time, log, "offset")), min(time) FILTER (event_type = '{STARTED}'),
        max(time) FILTER (event_type = '{STOPPED}'), min(source_seq), max(source_seq)
    FROM {NEW} WHERE source IS NOT NULL GROUP BY source
) LEFT JOIN (
    SELECT source, list({{'first': first, 'last': last, 'since': since, 'log': log, 'offset': "offset"}} ORDER BY first)
        AS missing
    FROM missing GROUP BY source
) AS now_missing USING (source)
GROUP BY source ORDER BY last_seen DESC, source LIMIT $most
"""
"""Gives `sources` after the events of this step."""
