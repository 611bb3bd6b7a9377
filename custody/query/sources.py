"""The view `sources`: what each source's numbers say about events that were lost or sent twice, in one query.

Numbers are not counted one by one: years of them would not fit into memory. Each block of 32 numbers becomes one row
with 32 bits. So distinct numbers are sums of bits, and most of the work is one aggregation, which DuckDB can move to
disk. Where runs of numbers begin is looked for only in blocks of sources that lack numbers.
"""

from custody.format.sources import STARTED, STOPPED

_BITS = 32

VIEW = f"""
CREATE TEMP VIEW sources AS
WITH numbered AS (
    -- A table that no key of ours signed may have other numbers.
    SELECT source, CASE WHEN source_seq >= 1 THEN source_seq END AS number, event_type, time
    FROM events WHERE source IS NOT NULL
), blocks AS MATERIALIZED (
    SELECT
        source,
        (number - 1) // {_BITS} AS block,
        count(*) AS events,
        bit_or(1::UBIGINT << ((number - 1) % {_BITS})::UBIGINT) AS bits,
        min(number) AS first,
        max(number) AS last,
        min(time) FILTER (event_type = '{STARTED}') AS started,
        max(time) FILTER (event_type = '{STOPPED}') AS stopped,
        min(time) AS first_time,
        max(time) AS last_time
    FROM numbered GROUP BY ALL
), summed AS MATERIALIZED (
    SELECT
        source,
        min(first) AS first,
        max(last) AS last,
        sum(events)::BIGINT AS events,
        coalesce(sum(bit_count(bits)), 0)::BIGINT AS numbers,
        coalesce(sum(events) FILTER (block IS NOT NULL), 0)::BIGINT AS with_number,
        min(started) AS started,
        max(stopped) AS stopped,
        min(first_time) AS first_time,
        max(last_time) AS last_time
    FROM blocks GROUP BY source
), broken AS (
    SELECT blocks.source, block, bits FROM blocks JOIN summed USING (source)
    WHERE block IS NOT NULL AND summed.last - summed.first + 1 > numbers
), runs AS (
    -- A run that goes on in the next block is counted in both.
    SELECT source, sum(runs)::BIGINT AS runs FROM (
        SELECT source, bit_count(bits & ~(bits << 1)) AS runs FROM broken
        UNION ALL
        SELECT source, -1 FROM broken AS earlier JOIN broken AS later USING (source)
        WHERE later.block = earlier.block + 1 AND earlier.bits >> {_BITS - 1} = 1 AND later.bits & 1 = 1
    ) GROUP BY source
)
SELECT
    source,
    first,
    last,
    events,
    coalesce(last - first + 1 - numbers, 0) AS missing,
    coalesce(runs - 1, 0) AS holes,
    with_number - numbers AS repeats,
    started,
    stopped,
    first_time,
    last_time,
    CASE WHEN stopped IS NULL THEN last_time END AS silent_since
FROM summed LEFT JOIN runs USING (source)
"""  # noqa: S608 - all names are ours
"""Creates the view. Numbers are from 1 to 2^63-1 (`custody.format.sources`), so no difference overflows."""
