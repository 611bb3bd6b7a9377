"""A copy in a process of its own, of which each call to the outside is numbered; one may be the last, or fail.

As `child` does for the drain: the product knows nothing of this.
"""

import json
from pathlib import Path
from typing import Any

from custody.archive import copy as copying
from custody.archive.copy import copy_archive
from custody.errors import CustodyError
from custody.store.open import open_store
from tests.faults.child import Plan, _break_calls, _Breaker


def run(source: Path, target: Path, plan: Plan, report: Path) -> None:
    """Copy an archive from a folder to another, and leave the calls and what came of it in a file.

    Args:
        source: the archive.
        target: the copy.
        plan: what happens on the way.
        report: JSON with `calls`, `code` and `error`; not there if the process was killed.
    """
    # One object after the other, so that the same number is the same call in every run.
    copying._WORKERS = 1
    breaker = _Breaker(plan)
    if plan.at >= 0 or plan.what == "nothing":
        _break_calls(breaker)
    found: dict[str, Any] = {"code": None, "error": None}
    try:
        found["code"] = copy_archive(open_store(str(source)), open_store(str(target))).exit_code
    except CustodyError as error:
        found["error"] = str(error)
    report.write_text(json.dumps({"calls": breaker.names, **found}))
