"""Creates librdkafka's clients: the one door to Kafka, so that no command is flooded by what librdkafka logs.

Rules:
- Of each kind of line, the first in `QUIET_SECONDS` is logged. Without a broker librdkafka repeats one line 20 times a
  second, in each client.
- Lines about connections are `INFO`. Whoever waits for the broker raises an error, which has the reason.
- A property that librdkafka refuses is a wrong setting. Its value is never repeated: it may be a password.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from custody.errors import ConfigurationError

QUIET_SECONDS = 600.0
"""How long a line keeps others of its kind from being logged."""

_DEFAULTS: Mapping[str, str | int | bool] = {
    "client.id": "custody",
    # A broker that is back is noticed soon. By default, only after up to ten seconds.
    "reconnect.backoff.max.ms": 2000,
}
"""What operators may set otherwise."""
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
        if now - self._logged.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
            return
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


def make_admin(client: Properties) -> AdminClient:
    """Return a client for requests about topics; as `make_consumer`."""
    admin: AdminClient = _made(AdminClient, client)
    return admin


def make_producer(client: Properties) -> Producer:
    """Return a producer; as `make_consumer`."""
    producer: Producer = _made(Producer, client)
    return producer


def _made(kind: Callable[..., Any], client: Properties) -> Any:
    try:
        return kind({**_DEFAULTS, **client}, logger=_lines)
    except KafkaException as error:
        code = error.args[0].code()
        raise ConfigurationError(
            f"librdkafka does not accept the settings in kafka.client (error {code}): check their names and values"
        ) from None
