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
from tasks.health.model import Health
from tasks.metrics import emf, otlp, textfile
from tasks.metrics.collect import collect, read_now
from tasks.metrics.run import Run
from tasks.metrics.samples import Snapshot
from tasks.metrics.state import not_written, open_state
from tasks.settings import Settings

logger = logging.getLogger(__name__)


def export(settings: Settings, run: Run) -> bool:
    """Export the metrics at the end of a run, and return whether all went well. Log what did not."""
    problems = try_export(settings, run)
    for problem in problems:
        logger.warning("%s", problem)
    return not problems


def try_export(settings: Settings, run: Run | None = None) -> list[str]:
    """Export the metrics of an installation, and return what went wrong.

    Args:
        settings: the settings. If `[metrics]` names nothing, nothing is done.
        run: the run that ends; None outside of a run.
    """
    metrics = settings.metrics
    # A run that is stopped must end within seconds, also if a server hangs. The next run exports.
    if not metrics.is_on or (run is not None and run.stopped):
        return []
    taken: list[Snapshot] = []
    problems: list[str] = []
    problems += _try("metrics", lambda: taken.append(_take(settings, run, problems)))
    for snapshot in taken:
        if metrics.otlp_endpoint is not None:
            send = partial(otlp.send, metrics.otlp_endpoint, metrics.otlp_headers, snapshot)
            problems += _try("metrics by OTLP", send)
        if metrics.emf is not None:
            problems += _try("metrics for CloudWatch", partial(_write_lines, metrics.emf, snapshot))
    return problems


def show(settings: Settings) -> bytes:
    """Return the metrics now as Prometheus' text, after all statements were counted.

    Raises:
        ConfigurationError: there is no archive, or the keys are those of another one.
        CustodyError: the archive cannot be read, another process counts, or the state cannot be read or written.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        check_keys(store, read_archive(store), settings.trust_at_hand())
    health = read_now(settings)
    _warn_of_servers(health)
    with open_state(settings.metrics.state) as state:
        snapshot = collect(settings, state, health, seconds=float("inf"))
    return textfile.render(snapshot)


def _take(settings: Settings, run: Run | None, problems: list[str]) -> Snapshot:
    """Take a snapshot and write the text file. Add to the problems if the file was not written."""
    health = read_now(settings)
    if run is None:
        # A run has said it already.
        _warn_of_servers(health)
    file = settings.metrics.file
    with open_state(settings.metrics.state) as state:
        snapshot = collect(settings, state, health, run)
        if file is not None:
            # Here, so that the state is kept even if the file cannot be written.
            problems += _try("metrics for node exporter", partial(textfile.write, file, snapshot))
    return snapshot


def _warn_of_servers(health: Health) -> None:
    """Log which servers did not answer: what they alone know is absent."""
    for name, server in (("Kafka", health.kafka), ("Elasticsearch", health.search)):
        if server is not None and not server.reachable:
            logger.warning("%s at %s does not answer: its metrics are absent", name, server.address)


def _try(name: str, action: Callable[[], object]) -> list[str]:
    """Return the problem of an action, or nothing if it went well."""
    try:
        action()
    except CustodyError as error:
        return [f"no {name}: {error}"]
    except OSError as error:
        # Its text names a temporary file.
        return [f"no {name}: {error.strerror or type(error).__name__}"]
    except Exception as error:  # noqa: BLE001 - a bug in what only measures fails no run
        # The text of an unknown error may have anything in it.
        return [f"no {name}: {type(error).__name__}"]
    return []


def _write_lines(target: str, snapshot: Snapshot) -> None:
    """Print the lines, or append them to a file in one write."""
    text = "\n".join(emf.lines(snapshot))
    if target == "stdout":
        echo(text)
    else:
        try:
            with Path(target).open("a", encoding="ascii") as file:
                file.write(text + "\n")
        except OSError as error:
            raise not_written(Path(target), error) from None
