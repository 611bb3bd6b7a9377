"""A run that puts too much into quarantine says so, for each log, with the reason and with what to do."""

import json
from datetime import UTC, datetime

import pytest

from custody.format.reasons import Reasons
from flows.operate.sample import sample_events
from tasks.drain.log_run import LogResult
from tasks.drain.quarantine import excess
from tests.helpers.commands import Command
from tests.helpers.commands import custody as custody_fixture
from tests.servers.kafka import KafkaServer

custody = custody_fixture
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("events", "quarantined", "share", "is_excess"),
    [
        (0, 0, 0.01, False),
        (99, 1, 0.01, False),
        (98, 2, 0.01, True),
        (100, 0, 0.0, False),
        (99, 1, 0.0, True),
        (0, 50, 1.0, False),
        # Too few records for a share, unless none of them is an event.
        (18, 1, 0.01, False),
        (19, 1, 0.01, True),
        (1, 18, 0.01, False),
        (0, 1, 0.01, True),
        (0, 1, 1.0, False),
        (19, 1, 0.05, False),
    ],
)
def test_the_limit(events: int, quarantined: int, share: float, is_excess: bool) -> None:
    """More than the share is reported, of runs that read enough, or no event at all."""
    result = LogResult("a/0", events=events, quarantined=quarantined)
    result.reasons.note("not JSON", quarantined)
    assert (excess(result, share) is not None) == is_excess


def test_the_sentence() -> None:
    """It has the share, the numbers, the commonest reason and an example."""
    reasons = Reasons({"not JSON": 2, "too deep": 1_000}, {"too deep": "nested deeper than 64"})
    result = LogResult("a/0", events=30, quarantined=1_002, reasons=reasons)
    assert excess(result, 0.01) == (
        "97.1% of the run's records are in quarantine (1,002 of 1,032),"
        " most often: too deep (1,000), for example: nested deeper than 64"
    )


@pytest.fixture
def topic(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, custody: Command) -> str:
    """A topic that the settings name. The fixture of the command clears all others first."""
    assert custody("init").code == 0
    made = kafka.create_topic(kafka.unused_name("excess"))
    for name, value in {"BOOTSTRAP_SERVERS": kafka.bootstrap, "TOPICS": made, "GROUP": made}.items():
        monkeypatch.setenv(f"CUSTODY_KAFKA__{name}", value)
    return made


def send(kafka: KafkaServer, topic: str, values: list[bytes]) -> None:
    producer = kafka.producer()
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(60) == 0


def test_the_command(kafka: KafkaServer, topic: str, custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic without a single event is one warning that says so and what to do; nothing is lost, so the code is 0."""
    send(kafka, topic, [b'{"nonsense":%d}' % number for number in range(1_000)])
    drained = custody("drain", "--once")
    assert drained.code == 0
    (warning,) = [line for line in drained.err.splitlines() if "quarantine" in line]
    assert warning.startswith(f"Warning: {topic}/0: 100.0% of the run's records are in quarantine (1,000 of 1,000)")
    assert "most often: event_type missing (1,000), for example: event_type is missing." in warning
    assert 'custody query "SELECT log, error, count(*) FROM quarantined GROUP BY ALL"' in warning
    # The next run has good ones, and one bad record among them: not more than the setting.
    send(kafka, topic, [*sample_events(99, 1, BEGIN), b"{"])
    good = custody("drain", "--once", "--json")
    assert (good.code, "quarantine" in good.err) == (0, False)
    (result,) = map(json.loads, good.out.splitlines())
    assert result["reasons"]["counts"] == {"not JSON": 1}
    monkeypatch.setenv("CUSTODY_EVENTS__QUARANTINED_SHARE", "0.005")
    send(kafka, topic, [*sample_events(99, 2, BEGIN), b"{"])
    assert "1.0% of the run's records are in quarantine (1 of 100)" in custody("drain", "--once").err
