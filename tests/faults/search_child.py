"""Indexing, and the roll, in a process of its own, of which each call to the outside is numbered; one may be the last.

As `child` does for the drain: the product knows nothing of this.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from elastic_transport import Transport

from custody.errors import CustodyError
from custody.store import folder
from tasks.roll.expire import expire
from tasks.roll.indices import roll_indices
from tasks.roll.record import record
from tasks.search import bulk
from tasks.search.index import index_logs
from tasks.settings import Settings
from tests.faults.child import Plan, _Breaker

What = Literal["index", "roll", "expire"]


def run(environment: Mapping[str, str], what: What, now: str, plan: Plan, report: Path) -> None:
    """Do one thing, and leave the calls and what came of it in a file.

    Args:
        environment: the settings, as variables.
        what: which.
        now: the time that the roll takes it to be.
        plan: what happens on the way.
        report: JSON with `calls`, `done` and `error`; not there if the process was killed.
    """
    os.environ.update(environment)
    # One request after the other, so that the same number is the same call in every run.
    bulk.REQUESTS = 1
    breaker = _Breaker(plan)
    breaker.wrap(Transport, "perform_request", "search")
    for name in ("create", "read", "remove"):
        breaker.wrap(folder.FolderStore, name, f"store.{name}")
    settings, moment = Settings(), datetime.fromisoformat(now)
    found: dict[str, Any] = {"done": [], "error": None}
    try:
        if what == "index":
            found["done"] = [asdict(one) for one in index_logs(settings)]
        else:
            step = roll_indices if what == "roll" else expire
            actions = list(step(settings, moment))
            record(settings, actions, moment)
            found["done"] = [asdict(one) for one in actions]
    except CustodyError as error:
        found["error"] = str(error)
    report.write_text(json.dumps({"calls": breaker.names, **found}))
