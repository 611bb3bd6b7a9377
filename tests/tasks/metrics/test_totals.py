"""Totals are what the archive holds, whatever was counted before, and each statement is read once."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from custody.archive.reader import Holds, manifests_from
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.reasons import KINDS
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from tasks.health import kafka as health_kafka
from tasks.health.archive import open_archive
from tasks.health.model import LogHealth
from tasks.health.read import read_health
from tasks.metrics import catalogue, totals
from tasks.metrics.collect import collect, read_now
from tasks.metrics.export import show
from tasks.metrics.state import LogTotals, State, counted_heads, open_state
from tasks.metrics.totals import count_logs
from tasks.settings import AuditSettings, KafkaSettings, Settings
from tests.helpers.asked import count_calls
from tests.helpers.audit import audit
from tests.helpers.environment import clear_settings
from tests.helpers.metrics import values_of
from tests.helpers.sample import Growing, event
from tests.servers.ports import free_ports


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(health_kafka, "REQUEST_SECONDS", 0.5)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    made = Growing(tmp_path / "site")
    made.append(3)
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences that are read for totals."""
    sequences: list[int] = []

    def spy(store: Store, log: Log, sequence: int, end: int, holds: Holds[Manifest]) -> Iterator[tuple[int, Manifest]]:
        sequences.extend(range(sequence, end))
        return manifests_from(store, log, sequence, end, holds)

    monkeypatch.setattr(totals, "manifests_from", spy)
    return sequences


def settings_of(growing: Growing) -> Settings:
    (port,) = free_ports(1)
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", topics=["audit.grows"])
    return Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}", kafka=kafka)


def logs_of(growing: Growing) -> tuple[LogHealth, ...]:
    return read_now(settings_of(growing)).logs


def count(growing: Growing, state: State, logs: tuple[LogHealth, ...] | None = None, seconds: float = 60) -> LogTotals:
    """Return the totals of the log after a count."""
    settings = settings_of(growing)
    with closing(open_store(settings.archive)) as store:
        count_logs(state, open_archive(settings, store), logs or logs_of(growing), seconds)
    return state.logs[growing.log]


def stated(growing: Growing) -> dict[str, Any]:
    """Return what the statements account for, read without custody."""
    statements = [json.loads(path.read_bytes().split(b"\n")[0]) for path in growing.folder.rglob("manifests/**/*.json")]
    types: dict[str, int] = {}
    for statement in statements:
        for name, number in statement["types"].items():
            types[name] = types.get(name, 0) + number
    return {
        "size": len(statements),
        "events": types,
        "raw": sum(batch["inflated"] for statement in statements for batch in statement["batches"]),
        "gz": sum(statement["segment"]["size"] for statement in statements if statement["segment"]),
        "quarantined": sum(statement["quarantine"]["records"] for statement in statements if statement["quarantine"]),
    }


def shown(log_totals: LogTotals) -> dict[str, Any]:
    return {name: getattr(log_totals, name) for name in ("size", "events", "raw", "gz", "quarantined")}


def test_totals_are_what_the_statements_say(growing: Growing) -> None:
    """Events by type, bytes and quarantined records are those of all statements, also of empty ones."""
    growing.append(2, content=lambda offset: b"not an event" if offset % 2 else b"neither")
    counted = count(growing, State("", 0.0))
    assert shown(counted) == stated(growing)
    assert counted.complete
    assert (sum(counted.events.values()), counted.quarantined) == (15, 10)
    assert counted.reasons == {"not JSON": 10}
    assert counted.raw > counted.gz > 0


def test_each_statement_is_read_once(growing: Growing, reads: list[int]) -> None:
    """A later run reads only what is new, and comes to the same totals."""
    state = State("", 0.0)
    count(growing, state)
    assert reads == [0, 1, 2]
    count(growing, state)
    assert reads == [0, 1, 2]
    growing.append(2)
    assert shown(count(growing, state)) == stated(growing)
    assert reads == [0, 1, 2, 3, 4]


def test_an_old_archive_is_counted_over_several_runs(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without time for all counts a part. Nothing is exported before all is counted, and then all of it."""
    monkeypatch.setattr(totals, "PIECE", 2)
    growing.append(4)
    settings, state, health = settings_of(growing), State("", 0.0), read_now(settings_of(growing))
    sizes, exported = [], []
    for _ in range(3):
        # The clock when a run begins, before its first piece, and before its second one.
        clock = SimpleNamespace(monotonic=iter([0.0, 0.0, 9.0]).__next__, time=time.time)
        monkeypatch.setattr(totals, "time", clock)
        samples = collect(settings, state, health, seconds=1).samples
        sizes.append(state.logs[growing.log].size)
        exported.append(any(sample.metric.kind == "counter" for sample in samples))
    assert (sizes, exported) == ([2, 4, 7], [False, False, True])
    assert shown(state.logs[growing.log]) == stated(growing)


@pytest.mark.parametrize("change", ["shorter", "another root", "another archive", "another history"])
def test_another_log_is_counted_again(growing: Growing, reads: list[int], change: str) -> None:
    """A log that went back, was forked, or is of another archive is counted from its first statement on."""
    state = State("", 0.0)
    before = count(growing, state)
    logs = logs_of(growing)
    if change == "shorter":
        before.size += 5
    elif change == "another root":
        before.root = "00" * 32
    elif change == "another archive":
        state.archive = "another"
    else:
        before.root = "00" * 32
        growing.append(1)
        logs = logs_of(growing)
    before.raw += 1_000_000
    reads.clear()
    assert shown(count(growing, state, logs)) == stated(growing)
    assert sorted(set(reads)) == list(range(stated(growing)["size"]))


def test_a_log_that_cannot_be_read_keeps_its_totals(growing: Growing) -> None:
    """A head that is not known is no head of 0: a total would fall, and Prometheus would count all of it again."""
    state = State("", 0.0)
    before = shown(count(growing, state))
    (health,) = logs_of(growing)
    assert shown(count(growing, state, (replace(health, size=0, root=""),))) == before


@pytest.mark.parametrize("bad", [0, 5])
def test_totals_of_an_older_version(growing: Growing, reads: list[int], bad: int) -> None:
    """A state without reasons is kept. Only a log with quarantined records is counted again, for their reasons."""
    path = growing.root / "metrics.json"
    growing.append(bool(bad), content=lambda _: b"{}")
    with open_state(path) as state:
        state.last_success["drain"] = 7.0
        count(growing, state)
    document = json.loads(path.read_bytes())
    del document["logs"][growing.log]["reasons"]
    path.write_text(json.dumps(document))
    reads.clear()
    with open_state(path) as state:
        assert state.last_success == {"drain": 7.0}
        counted = count(growing, state)
    assert shown(counted) == stated(growing)
    assert sum(counted.reasons.values()) == counted.quarantined == bad
    assert len(reads) == (4 if bad else 0)


def test_reasons_that_cannot_be_read(growing: Growing) -> None:
    """Records whose object is gone count all the same, with a reason that is not known, and are not counted again."""
    growing.append(2, content=lambda _: b"{")
    removed, _ = growing.folder.rglob("quarantine/**/*.gz")
    removed.unlink()
    state = State("", 0.0)
    for _ in range(2):
        counted = count(growing, state)
        assert (counted.quarantined, counted.reasons) == (10, {"not known": 5, "not JSON": 5})


def test_each_kind_is_exported(growing: Growing) -> None:
    """Each kind of reason has its total, also before its first record: a total that begins above 0 has no increase."""
    growing.append(1, content=lambda _: b"{")
    settings = settings_of(growing)
    samples = collect(settings, State("", 0.0), read_now(settings)).samples
    values = {sample.labels: sample.value for sample in samples if sample.metric == catalogue.QUARANTINED}
    assert values == {(growing.log, kind): 5 * (kind == "not JSON") for kind in KINDS}


def test_types_are_bounded(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that custody does not know become one label."""
    monkeypatch.setattr(totals, "EVENT_TYPES", {})
    assert count(growing, State("", 0.0)).events == {"other": 15}


def test_a_state_that_is_none_is_counted_again(growing: Growing, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no state, or one of another version, are replaced, with one line in the log."""
    path = growing.root / "state" / "metrics.json"
    with open_state(path) as state:
        count(growing, state)
    for damaged in (
        b"",
        b"{",
        b'{"archive":"a","since":0,"more":1}',
        b'{"archive":"a","since":0,"steps":[{}]}',
        b"\xff",
    ):
        path.write_bytes(damaged)
        caplog.clear()
        with open_state(path) as state:
            assert (state.archive, state.logs, len(caplog.records)) == ("", {}, 1)
            count(growing, state)
    with open_state(path) as state:
        assert shown(state.logs[growing.log]) == stated(growing)


@pytest.mark.parametrize("spoiled", [False, True])
def test_what_a_signed_audit_covers_is_counted_by_its_rows(
    growing: Growing, reads: list[int], monkeypatch: pytest.MonkeyPatch, *, spoiled: bool
) -> None:
    """An archive that was never counted gives the same totals, and of what is covered only quarantine is read."""
    monkeypatch.setattr(totals, "PIECE", 1)
    growing.append(20)
    growing.append(2, content=lambda offset: b"not an event" if offset % 2 else event(offset))
    slot = growing.folder / "manifests" / growing.log / f"{growing.size:012}.json"
    slot.write_bytes(b"no manifest")
    growing._statements += 1
    growing.append(20)
    audit(settings_of(growing).model_copy(update={"audit": AuditSettings(piece_statements=10, report=False)}))
    growing.append(2)
    slot.unlink()
    if spoiled:
        for path in (growing.folder / "reports/index/statements").glob("*-manifests-*"):
            path.unlink()
    counted = count(growing, State("", 0.0))
    assert shown(counted) == stated(growing) | {"size": growing.size}
    assert counted.reasons == {"not JSON": 5}
    assert len(reads) == (growing.size if spoiled else 2 + 2)


def test_what_is_gone_since_an_audit_is_not_counted(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the index stands for a statement that is there."""
    monkeypatch.setattr(totals, "PIECE", 1)
    growing.append(20)
    audit(settings_of(growing).model_copy(update={"audit": AuditSettings(piece_statements=10, report=False)}))
    growing.append(2)
    for sequence in (5, 12):
        (growing.folder / "manifests" / growing.log / f"{sequence:012}.json").unlink()
    assert shown(count(growing, State("", 0.0))) == stated(growing) | {"size": growing.size}


# --- reading the heads of many logs each minute


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, growing: Growing) -> Counter[str]:
    """Count the calls to the archive that are about statements and checkpoints of the log."""
    return count_calls(monkeypatch, f"manifests/{growing.log}/", f"checkpoints/{growing.log}/")


def events_in(text: bytes) -> float:
    return sum(value for key, value in values_of(text).items() if key[0] == "custody_events_archived_total")


def test_a_log_without_news_takes_two_requests(growing: Growing, asked: Counter[str]) -> None:
    """Its newest statement is read, and the next one looked for, however many it has: it was counted before."""
    growing.append(12)
    settings = settings_of(growing)
    first = show(settings)
    asked.clear()
    again = show(settings)
    assert +asked == {"read": 1, "exists": 1}
    before, after = values_of(first), values_of(again)
    assert after.keys() == before.keys()
    assert ("custody_head_age_seconds", growing.log) in after
    assert events_in(again) == events_in(first) == sum(stated(growing)["events"].values())


def test_what_came_since_is_counted(growing: Growing, asked: Counter[str]) -> None:
    """A log that has grown, or of which the newest statement is gone, is looked at as at first."""
    settings = settings_of(growing)
    show(settings)
    growing.append(1)
    asked.clear()
    assert events_in(show(settings)) == sum(stated(growing)["events"].values())
    assert asked["list"] > 0
    (growing.folder / f"manifests/{growing.log}/{3:012}.json").unlink()
    asked.clear()
    assert events_in(show(settings)) == sum(stated(growing)["events"].values())
    assert asked["list"] > 0


def test_a_file_of_heads_that_cannot_be_used(growing: Growing, tmp_path: Path) -> None:
    """Whatever stands there, no head is known; a root that is wrong, or of another log, changes no result."""
    file = tmp_path / "state.json"
    assert counted_heads(file) == {}
    for data in (b"", b"{", b"[]", b'{"archive":"","since":0,"logs":{"a/0":{"size":1,"root":"xx"}}}', b"\xff"):
        file.write_bytes(data)
        assert counted_heads(file) == {}
    settings = settings_of(growing)
    whole = read_health(settings, datetime.now(UTC)).logs[0]
    for head in (KnownHead(2, bytes(32), "a test"), KnownHead(9, bytes(32), "a test"), KnownHead(3, None, "a test")):
        (log,) = read_health(settings, datetime.now(UTC), counted={growing.log: head}).logs
        assert (log.size, log.root, log.sealed_at, log.next_offset) == (
            whole.size, whole.root, whole.sealed_at, whole.next_offset,
        )  # fmt: skip
