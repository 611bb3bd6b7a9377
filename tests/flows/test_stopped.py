"""A run that was stopped is known as stopped: it asks no server at its end."""

import signal
from typing import Any

import pytest

import flows.drain
from tasks.metrics.run import Run
from tests.helpers.environment import clear_settings


def test_a_stopped_drain_is_known_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM that comes while the drain of one process is at work is noted by its step."""
    clear_settings(monkeypatch)

    def drained(*_: Any) -> tuple[list[Any], list[Any]]:
        signal.raise_signal(signal.SIGTERM)
        return [], []

    monkeypatch.setattr(flows.drain, "find_partitions", lambda _: [("audit.events", 0)])
    monkeypatch.setattr(flows.drain, "drain_share", drained)
    run = Run("drain")
    flows.drain._run(run, once=False, seconds=None)
    assert run.stopped
