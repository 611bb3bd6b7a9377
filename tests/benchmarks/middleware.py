"""What the audit middleware costs a request: a part of `tests.benchmarks.emit`.

- *On a request's path*: a whole call of the middleware around an application that does next to nothing, at so many
  requests a second, with the writer's thread beside it. The application's own microsecond is counted too. Where the
  machine does other work, the processor time says more.
- *End to end*: the same Strawberry server by uvicorn with the middleware and without it, a request to each in turn.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx

from custody.emit.asgi import AuditMiddleware
from custody.emit.callers import Identity
from custody.emit.kafka import KafkaWriter
from custody.emit.writer import Options
from tests.helpers.graphql_servers import strawberry_app
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
QUERY = "query Users($first: Int!) { users(first: $first) { id name } me { id } }"
BODY = json.dumps({"query": QUERY, "variables": {"first": 20}}).encode()
ANSWER = json.dumps({"data": {"users": [{"id": n, "name": "ada"} for n in range(20)], "me": None}}).encode()
HEADERS = [
    (b"host", b"api.example.org"),
    (b"user-agent", b"bench/1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"authorization", b"Bearer key-17.secret"),
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
    (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
]
_WARM_UP = 500


def writer(bootstrap: str, topic: str, spool: Path) -> KafkaWriter:
    """Return a writer as an application has one."""
    return KafkaWriter(topic, {"bootstrap.servers": bootstrap}, Options(service="bench", spool=spool))


def plain() -> Any:
    """Return the server without the middleware, for uvicorn."""
    return strawberry_app()


def audited() -> Any:
    """Return the server with it, for uvicorn."""
    to = writer(os.environ["EMIT_BOOTSTRAP"], os.environ["EMIT_TOPIC"], Path(os.environ["EMIT_SPOOL"]))
    return AuditMiddleware(strawberry_app(), to, path="/", identify=lambda _: Identity("key-17"))


async def idle(_: Any, receive: Any, send: Any) -> None:
    """Answer, as fast as can be."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": ANSWER})


async def call_times(app: Any, requests: int, pause: float) -> tuple[list[float], list[float]]:
    """Return the seconds of each call, and those of this thread's processor, with a pause between calls."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": BODY}

    async def send(_: Any) -> None:
        pass

    taken, used = [], []
    given = {"type": "http", "method": "POST", "path": "/graphql", "query_string": b"", "client": ("192.0.2.1", 1)}
    for _ in range(requests + _WARM_UP):
        scope = {**given, "headers": list(HEADERS)}
        began, began_used = time.perf_counter(), time.thread_time()
        await app(scope, receive, send)
        used.append(time.thread_time() - began_used)
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(pause)
    return taken[_WARM_UP:], used[_WARM_UP:]


def show(what: str, times: tuple[list[float], list[float]]) -> None:
    """Print the median, the 99th percentile and the largest of the times, and of the processor's."""
    taken, used = ([cut * 1e6 for cut in statistics.quantiles(seconds, n=100)] for seconds in times)
    print(
        f"{what}: p50 {taken[49]:.1f} µs, p99 {taken[98]:.1f} µs, largest {max(times[0]) * 1e3:.1f} ms;"
        f" of this thread's processor time p50 {used[49]:.1f} µs, p99 {used[98]:.1f} µs"
    )


def on_the_path(server: KafkaServer, folder: Path, requests: int) -> None:
    """Measure the middleware alone, with the broker up and then down. The broker is down afterwards."""
    to = writer(server.bootstrap, server.create_topic("path"), folder / "spool-path")
    app = AuditMiddleware(idle, to, identify=lambda _: Identity("key-17"))
    pause = 0.001
    show("application alone", asyncio.run(call_times(idle, requests, pause)))
    show("with the middleware, broker up", asyncio.run(call_times(app, requests, pause)))
    server.kill()
    show("with the middleware, broker down", asyncio.run(call_times(app, requests, pause)))
    print(f"served without an event: {app.counters()['unaudited_requests']}, writer: {to.counters()}")
    to.close(1)


def end_to_end(server: KafkaServer, folder: Path, pairs: int) -> None:
    """Measure whole requests, with the middleware and without it in turn."""
    ports = free_ports(2)
    topic = server.create_topic("end")
    settings = {"EMIT_BOOTSTRAP": server.bootstrap, "EMIT_TOPIC": topic, "EMIT_SPOOL": str(folder / "spool-end")}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "--factory", f"tests.benchmarks.middleware:{name}"),
                *("--port", str(port), "--log-level", "error", "--no-proxy-headers"),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        )
        for name, port in zip(("plain", "audited"), ports, strict=True)
    ]
    try:
        with httpx.Client(timeout=30) as client:
            for port in ports:
                wait(client, port)
            without, with_it = [], []
            for _ in range(pairs):
                without.append(request(client, ports[0]))
                with_it.append(request(client, ports[1]))
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)
    difference = statistics.median(b - a for a, b in zip(without, with_it, strict=True))
    print(
        f"end to end, {pairs:,} pairs: median {statistics.median(without) * 1e3:.3f} ms without,"
        f" {statistics.median(with_it) * 1e3:.3f} ms with it; median of the differences {difference * 1e6:+.0f} µs"
    )


def request(client: httpx.Client, port: int) -> float:
    """Send the query, and return the seconds that it took."""
    began = time.perf_counter()
    answer = client.post(f"http://127.0.0.1:{port}/", content=BODY, headers={"content-type": "application/json"})
    taken = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    return taken


def wait(client: httpx.Client, port: int) -> None:
    """Return when a server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            for _ in range(100):
                request(client, port)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "uvicorn did not start in time"
            time.sleep(0.1)
        else:
            return
