"""What all tests share: real servers, one folder a session for them, and hypothesis with fixed seeds.

`--hypothesis-profile=explore` looks at other examples than the fixed ones, and prints how to see a failure again.
"""

import gc
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.aged import aged
from tests.servers.elasticsearch import elastic
from tests.servers.kafka import kafka
from tests.servers.kms import fake_kms
from tests.servers.prefect import prefect_database
from tests.servers.s3 import moto, seaweed
from tests.servers.shared import SHARED, end_shared

__all__ = ["aged", "elastic", "fake_kms", "kafka", "moto", "prefect_database", "seaweed"]

# No deadline: it would measure how busy the machine is.
settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=1000)
settings.load_profile("fixed")


PROCESSES = 5
"""Test processes, as `-n` has it in pyproject.toml: long tests wait for others most of their time."""
LONG = (
    "tests/flows/test_schedule.py",
    "tests/flows/test_restore.py",
    "tests/faults/",
    "tests/test_readme.py",
    "tests/tasks/search/test_warm.py",
    "tests/test_page_commands.py::test_the_commands_of_a_page_run",
    "tests/deployments/test_iam.py::test_each_permission_is_used",
    "tests/flows/test_up.py",
    "tests/flows/test_dask.py",
    "tests/tasks/drain/test_drain.py",
    "tests/tasks/drain/test_clients.py",
    "tests/tasks/detect/test_fortnight.py",
    "tests/fuzz/test_growth.py",
)
"""Tests that take long, or wait for a broker. They come first: no process is left with them when others are done."""
DEAR = ("prefect_server", "guarded", "breakable", "own")
"""Fixtures with servers of their own, which each process that needs them starts again. The first is one for all
modules, the others are a module's."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while tests are collected: there is next to none, and looking takes half of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        # Modules and test items stay to the end: no later collection need look at them.
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin each process's share of the list, as xdist deals it, with its share of the long tests.

    Tests with the same dear fixture are in one share, where they fit.
    """
    shares: list[list[pytest.Item]] = [[] for _ in range(PROCESSES)]
    groups: dict[tuple[str, str], list[pytest.Item]] = {}
    single: list[pytest.Item] = []
    for item in sorted(items, key=_rank):
        name = next((name for name in DEAR if name in getattr(item, "fixturenames", ())), None)
        if name is not None:
            groups.setdefault((name, "" if name == DEAR[0] else str(item.path)), []).append(item)
        else:
            single.append(item)
    for number, group in enumerate(sorted(groups.values(), key=len, reverse=True)):
        shares[number % PROCESSES] += group
    long = list(itertools.takewhile(lambda item: _rank(item) < len(LONG), single))
    for number, item in enumerate(long):
        shares[number % PROCESSES].append(item)
    rest = iter(single[len(long) :])
    left = len(items)
    for number, share in enumerate(shares):
        # As many as xdist gives the process.
        size = left // (PROCESSES - number)
        share += itertools.islice(rest, max(0, size - len(share)))
        left -= len(share)
    items[:] = [item for share in shares for item in share]


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG))


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that all processes of the session share, in the controlling process."""
    if not hasattr(config, "workerinput"):
        config.stash[SHARED] = Path(tempfile.mkdtemp(prefix="custody-tests-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass that folder's path to an xdist worker."""
    node.workerinput["shared_folder"] = str(node.config.stash[SHARED])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the session's processes shared, once all of them are done."""
    if SHARED in config.stash:
        end_shared(config.stash[SHARED])
