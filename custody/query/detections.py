"""The view `detections`: each alert of a rule as its last event says. The conditions are such that few events are read.

An alert's matches never become fewer, so the event with the most is the last one; among those, the one that says that
it is over. Repeats of an event change nothing. Whoever may write to Kafka can write such events.
"""

VIEW = """
CREATE TEMP VIEW detections AS
SELECT * EXCLUDE rank FROM (
    SELECT
        json_extract_string(details, '$.alert_id') AS alert_id,
        severity AS level,
        substr(alert_type, 9) AS rule,
        json_extract_string(details, '$.title') AS title,
        CAST(json_extract(details, '$.group') AS VARCHAR) AS subject,
        TRY_CAST(json_extract_string(details, '$.first') AS TIMESTAMP) AS first,
        TRY_CAST(json_extract_string(details, '$.last') AS TIMESTAMP) AS last,
        TRY_CAST(json_extract_string(details, '$.matches') AS BIGINT) AS matches,
        TRY_CAST(json_extract_string(details, '$.metric') AS DOUBLE) AS metric,
        TRY_CAST(json_extract_string(details, '$.threshold') AS DOUBLE) AS threshold,
        CASE
            WHEN json_extract_string(details, '$.kind') = 'over' THEN 'over'
            WHEN TRY_CAST(json_extract_string(details, '$.others') AS BIGINT) > 0 THEN 'storm'
            ELSE 'open'
        END AS state,
        TRY_CAST(json_extract_string(details, '$.others') AS BIGINT) AS others,
        CAST(json_extract(details, '$.evidence') AS VARCHAR) AS evidence,
        json_extract_string(details, '$.advice') AS advice,
        log,
        "offset",
        list_position(['opened', 'grown', 'over'], json_extract_string(details, '$.kind')) AS rank
    FROM events
    -- As a range and not as a prefix: DuckDB gives it to the scan, which leaves out files by it.
    WHERE event_type = 'security_event' AND alert_type >= 'custody.' AND alert_type < 'custody/'
)
WHERE alert_id IS NOT NULL
QUALIFY row_number() OVER (
    PARTITION BY alert_id ORDER BY matches DESC NULLS LAST, rank DESC NULLS LAST, log, "offset"
) = 1
"""
"""Creates the view."""
