"""What a flow's run logs: Prefect's handlers, console and API, get it escaped."""

import logging

import pytest
from prefect import flow, get_run_logger

import tasks


@pytest.mark.usefixtures("prefect_server")
def test_what_a_run_logs_is_harmless() -> None:
    """A server's answer in a run's log adds no line to it, and gives no terminal anything to obey."""
    assert tasks.__doc__
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("prefect.flow_runs")

    @flow(persist_result=False)
    def run() -> None:
        get_run_logger().warning("refused: %s", "\x1b]0;title\x07\x9b2J\u202e\nforged")

    logger.addHandler(handler)
    try:
        run()
    finally:
        logger.removeHandler(handler)
    (refused,) = [record for record in records if record.getMessage().startswith("refused: ")]
    assert refused.getMessage() == "refused: \\x1b]0;title\\x07\\x9b2J\\u202e\\nforged"
