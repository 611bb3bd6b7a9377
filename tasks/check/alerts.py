"""Checks that somebody is alerted. Nothing is sent."""

from collections.abc import Iterator

from tasks.alert import TRY, receivers, unreadable
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

_report = Reporter("alerts")


def check(settings: Settings) -> Iterator[Line]:
    """Yield who is alerted, and whose URL cannot be used."""
    wrong = unreadable(settings)
    told = [receiver for receiver in receivers(settings) if receiver not in wrong]
    for receiver in wrong:
        message = f"{receiver} is told nothing: there is no service of this kind, or the URL lacks parts"
        yield _report.failed("alert.urls", message, "correct it, as Apprise's documentation of the service says")
    if told:
        yield _report.ok("alert.urls", f"{', '.join(told)}; try the way to them with 'custody alert --test'")
    elif not wrong:
        yield _report.warning("alert.urls", "nobody is alerted", TRY)
