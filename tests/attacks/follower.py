"""A drain that follows its topics in a process of its own, while others look at what it writes."""

import os
from collections.abc import Mapping

from tasks.drain import loop
from tasks.drain.run import drain_logs
from tasks.settings import Settings


def follow(environment: Mapping[str, str], seconds: float) -> None:
    """Drain for so long, with settings from variables."""
    os.environ.update(environment)
    # Few records a read, so that many small segments are cut.
    loop.READ_RECORDS = 8
    drain_logs(Settings(), seconds=seconds)
