"""A process that emits straight into an archive, each call to the store numbered; one may be the last, or fail.

As `child` does for the drain: the product knows nothing of this.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from custody.emit.archive import ArchiveWriter
from custody.emit.builders import own
from custody.emit.writer import Options
from custody.settings import Settings
from custody.store import durable, folder
from tests.faults.child import STORE_CALLS, Plan, _Breaker, _Os

EVENTS, ROUNDS = 5, 2
"""Events that are sealed together, and how often."""
FLUSH_SECONDS = CLOSE_SECONDS = 20


def run(environment: Mapping[str, str], spool: Path, plan: Plan, report: Path, promised: Path) -> None:
    """Emit some events, seal them, emit some more, and end.

    Args:
        environment: the settings, by their names.
        spool: the spool's folder.
        plan: what happens on the way.
        report: JSON with `calls`, `left` and `counters`; not there if the process was killed.
        promised: gets the ids of the events that are on the disk, and so may not be lost any more.
    """
    breaker = _Breaker(plan)
    if plan.steps:
        for module in (folder, durable):
            setattr(module, "os", _Os(breaker))  # noqa: B010 - a module of which the type checker knows that it is none
    else:
        for name in STORE_CALLS:
            breaker.wrap(folder.FolderStore, name, f"store.{name}")
    options = Options(service="shop", instance="one", spool=spool, close_seconds=CLOSE_SECONDS)
    writer = ArchiveWriter(Settings(**environment), options)
    written = 1
    with writer:
        for _ in range(ROUNDS):
            events = [own("order.paid", number=number) for number in range(EVENTS)]
            for event in events:
                writer.write(event)
            written += EVENTS
            while writer.counters()["spooled"] < written:
                time.sleep(0.002)
            with promised.open("a") as file:
                file.writelines(f"{event.fields['event_id']}\n" for event in events)
            writer.flush(FLUSH_SECONDS)
        left = writer.close()
    counters = writer.counters()
    report.write_text(json.dumps({"calls": breaker.names, "left": [left.spooled, left.lost], "counters": counters}))
