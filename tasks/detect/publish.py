"""Notices as audit events of the type `security_event`, and how they are sent to Kafka.

Kafka gets a notice at least once, and each time with the same bytes. Its `event_id` is the notice's id, so that a
reader can drop repeats. All notices of an alert have its id as their `request_id` and as the record's key, so they stay
in their order. The drain archives them like any event, and thus they are signed and can be proven.

Whoever may write to the topic can write such events too. What custody knows of its alerts is in its own state.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from custody.emit.builders import security_event
from custody.emit.errors import AuditError
from custody.emit.redact import redact
from custody.errors import ConfigurationError, CustodyError, SourceError, TransientSourceError, counted
from custody.format import limits
from custody.format.times import as_utc, format_time
from tasks.detect.alerts import Notice
from tasks.detect.views import OWN
from tasks.drain.clients import make_producer, serve
from tasks.drain.kafka import REQUEST_SECONDS, Broker
from tasks.drain.kafka_errors import AWAY, TERMINAL, map_error, principal, reason_of
from tasks.settings import KafkaSettings

SECONDS: Final = 20.0
"""How long Kafka may take to acknowledge all notices."""
_PURGE_SECONDS: Final = 1.0
_NO_ADDRESS: Final = "::"
"""Of alerts whose group has no address."""
_TITLE, _ADVICE, _VALUE, _VALUES = 200, 2_000, 256, 16
"""Characters of texts and of a group's values, and values of a group."""
_GIVEN_UP: Final = frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._MSG_TIMED_OUT))  # noqa: SLF001
"""Errors of records for which there was no time. Why, the callback for errors knows."""
_OURS: Final[Mapping[str, str | int | bool]] = {
    "enable.idempotence": True,
    "acks": "all",
    # A broker refuses a batch as a whole, and notices are few.
    "batch.num.messages": 1,
    "linger.ms": 0,
}


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of notices.

    Attributes:
        ids: the ids of those that Kafka acknowledged. Those in neither `ids` nor `unfit` are to be sent again.
        problem: why these were not; None if there are none.
        unfit: the ids of those of which no event can be made, and why. To send them again would help nothing.
    """

    ids: frozenset[str]
    problem: CustodyError | None = None
    unfit: Mapping[str, str] = field(default_factory=dict)


def event_of(notice: Notice) -> bytes:
    """Return a notice as a line of JSON that the drain archives.

    Raises:
        AuditError: the drain would quarantine it.
        UnicodeEncodeError: it has half of a surrogate pair.
    """
    alert = notice.alert
    group = dict(alert.group)
    event = security_event(
        request_id=alert.id,
        api_key_id=group.get("api_key_id"),
        client_ip=_address(group.get("client_ip", "")),
        severity=alert.level,
        alert_type=f"{OWN}{alert.rule}",
        details=details_of(notice),
        action_taken="recorded" if notice.kind == "over" else "alerted",
        timestamp=format_time(as_utc(alert.last)),
        event_id=notice.id,
    )
    return msgspec.json.encode(dict(event.fields))


def details_of(notice: Notice) -> dict[str, Any]:
    """Return what a notice says, without credentials and with bounded texts."""
    alert = notice.alert
    details: dict[str, Any] = {
        "kind": notice.kind,
        "alert_id": alert.id,
        "rule": alert.rule,
        "rule_id": alert.rule_id,
        "title": _clipped(alert.title, _TITLE),
        "group": {name: _clipped(value, _VALUE) for name, value in alert.group[:_VALUES]},
        "first": format_time(as_utc(alert.first)),
        "last": format_time(as_utc(alert.last)),
        "matches": alert.matches,
        "metric": _number(alert.metric),
        "threshold": None if notice.threshold is None else _number(notice.threshold),
        "others": notice.others,
        "evidence": [f"{event.log}@{event.offset}" for event in alert.evidence],
        "advice": _clipped(notice.advice, _ADVICE),
    }
    return redact(details)


def title_of(notice: Notice) -> str:
    """Return the rule's title, its level, and the kind of notice."""
    more = {"opened": "", "grown": ", ten times as much or more", "over": ", over", "storm": ", many at once"}
    return f"{_clipped(notice.alert.title, _TITLE)} ({notice.alert.level}{more[notice.kind]})"


def summary_of(notice: Notice) -> str:
    """Return in one line what happened, for people."""
    alert, details = notice.alert, details_of(notice)
    group = ", ".join(f"{name} {value}" for name, value in details["group"].items())
    if alert.storm:
        subject = f"{counted(notice.others, 'alert')} at once, recorded and not sent singly"
    else:
        limit = "" if notice.threshold is None else f" (threshold {details['threshold']:,})"
        matches = counted(alert.matches, "match", "matches")
        subject = f"{group or 'all events'}: {matches}, metric {details['metric']:,}{limit}"
    period = details["first"] if alert.first == alert.last else f"{details['first']} to {details['last']}"
    return f"{subject}, {period}"


def send(notices: Sequence[Notice], kafka: KafkaSettings, topic: str = "", seconds: float = SECONDS) -> Sent:
    """Send notices to a topic, and wait until they are acknowledged, though not for long. Nothing is raised.

    Args:
        notices: what to send.
        kafka: the brokers, and what is archived.
        topic: where to; empty for the first topic that `kafka.topics` names.
        seconds: how long Kafka may take to acknowledge all.
    """
    events, unfit = _events(notices)
    if not events:
        return Sent(frozenset(), unfit=unfit)
    sender = _Sender(kafka.librdkafka(), seconds)
    try:
        sender.send(events, sender.topic(topic, kafka))
    except CustodyError as error:
        return Sent(frozenset(sender.acknowledged), error, unfit)
    return Sent(frozenset(sender.acknowledged), unfit=unfit)


def _events(notices: Sequence[Notice]) -> tuple[list[tuple[Notice, bytes]], dict[str, str]]:
    """Return notices with their events, and why there is none of the others."""
    events, unfit = [], {}
    for notice in notices:
        try:
            events.append((notice, event_of(notice)))
        except (AuditError, UnicodeEncodeError) as error:
            unfit[notice.id] = str(error) if isinstance(error, AuditError) else "it has text that is no Unicode"
    return events, unfit


class _Sender:
    """Sends notices, and notes which were acknowledged and why others were not."""

    def __init__(self, client: Mapping[str, str], seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self.acknowledged: set[str] = set()
        self._refused: KafkaError | None = None
        self._away: KafkaError | None = None

    def topic(self, topic: str, kafka: KafkaSettings) -> str:
        """Return the topic, which exists. A broker may be set to create one when somebody writes to it.

        Raises:
            ConfigurationError: there is none.
            SourceError: Kafka does not answer, or refuses.
        """
        wanted = [topic] if topic else kafka.topics
        with Broker(self._client, kafka.group, min(self._seconds, REQUEST_SECONDS)) as broker:
            topics = broker.topics(wanted)
        if not topics:
            raise ConfigurationError(
                f"no topic for alerts is on Kafka: {', '.join(map(repr, wanted))}: create it, allow"
                f" {principal(self._client)} Describe and Write on it, or correct detect.topic"
            )
        return topics[0].name

    def send(self, events: Sequence[tuple[Notice, bytes]], topic: str) -> None:
        """Send notices, each with its event.

        Raises:
            CustodyError: not all were acknowledged.
        """
        timeout = {"message.timeout.ms": round(self._seconds * 1000)}
        producer = make_producer({**self._client, **_OURS, **timeout, "error_cb": self._note})
        deadline = time.monotonic() + self._seconds
        for notice, event in events:
            self._produce(producer, topic, notice, event, deadline)
        if self._serve(producer.flush, max(0.0, deadline - time.monotonic())):
            producer.purge()
            self._serve(producer.flush, _PURGE_SECONDS)
        if left := len({notice.id for notice, _ in events} - self.acknowledged):
            raise self._error(topic, left)

    def _produce(self, producer: Producer, topic: str, notice: Notice, event: bytes, deadline: float) -> None:
        key = notice.alert.id.encode()

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.acknowledged.add(notice.id)
            elif error.code() not in _GIVEN_UP:
                self._refused = self._refused or error

        while True:
            try:
                producer.produce(topic, event, key, on_delivery=delivered)
            except BufferError:
                if time.monotonic() > deadline:
                    return
                self._serve(producer.poll, 0.1)
            except KafkaException as error:
                self._note(error.args[0])
                return
            else:
                self._serve(producer.poll, 0)
                return

    def _serve(self, call: Callable[[float], int], seconds: float) -> int:
        """Return how many records wait. After a fatal error all are given up, and answers about them may be left."""
        try:
            return serve(call, seconds)
        except KafkaException as error:
            self._note(error.args[0])
            return 1

    def _note(self, error: KafkaError) -> None:
        if error.code() in AWAY:
            self._away = error
        elif error.fatal() or error.code() in TERMINAL:
            self._refused = error

    def _error(self, topic: str, left: int) -> SourceError:
        step = f"topic {topic} did not acknowledge {counted(left, 'notice')} of alerts"
        if self._refused is not None:
            return map_error(self._refused, step, self._client, f"Describe and Write on topic {topic}")
        reason = f": {reason_of(self._away)}" if self._away else f" within {self._seconds:g} s"
        return TransientSourceError(f"{step}{reason}; the next run sends them again")


def _address(text: str) -> str:
    """Return an address as events have it."""
    with suppress(ValueError):
        if "%" not in text:
            return str(ip_address(text))
    return _NO_ADDRESS


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _number(number: float) -> int | float:
    """Return a whole number without its `.0`."""
    return int(number) if float(number).is_integer() and abs(number) < limits.INT_MAX else number
