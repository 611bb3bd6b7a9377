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
from custody.store.bucket import is_bucket
from tasks.check import alerts, archive, clock, kafka, keys, metrics, prefect, retention, settings
from tasks.check.model import PARTS, Line, Part, Reporter
from tasks.settings import Settings

SECONDS = 15.0
"""How long a part may take."""
PASSING = (KeyUnavailable, TransientSearchError, TransientSourceError, TransientStoreError)
"""Errors that may go away by themselves."""

_OF_STORAGE = frozenset({"archive", "retention", "clock"})
"""Parts that ask the archive's storage first."""

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
    results = {run.part: run.result(until) for run in runs}
    if is_bucket(asked.settings.archive) and any(run.part == "archive" and run.is_silent for run in runs):
        for run in runs:
            if run.part in _OF_STORAGE and run.is_silent:
                results[run.part] = [_frozen(asked.settings, run.part)]
    return tuple(line for lines in results.values() for line in lines)


def _frozen(settings: Settings, part: Part) -> Line:
    """Return the line for a part that waited for a storage that takes connections, and says nothing."""
    if part != "archive":
        return Reporter(part).warning("check", "not tried: the storage does not answer", "see the part archive")
    server = settings.s3.endpoint_url or settings.archive
    message = f"the archive's storage at {server} accepts connections, and does not answer"
    return Reporter(part).failed("check", message, "check that it runs, and s3.endpoint_url", passing=True)


class _PartRun:
    """The check of one part in a thread of its own."""

    def __init__(self, part: Part, check: Check, asked: Asked) -> None:
        self.part, self._check, self._asked = part, check, asked
        self._lines: list[Line] = []
        self._thread = threading.Thread(target=self._run, name=f"check-{part}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        report = Reporter(self.part)
        try:
            for line in self._check(self._asked):
                self._lines.append(line)
        except CustodyError as error:
            message, _, remedy = str(error).partition(": run ")
            remedy = f"run {remedy}" if remedy else "correct what the message names"
            self._lines.append(report.failed("check", message, remedy, passing=isinstance(error, PASSING)))
        except Exception as error:
            # Its text may hold anything, secrets too.
            logger.debug("the check of %s failed", self.part, exc_info=True)
            message = f"this part of the check failed ({type(error).__name__})"
            self._lines.append(report.failed("check", message, "report it: this is a bug of custody"))

    @property
    def is_silent(self) -> bool:
        """Whether it still runs, and nothing came of it."""
        return self._thread.is_alive() and not self._lines

    def result(self, until: float) -> list[Line]:
        """Return the lines once the check has ended, or what there is of them at a time."""
        self._thread.join(max(0.0, until - time.monotonic()))
        lines = list(self._lines)
        if self._thread.is_alive():
            remedy = "check that the servers that the settings name answer, and try again"
            message = "it did not end in time: a server accepts connections, and does not answer"
            lines.append(Reporter(self.part).failed("check", message, remedy, passing=True))
        return lines
