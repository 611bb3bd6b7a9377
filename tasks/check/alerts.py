"""Checks that somebody is alerted. Nothing is sent."""

from collections.abc import Iterator

from tasks.alert import TRY, receivers
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

_report = Reporter("alerts")


def check(settings: Settings) -> Iterator[Line]:
    """Yield who is alerted."""
    told = receivers(settings)
    if told:
        yield _report.ok("alert.urls", f"{', '.join(told)}; try the way to them with 'custody alert --test'")
    else:
        yield _report.warning("alert.urls", "nobody is alerted", TRY)
