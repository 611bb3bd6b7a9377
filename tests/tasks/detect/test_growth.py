"""What a step costs does not grow with the days that are remembered as these do."""

import time
from datetime import timedelta

from tasks.detect import folder
from tasks.detect.step import step
from tests.helpers import remembered


def test_thirty_days_cost_little_more_than_five() -> None:
    """Six times the state takes less than three times the processor time: rules read what their keys need."""
    rules = folder.load([folder.SHIPPED])
    events = remembered.minute_of(5_000, 100)

    def seconds(days: int) -> float:
        known = remembered.remembered(100, days)
        least = float("inf")
        for _ in range(3):
            new = remembered.decoded(events)
            begin = time.process_time()
            until = remembered.NOW + timedelta(minutes=1)
            assert not step(rules, known, (), new, until=until, head_age=5.0, storm=20).failed
            least = min(least, time.process_time() - begin)
        return least

    assert seconds(30) < 3 * seconds(5)
