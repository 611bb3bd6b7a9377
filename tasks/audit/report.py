"""Makes the integrity report of an audit: the same page as `custody report`."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

from custody.query.statements import span_rows
from custody.report.facts import gather
from custody.report.page import render
from custody.store.open import open_store
from tasks.settings import Settings


def make_report(settings: Settings, sequence: int) -> bytes:
    """Return the report of an audit.

    Its figures are of the last `audit.report_days` days: so it costs no more because an archive is old.

    Raises:
        CustodyError: the archive cannot be read.
    """
    now = datetime.now(UTC)
    with closing(open_store(settings.archive, settings.s3)) as store:
        facts = gather(
            store,
            settings.own_trust(),
            now,
            since=now - timedelta(days=settings.audit.report_days),
            audit=sequence,
            reread_days=settings.audit.reread_days,
            rows=span_rows,
        )
        return render(facts)
