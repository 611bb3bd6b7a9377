"""Which logs of a run had too many records that are no events, and what to tell people about them.

A run judges what it archived itself. A short run of a quiet log may have read a single bad record, which is a share of
nothing: below `LEAST_RECORDS` records, only a run that found no event at all is reported.
"""

from tasks.drain.log_run import LogResult

LEAST_RECORDS = 20
"""Records of a log in a run, from which on their share is compared with the setting."""
LOOK = (
    "They are kept whole. See every reason: custody query"
    ' "SELECT log, error, count(*) FROM quarantined GROUP BY ALL". Try a file of records: custody check-events FILE'
)
"""What to do about them."""


def excess(result: LogResult, share: float) -> str | None:
    """Return how much of what a run read of a log is in quarantine, and why; None if it is not more than the share.

    Args:
        result: what the run did to the log.
        share: the setting `events.quarantined_share`.
    """
    quarantined, records = result.quarantined, result.events + result.quarantined
    if not quarantined or quarantined <= share * records or (result.events and records < LEAST_RECORDS):
        return None
    noun = "record is" if records == 1 else "records are"
    return (
        f"{quarantined / records:.1%} of the run's {noun} in quarantine ({quarantined:,} of {records:,}),"
        f" most often: {result.reasons.commonest()}"
    )
