"""Exports metrics at the end of a run, to all that `[metrics]` names.

Rules:
- What a run did is done before. An export that fails is one line in the log, and never fails a run.
- Each way of export is tried, whatever became of the others.
- A run that was stopped exports nothing.
- The text file is written under the state's lock. A collector is asked after it, and has two seconds.
"""

import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from custody.archive.reader import read_archive
from custody.archive.trusted import check_keys
from custody.cli.terminal import echo
from custody.errors import CustodyError
from custody.store.open import open_store
from tasks.metrics import emf, otlp, textfile
from tasks.metrics.collect import collect, read_now
from tasks.metrics.run import Run
from tasks.metrics.samples import Snapshot
from tasks.metrics.state import open_state
from tasks.settings import Settings

logger = logging.getLogger(__name__)


def export(settings: Settings, run: Run | None = None) -> bool:
    """Export the metrics of an installation, and return whether all went well. Log what did not.

    Args:
        settings: the settings. If `[metrics]` names nothing, nothing is done.
        run: the run that ends; None outside of a run.
    """
    metrics = settings.metrics
    # A run that is stopped must end within seconds, also if a server hangs. The next run exports.
    if not metrics.is_on or (run is not None and run.stopped):
        return True
    taken: list[tuple[Snapshot, bool]] = []
    ways = [_try("metrics", lambda: taken.append(_take(settings, run)))]
    for snapshot, written in taken:
        ways.append(written)
        if metrics.otlp_endpoint is not None:
            ways.append(
                _try("metrics by OTLP", partial(otlp.send, metrics.otlp_endpoint, metrics.otlp_headers, snapshot))
            )
        if metrics.emf is not None:
            ways.append(_try("metrics for CloudWatch", partial(_write_lines, metrics.emf, snapshot)))
    return all(ways)


def show(settings: Settings) -> bytes:
    """Return the metrics now as Prometheus' text, after all statements were counted.

    Raises:
        ConfigurationError: there is no archive, or the keys are those of another one.
        CustodyError: the archive cannot be read, or another process counts.
        OSError: the state cannot be read or written.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        check_keys(store, read_archive(store), settings.trust_at_hand())
    health = read_now(settings)
    with open_state(settings.metrics.state) as state:
        snapshot = collect(settings, state, health, seconds=float("inf"))
    return textfile.render(snapshot)


def _take(settings: Settings, run: Run | None) -> tuple[Snapshot, bool]:
    """Take a snapshot and write the text file. Return both the snapshot and whether the file was written."""
    health = read_now(settings)
    file, written = settings.metrics.file, True
    with open_state(settings.metrics.state) as state:
        snapshot = collect(settings, state, health, run)
        if file is not None:
            # Here, so that the state is kept even if the file cannot be written.
            written = _try("metrics for node exporter", partial(textfile.write, file, snapshot))
    return snapshot, written


def _try(name: str, action: Callable[[], object]) -> bool:
    """Return whether an action went well. Log what it raised."""
    try:
        action()
    except (CustodyError, OSError) as error:
        logger.warning("no %s: %s", name, error)
    except Exception as error:  # noqa: BLE001 - a bug in what only measures fails no run
        # The text of an unknown error may have anything in it.
        logger.warning("no %s: %s", name, type(error).__name__)
    else:
        return True
    return False


def _write_lines(target: str, snapshot: Snapshot) -> None:
    """Print the lines, or append them to a file in one write."""
    text = "\n".join(emf.lines(snapshot))
    if target == "stdout":
        echo(text)
    else:
        with Path(target).open("a", encoding="ascii") as file:
            file.write(text + "\n")
