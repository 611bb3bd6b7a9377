"""Runs the checks of all parts at the same time, each for a limited time.

Rules:
- One part that raises, or that does not end in time, becomes a failed line. It hides no line of another part.
- A part that is late is left alone: its thread ends with the process.
- Nothing is changed but the probe objects (`tasks.check.archive`).
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from custody.errors import CustodyError, KeyUnavailable, TransientSearchError, TransientSourceError, TransientStoreError
from tasks.check import alerts, archive, clock, kafka, keys, metrics, prefect, retention, settings
from tasks.check.model import PARTS, Line, Part, Reporter
from tasks.settings import Settings

SECONDS = 15.0
"""How long a part may take."""
PASSING = (KeyUnavailable, TransientSearchError, TransientSourceError, TransientStoreError)
"""Errors that may go away by themselves."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What all parts are given.

    Attributes:
        settings: the settings.
        now: the time, timezone-aware.
        deployments: the file with the deployments that Prefect's server should have.
    """

    settings: Settings
    now: datetime
    deployments: Path


Check = Callable[[Asked], Iterator[Line]]


def _search(asked: Asked) -> Iterator[Line]:
    if asked.settings.search.url is None:
        yield Reporter("search").ok("search.url", "not set: nothing is indexed")
        return
    # Imported here: it loads Elasticsearch's client, which is slow.
    from tasks.check import search

    yield from search.check(asked.settings)


CHECKS: Mapping[Part, Check] = {
    "settings": lambda asked: settings.check(asked.settings),
    "keys": lambda asked: keys.check(asked.settings, asked.now),
    "archive": lambda asked: archive.check(asked.settings, asked.now),
    "kafka": lambda asked: kafka.check(asked.settings),
    "retention": lambda asked: retention.check(asked.settings, asked.now),
    "clock": lambda asked: clock.check(asked.settings),
    "search": _search,
    "prefect": lambda asked: prefect.check(asked.deployments),
    "alerts": lambda asked: alerts.check(asked.settings),
    "metrics": lambda asked: metrics.check(asked.settings),
}


def run_checks(
    asked: Asked,
    left_out: Collection[Part] = (),
    seconds: float = SECONDS,
    checks: Mapping[Part, Check] = CHECKS,
) -> tuple[Line, ...]:
    """Return the lines of all parts, in the order of the parts. Never raises because of what a part meets.

    Args:
        asked: what the parts are given.
        left_out: parts that are not checked.
        seconds: how long a part may take.
        checks: the check of each part.
    """
    runs = [_PartRun(part, checks[part], asked) for part in PARTS if part not in left_out]
    until = time.monotonic() + seconds
    return tuple(line for run in runs for line in run.result(until))


class _PartRun:
    """The check of one part in a thread of its own."""

    def __init__(self, part: Part, check: Check, asked: Asked) -> None:
        self._part, self._check, self._asked = part, check, asked
        self._lines: list[Line] = []
        self._thread = threading.Thread(target=self._run, name=f"check-{part}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        report = Reporter(self._part)
        try:
            for line in self._check(self._asked):
                self._lines.append(line)
        except CustodyError as error:
            message, _, remedy = str(error).partition(": run ")
            remedy = f"run {remedy}" if remedy else "correct what the message names"
            self._lines.append(report.failed("check", message, remedy, passing=isinstance(error, PASSING)))
        except Exception as error:
            # Its text may hold anything, secrets too.
            logger.debug("the check of %s failed", self._part, exc_info=True)
            message = f"this part of the check failed ({type(error).__name__})"
            self._lines.append(report.failed("check", message, "report it: this is a bug of custody"))

    def result(self, until: float) -> list[Line]:
        """Return the lines once the check has ended, or what there is of them at a time."""
        self._thread.join(max(0.0, until - time.monotonic()))
        lines = list(self._lines)
        if self._thread.is_alive():
            remedy = "check that the servers that the settings name answer, and try again"
            message = "it did not end in time: a server accepts connections, and does not answer"
            lines.append(Reporter(self._part).failed("check", message, remedy, passing=True))
        return lines
