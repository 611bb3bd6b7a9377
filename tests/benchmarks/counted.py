"""Runs a command of custody, and writes each request to a file: `python -m tests.benchmarks.counted FILE COMMAND …`.

Requests are those of an archive that `tests.helpers.aged` makes, or those that S3's client sends: the variable
COUNTED_DELAY has the seconds by which the latter's answers come later. `connect` is no command: it is what a notebook
calls.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import custody.store.open
from custody.store.protocol import S3Options, Store
from tests.helpers import aged
from tests.helpers.aged import Requests

_CALLS = {
    "GetObject": "GET",
    "HeadObject": "HEAD",
    "HeadBucket": "HEAD",
    "ListObjectsV2": "LIST",
    "ListObjectVersions": "VERSIONS",
    "PutObject": "PUT",
    "DeleteObject": "DELETE",
}


def main() -> None:
    """Run the command of this process's arguments."""
    journal, *arguments = sys.argv[1:]
    aged.journal_to(Path(journal))
    requests = Requests(Path(journal))

    def opened(url: str, options: S3Options | None = None) -> Store:
        if not url.startswith(f"{aged.BUCKET}/"):
            _count_calls(requests)
        return aged.open_aged(url, options)

    # All of custody opens archives by this module, which finds the class by its name.
    setattr(custody.store.open, "S3Store", opened)  # noqa: B010
    if arguments == ["connect"]:
        print(custody.connect().execute("SELECT 1").fetchone())
        return
    from custody.cli.main import main as run_main

    run_main(arguments)


def _count_calls(requests: Requests) -> None:
    """Count what S3's client sends, from now on."""
    from botocore.endpoint import Endpoint

    send: Any = Endpoint.make_request
    if getattr(send, "is_counted", False):
        return

    delay = float(os.environ.get("COUNTED_DELAY", "0"))

    def counted(self: Any, operation: Any, request: Any) -> Any:
        time.sleep(delay)
        answer = send(self, operation, request)
        kind = _CALLS.get(operation.name, operation.name)
        size = answer[0].headers.get("content-length", 0) if kind == "GET" else 0
        requests.count(kind, str(request["url_path"]).lstrip("/"), int(size))
        return answer

    setattr(counted, "is_counted", True)  # noqa: B010
    setattr(Endpoint, "make_request", counted)  # noqa: B010


if __name__ == "__main__":
    main()
