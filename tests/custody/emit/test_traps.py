"""What other projects' writers fell into, each with real processes: they fork, are recycled, killed, and end badly.

Other traps need no process. Each is a test by its number: 6 and 7 are in test_kafka.py, 8 in test_spool.py, 9 and 11 in
test_delivery.py, 10 in test_spool_crashes.py, 14 in test_redact.py and test_secret_text.py, 15 and 16 in
test_writer.py, 17 in test_graphql.py, 18 in test_asgi.py, 19 in test_worker.py and test_pace.py, 22 in
test_spool_segment.py.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from custody.emit.builders import AuditEvent, query_executed
from custody.emit.errors import AuditError
from custody.emit.writer import Options
from tests.helpers.emit_file import FileWriter
from tests.helpers.emitting import MemoryWriter, consume, sequence, wait_until
from tests.helpers.spooling import orphan, segment
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports

ROOT = Path(__file__).parents[3]
SECONDS = 60
FILE = """
import atexit, os, signal, sys, threading, time
from pathlib import Path
from custody.emit.writer import Options
from tests.helpers.emit_file import FileWriter, event
folder = Path(sys.argv[1])
def make(name="out", **more):
    return FileWriter(folder / name, Options(service="shop", instance="i", spool=folder / "spool", **more))
"""
KAFKA = """
import os, signal, sys, time
from pathlib import Path
from custody.emit.builders import own
from custody.emit.kafka import KafkaWriter
from custody.emit.writer import Options
bootstrap, topic, spool = sys.argv[1:4]
def event(n):
    return own("test.event", n=n)
def make(**more):
    spool_at = Path(spool) if spool else None
    options = Options(service="shop", instance="i", spool=spool_at, **more)
    return KafkaWriter(topic, {"bootstrap.servers": bootstrap}, options)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start(script: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment(),
        text=True,
        stderr=subprocess.PIPE,
        **more,
    )


def run(script: str, *arguments: object) -> tuple[int, str]:
    """Run a script to its end, and return its exit code and what it wrote to stderr."""
    process = start(script, *arguments)
    try:
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, errors


def written(folder: Path, name: str = "out") -> list[bytes]:
    path = folder / name
    return path.read_bytes().splitlines() if path.exists() else []


def by_source(lines: Iterable[bytes]) -> dict[str, list[dict[str, Any]]]:
    """Return each source's events, in the order of their numbers."""
    sources: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        fields = json.loads(line)
        known = sources[fields["source"]].setdefault(fields["source_seq"], fields)
        assert known == fields, "two events with one number"
    return {source: [numbers[n] for n in sorted(numbers)] for source, numbers in sources.items()}


def check_whole(events: Sequence[dict[str, Any]]) -> None:
    """Check that a source began, ended, and has no hole."""
    assert [each["source_seq"] for each in events] == [*range(1, len(events) + 1)]
    assert events[0]["event_type"] == "emitter_started"
    assert events[-1]["event_type"] == "emitter_stopped"
    assert (events[-1]["dropped"], events[-1]["lost"]) == (0, 0)


def numbers_of(events: Iterable[dict[str, Any]]) -> list[int]:
    return [each["n"] for each in events if each["event_type"] == "test.event"]


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


WSGI = """
import os
from pathlib import Path
from custody.emit.builders import own
from custody.emit.kafka import KafkaWriter
from custody.emit.writer import Options
writer = KafkaWriter(
    os.environ["TOPIC"],
    {"bootstrap.servers": os.environ["BOOTSTRAP"]},
    Options(service="shop", instance="i", spool=Path(os.environ["SPOOL"])),
)
# The master uses the writer before it forks: its thread, connection and source are not the workers'.
writer.write(own("test.event", n=-1))
assert writer.flush(20) == 0
def application(environ, start_response):
    writer.write(own("test.event", n=int(environ["QUERY_STRING"])))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def ask(url: str) -> None:
    """Get a page, as soon as somebody serves it."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - of our own server
                answer.read()
                return
        except OSError:
            # While workers are recycled.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def server(command: Sequence[str], folder: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server of HTTP in a folder, and end it as an operator does."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env={**environment(), "PYTHONPATH": f"{ROOT}:{folder}", **more},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
            process.terminate()
            process.wait(SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_traps_1_and_3_gunicorn_preloads_the_writer_and_recycles_its_workers(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    """A writer made and used before the fork works in each worker, and a worker that is recycled loses nothing."""
    topic = kafka.create_topic(kafka.unused_name("emit"))
    (tmp_path / "wsgi.py").write_text(WSGI)
    (port,) = free_ports(1)
    bind = ["--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(tmp_path), "--no-control-socket"]
    command = ["gunicorn", "wsgi:application", "--preload", "--workers", "1", "--max-requests", "4", *bind]
    setting = {"TOPIC": topic, "BOOTSTRAP": kafka.bootstrap, "SPOOL": str(tmp_path / "spool")}
    with server(command, tmp_path, **setting):
        for n in range(10):
            ask(f"http://127.0.0.1:{port}/?{n}")
    sources = by_source(consume(kafka, topic))
    assert sorted(n for events in sources.values() for n in numbers_of(events)) == [*range(-1, 10)]
    assert len(sources) >= 4, "the master and three workers"
    for events in sources.values():
        check_whole(events)


FORK_LOCKED = (
    FILE
    + """
writer = make()
writer.write(event(0))
assert writer.flush(10) == 0
held, release = threading.Event(), threading.Event()
queue = writer._in_this_process().queue
def hold():
    with queue._lock:
        held.set()
        release.wait(30)
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    writer.write(event(1))
    sys.exit(0)
_, status = os.waitpid(child, 0)
release.set()
writer.write(event(2))
sys.exit(status)
"""
)


def test_trap_2_a_fork_while_another_thread_holds_the_lock(tmp_path: Path) -> None:
    """The child neither hangs nor uses what is the parent's: it has a source, a thread and numbers of its own."""
    assert run(FORK_LOCKED, tmp_path) == (0, "")
    first, second = by_source(written(tmp_path)).values()
    assert sorted([numbers_of(first), numbers_of(second)]) == [[0, 2], [1]]
    check_whole(first)
    check_whole(second)


FORK_CLOSED = (
    FILE
    + """
writer = make()
writer.write(event(0))
writer.close()
child = os.fork()
if child == 0:
    refused = False
    try:
        writer.write(event(1))
    except Exception:
        refused = True
    os._exit(0 if refused and not any(writer.counters().values()) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
)


def test_trap_1_a_child_has_nothing_of_a_writer_that_its_parent_closed(tmp_path: Path) -> None:
    """It is closed there too, and the parent's events are counted once."""
    assert run(FORK_CLOSED, tmp_path) == (0, "")
    (events,) = by_source(written(tmp_path)).values()
    check_whole(events)


MULTIPROCESSING = (
    FILE
    + """
import multiprocessing
writer = make()
def work(n):
    writer.write(event(n))
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=work, args=(n,)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(sum(child.exitcode for child in children))
"""
)


def test_trap_3_a_process_of_multiprocessing_ends_without_atexit(tmp_path: Path) -> None:
    """It calls `os._exit` when its function returns, and its events are sent before."""
    assert run(MULTIPROCESSING, tmp_path) == (0, "")
    sources = by_source(written(tmp_path)).values()
    assert sorted(numbers_of(events) for events in sources) == [[0], [1]]
    for events in sources:
        check_whole(events)


KILLED = (
    KAFKA
    + """
writer = make()
for n in range(500):
    writer.write(event(n))
while writer.counters()["spool_events"] < 501:
    time.sleep(0.01)
for n in range(500, 520):
    writer.write(event(n))
{way}
time.sleep(30)
"""
)
WAYS = {
    "os._exit": ("os._exit(7)", 7),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
}
ADOPT = (
    KAFKA
    + """
writer = make(close_seconds=20)
writer.write(event(-1))
while writer.flush(0.1) or any(path.name.endswith(".segment") for path in Path(spool).rglob("*")):
    time.sleep(0.01)
"""
)


def test_trap_3_a_process_that_is_killed_loses_what_was_in_memory_and_no_more(
    kafka: KafkaServer, nowhere: str, tmp_path: Path
) -> None:
    """Nothing runs at such an end. What was in the spool is sent by the next process, and the rest is a tail."""
    topic = kafka.create_topic(kafka.unused_name("emit"))
    # librdkafka takes none of their events: all go to the spool.
    full = KILLED.replace('"bootstrap.servers": bootstrap', '"bootstrap.servers": bootstrap, "message.timeout.ms": 100')
    processes = {
        name: start(full.replace("{way}", way), nowhere, topic, tmp_path / "spool") for name, (way, _) in WAYS.items()
    }
    for name, process in processes.items():
        process.communicate(timeout=SECONDS)
        assert process.returncode == WAYS[name][1]
    assert run(ADOPT, kafka.bootstrap, topic, tmp_path / "spool") == (0, "")
    sources = by_source(consume(kafka, topic))
    assert len(sources) == len(WAYS) + 1
    for events in sources.values():
        sent = numbers_of(events)
        if sent != [-1]:
            assert sent == [*range(len(sent))], "a hole that is no tail"
            assert 500 <= len(sent) <= 520


AT_EXIT = (
    FILE
    + """
used, unused, late = make("used"), make("unused"), make("late")
def last():
    begun = time.monotonic()
    try:
        late.write(event(1))
    except Exception as error:
        print(error, file=sys.stderr)
class Object:
    def __del__(self):
        late.write(event(2))
def no_thread(*_):
    raise RuntimeError("can't create new thread at interpreter shutdown")
def write():
    if sys.argv[2] == "no thread":
        # As from Python 3.12 on.
        threading._start_new_thread = no_thread
    used.write(event(2))
    unused.write(event(1))
if sys.argv[2] == "after":
    atexit.unregister(sys.modules["custody.emit.writer"]._close_at_exit)
    atexit.register(last)
    atexit.register(sys.modules["custody.emit.writer"]._close_at_exit)
    sys.modules["kept"] = Object()
else:
    atexit.register(write)
    used.write(event(1))
"""
)


@pytest.mark.parametrize("threads", ["threads", "no thread"])
def test_trap_4_an_event_from_an_atexit_handler_is_sent(tmp_path: Path, threads: str) -> None:
    """Also where no thread can start any more, with a writer that was used before and with one that was not."""
    assert run(AT_EXIT, tmp_path, threads) == (0, "")
    for name in ("used", "unused"):
        (events,) = by_source(written(tmp_path, name)).values()
        check_whole(events)
    (used,) = by_source(written(tmp_path, "used")).values()
    assert numbers_of(used) == [1, 2]


def test_trap_4_an_event_after_the_end_of_all_writers_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """What a late handler or a destructor writes cannot be sent any more. It learns so, and the process ends."""
    begun = time.monotonic()
    code, errors = run(AT_EXIT, tmp_path, "after")
    assert code == 0
    assert errors.startswith("the writer is closed; write before `close`, or make a new one\n")
    assert errors.count("the writer is closed") == 2
    assert time.monotonic() - begun < 20


EXIT_DOWN = (
    """
import atexit, sys, time
at = [0.0]
atexit.register(lambda: print(f"{time.monotonic() - at[0]:.2f}", file=sys.stderr))
"""
    + KAFKA
    + """
writer = make(close_seconds=0.3)
for n in range(1000):
    writer.write(event(n))
# Its thread has them all, so that no slow machine lacks the time to spool them.
until = time.monotonic() + 30
while writer.counters()["queued"] and time.monotonic() < until:
    time.sleep(0.01)
del writer
at[0] = time.monotonic()
"""
)


@pytest.mark.parametrize("with_spool", [True, False])
def test_trap_5_an_exit_with_the_broker_down_is_bounded_and_says_what_is_left(
    nowhere: str, tmp_path: Path, *, with_spool: bool
) -> None:
    """Also for a writer that the application has forgotten. The number on stderr is that of its events, and two."""
    spool = tmp_path / "spool"
    code, errors = run(EXIT_DOWN, nowhere, "audit", spool if with_spool else "")
    *_, said, seconds = errors.splitlines()
    assert code == 0
    # Of this kind and destination there is one folder.
    (folder,) = spool.iterdir() if with_spool else [spool]
    assert said == "custody: audit events at exit: " + (
        f"1,002 are in the spool {folder} until the next process"
        if with_spool
        else "1,002 are lost: Kafka did not take them in time, nor a spool"
    )
    assert float(seconds) < 0.3 + 3


CUT_OFF = (
    KAFKA
    + """
from custody.emit.spool import Spool
def done(spool, batch, count=None):
    os._exit(7)
Spool.done = done
writer = make()
writer.write(event(-1))
time.sleep(30)
"""
)


def test_trap_20_what_is_sent_again_after_a_restart_is_recognisable(
    kafka: KafkaServer, nowhere: str, tmp_path: Path
) -> None:
    """A process that ends between delivery and deletion leaves its segment: each repeat is the same, byte for byte."""
    topic, spool = kafka.create_topic(kafka.unused_name("emit")), tmp_path / "spool"
    assert run(EXIT_DOWN, nowhere, topic, spool)[0] == 0
    assert run(CUT_OFF, kafka.bootstrap, topic, spool)[0] == 7
    assert run(ADOPT, kafka.bootstrap, topic, spool) == (0, "")
    lines = [line for line in consume(kafka, topic) if b'"n":-1,' not in line]
    repeats = [line for line in lines if lines.count(line) == 2 and b"test.event" in line]
    assert len({*repeats}) == 1000
    events = max(by_source(lines).values(), key=len)
    check_whole(events)
    assert len({each["event_id"] for each in events}) == 1002


TWO = (
    FILE
    + """
print("ready", file=sys.stderr, flush=True)
sys.stdin.readline()
writer = make()
writer.write(event(0))
writer.flush(10)
print("done", file=sys.stderr, flush=True)
sys.stdin.readline()
"""
)


def test_trap_12_two_workers_adopt_an_orphan_once(tmp_path: Path) -> None:
    """Both begin at the same time on one root, and what a dead process left is sent by one of them."""
    left = [b'{"event_type":"test.event","n":%d,"source":"old/i/1-1","source_seq":%d}' % (n, n) for n in range(1, 500)]
    writer = FileWriter(tmp_path / "out", Options(service="shop", spool=tmp_path / "spool"))
    writer.close()
    assert writer.spool is not None
    orphan(writer.spool, segment(left[:200]), segment(left[200:]))
    workers = [start(TWO, tmp_path, stdin=subprocess.PIPE) for _ in range(2)]
    try:
        for step in ("ready\n", "done\n"):
            for worker in workers:
                assert worker.stderr is not None
                assert worker.stderr.readline() == step.replace("\\\n", "\n")
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
        wait_until(lambda: len(written(tmp_path)) >= len(left) + 4)
    finally:
        for worker in workers:
            worker.communicate(timeout=SECONDS)
    lines = written(tmp_path)
    assert [line for line in lines if b'"old/i/1-1"' in line] == left
    assert len(lines) == len(left) + 6


QUERY = query_executed(
    request_id="r", api_key_id=None, client_ip="::1", query_hash="q", complexity=1, execution_time=1.0, result_rows=1
)
POISON: dict[str, Any] = {
    "more than 1 MiB": {"fill": "x" * (1 << 20)},
    "more than 64 deep": {"deep": json.loads("[" * 70 + "]" * 70)},
    "NaN": {"execution_time": float("nan")},
    "lone surrogate": {"text": "\ud800"},
    "2^63": {"complexity": 2**63},
    "a key that is no string": {"map": {1: 2, b"x": 3}},
}


@pytest.mark.parametrize("name", POISON)
def test_trap_13_poison_is_refused_at_emit_and_does_not_block_the_queue(name: str) -> None:
    """`write` raises the drain's reason, `submit` counts it and leaves a hole, and what is behind it goes on."""
    poison = AuditEvent("query_executed", {**QUERY.fields, **POISON[name]})
    writer = MemoryWriter(Options(service="shop", instance="i"))
    with pytest.raises(AuditError) as caught:
        writer.write(poison)
    assert caught.value.kind == "Serialization"
    writer.submit(lambda: [poison], 10)
    writer.write(QUERY)
    writer.close(5)
    assert writer.counters()["refused"] == 2
    assert sequence(writer.sink.delivered) == [1, 3, 4]


ASGI = """
import os
from pathlib import Path
from custody.emit.writer import Options
from tests.helpers.emit_file import FileWriter, event
folder = Path(os.environ["FOLDER"])
writer = FileWriter(folder / "out", Options(service="shop", instance="i", spool=folder / "spool"))
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        # Uvicorn ends by the default action of SIGTERM, and nothing that Python does at an exit is done.
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        writer.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    writer.write(event(int(scope["query_string"])))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


BEHIND_MIDDLEWARE = (
    ASGI.replace("from pathlib", "from custody.emit.asgi import AuditMiddleware\nfrom pathlib")
    .replace(ASGI.partition('lifespan":\n')[2].partition("        return\n")[0], "")
    .replace('scope["query_string"]', 'scope["query_string"].rpartition(b"=")[2]')
    + "application = AuditMiddleware(application, writer)\n"
)
"""It does not know the lifespan, and leaves its writer to the middleware."""


@pytest.mark.parametrize("way", ["--reload", "--workers"])
@pytest.mark.parametrize("application", [ASGI, BEHIND_MIDDLEWARE], ids=["alone", "middleware"])
def test_trap_21_uvicorn_reloads_or_spawns(tmp_path: Path, way: str, application: str) -> None:
    """Each process has its source, which begins and ends, also one that is replaced because a file changed.

    The application closes its writer when the server says that it shuts down, or the middleware does.
    """
    module = tmp_path / "asgi.py"
    module.write_text(application)
    asked = "query=%7Ba%7D&n=" if application == BEHIND_MIDDLEWARE else ""
    (port,) = free_ports(1)
    base = ["uvicorn", "asgi:application", "--port", str(port)]
    more = ["--reload", "--reload-delay", "0.05"] if way == "--reload" else ["--workers", "2"]
    with server([*base, *more], tmp_path, FOLDER=str(tmp_path)):
        for n in range(4):
            ask(f"http://127.0.0.1:{port}/?{asked}{n}")
        if way == "--reload":
            module.write_text(application + "\n")
            wait_until(lambda: any(b"emitter_stopped" in line for line in written(tmp_path)))
        for n in range(4, 8):
            ask(f"http://127.0.0.1:{port}/?{asked}{n}")
    sources = by_source(written(tmp_path))
    assert sorted(n for events in sources.values() for n in numbers_of(events)) == [*range(8)]
    queries = [event for events in sources.values() for event in events if event["event_type"] == "query_executed"]
    assert len(queries) == 8 * bool(asked)
    assert len(sources) == 2 if way == "--reload" else 1 <= len(sources) <= 2
    for events in sources.values():
        check_whole(events)
