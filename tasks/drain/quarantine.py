"""Which logs have too many records that are no events, and what to tell people about them.

A run looks at what it archived itself, `tasks.health` at a log's newest statements. A quiet log may have a single bad
record there, which is a share of nothing: below `LEAST_RECORDS` records, only a log without any event is reported.
"""

from tasks.drain.log_run import LogResult

LEAST_RECORDS = 20
"""Records of a log, from which on their share is compared with the setting."""
REMEDY = (
    'see every reason with custody query "SELECT log, error, count(*) FROM quarantined GROUP BY ALL";'
    " correct the producer, and try its records with custody check-events FILE"
)
"""What to do about them."""
LOOK = f"They are kept whole: {REMEDY}"
"""What a run says of them."""


def is_excessive(events: int, quarantined: int, share: float) -> bool:
    """Return whether more of a log's records are in quarantine than a share allows.

    Args:
        events: its records that are events.
        quarantined: its records in quarantine.
        share: the setting `events.quarantined_share`.
    """
    records = events + quarantined
    return quarantined > share * records and (not events or records >= LEAST_RECORDS)


def excess(result: LogResult, share: float) -> str | None:
    """Return how much of what a run read of a log is in quarantine, and why; None if it is not more than the share.

    Args:
        result: what the run did to the log.
        share: the setting `events.quarantined_share`.
    """
    if not is_excessive(result.events, result.quarantined, share):
        return None
    quarantined, records = result.quarantined, result.events + result.quarantined
    noun = "record is" if records == 1 else "records are"
    return (
        f"{quarantined / records:.1%} of the run's {noun} in quarantine ({quarantined:,} of {records:,}),"
        f" most often: {result.reasons.commonest()}"
    )
