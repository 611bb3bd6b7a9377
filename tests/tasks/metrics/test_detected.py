"""The samples of detection: what its state says, and how far behind the archive it is."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from custody.archive.reader import read_archive
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.detect.positions import Totals
from tasks.detect.state import State, States
from tasks.health.model import LogHealth
from tasks.metrics import catalogue
from tasks.metrics.detected import detected
from tests.helpers.sample import Growing

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An archive with four statements, sealed at 11:10 to 11:13."""
    growing = Growing(tmp_path / "archive", begun=NOW - timedelta(minutes=50))
    growing.append(4)
    opened = open_store(str(growing.folder))
    yield opened
    opened.close()


@pytest.mark.parametrize(("position", "seconds"), [(0, 3000.0), (2, 2880.0), (4, 0.0)])
def test_samples_of_detection(store: Store, position: int, seconds: float) -> None:
    """Nothing before its first run; then its counts, and the age of what it has not seen in each drained log."""
    archive = read_archive(store).id
    logs = [LogHealth("audit.grows/0", 4), LogHealth("ended/0", ended=True), LogHealth("others/0", drained=False)]
    assert list(detected(store, archive, logs, NOW)) == []
    totals = Totals(alerts={"a/high": 2, "b/low": 0}, suppressed={"a/high": 1}, failures={"b": 3}, late=4, dropped=5)
    States(store, archive).commit(State().with_facts(positions={"audit.grows/0": position}, totals=totals), NOW)
    assert [(sample.metric, sample.labels, sample.value) for sample in detected(store, archive, logs, NOW)] == [
        (catalogue.DETECT_ALERTS, ("a", "high"), 2),
        (catalogue.DETECT_ALERTS, ("b", "low"), 0),
        (catalogue.DETECT_SUPPRESSED, ("a", "high"), 1),
        (catalogue.DETECT_FAILURES, ("b",), 3),
        (catalogue.DETECT_LATE, (), 4),
        (catalogue.DETECT_DROPPED, (), 5),
        (catalogue.DETECT_LAG, ("audit.grows/0",), seconds),
    ]
