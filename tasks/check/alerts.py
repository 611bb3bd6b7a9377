"""Checks that somebody is alerted. Nothing is sent."""

from collections.abc import Iterator

from tasks.alert import CORRECT, TRY, UNREADABLE, receivers, unreadable
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

_report = Reporter("alerts")


def check(settings: Settings) -> Iterator[Line]:
    """Yield who is alerted, and whose URL cannot be used."""
    wrong = unreadable(settings)
    told = [receiver for receiver in receivers(settings) if receiver not in wrong]
    for receiver in wrong:
        yield _report.failed("alert.urls", f"{receiver} is told nothing: {UNREADABLE}", CORRECT)
    if told:
        yield _report.ok("alert.urls", f"{', '.join(told)}; try the way to them with 'custody alert --test'")
    elif not wrong:
        yield _report.warning("alert.urls", "nobody is alerted", TRY)
