"""A receiver of alerts on this machine: keeps the JSON that Apprise posts to it."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Inbox:
    """What was posted to a URL.

    Attributes:
        url: its Apprise URL.
        received: the messages, also those that were answered with a failure.
    """

    url: str
    received: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def inbox(status: int = 200, failures: int = 1_000_000) -> Iterator[Inbox]:
    """Receive messages.

    Args:
        status: the answer to the first ones.
        failures: how many get that answer; later ones get 200.
    """
    made = Inbox("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status if len(made.received) <= failures else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        made.url = f"json://127.0.0.1:{server.server_address[1]}/alerts"
        yield made
        server.shutdown()
        thread.join()
