"""Creates librdkafka's clients: the one door to Kafka, so that no command is flooded by what librdkafka logs.

Rules:
- Of each kind of line, the first in `QUIET_SECONDS` is logged. Without a broker librdkafka repeats one line 20 times a
  second, in each client.
- Lines about connections are `INFO`. Whoever waits for the broker raises an error, which has the reason.
- A property that librdkafka refuses is a wrong setting. Its value is never repeated: it may be a password.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from custody.errors import ConfigurationError
from tasks.drain.kafka_errors import TERMINAL

QUIET_SECONDS = 600.0
"""How long a line keeps others of its kind from being logged."""
KINDS = 1000
"""Kinds of lines that are remembered. With more, the one logged first is forgotten."""
_PROBE_SECONDS, _EVENTS = 2.0, 100
"""How long committed offsets are asked before events are looked at, and how many of those."""

_DEFAULTS: Mapping[str, str | int | bool] = {
    "client.id": "custody",
    # A broker that is back is noticed soon. By default, only after up to ten seconds.
    "reconnect.backoff.max.ms": 2000,
}
"""What operators may set otherwise."""
_QUEUE_KBYTES = 24 * 1024
"""Records waiting in memory, for all partitions of all processes: 0.3 s at 250,000 records of 340 bytes a second."""
_LEAST_QUEUE_KBYTES = 4 * 1024
_FETCH_BYTES = 64 * 1024
"""Bytes of a partition in one fetch, as stored; or one batch, if it is larger. All of a fetch is inflated at once, and
3 KB can inflate to 95 MB: the default of 1 MiB could take 30 GB of memory, and is not noticeably faster."""
_CONNECTIONS = frozenset({"FAIL", "ERROR", "REQTMOUT", "BROKERFAIL", "DISCONNECT", "RECONNECT", "CONNECT"})
"""librdkafka's names for lines about a broker that is away."""
_VARIES = re.compile(r"\[[^]]*\]|\([^)]*\)|[0-9]+")
"""Parts of a line that differ within a kind: client and thread, times, numbers and addresses."""

logger = logging.getLogger(__name__)

Properties = Mapping[str, object]


class FirstLines:
    """A logger for librdkafka that logs the first line of each kind."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up; `clock` returns seconds."""
        self._clock = clock
        self._logged: dict[str, float] = {}
        """When each kind was logged, in this order."""
        self._lock = threading.Lock()

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log a line, unless one of its kind was logged lately.

        Args:
            level: the line's level.
            message: its format; librdkafka's is `%s [%s] %s`.
            arguments: the name of its kind, the client, and the text.
        """
        text = message % arguments if arguments else message
        name = text.partition(" ")[0]
        kind, now = _VARIES.sub("", text), self._clock()
        with self._lock:
            if now - self._logged.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
                return
            self._logged.pop(kind, None)
            if len(self._logged) >= KINDS:
                del self._logged[next(iter(self._logged))]
            self._logged[kind] = now
        logger.log(min(level, logging.INFO) if name in _CONNECTIONS else level, "librdkafka: %s", text)


_lines: Any = FirstLines()


def make_consumer(client: Properties) -> Consumer:
    """Return a consumer with librdkafka's properties and callbacks.

    Raises:
        ConfigurationError: librdkafka refuses a property.
    """
    consumer: Consumer = _made(Consumer, client)
    return consumer


def queue_limit(processes: int) -> dict[str, str]:
    """Return the property that bounds the records waiting in memory, in each of so many processes."""
    return {"queued.max.messages.kbytes": str(max(_LEAST_QUEUE_KBYTES, _QUEUE_KBYTES // processes))}


def make_reader(client: Mapping[str, str], group: str, isolation: str, **callbacks: Callable[..., None]) -> Consumer:
    """Return a consumer of records. Settings that correctness depends on override the operator's.

    Args:
        client: librdkafka's properties.
        group: the consumer group.
        isolation: `read_committed` or `read_uncommitted`.
        callbacks: librdkafka's callbacks, by property.

    Raises:
        ConfigurationError: librdkafka refuses a property.
    """
    defaults: dict[str, str | int | bool] = {
        **queue_limit(1),
        "fetch.message.max.bytes": _FETCH_BYTES,
        # How soon a full queue is checked again. librdkafka's default of a second would halve the speed.
        "fetch.queue.backoff.ms": 5,
        "fetch.wait.max.ms": 100,
    }
    ours: dict[str, str | int | bool] = {
        "group.id": group,
        "isolation.level": isolation,
        "auto.offset.reset": "error",
        "check.crcs": True,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
    }
    return make_consumer({**defaults, **client, **ours, **callbacks})


def make_admin(client: Properties) -> AdminClient:
    """Return a client for requests about topics; as `make_consumer`."""
    admin: AdminClient = _made(AdminClient, client)
    return admin


def make_producer(client: Properties) -> Producer:
    """Return a producer; as `make_consumer`."""
    producer: Producer = _made(Producer, client)
    return producer


def serve(call: Callable[[float], int], seconds: float) -> int:
    """Call a method of a producer that delivers answers, `poll` or `flush`, and return what it returns.

    If answers of records follow a fatal error, Python makes a SystemError of it, even with a callback for errors.

    Raises:
        KafkaException: librdkafka's fatal error, such as that a broker refuses an idempotent producer.
    """
    try:
        return call(seconds)
    except SystemError as raised:
        error: BaseException | None = raised
        while isinstance(error, SystemError):
            error = error.__cause__ or error.__context__
        if not isinstance(error, KafkaException):
            raise
        raise error from None


def _made(kind: Callable[..., Any], client: Properties) -> Any:
    try:
        return kind({**_DEFAULTS, **client}, logger=_lines)
    except KafkaException as error:
        code = error.args[0].code()
        raise ConfigurationError(
            f"librdkafka does not accept the settings in kafka.client (error {code}): check their names and values"
        ) from None


def read_committed(consumer: Consumer, asked: list[TopicPartition], seconds: float) -> list[TopicPartition]:
    """Return the committed offsets of a consumer's group. The consumer has no partitions assigned.

    librdkafka keeps waiting for a coordinator that refuses the client. The refusal comes as an event, and only once.

    Args:
        consumer: the consumer.
        asked: the partitions.
        seconds: timeout of the request.

    Raises:
        KafkaException: the broker does not answer, or refuses.
    """
    try:
        return consumer.committed(asked, timeout=min(_PROBE_SECONDS, seconds))
    except KafkaException:
        for event in consumer.consume(_EVENTS, 0):
            error = event.error()
            if error is not None and error.code() in TERMINAL:
                raise KafkaException(error) from None
    return consumer.committed(asked, timeout=seconds)
