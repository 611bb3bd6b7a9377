"""Start a real Apache Kafka: one KRaft node from Maven's artifacts, on loopback, on free ports, in a folder of its own.

Rules:
- The jars are fetched once into `.servers/` of the checkout, whoever comes first.
- The fixture `kafka` is one broker for all processes of a test session: the first that needs it starts it, and the
  controlling process ends it. Topics are a test's own, by `KafkaServer.unused_name`.
- A test that stops or kills a broker starts its own `KafkaServer`.
- A test of passwords and refusals starts a `GuardedServer`.
- No broker outlives the process that owns it, however that one ends: a guard beside it sees to that.
"""

import base64
import contextlib
import functools
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewPartitions, NewTopic

from tests.servers.guard import start_guard
from tests.servers.ports import free_ports
from tests.servers.require import ServerUnavailableError
from tests.servers.shared import Server, locked, one_for_all

VERSION = "4.1.2"
CACHE = Path(__file__).resolve().parents[2] / ".servers"
BRIEF = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Java's options for a server that is up for minutes: half of the CPU time goes to compiling what soon ends."""

_FETCH_SECONDS = 240
_FORMAT_SECONDS = 120
_START_SECONDS = 120
_STOP_SECONDS = 30
_ADMIN_SECONDS = 20.0
_BRIEF_SESSION, _SESSION = 3000, 9000
"""In milliseconds: of a broker that a test may kill, and Kafka's default, which a busy machine keeps to."""
_BATCH_HEAD = 12
"""Bytes of a record batch before what its size counts: its base offset and that size."""
_NO_LEADER_YET = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
_OLDEST_JAVA = 17

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "num.network.threads": 2,
    "num.io.threads": 4,
    # One node holds every internal topic, with few partitions so that it is ready soon.
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "group.initial.rebalance.delay.ms": 0,
    "broker.heartbeat.interval.ms": 500,
    # Retention, compaction and time-outs of transactions happen while a test waits.
    "log.initial.task.delay.ms": 200,
    "log.retention.check.interval.ms": 500,
    "log.segment.delete.delay.ms": 100,
    "log.cleaner.backoff.ms": 300,
    "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
}

_silent = logging.getLogger("tests.servers.kafka.client")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class KafkaUnavailableError(ServerUnavailableError):
    """This machine cannot run Kafka; the message says what it lacks."""


class KafkaServer(Server):
    """One broker with its data in one folder: started, stopped, killed and started again on the same data and port.

    Args:
        folder: for its data and its log.
        heap: Java's, as Java writes it.
        measured: as in production, for benchmarks: Java compiles and collects in the way that pays in the long run.
        session: after so many milliseconds of silence the node is held for dead. After kill -9 it waits for its own old
            session to end before it is let in again.
    """

    def __init__(
        self, folder: Path, heap: str = "768m", *, measured: bool = False, session: int = _BRIEF_SESSION
    ) -> None:
        self.folder = folder
        self.heap, self._measured, self._session = heap, measured, session
        self.port, self._controller_port = free_ports(2)
        self._pid: int | None = None

    @property
    def bootstrap(self) -> str:
        """The address for `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The broker's process, while it runs."""
        if self._pid is None:
            raise RuntimeError("this Kafka does not run")
        return self._pid

    def start(self, owner: int | None = None) -> None:
        """Start the broker and return when it answers; after `stop` or `kill`, on the same data.

        Args:
            owner: the process with which the broker ends at the latest; this one if None.

        Raises:
            KafkaUnavailableError: this machine lacks Java or Maven, or cannot fetch the jars.
        """
        java, libs = find_java(), fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tmp").mkdir(exist_ok=True)
        command = [
            java,
            "-Xms128m",
            f"-Xmx{self.heap}",
            *(() if self._measured else BRIEF),
            "-XX:-UsePerfData",
            # Native libraries are unpacked there, and left behind.
            f"-Djava.io.tmpdir={self.folder / 'tmp'}",
            "-cp",
            f"{libs}/*",
        ]
        properties = self._write_properties()
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(command, properties)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "kafka.Kafka", str(properties)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid = self._process.pid
        self._guard = start_guard(owner or os.getpid(), self._pid, self.folder)
        self._wait()

    def stop(self) -> None:
        """End the broker as an operator does, and kill it if it takes too long."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the broker as kill -9 does."""
        super().kill()
        self._pid = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def unused_name(base: str) -> str:
        """Return a topic name, or transactional id, that nobody has: tests share the broker."""
        return f"{base}.{uuid.uuid4().hex[:12]}"

    def create_topic(self, name: str, partitions: int = 1, **config: object) -> str:
        """Create a topic and return its name. Topic settings come with `_` for `.`: `cleanup_policy="compact"`."""
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)
        self.admin.create_topics([new], operation_timeout=_ADMIN_SECONDS)[name].result(_ADMIN_SECONDS)
        _until(lambda: len(self._partitions(name)) == partitions, f"topic {name} to be there")
        for partition in range(partitions):
            self.watermarks(name, partition)
        return name

    def delete_topic(self, name: str) -> None:
        """Delete a topic and return when it is gone."""
        self.admin.delete_topics([name], operation_timeout=_ADMIN_SECONDS)[name].result(_ADMIN_SECONDS)
        _until(lambda: not self._partitions(name), f"topic {name} to be gone")

    def create_partitions(self, name: str, total: int) -> None:
        """Raise the number of a topic's partitions to `total`."""
        self.admin.create_partitions([NewPartitions(name, total)])[name].result(_ADMIN_SECONDS)
        _until(lambda: len(self._partitions(name)) == total, f"topic {name} to have {total} partitions")

    def delete_records(self, name: str, before: Mapping[int, int]) -> None:
        """Delete records as retention does: in each partition those below the offset given, -1 for all."""
        places = [TopicPartition(name, partition, offset) for partition, offset in before.items()]
        for answer in self.admin.delete_records(places).values():
            answer.result(_ADMIN_SECONDS)

    def truncate(self, name: str, offset: int, partition: int = 0) -> None:
        """Cut a partition at the batch that begins at an offset, as a disk that lost its last writes: while stopped."""
        data = self.folder / "data"
        folder = data / f"{name}-{partition}"
        (log,) = folder.glob("*.log")
        content, end = log.read_bytes(), 0
        while True:
            base, size = struct.unpack_from(">qi", content, end)
            if base >= offset:
                break
            end += _BATCH_HEAD + size
        with log.open("r+b") as file:
            file.truncate(end)
        # What the broker made of the log it makes again, as after an unclean end.
        for path in folder.iterdir():
            if path.name not in {log.name, "partition.metadata"}:
                path.unlink()
        (data / ".kafka_cleanshutdown").unlink(missing_ok=True)

    def damage(self, name: str, offset: int, partition: int = 0) -> None:
        """Change the last byte of the batch that begins at an offset, as a bad disk does: while stopped."""
        (log,) = (self.folder / "data" / f"{name}-{partition}").glob("*.log")
        content, end = bytearray(log.read_bytes()), 0
        while True:
            base, size = struct.unpack_from(">qi", content, end)
            end += _BATCH_HEAD + size
            if base == offset:
                break
        content[end - 1] ^= 0xFF
        log.write_bytes(content)

    def watermarks(self, name: str, partition: int = 0) -> tuple[int, int]:
        """Return a partition's first offset and the read-uncommitted end."""
        return self._watermarks(name, partition, "read_uncommitted")

    def stable_end(self, name: str, partition: int = 0) -> int:
        """Return a partition's last stable offset: before the first transaction that is open, or else the end."""
        return self._watermarks(name, partition, "read_committed")[1]

    def _watermarks(self, name: str, partition: int, isolation: str) -> tuple[int, int]:
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": "tests", "isolation.level": isolation}, logger=_silent
        )
        place = TopicPartition(name, partition)
        deadline = time.monotonic() + _ADMIN_SECONDS
        try:
            while True:
                try:
                    start, end = consumer.get_watermark_offsets(place, timeout=_ADMIN_SECONDS, cached=False)
                except KafkaException as error:
                    # A partition that has just come is listed before its leader answers for it.
                    if error.args[0].code() not in _NO_LEADER_YET or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
                else:
                    return start, end
        finally:
            consumer.close()

    def producer(self, **config: object) -> Producer:
        """Return a producer; librdkafka's settings come with `_` for `.`: `compression_type="zstd"`."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        return Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5, **settings}, logger=_silent)

    @functools.cached_property
    def admin(self) -> AdminClient:
        """A client for what has no helper here."""
        return AdminClient({"bootstrap.servers": self.bootstrap}, logger=_silent)

    def _write_properties(self) -> Path:
        client, controller = f"127.0.0.1:{self.port}", f"127.0.0.1:{self._controller_port}"
        properties = {
            **_PROPERTIES,
            "broker.session.timeout.ms": self._session,
            "listeners": f"PLAINTEXT://{client},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{client}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": self.folder / "data",
        }
        path = self.folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        return path

    def _format(self, command: list[str], properties: Path) -> None:
        # The tool takes an id that begins with "-" for an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        done = subprocess.run(
            [*command, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FORMAT_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Kafka's storage was not formatted:\n{(done.stdout + done.stderr)[-2000:]}")

    def _wait(self) -> None:
        process, deadline = self._process, time.monotonic() + _START_SECONDS
        while not self._answers():
            if process is None or process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Kafka did not start within {_START_SECONDS} s; the end of its output:\n{tail}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        # Not librdkafka at first: it waits ever longer after each refusal.
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            return bool(
                AdminClient({"bootstrap.servers": self.bootstrap}, logger=_silent).list_topics(timeout=5).brokers
            )
        except KafkaException:
            return False

    def _partitions(self, name: str) -> dict[int, Any]:
        topics = self.admin.list_topics(timeout=_ADMIN_SECONDS).topics
        return topics[name].partitions if name in topics and topics[name].error is None else {}


class GuardedServer(KafkaServer):
    """A broker whose clients give a user and a password (SASL/PLAIN), and may do what ACLs allow (StandardAuthorizer).

    The user is `custody`. At first it may do nothing, beyond what no ACL is asked for. `inner` may do everything.
    """

    client: ClassVar[Mapping[str, str]] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "custody",
        "sasl.password": "right-password",
    }
    """The properties of custody's client."""

    def _write_properties(self) -> Path:
        path = super()._write_properties()
        client, controller = f"127.0.0.1:{self.port}", f"127.0.0.1:{self._controller_port}"
        (self._open_port,) = free_ports(1)
        inner = f"127.0.0.1:{self._open_port}"
        login = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required"
            ' username="custody" password="right-password" user_custody="right-password";'
        )
        more = {
            "listeners": f"CLIENT://{client},INNER://{inner},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENT://{client},INNER://{inner}",
            "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INNER",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": login,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Whoever comes by the listeners without passwords.
            "super.users": "User:ANONYMOUS",
        }
        with path.open("a") as file:
            file.write("".join(f"{name}={value}\n" for name, value in more.items()))
        return path

    def _answers(self) -> bool:
        return self.inner()._answers_plainly()

    def _answers_plainly(self) -> bool:
        return super()._answers()

    def inner(self) -> "GuardedServer":
        """Return the same broker as who needs no password sees it."""
        server = GuardedServer.__new__(GuardedServer)
        server.folder, server.port, server._pid = self.folder, self._open_port, self._pid
        return server

    def allow(self, kind: ResourceType, name: str, *operations: AclOperation) -> None:
        """Set what the user may do with a topic or group, `*` for all of them: these operations alone."""
        listed = ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
        # confluent-kafka's types do not know that a filter leaves out the principal and the host.
        asked, admin = AclBindingFilter(kind, name, *listed), self.inner().admin  # type: ignore[arg-type]

        # The broker learns from its controller a little later which are gone, and which are new. Not by their number:
        # as many old ones may still be there.
        def listed_now() -> set[AclOperation]:
            return {binding.operation for binding in admin.describe_acls(asked).result(_ADMIN_SECONDS)}

        for answer in admin.delete_acls([asked]).values():
            answer.result(_ADMIN_SECONDS)
        _until(lambda: not listed_now(), "the old ACLs to be gone")
        pattern, allowed = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
        wanted = [AclBinding(kind, name, pattern, "User:custody", "*", operation, allowed) for operation in operations]
        for answer in admin.create_acls(wanted).values() if wanted else ():
            answer.result(_ADMIN_SECONDS)
        _until(lambda: listed_now() == set(operations), "the ACLs to be there")


@functools.cache
def find_java() -> str:
    """Return the `java` to run Kafka with.

    Raises:
        KafkaUnavailableError: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None or not Path(java).exists():
        raise KafkaUnavailableError(
            f"no Java: Kafka {VERSION} needs Java {_OLDEST_JAVA} or newer, on the path or in JAVA_HOME"
        )
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    match = re.search(r'version "(\d+)', shown)
    if match is None or int(match[1]) < _OLDEST_JAVA:
        raise KafkaUnavailableError(
            f"Java is {match[1] if match else 'unknown'}: Kafka {VERSION} needs {_OLDEST_JAVA} or newer"
        )
    return java


def fetch() -> Path:
    """Return the folder with Kafka's jars, fetched by Maven unless they are there.

    Raises:
        KafkaUnavailableError: there is no Maven, or it cannot fetch them.
    """
    return fetch_jars(CACHE / f"kafka-{VERSION}", _POM)


def fetch_jars(home: Path, pom: str) -> Path:
    """Return the folder with the jars that a project needs, fetched by Maven unless they are there. Raises as `fetch`.

    Args:
        home: where they are kept.
        pom: the project.
    """
    libs, partial = home / "libs", home / "partial"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock"):
        if libs.exists():
            return libs
        maven = shutil.which("mvn")
        if maven is None:
            raise KafkaUnavailableError(f"no Maven (mvn): it fetches {home.name}")
        shutil.rmtree(partial, ignore_errors=True)
        (home / "pom.xml").write_text(pom)
        command = [maven, "-q", "-B", "-f", str(home / "pom.xml"), "dependency:copy-dependencies"]
        try:
            done = subprocess.run(
                [*command, f"-DoutputDirectory={partial}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KafkaUnavailableError(f"Maven did not fetch {home.name} within {_FETCH_SECONDS} s") from None
        if done.returncode:
            raise KafkaUnavailableError(f"Maven cannot fetch {home.name}: {(done.stdout + done.stderr)[-500:]}")
        partial.rename(libs)
    return libs


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[KafkaServer]:
    """A running Kafka, one for all processes of the test session. Name topics by `kafka.unused_name`."""
    yield from one_for_all(pytestconfig, "kafka", lambda folder: KafkaServer(folder, session=_SESSION))


def _until(done: Any, what: str) -> None:
    deadline = time.monotonic() + _ADMIN_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {_ADMIN_SECONDS} s for {what}")
        time.sleep(0.05)
