"""A real Prefect server for flows that are called here, and not by a worker."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with a database of its own."""
    # It imports the server: each test process would, before its first test.
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DO_NOT_TRACK", "1")
        patched.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        with prefect_test_harness(server_startup_timeout=120):
            yield
