"""A backlog is drained by several processes, and the archive is the one that a single process makes.

The broker is real, and the judges are those of `test_drain`. A process is worth its start for a few records here.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.format.layout import Log
from custody.format.limits import MIB
from flows.operate.sample import invalid_values
from tasks.drain import machine, processes, shares, signals
from tasks.drain.appends import HELD_BYTES, held_bytes
from tasks.drain.clients import queue_limit
from tasks.drain.log_run import LogRun
from tasks.drain.processes import Processes, Task
from tasks.drain.run import drain_and_index, drain_logs
from tasks.drain.share import _GiveBack
from tasks.drain.shares import divide, most_processes
from tasks.search.follower import Follower, joined
from tasks.search.index import IndexResult
from tasks.settings import DAYS, DrainSettings, SearchSettings, Settings
from tests.helpers.search import delete_indices
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.tasks.drain.sites import Site, archived, child_environment, events, make_site, send, settle, until

PARTITIONS = 3
RECORDS = 60
SECRET = "what-nobody-may-see"


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A new archive in a folder, drained by a process for each 20 records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shares, "WORTH_A_PROCESS", 20)
    return make_site(kafka, tmp_path)


class Started(psutil.Process):
    """A process that was started, and what every program of its user can see of it."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.shown = f"{self.cmdline()} {self.environ()}"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """The processes that drains of this test start."""
    real, seen = Processes.start, list[Started]()

    def start(self: Processes, task: Task, runs: list[LogRun]) -> bool:
        done = real(self, task, runs)
        seen.append(Started(self._processes[-1]._process.pid))
        return done

    monkeypatch.setattr(Processes, "start", start)
    return seen


def fill(site: Site, partitions: int = PARTITIONS) -> tuple[str, dict[str, list[Any]]]:
    """Produce records, also aborted ones and some that are no events. Return the topic, and what each log must hold."""
    topic = site.kafka.create_topic(site.kafka.unused_name("shares"), partitions)
    plain = site.kafka.producer()
    aborted = site.kafka.producer(transactional_id=site.kafka.unused_name("id"), linger_ms=0)
    aborted.init_transactions(30)
    held = {}
    for partition in range(partitions):
        sent = send(plain, topic, [*events(RECORDS // 2, partition), *list(invalid_values())[:3]], partition=partition)
        aborted.begin_transaction()
        taken = send(aborted, topic, events(5, 99), partition=partition)
        aborted.abort_transaction(30)
        settle(site.kafka, topic, taken[-1].offset + 2, partition)
        sent += send(plain, topic, events(RECORDS // 2, 10 + partition), partition=partition)
        held[f"{topic}/{partition}"] = archived(sent)
    return topic, held


# --- the archive is the same


def test_same_archive_as_with_one_process(
    site: Site, started: list[Started], kafka: KafkaServer, tmp_path: Path
) -> None:
    """Three processes make the archive that one makes: the same events, in the same order, and the same accounts."""
    topic, held = fill(site)
    (tmp_path / "alone").mkdir()
    alone = make_site(kafka, tmp_path / "alone")
    counts = "outcome", "events", "quarantined", "skipped", "lost", "unreadable", "next_offset", "lag", "statements"
    by_one = alone.drain(topic, workers=1)
    assert started == []
    by_three = site.drain(topic, workers=PARTITIONS)
    assert len(started) == PARTITIONS - 1
    for name, result in by_three.items():
        assert [getattr(result, each) for each in counts] == [getattr(by_one[name], each) for each in counts]
        assert result.reasons == by_one[name].reasons
    ours, theirs = site.read(), alone.read()
    for name, values in held.items():
        assert ours[name].events == theirs[name].events == values
        for account in ("quarantined", "skipped", "lost"):
            assert getattr(ours[name], account) == getattr(theirs[name], account)
    # A run with nothing new goes on from there, alone.
    again = site.drain(topic, workers=PARTITIONS)
    assert [result.statements for result in again.values()] == [0] * PARTITIONS
    assert len(started) == PARTITIONS - 1


def test_little_to_do_starts_no_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process is not worth its start, not even the code that would start it is imported."""
    topic, held = fill(site, 2)
    monkeypatch.setattr(shares, "WORTH_A_PROCESS", RECORDS * 2)
    monkeypatch.setitem(sys.modules, "tasks.drain.processes", None)
    site.drain(topic, workers=PARTITIONS)
    assert {name: log.events for name, log in site.read().items()} == held


def test_a_process_that_cannot_be_started(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the machine gives no process, the run drains all logs itself, and says so."""
    topic, held = fill(site, 2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    site.drain(topic, workers=2)
    assert {name: log.events for name, log in site.read().items()} == held
    assert "no process can be started for 1 log" in caplog.text


def test_each_process_indexes_its_own(site: Site, started: list[Started], elastic: ElasticsearchServer) -> None:
    """With Elasticsearch, each process indexes the logs that it drains, and the results are of all."""
    topic, held = fill(site, 2)
    search = SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0, days=DAYS)
    settings = site.settings(topic, workers=2).model_copy(update={"search": search})
    drained, indexed = drain_and_index(settings, once=True)
    assert len(started) == 1
    assert [result.outcome for result in drained] == ["drained"] * 2
    assert {result.log: (result.created, result.problem) for result in indexed} == {
        name: (len(values), None) for name, values in held.items()
    }
    delete_indices(settings)


def test_logs_that_were_left_are_not_indexed(site: Site, elastic: ElasticsearchServer) -> None:
    """What another process indexes, a follower does not; and the results of both are put together."""
    topic, held = fill(site, 2)
    search = SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0, days=DAYS)
    settings = site.settings(topic, workers=1).model_copy(update={"search": search})
    sizes = {result.log: result.size for result in drain_logs(settings, once=True)}
    follower = Follower(settings)
    follower.leave([(topic, 0)])
    name = f"{topic}/0"
    follower.sealed(Log(topic, 0), sizes[name])
    indexed = {result.log: result for result in follower.end()}
    assert indexed[f"{topic}/1"].created == len(held[f"{topic}/1"])
    begun = indexed.get(name, IndexResult(name))
    # It may have begun before it was told.
    rest = Follower(settings, [(topic, 0)])
    (later,) = rest.end()
    (both,) = joined([begun], [later])
    assert (both.created, both.sequence, both.problem) == (len(held[name]), later.sequence, None)
    delete_indices(settings)


# --- what becomes of a process


def test_a_killed_process_is_a_failed_result(site: Site, started: list[Started]) -> None:
    """A process that is killed loses nothing: what it archived stays, its log fails, and the next run goes on."""
    topic, held = fill(site, 2)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(drain_logs, site.settings(topic, workers=2), seconds=120)
        try:
            until(lambda: len(list(Path(site.archive).glob("events/**/*.gz"))) == 2)
            started[0].kill()
        finally:
            # The process is dead. The others follow their topics until they are told to stop.
            signals.stop_requested.set()
            results = run.result()
            signals.stop_requested.clear()
    assert sorted(result.outcome for result in results) == ["drained", "failed"]
    (failed,) = (result for result in results if result.outcome == "failed")
    assert "ended by SIGKILL" in str(failed.problem)
    assert failed.log in str(failed.problem)
    assert [result.outcome for result in site.drain(topic).values()] == ["drained", "drained"]
    assert {name: log.events for name, log in site.read().items()} == held


def test_the_reason_of_a_process_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a process cannot drain at all, each log of its share fails with the reason; the others are drained."""
    topic, held = fill(site, 2)
    real = processes.task_for

    def task_for(*arguments: Any, **named: Any) -> Task:
        task = real(*arguments, **named)
        return replace(task, settings=task.settings.model_copy(update={"archive": "/nowhere/at/all"}))

    monkeypatch.setattr(processes, "task_for", task_for)
    results = site.drain(topic, workers=2)
    (failed,) = (result for result in results.values() if result.outcome == "failed")
    assert "/nowhere/at/all" in str(failed.problem)
    assert sum(result.events for result in results.values()) == len(next(iter(held.values())))


def test_lines_come_back_and_secrets_do_not_leave(
    site: Site, started: list[Started], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a process logs is in the run's log. Its arguments and variables have no secret of the settings."""
    topic, _ = fill(site, 2)
    keyring = tmp_path / "keyring.json"
    ring = json.loads(keyring.read_bytes())
    ring["keys"] = [key for key in ring["keys"] if key["algorithm"] != "SHAKE-256"]
    keyring.write_text(json.dumps(ring))
    # A property that librdkafka takes and does not need here.
    site.drain(topic, {"sasl.password": SECRET}, workers=2, event_leaves=True)
    assert caplog.text.count("batches get no leaves") == 2
    assert SECRET not in caplog.text
    (process,) = started
    assert SECRET not in process.shown


def test_a_line_is_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record comes with its text, its traceback and its log, whatever its arguments are."""
    ours, theirs = Pipe()
    logger = logging.getLogger("tasks.drain.loop")
    monkeypatch.setattr(logger, "handlers", [_GiveBack(theirs)])
    try:
        json.loads("no JSON")
    except ValueError:
        logger.warning("%s: %s", object, lambda: 0, exc_info=True, extra={"log": Log("audit.a", 1)})
    record = ours.recv()
    assert (record.name, record.levelno, str(record.log)) == ("tasks.drain.loop", logging.WARNING, "audit.a/1")
    assert "JSONDecodeError" in record.getMessage()
    ours.close()
    # The process goes on where nobody listens.
    logger.warning("nobody")


def test_a_stop_reaches_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that comes while processes are being started stops all of them, and no other is started after it."""
    made: list[threading.Event] = []

    class Slow:
        """A process that is still being started when the stop comes, and has reached the one before it."""

        def __init__(self, *_: object) -> None:
            self._stopped = threading.Event()
            if made:
                signals.stop_requested.set()
                assert made[0].wait(30)
            made.append(self._stopped)

        def stop(self) -> None:
            self._stopped.set()

        def stop_if_late(self) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(processes, "_Process", Slow)
    task = cast("Task", None)
    try:
        with Processes() as several:
            assert several.start(task, [])
            assert several.start(task, [])
            assert made[1].wait(30)
            assert not several.start(task, [])
    finally:
        signals.stop_requested.clear()
    assert len(made) == 2


TALKER = """
import logging, signal, sys
from multiprocessing.connection import Connection
signal.alarm(20)
connection = Connection(int(sys.argv[1]))
connection.recv()
if sys.argv[2] == "garbage":
    connection.send_bytes(b"garbage")
try:
    while True:
        connection.send(logging.LogRecord("tasks.drain.loop", logging.WARNING, "", 0, "a line", (), None))
except OSError:
    pass
"""


@pytest.mark.parametrize("kind", ["garbage", "no space", "a fault"])
def test_what_cannot_be_taken_blocks_nobody(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """If a line of another process cannot be read or logged, that process ends, and its logs fail with the reason."""
    errors = {"no space": OSError(28, "no space left"), "a fault": RuntimeError("a fault")}
    begin = subprocess.Popen

    def talk(arguments: list[str], **named: Any) -> subprocess.Popen[bytes]:
        return begin([sys.executable, "-c", TALKER, arguments[-1], kind], **named)

    def refuse(record: logging.LogRecord) -> bool:
        if kind in errors:
            raise errors[kind]
        return bool(record)

    monkeypatch.setattr(subprocess, "Popen", talk)
    monkeypatch.setattr(logging.getLogger("tasks.drain.loop"), "filters", [refuse])
    task = Task(Settings(), [], once=True, seconds=None, processes=2, level=logging.WARNING)
    process = processes._Process(task, [])
    outcome = process.wait()
    assert "could not be taken" in str(outcome.problem)
    assert (str(errors[kind]) if kind in errors else "UnpicklingError") in str(outcome.problem)
    assert process._process.returncode == 0, "it was not waited for until its time was out"


SLEEPER = """
import signal, sys, time
from multiprocessing.connection import Connection
signal.alarm(60)
if sys.argv[2] == "has its task":
    Connection(int(sys.argv[1])).recv()
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["has its task", "takes no task"])
def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """After its time and a grace it is stopped, then killed, whatever it hangs in; its logs fail with the reason.

    Several that hang are stopped at the same time.
    """
    begin = subprocess.Popen

    def sleep(arguments: list[str], **named: Any) -> subprocess.Popen[bytes]:
        return begin([sys.executable, "-c", SLEEPER, arguments[-1], kind], **named)

    monkeypatch.setattr(subprocess, "Popen", sleep)
    monkeypatch.setattr(processes, "_OVERTIME_SECONDS", 0.2)
    monkeypatch.setattr(processes, "_ENDING_SECONDS", 3.0)
    # More than a connection takes before anybody reads.
    partitions = [("audit." + "a" * 200, number) for number in range(40_000)]
    task = Task(Settings(), partitions, once=True, seconds=0.1, processes=2, level=logging.WARNING)
    with Processes() as several:
        assert several.start(task, [])
        assert several.start(task, [])
        assert several.collect() == ([], [])
        first, second = several._processes
    assert first._stopped is not None
    assert second._stopped is not None
    assert second._stopped - first._stopped < 2
    for process in (first, second):
        assert "was killed" in str(process.wait().problem)
        assert process._process.wait() == -signal.SIGKILL
        assert not process._reader.is_alive()


def test_a_line_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a line of another process hangs where it is logged, the process is killed, and nobody waits for it again."""
    begin, stuck = subprocess.Popen, threading.Event()

    def talk(arguments: list[str], **named: Any) -> subprocess.Popen[bytes]:
        return begin([sys.executable, "-c", TALKER, arguments[-1], "a line"], **named)

    monkeypatch.setattr(subprocess, "Popen", talk)
    monkeypatch.setattr(processes, "_OVERTIME_SECONDS", 0.2)
    monkeypatch.setattr(processes, "_ENDING_SECONDS", 1.0)
    monkeypatch.setattr(logging.getLogger("tasks.drain.loop"), "filters", [lambda _: stuck.wait(60)])
    waited: list[float | None] = []
    task = Task(Settings(), [], once=True, seconds=0.1, processes=2, level=logging.WARNING)
    try:
        with Processes() as several:
            assert several.start(task, [])
            (process,) = several._processes
            join = process._reader.join

            def watched(limit: float | None) -> None:
                waited.append(limit)
                join(limit)

            monkeypatch.setattr(process._reader, "join", watched)
            assert several.collect() == ([], [])
            assert "was killed" in str(process.wait().problem)
        assert waited.count(1.0) == 1
    finally:
        stuck.set()
    assert process._process.wait() == -signal.SIGKILL


CHILD = """
import sys
from tasks.drain import shares
shares.WORTH_A_PROCESS = 20
from custody.cli.main import main
sys.exit(main(["drain", "--seconds", "600"]))
"""


@contextmanager
def draining(site: Site, topic: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """Run `custody drain` for long, and yield it and the processes that it started, once all logs are archived."""
    environment = child_environment(site, topic) | {"CUSTODY_DRAIN__WORKERS": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], env=environment, cwd=folder, stdout=subprocess.DEVNULL
    ) as child:
        try:
            until(lambda: len(list((folder / "archive").glob("events/**/*.gz"))) == 2)
            yield child, psutil.Process(child.pid).children()
        finally:
            child.kill()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda kind: kind.name)
def test_no_process_outlives_the_run(site: Site, tmp_path: Path, kind: signal.Signals) -> None:
    """A signal ends all processes within seconds. Nothing is lost, even if the run had no time to tell the others."""
    topic, held = fill(site, 2)
    with draining(site, topic, tmp_path) as (child, others):
        assert len(others) == 1
        child.send_signal(kind)
        code = child.wait(signals.GRACE_SECONDS + 15)
        _, alive = psutil.wait_procs(others, timeout=signals.GRACE_SECONDS + 15)
        assert not alive
    assert code == (-signal.SIGKILL if kind == signal.SIGKILL else 0)
    site.drain(topic)
    assert {name: log.events for name, log in site.read().items()} == held


# --- how logs are divided


def runs_of(backlogs: list[int]) -> list[LogRun]:
    """Return stand-ins for logs with so many offsets to read."""
    made = [
        SimpleNamespace(topic_partition=("audit.a", number), target=7 + backlog, assembler=SimpleNamespace(position=7))
        for number, backlog in enumerate(backlogs)
    ]
    return cast("list[LogRun]", made)


@given(st.lists(st.integers(-5, 5 * shares.WORTH_A_PROCESS), min_size=1, max_size=20), st.integers(1, 16))
def test_division(backlogs: list[int], most: int) -> None:
    """Each log is in one share. Each share is worth a process, the first is the largest and has all idle logs."""
    runs = runs_of(backlogs)
    divided = divide(runs, most)
    assert sorted(id(run) for share in divided for run in share) == sorted(map(id, runs))
    assert 1 <= len(divided) <= most
    loads = [sum(max(0, run.target - run.assembler.position) for run in share) for share in divided]
    if len(divided) > 1:
        assert min(loads) >= shares.WORTH_A_PROCESS
        assert loads[0] == max(loads)
        assert all(run.target > run.assembler.position for share in divided[1:] for run in share)


def test_all_cores_are_used_where_all_are_worth_it() -> None:
    """Logs with much to read are spread evenly over the processes."""
    worth = shares.WORTH_A_PROCESS
    assert [len(share) for share in divide(runs_of([worth] * 8), 4)] == [2, 2, 2, 2]
    assert [len(share) for share in divide(runs_of([3 * worth, worth, worth, worth]), 2)] == [1, 3]
    assert [len(share) for share in divide(runs_of([9 * worth, 5, 5, 5]), 4)] == [4]


GIB = 1024 * MIB
GROUPS: Mapping[str, tuple[str, dict[str, str], tuple[int, int]]] = {
    "no group": ("", {}, (64, 256)),
    "version 2, no limit": ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, (64, 256)),
    "version 2": ("0::/", {"cpu.max": "300000 100000", "memory.max": str(4 * GIB)}, (3, 4)),
    "less than a core": ("0::/", {"cpu.max": "50000 100000"}, (1, 256)),
    "a group around it": (
        "0::/pods/one",
        {"pods/cpu.max": "200000 100000", "pods/one/cpu.max": "max 100000", "pods/one/memory.max": str(8 * GIB)},
        (2, 8),
    ),
    "the host's path": ("0::/../../system/one", {"memory.max": str(8 * GIB)}, (64, 8)),
    "version 1": (
        "5:cpu,cpuacct:/one\n4:memory:/one\n0::/",
        {
            "cpu/one/cpu.cfs_quota_us": "400000",
            "cpu/one/cpu.cfs_period_us": "100000",
            "memory/one/memory.limit_in_bytes": str(12 * GIB),
        },
        (4, 12),
    ),
    "version 1, no limit": (
        "5:cpu:/\n4:memory:/",
        {
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(2**63 - 4096),
        },
        (64, 256),
    ),
    "garbage": ("what is this", {"cpu.max": "", "memory.max": ""}, (64, 256)),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_what_a_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It is what its machine has, or what a control group gives it: its own, or one around it, of either version."""
    own, files, (cores, gib) = GROUPS[kind]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=256 * GIB))
    assert (machine.cores(), machine.memory()) == (cores, gib * GIB)


@pytest.mark.parametrize(
    ("cores", "gib", "number"), [(8, 64, 8), (8, 8, 2), (8, 4, 1), (2, 1, 1), (1, 64, 1), (256, 1024, 16)]
)
def test_how_many_processes(monkeypatch: pytest.MonkeyPatch, cores: int, gib: int, number: int) -> None:
    """By default there is one a core, as far as there is memory for what each may need."""
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "memory", lambda: gib * GIB)
    assert most_processes(DrainSettings()) == number
    assert most_processes(DrainSettings(workers=40)) == 40
    # Each share of another runner is one process, on whatever machine it is.
    assert most_processes(DrainSettings(workers=4, task_runner="threads")) == 1


def test_shares_of_a_task_runner() -> None:
    """Processes are the drain's own matter; of another runner the flow starts so many."""
    assert [DrainSettings(workers=4, task_runner=kind).shares for kind in ("threads", "dask", "processes")] == [4, 4, 1]


def test_memory_is_bounded_for_all_together() -> None:
    """However many processes there are by default, together they hold no more events than one does."""
    for number in range(1, shares.MOST_PROCESSES + 1):
        assert number * held_bytes(number) <= HELD_BYTES
        queue = int(queue_limit(number)["queued.max.messages.kbytes"])
        assert number * queue <= max(int(queue_limit(1)["queued.max.messages.kbytes"]), number * 4096)
    # Enough for a segment, even of more processes than that.
    assert held_bytes(1000) == 4 * MIB
