"""A database of Prefect's server with all tables, made once a session: that takes six seconds of the processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.shared import locked, shared_folder


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config) -> Path:
    """Return the file. Who uses it copies it: a server writes into it."""
    folder = shared_folder(pytestconfig)
    database = folder / "prefect.db"
    with locked(folder / "prefect.lock"):
        if not database.exists():
            home = folder / "prefect"
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            done = subprocess.run(
                command,
                env={**kept, "PREFECT_HOME": str(home)},
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            (home / "prefect.db").rename(database)
    return database
