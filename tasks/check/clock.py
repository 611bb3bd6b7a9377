"""Checks this host's clock against the store's. Append times of the broker are checked where records are sampled."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

from custody.errors import CustodyError, StoreError
from custody.format import layout
from custody.store.open import open_store
from custody.store.protocol import CLOCK_SLACK
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

_report = Reporter("clock")
_REMEDY = "set the clock, and use NTP: statements are signed with the host's time"


def check(settings: Settings) -> Iterator[Line]:
    """Yield how far the clocks of this host and of the store are apart."""
    try:
        opened = open_store(settings.archive, settings.s3)
    except CustodyError:
        yield _report.warning("store", "its time is not known: the archive cannot be opened", "see the part archive")
        return
    with closing(opened) as store:
        if store.capabilities.clock is None:
            yield _report.ok("store", "the archive is a folder, which has no clock of its own")
            return
        try:
            store.exists(layout.ARCHIVE)
        except StoreError as error:
            # A refusal tells the time too.
            refusal = str(error)
        else:
            refusal = "its answer has no time"
        ahead = store.capabilities.clock.ahead()
    if ahead is None:
        yield _report.warning("store", f"the time of the store is not known: {refusal}", "see the part archive")
    else:
        yield compare("store", ahead)


def compare(other: str, ahead: timedelta) -> Line:
    """Return the line for how far this host's clock is ahead of another one."""
    seconds = ahead.total_seconds()
    if abs(ahead) <= CLOCK_SLACK:
        return _report.ok(other, f"this host's clock is within {max(1, round(abs(seconds)))} s of the {other}'s")
    side = "ahead of" if seconds > 0 else "behind"
    return _report.failed(other, f"this host's clock is {abs(seconds):,.0f} s {side} the {other}'s", _REMEDY)
