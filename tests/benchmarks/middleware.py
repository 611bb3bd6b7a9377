"""What the audit middleware costs a request: a part of `tests.benchmarks.emit`.

- *On a request's path*: the time inside of our code at 1,000 requests a second, with the writer's thread beside it,
  and around it an application and a server that do next to nothing. Each run is shown, and the median of them.
- *End to end*: the same Strawberry server by uvicorn with the middleware and without it, a request to each in turn.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import MutableMapping, Sequence
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
HEAD = b"\r\n".join(name + b": " + value for name, value in HEADERS)
_WARM_UP = 500
_RUNS = 5


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


class Inside:
    """Measures what one request after another spends inside of our code: not in the application, nor in the server.

    Each crossing between our code and theirs is stamped. The stamps take half a microsecond of a request themselves.
    What a server makes anew for each request is made anew here.
    """

    def __init__(self) -> None:
        self._inside = self._last = 0.0

    def _enter(self) -> None:
        self._last = time.perf_counter()

    def _leave(self) -> None:
        self._inside += time.perf_counter() - self._last

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the request's body, as a server does."""
        self._leave()
        message = {"type": "http.request", "body": bytes(memoryview(BODY))}
        self._enter()
        return message

    async def send(self, _: Any) -> None:
        """Take a part of the answer, as a server does."""
        self._leave()
        self._enter()

    async def app(self, _: Any, receive: Any, send: Any) -> None:
        """Answer, as fast as can be, as an application does."""
        self._leave()
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
        body = {"type": "http.response.body", "body": bytes(memoryview(ANSWER))}
        self._enter()
        await receive()
        self._leave()
        self._enter()
        await send(start)
        self._leave()
        self._enter()
        await send(body)
        self._leave()
        self._enter()

    async def times(self, app: Any, requests: int, pause: float) -> tuple[list[float], list[float]]:
        """Return the seconds of each request inside of our code, and those of its whole call."""
        inside, whole = [], []
        fixed = {"type": "http", "method": "POST", "path": "/graphql", "query_string": b"", "client": ("192.0.2.1", 1)}
        for _ in range(requests + _WARM_UP):
            pairs = (line.partition(b": ") for line in HEAD.split(b"\r\n"))
            scope = {**fixed, "headers": [(name, value) for name, _, value in pairs]}
            self._inside = 0.0
            began = time.perf_counter()
            self._enter()
            await app(scope, self.receive, self.send)
            self._leave()
            whole.append(time.perf_counter() - began)
            inside.append(self._inside)
            await asyncio.sleep(pause)
        return inside[_WARM_UP:], whole[_WARM_UP:]


def show(what: str, runs: Sequence[tuple[list[float], list[float]]]) -> None:
    """Print medians and 99th percentiles of each run, and the median of the runs."""
    cuts = [[[cut * 1e6 for cut in statistics.quantiles(seconds, n=100)] for seconds in run] for run in runs]
    inside = [run[0][98] for run in cuts]
    print(
        f"{what}: inside of our code p50 {statistics.median(run[0][49] for run in cuts):.1f} µs,"
        f" p99 {statistics.median(inside):.1f} µs (in turn {', '.join(f'{each:.0f}' for each in inside)});"
        f" the whole call p50 {statistics.median(run[1][49] for run in cuts):.1f} µs,"
        f" p99 {statistics.median(run[1][98] for run in cuts):.1f} µs"
    )


def on_the_path(server: KafkaServer, folder: Path, requests: int) -> None:
    """Measure the middleware alone, with the broker up and then down. The broker is down afterwards."""
    to = writer(server.bootstrap, server.create_topic("path"), folder / "spool-path")
    measure, pause = Inside(), 0.001
    app = AuditMiddleware(measure.app, to, identify=lambda _: Identity("key-17"))

    def times(app: Any) -> list[tuple[list[float], list[float]]]:
        return [asyncio.run(measure.times(app, requests, pause)) for _ in range(_RUNS)]

    show("an application without the middleware", times(measure.app))
    show("with the middleware, broker up", times(app))
    server.kill()
    show("with the middleware, broker down", times(app))
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
