"""An ASGI application over real HTTP, by uvicorn in a thread of the test's process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

_START_SECONDS = 20.0


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve an application on a free port of loopback, and yield `http://host:port`."""
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "proxy_headers": False, "lifespan": "on"}
    config = uvicorn.Config(app, log_level="critical", ws="websockets-sansio", **(settings | options))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        assert thread.is_alive(), "uvicorn did not start"
        assert time.monotonic() < deadline, "uvicorn did not start in time"
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1] if "uds" not in options else 0
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(_START_SECONDS)
        assert not thread.is_alive(), "uvicorn did not end"
