"""Prometheus' own checker of rules and metrics, where this machine has it.

It takes seven minutes of processor time to build, so no test builds it:
`GOBIN=… go install github.com/prometheus/prometheus/cmd/promtool@v0.316.0`.
What its parsers say of rules and queries is tested everywhere, by `tests.servers.go.prometheus`.
"""

import shutil
from pathlib import Path

import pytest

from tests.servers.kafka import CACHE


def promtool() -> Path:
    """Return `promtool`, or skip the test: it is the only tool whose place another one takes."""
    program = CACHE / "promtool-0.316.0"
    found = program if program.exists() else shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on this machine; its parsers are tested by a program of ours")
    return Path(found)
