"""docs/emit.md and docs/receiver.md are true: their examples run, and their tables have what the code has."""

import inspect
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from custody.emit import receive
from custody.emit.kafka import KafkaWriter
from custody.emit.queue import Limits
from custody.emit.receive import Receiver, receiver
from custody.emit.redact import Redaction
from custody.emit.writer import Options
from tests.helpers.emitting import consume
from tests.servers.kafka import KafkaServer

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "emit.md").read_text()


def rows(heading: str) -> list[tuple[str, str]]:
    """Return the first two cells of each row of the first table below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.search(r"^\|[- |]+\|\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert table is not None
    return [(name, value) for name, value in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", table[1], re.MULTILINE)]


def test_the_table_of_options_is_the_codes() -> None:
    """Every option is there in the code's order, with the code's default."""
    wanted = []
    for option in fields(Options):
        if option.default is not MISSING:
            wanted.append((option.name, f"`{option.default!r}`"))
        elif option.default_factory is Limits:
            wanted += [(f"queue.{limit.name}", f"`{limit.default!r}`") for limit in fields(Limits)]
        elif option.default_factory is Redaction:
            wanted.append((option.name, "`Redaction()`"))
        else:
            wanted.append((option.name, "required"))
    assert rows("Options") == wanted


def test_the_table_of_counters_is_the_codes() -> None:
    """Every number of a writer is explained, and no other."""
    with KafkaWriter("audit", {"bootstrap.servers": "127.0.0.1:9"}, Options(service="x", close_seconds=0)) as writer:
        assert sorted(name for name, _ in rows("Counters")) == sorted(writer.counters())


def test_the_rules_of_redaction_are_the_codes() -> None:
    """What the page calls a secret is redacted, what it calls none stays, and its own rules can be given."""
    section = PAGE.split("\n## Redaction\n")[1].split("\n## ")[0]
    secret, plain = re.search(r"in any spelling: (.+?)\. Names of facts .+? are not: (.+?)\.", section).groups()  # type: ignore[union-attr]
    fields_ = dict.fromkeys(re.findall("`([^`]+)`", secret + plain), "x1y2")
    kept = set(re.findall("`([^`]+)`", plain))
    assert len(kept) == 3
    redacted = Redaction().redact(fields_)
    assert {name for name, value in redacted.items() if value == "x1y2"} == kept
    beside = re.search(r"\*\*Beside a name\.\*\* (.+)\.$", section, re.MULTILINE)[1]  # type: ignore[index]
    for shown in re.findall("`([^`]+)`", beside):
        values = json.dumps(Redaction().redact({"x": json.loads(shown)}))
        assert "[redacted]" in values
        assert not re.search('"[xy]"(?!:)', values)
    call = re.search(r"`Redaction\((.+?)\)`\. `keys`", section)[1]  # type: ignore[index]
    rules = eval(f"Redaction({call})", {"Redaction": Redaction})  # noqa: S307 - the page is ours
    assert rules.redact({"taxId": "a", "session_id": "b", "text": "by EMP-123456"}) == {
        "taxId": "[redacted]",
        "session_id": "b",
        "text": "by [redacted]",
    }


@pytest.mark.timeout(120)
def test_the_example_runs(kafka: KafkaServer, tmp_path: Path) -> None:
    """The first block, as it stands but for the broker and the folder, brings an event to Kafka."""
    block = re.search(r"```python\n(.+?)```", PAGE, re.DOTALL)
    assert block is not None
    topic = kafka.create_topic(kafka.unused_name("audit.page"))
    script = block[1]
    for shown, real in {
        "broker:9092": kafka.bootstrap,
        "audit.events": topic,
        "/var/lib/shop/audit": str(tmp_path),
    }.items():
        assert shown in script
        script = script.replace(shown, real)
    exec(script, {})  # noqa: S102 - the page is ours
    events = list(map(json.loads, consume(kafka, topic)))
    assert [event["event_type"] for event in events] == ["emitter_started", "auth_attempt", "emitter_stopped"]
    assert [event["source_seq"] for event in events] == [1, 2, 3]
    assert re.fullmatch(r"shop/[^/]+/[0-9]+-[0-9]+", events[1]["source"])


def test_the_page_of_the_receiver_is_the_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its example makes an application; its arguments, defaults and statuses are the code's."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "receiver.md").read_text()
    block = re.search(r"```python\n(.+?)```", page, re.DOTALL)
    assert block is not None
    monkeypatch.setenv("RECEIVER_TOKEN", "a-token-of-the-receiver")
    made: dict[str, Any] = {}
    exec(block[1].replace("/var/lib/gateway/audit", str(tmp_path)), made)  # noqa: S102 - the page is ours
    assert isinstance(made["app"], Receiver)
    made["writer"].close(0)
    wanted = {
        name: "required" if each.default is each.empty else f"`{each.default!r}`"
        for name, each in inspect.signature(receiver).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    }
    assert dict(re.findall(r"^\| `([a-z_]+)` \| (required|`[A-Za-z]+`) \|", page, re.MULTILINE)) == wanted
    status = re.compile(r"^\| ([0-9]{3}) \|", re.MULTILINE)
    assert status.findall(page) == status.findall(receive.__doc__ or "")
