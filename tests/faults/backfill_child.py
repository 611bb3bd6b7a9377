"""A backfill in a process of its own, of which each call to the outside is numbered; one may be the last, or fail.

As `child` does for the drain: the product knows nothing of this.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elastic_transport import Transport

from custody.errors import CustodyError
from custody.store import folder, s3
from tasks.backfill import copy as copying
from tasks.backfill import plan as planning
from tasks.backfill import topic
from tasks.backfill.copy import copy, restore
from tasks.backfill.plan import Request, plan_backfill
from tasks.search import bulk
from tasks.settings import Settings
from tests.faults.child import Plan, _Breaker

STORE_CALLS = ("create", "read", "exists", "list", "level", "status")
CHANGES = ("mkdir", "open", "write", "fchmod", "fsync", "link", "replace", "unlink")
LOOKS = ("listdir", "lstat", "pread", "scandir", "stat")


def _break_files(breaker: _Breaker, folders: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Count what is done to files in some folders, whoever does it and by whatever library."""
    links = os.readlink

    def wrap(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(first: Any, *arguments: Any, **named: Any) -> Any:
            # Descriptors, too, are of a file.
            try:
                where = links(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
            except OSError:
                where = ""
            if not str(where).startswith(folders):
                return inner(first, *arguments, **named)
            return breaker.run(f"{owner.__name__}.{name}", lambda: inner(first, *arguments, **named))

        setattr(owner, name, call)

    for name in names:
        wrap(os, name)
    wrap(io, "open")


def run(environment: Mapping[str, str], request: Request, plan: Plan, report: Path) -> None:
    """Plan, restore and copy as the flow does, and leave the calls and what came of it in a file.

    Args:
        environment: the settings, as variables.
        request: what is copied.
        plan: what happens on the way; with `steps`, to files in the archive and in the folder that is copied to.
        report: JSON with `calls`, `done`, `waiting` and `error`; not there if the process was killed.
    """
    os.environ.update(environment)
    # One call after the other, so that the same number is the same call in every run.
    copying._AHEAD = bulk.REQUESTS = 1
    for module in (planning, copying):
        setattr(module, "PARALLEL", 1)  # noqa: B010 - a name that these modules only import
    breaker = _Breaker(plan)
    breaker.wrap(Transport, "perform_request", "search")
    target = (str(request.folder),) if request.folder else ()
    if plan.steps:
        _break_files(breaker, (environment["CUSTODY_ARCHIVE"], *target), (*CHANGES, *LOOKS))
    else:
        for kind in (folder.FolderStore, s3.S3Store):
            for name in STORE_CALLS:
                breaker.wrap(kind, name, f"store.{name}")
        breaker.wrap(s3.S3Store, "restore", "store.restore")
        if target:
            _break_files(breaker, target, CHANGES)
        breaker.wrap(topic._Positions, "_read", "kafka.read")
        breaker.wrap(topic._Positions, "_commit", "kafka.commit")
        for name in ("_send", "_flush"):
            breaker.wrap(topic.TopicTarget, name, f"kafka.{name}")
    settings = Settings()
    found: dict[str, Any] = {"done": None, "waiting": 0, "error": None}
    try:
        chosen = plan_backfill(settings, request)
        found["waiting"] = restore(settings, chosen)
        found["done"] = asdict(copy(settings, chosen))
    except CustodyError as error:
        found["error"] = str(error)
    report.write_text(json.dumps({"calls": breaker.names, **found}))
