"""What all tests share: real servers, one folder a session for them, and hypothesis with fixed seeds.

`--hypothesis-profile=explore` looks at other examples than the fixed ones, and prints how to see a failure again.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers import order
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

_STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add CI's option."""
    parser.addoption("--seconds", type=float, help="skip long tests that might not end within this time")


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in the order in which they run, once those that are not asked for are gone."""
    items[:] = order.in_order(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a long test out if it might not end in time, before its fixtures are made."""
    limit = item.config.getoption("seconds")
    if limit is not None and order.is_left_out(item, limit, time.monotonic() - item.config.stash[_STARTED]):
        pytest.skip(f"no time was left for long tests of {order.file_of(item)}")


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that all processes of the session share, in the controlling process, and note when it began."""
    if hasattr(config, "workerinput"):
        config.stash[_STARTED] = config.workerinput["started"]
    else:
        config.stash[_STARTED] = time.monotonic()
        config.stash[SHARED] = Path(tempfile.mkdtemp(prefix="custody-tests-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass folder and beginning to an xdist worker. Linux has one monotonic clock for all processes."""
    node.workerinput["started"] = node.config.stash[_STARTED]
    node.workerinput["shared_folder"] = str(node.config.stash[SHARED])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the session's processes shared, once all of them are done."""
    if SHARED in config.stash:
        end_shared(config.stash[SHARED])
