"""Prometheus' own checker of rules, metrics and queries."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.servers.kafka import CACHE, locked
from tests.servers.require import unavailable

VERSION = "v0.316.0"
"""Of the Go module. As a program it is Prometheus 3.16."""
_BUILD_SECONDS = 1200
"""It takes seven minutes of processor time. It is built once, and stays for the next session."""


def promtool() -> Path:
    """Return `promtool`: that of this machine, or one that is built here."""
    program = CACHE / f"promtool-{VERSION.removeprefix('v')}"
    if program.exists():
        return program
    if (installed := shutil.which("promtool")) is not None:
        return Path(installed)
    if shutil.which("go") is None:
        unavailable("neither promtool nor Go is installed")
    CACHE.mkdir(exist_ok=True)
    with locked(CACHE / "promtool.lock"):
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    folder = CACHE / "promtool-build"
    command = ["go", "install", f"github.com/prometheus/prometheus/cmd/promtool@{VERSION}"]
    try:
        built = subprocess.run(
            command,
            env={**os.environ, "GOBIN": str(folder)},
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        unavailable(f"promtool was not built within {_BUILD_SECONDS} s")
    if built.returncode:
        unavailable(f"promtool could not be built: {built.stderr[-500:]}")
    (folder / "promtool").rename(program)
