"""librdkafka floods nobody: of each kind of its lines the first is logged, and one module makes all of its clients."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from custody.errors import ConfigurationError
from custody.store import retries
from flows.operate.sample import sample_events
from tasks.drain.clients import KINDS, QUIET_SECONDS, FirstLines, make_admin, make_consumer, make_producer
from tasks.drain.kafka import Broker, patiently
from tasks.drain.kafka_errors import reason_of
from tests.helpers.sample import Growing
from tests.servers.kafka import KafkaServer, KafkaUnavailableError
from tests.servers.ports import free_ports
from tests.servers.require import unavailable

ROOT = Path(__file__).resolve().parents[3]
REFUSED = (
    "[thrd:{0}/bootstrap]: {0}/bootstrap: Connect to ipv4#{0} failed: Connection refused (after {1}ms in state CONNECT)"
)


def test_the_first_line_of_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    """Lines that differ in client, address or time are of one kind. Later the kind is logged again."""
    caplog.set_level(logging.DEBUG)
    now = 0.0
    lines = FirstLines(lambda: now)
    for number in range(50):
        lines.log(logging.ERROR, "%s [%s] %s", "FAIL", f"custody#consumer-{number}", REFUSED.format("10.0.0.1:9092", 7))
        lines.log(logging.WARNING, "%s [%s] %s", "CONFWARN", "custody", f"[thrd:{number}]: no such property")
    logged = [(line.levelno, line.getMessage().split()[1]) for line in caplog.records]
    # A connection is info: whoever needs it raises an error with the reason.
    assert logged == [(logging.INFO, "FAIL"), (logging.WARNING, "CONFWARN")]
    now = QUIET_SECONDS
    lines.log(logging.WARNING, "%s [%s] %s", "CONFWARN", "custody", "[thrd:1]: no such property")
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    "noise", ["", " (after 0ms in state CONNECT)", " (after 31ms in state CONNECT, 1 identical error(s) suppressed)"]
)
def test_a_reason_is_the_same_each_time(noise: str) -> None:
    """What is said of a broker that is away has no times and counts, so that two answers can be compared."""
    error = KafkaError(
        KafkaError._TRANSPORT,
        f"broker:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused{noise}",
    )
    assert reason_of(error) == "Connect to ipv4#10.0.0.1:9092 failed: Connection refused"


def test_kinds_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """However many kinds of lines there are, memory does not grow: the kind logged first is forgotten."""
    lines = FirstLines(lambda: 0.0)
    for number in range(KINDS + 5):
        lines.log(logging.WARNING, "%s [%s] %s", "KIND", "custody", "x" * number)
    lines.log(logging.WARNING, "%s [%s] %s", "KIND", "custody", "x" * (KINDS + 4))
    assert (len(lines._logged), len(caplog.records)) == (KINDS, KINDS + 5)


def test_one_module_makes_all_clients() -> None:
    """No other module of the product makes a client of librdkafka, so none can be forgotten.

    But for the one that an application imports, without the drain and its settings.
    """
    emits = ROOT / "custody/emit/kafka.py"
    made = re.compile(r"\b(Consumer|Producer|AdminClient)\(")
    for room in ("custody", "tasks", "flows"):
        for path in (ROOT / room).rglob("*.py"):
            assert (made.search(path.read_text()) is not None) == (path == emits), path


@pytest.mark.parametrize("make", [make_consumer, make_producer, make_admin])
def test_a_property_that_is_refused(make: object) -> None:
    """A property that librdkafka refuses is a wrong setting, whoever needs the client, and its value is not shown."""
    assert callable(make)
    with pytest.raises(ConfigurationError, match=r"settings in kafka\.client") as caught:
        make({"bootstrap.servers": "localhost", "group.id": "g", "ssl.key.password": "hidden", "no.such": "hidden"})
    assert "hidden" not in str(caught.value)


def command(folder: Path, *arguments: str, kafka: str, topics: str = "audit.grows") -> "subprocess.Popen[str]":
    """Start a command in a folder with an archive and its keyring."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUSTODY_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
        "CUSTODY_ARCHIVE": "archive",
        "CUSTODY_KEYS": "file:keyring.json",
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka,
        "CUSTODY_KAFKA__TOPICS": topics,
        "CUSTODY_KAFKA__GROUP": f"group-{os.getpid()}",
    }
    line = [sys.executable, "-m", "custody", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


COMMANDS = {
    "drain": ("drain", "--once"),
    "new-epoch": ("new-epoch", "audit.grows"),
    "verify": ("verify", "--kafka", "--workers", "0"),
    "backfill": ("backfill", "--since", "2026-01-01", "--until", "2027-01-01", "--to", "topic", "--topic", "copies"),
    "status": ("status",),
    "status --json": ("status", "--json"),
}
"""Every command that needs a broker."""


@pytest.mark.timeout(200)
def test_no_flood_without_a_broker(tmp_path: Path) -> None:
    """Each command names the broker in one line of its own, and prints none of librdkafka's."""
    growing = Growing(tmp_path)
    growing.append(2)
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    started = {name: command(tmp_path, *arguments, kafka=address) for name, arguments in COMMANDS.items()}
    for name, process in started.items():
        out, err = process.communicate(timeout=150)
        assert process.returncode in {1, 12}, (name, out, err)
        text = out + err
        assert "FAIL" not in text, name
        assert "librdkafka" not in text, name
        assert "Traceback" not in text, name
        if name in {"drain", "new-epoch"}:
            (line,) = err.splitlines()
            assert line.startswith(f"custody: no answer from Kafka at {address}: "), line
            assert "kafka.bootstrap_servers" in line
            assert not out
        if name == "status":
            assert err == ""
            assert out.count(f"no answer from Kafka at {address}") == 1
            assert growing.log in out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker that a test may stop."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka") / "server")
    try:
        server.start()
    except KafkaUnavailableError as error:
        unavailable(str(error))
    yield server
    server.kill()


def test_a_drain_that_fails_says_it_once(tmp_path: Path, own: KafkaServer) -> None:
    """The reason is on stderr once, when the log stops. The last line counts and names the logs that failed."""
    growing = Growing(tmp_path)
    growing.append(1)
    topic = growing.log.partition("/")[0]
    for more in ((), ("--quiet",), ("--json",)):
        drain = command(tmp_path, "drain", "--once", *more, kafka=own.bootstrap, topics=topic)
        _, err = drain.communicate(timeout=60)
        assert drain.returncode == 1
        assert err.count(f"topic '{topic}' does not exist") == 1, err
        assert err.splitlines()[-1] == f"custody: 1 of 1 log failed, as said above: {topic}/0"


def test_a_topic_that_does_not_exist_is_a_wrong_setting(tmp_path: Path, own: KafkaServer) -> None:
    """One line, no row for a log that was never there, and exit code 2; 1 if other topics were drained."""
    Growing(tmp_path).append(1)
    there = own.create_topic("audit.there")
    for topics, code in (("there-is-none", 2), (f'["{there}", "there-is-none"]', 1)):
        for more in ((), ("--quiet",), ("--json",)):
            drain = command(tmp_path, "drain", "--once", *more, kafka=own.bootstrap, topics=topics)
            out, err = drain.communicate(timeout=60)
            said = [line for line in err.splitlines() if "topic 'there-is-none' does not exist" in line]
            assert (drain.returncode, len(said)) == (code, 1), err
            assert said[0].startswith("custody: topic 'there-is-none'")
            assert "there-is-none/0" not in out + err
            assert (f"{there}/0" in out) == (code == 1)


@contextmanager
def frozen(server: KafkaServer) -> Iterator[None]:
    """Stop a broker's process, so that it keeps its connections and says nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.timeout(300)
def test_no_flood_of_a_broker_that_freezes(own: KafkaServer, tmp_path: Path) -> None:
    """When the broker freezes, a drain ends, without a flood. The status takes seconds, and has one line about it."""
    growing = Growing(tmp_path)
    growing.append(1)
    topic = own.create_topic("audit.frozen")
    producer = own.producer()

    def send() -> None:
        for value in sample_events(200, 1, datetime(2026, 3, 1, tzinfo=UTC)):
            producer.produce(topic, value)
        assert producer.flush(60) == 0

    send()
    begun = time.monotonic()
    command(tmp_path, "status", kafka=own.bootstrap, topics=topic).communicate(timeout=60)
    alone = time.monotonic() - begun
    head = tmp_path / "archive" / "manifests" / topic / "0" / f"{1:012}.json"
    drain = command(tmp_path, "drain", "--seconds", "20", kafka=own.bootstrap, topics=topic)
    until = time.monotonic() + 60
    while not head.exists():
        assert drain.poll() is None, drain.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    with frozen(own):
        begun = time.monotonic()
        status = command(tmp_path, "status", kafka=own.bootstrap, topics=topic)
        out, err = status.communicate(timeout=60)
        assert time.monotonic() - begun < alone + 25
        assert (status.returncode, err) == (1, "")
        assert out.count(f"no answer from Kafka at {own.bootstrap}") == 1
        assert f"{topic}/0" in out
        out, err = drain.communicate(timeout=120)
    assert "Traceback" not in err
    assert "FAIL" not in out + err
    assert len(err.splitlines()) <= 3, err


class Patient:
    """A request that waits for longer than each of its attempts."""

    seconds = 60.0

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    @patiently
    def cluster(self) -> str:
        return str(self.broker._list_topics().cluster_id)


def test_requests_that_are_made_again_are_counted(own: KafkaServer) -> None:
    """While a broker starts, each request that is made again counts, by the name of librdkafka's code."""
    own.stop()
    retries.take()
    starting = threading.Timer(1.5, own.start)
    starting.start()
    try:
        with Broker({"bootstrap.servers": own.bootstrap}, "patient", seconds=0.5) as broker:
            assert Patient(broker).cluster()
    finally:
        starting.join()
    counts = retries.take()
    assert {backend for backend, _ in counts} == {"kafka"}
    assert {error_type for _, error_type in counts} <= {"_TRANSPORT", "_TIMED_OUT", "_ALL_BROKERS_DOWN"}
    assert counts.total() >= 1
