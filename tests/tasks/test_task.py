"""Prefect's tasks: what has side effects is not cached or kept, and is tried again only where that may help."""

import asyncio
import importlib
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, exception_to_failed_state

from custody.errors import ConfigurationError, ObjectMissing, TransientStoreError
from tasks.audit.task import may_pass

ROOT = Path(__file__).resolve().parents[2]
TASKS: dict[str, Task[..., Any]] = {
    f"{path.parent.name}: {made.name}": made
    for path in sorted((ROOT / "tasks").glob("*/task.py"))
    for made in vars(importlib.import_module(f"tasks.{path.parent.name}.task")).values()
    if isinstance(made, Task)
}


@pytest.mark.parametrize("name", TASKS)
def test_side_effects_are_not_cached_kept_or_blindly_repeated(name: str) -> None:
    """No task is cached or persisted, and each that is tried again says when."""
    made = TASKS[name]
    assert made.cache_policy is NO_CACHE
    assert made.persist_result is False
    assert made.retries == 0 or made.retry_condition_fn is not None


@pytest.mark.parametrize(
    "name", ["drain: drain-share", "audit: read-pieces", "backfill: copy-share", "search: index-share"]
)
def test_tasks_that_flows_spread_can_be_sent_to_another_process(name: str) -> None:
    """Processes and Dask are handed tasks in this form."""
    sent = cloudpickle.loads(cloudpickle.dumps(TASKS[name]))
    assert (sent.name, sent.fn.__module__) == (TASKS[name].name, TASKS[name].fn.__module__)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TransientStoreError("the storage does not answer"), True),
        (ObjectMissing("the segment is not there"), False),
        (ConfigurationError("a setting is wrong"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_only_storage_that_did_not_answer_is_asked_again(error: Exception, again: bool) -> None:
    """Whatever else ended a task would end it again."""

    async def ended() -> Any:
        return await exception_to_failed_state(error)

    assert may_pass(None, None, asyncio.run(ended())) is again
    assert may_pass(None, None, Completed()) is False
