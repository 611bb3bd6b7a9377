"""Notices: what the archive gets to keep of them, and what is known once they were sent."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from pydantic import SecretStr

from custody.cli import names
from custody.errors import ConfigurationError, TransientSourceError
from custody.format import events
from tasks.detect import publish
from tasks.detect.alerts import Kind, Notice, Place
from tasks.settings import KafkaSettings
from tests.helpers import alerts
from tests.helpers.alerts import START
from tests.helpers.backfill import records
from tests.servers.kafka import KafkaServer

ALERT = replace(
    alerts.ALERT,
    group=(("api_key_id", "key-1"), ("client_ip", "192.0.2.7")),
    evidence=(Place("audit.events/0", 7), Place("audit.events@2/0", 9)),
)
CANARY = "hunter2-CANARY"


def notice(number: int = 1, kind: Kind = "opened", **changed: Any) -> Notice:
    """Return a notice, with some of its alert's fields changed."""
    others = changed.pop("others", 0)
    return Notice(f"{number:032x}", kind, replace(ALERT, **changed), "Rotate the key.", others, 10.0)


def as_event(made: Notice) -> dict[str, Any]:
    """Return what is archived of a notice: an event that the drain takes."""
    line = publish.event_of(made)
    assert events.check([line]).refused == ()
    assert line == publish.event_of(made)
    fields: dict[str, Any] = json.loads(line)
    return fields


class TestEvents:
    def test_have_what_readers_look_for(self) -> None:
        event = as_event(notice())
        details = event.pop("details")
        assert event == {
            "event_type": "security_event",
            "timestamp": "2026-03-01T10:05:00.000000Z",
            "event_id": f"{1:032x}",
            "request_id": ALERT.id,
            "api_key_id": "key-1",
            "client_ip": "192.0.2.7",
            "severity": "high",
            "alert_type": "custody.failed-logins",
            "action_taken": "alerted",
        }
        assert details == {
            "kind": "opened",
            "alert_id": ALERT.id,
            "rule": "failed-logins",
            "rule_id": ALERT.rule_id,
            "title": "Many failed logins",
            "group": {"api_key_id": "key-1", "client_ip": "192.0.2.7"},
            "first": "2026-03-01T10:00:00.000000Z",
            "last": "2026-03-01T10:05:00.000000Z",
            "matches": 12,
            "metric": 31,
            "threshold": 10,
            "others": 0,
            "evidence": ["audit.events/0@7", "audit.events@2/0@9"],
            "advice": "Rotate the key.",
        }

    def test_name_evidence_as_the_command_takes_it(self) -> None:
        """`custody evidence` proves what an alert names, in another epoch too."""
        texts = as_event(notice())["details"]["evidence"]
        assert [names.record([text]) for text in texts] == [("audit.events/0", 7), ("audit.events@2/0", 9)]

    @pytest.mark.parametrize(
        ("kind", "action"), [("opened", "alerted"), ("grown", "alerted"), ("storm", "alerted"), ("over", "recorded")]
    )
    def test_of_each_kind_say_which(self, kind: Kind, action: str) -> None:
        event = as_event(notice(kind=kind, others=25))
        assert (event["details"]["kind"], event["action_taken"], event["details"]["others"]) == (kind, action, 25)

    @pytest.mark.parametrize("address", ["", "::1%eth0", "nowhere", "192.0.2.256"])
    def test_without_an_address_have_the_one_that_is_none(self, address: str) -> None:
        assert as_event(notice(group=(("client_ip", address),)))["client_ip"] == "::"
        assert as_event(notice(group=()))["client_ip"] == "::"
        assert as_event(notice(group=()))["api_key_id"] is None

    def test_stay_small_whatever_is_in_an_alert(self) -> None:
        group = tuple((f"field{number}", "\x00\N{PILE OF POO}" * 5000) for number in range(40))
        long = "x" * 100_000
        evidence = tuple(Place(f"{'t' * 249}/0", number) for number in range(20))
        made = replace(notice(group=group, title=long, evidence=evidence), advice=long)
        as_event(made)
        assert len(publish.event_of(made)) < 40_000

    def test_repeat_no_credentials(self) -> None:
        made = notice(group=(("password", CANARY), ("authorization", f"Bearer {CANARY}")))
        assert CANARY.encode() not in publish.event_of(made)
        assert CANARY not in publish.summary_of(made)

    @pytest.mark.parametrize("time", ["1970-01-01", "9999-12-31"])
    def test_of_any_year_are_events(self, time: str) -> None:
        moment = datetime.fromisoformat(time)
        as_event(notice(first=moment, last=moment))


class TestSummary:
    def test_says_whom_it_is_about_and_how_much(self) -> None:
        assert publish.summary_of(notice()) == (
            "api_key_id key-1, client_ip 192.0.2.7: 12 matches, metric 31 (threshold 10),"
            " 2026-03-01T10:00:00.000000Z to 2026-03-01T10:05:00.000000Z"
        )

    def test_of_a_storm_counts_alerts(self) -> None:
        storm = notice(kind="storm", others=1200, group=(), storm=True, last=START)
        assert publish.summary_of(storm) == (
            "1,200 alerts at once, recorded and not sent singly, 2026-03-01T10:00:00.000000Z"
        )


def values(kafka: KafkaServer, topic: str, partitions: int) -> list[bytes]:
    return [value for _, value, _, _ in records(kafka, topic, partitions)]


def to(kafka: KafkaServer, topics: Sequence[str]) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap, topics=list(topics))


class TestSending:
    def test_an_acknowledged_notice_is_in_the_topic(self, kafka: KafkaServer) -> None:
        """Of several topics it is the first by name; one that is set is another."""
        name = kafka.unused_name("alerts")
        first, second = (kafka.create_topic(f"{name}.{part}", 3) for part in ("a", "b"))
        notices = [notice(1), notice(2, "over"), notice(3, id="b" * 32)]
        sent = publish.send(notices, to(kafka, [f"^{name}"]))
        assert sent == publish.Sent(frozenset(each.id for each in notices))
        assert sorted(values(kafka, first, 3)) == sorted(map(publish.event_of, notices))
        assert publish.send(notices[:1], to(kafka, [f"^{name}"]), second).problem is None
        assert values(kafka, second, 3) == [publish.event_of(notices[0])]

    def test_notices_of_an_alert_stay_in_their_order(self, kafka: KafkaServer) -> None:
        topic = kafka.create_topic(kafka.unused_name("alerts"), 3)
        notices = [notice(number, "grown", matches=number) for number in range(1, 30)]
        assert publish.send(notices, to(kafka, [topic])).problem is None
        assert values(kafka, topic, 3) == [publish.event_of(each) for each in notices]

    def test_what_a_topic_refuses_keeps_no_other_back(self, kafka: KafkaServer) -> None:
        topic = kafka.create_topic(kafka.unused_name("alerts"), 1, max_message_bytes=1500)
        large = replace(notice(2), advice="".join(map(chr, range(0x4E00, 0x4E00 + 1900))))
        sent = publish.send([large, notice(1)], to(kafka, [topic]))
        assert sent.ids == {notice(1).id}
        assert f"topic {topic} did not acknowledge 1 notice" in str(sent.problem)

    def test_what_is_no_event_is_given_up_and_keeps_no_other_back(self, kafka: KafkaServer) -> None:
        topic = kafka.create_topic(kafka.unused_name("alerts"), 1)
        old, half = notice(2, last=START.replace(year=1969)), notice(3, group=(("api_key_id", "\ud800"),))
        sent = publish.send([old, half, notice(1)], to(kafka, [topic]))
        assert (sent.ids, sent.problem) == (frozenset({notice(1).id}), None)
        assert set(sent.unfit) == {old.id, half.id}
        assert values(kafka, topic, 1) == [publish.event_of(notice(1))]
        assert "Unicode" in sent.unfit[half.id]

    def test_no_topic_is_created_by_writing_to_it(self, kafka: KafkaServer) -> None:
        name = kafka.unused_name("missing")
        for sent in (
            publish.send([notice()], to(kafka, ["x"]), name),
            publish.send([notice()], to(kafka, [f"^{name}"])),
        ):
            assert sent.ids == frozenset()
            assert isinstance(sent.problem, ConfigurationError)
            assert name in str(sent.problem)
            assert "detect.topic" in str(sent.problem)
        assert name not in kafka.admin.list_topics(timeout=10).topics

    def test_without_a_broker_it_says_so_and_nothing_of_the_client(self) -> None:
        settings = KafkaSettings(
            bootstrap_servers="127.0.0.1:1",
            client={
                "security.protocol": "sasl_plaintext",
                "sasl.mechanisms": "PLAIN",
                "sasl.username": "ada",
                "sasl.password": SecretStr(CANARY),
            },
        )
        sent = publish.send([notice()], settings, "audit.events", seconds=0.5)
        assert sent.ids == frozenset()
        assert isinstance(sent.problem, TransientSourceError)
        assert "127.0.0.1:1" in str(sent.problem)
        assert CANARY not in f"{sent!r} {sent.problem}"

    def test_nothing_to_send_asks_nobody(self) -> None:
        assert publish.send([], KafkaSettings(bootstrap_servers="127.0.0.1:1")) == publish.Sent(frozenset())
