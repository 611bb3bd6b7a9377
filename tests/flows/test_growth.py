"""At ten times the age, with the same new data, the operator's and the auditor's commands take hardly more requests."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from custody.archive.writer import LogWriter
from custody.format.layout import Log
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.tlog.head import KnownHead
from tasks.drain.context import read_audited_heads
from tasks.metrics.state import LogTotals, State
from tests.helpers.aged import EACH, AgedStore, Maker, check_flat, use_aged
from tests.helpers.commands import Command, custody

__all__ = ["custody"]

Aged = tuple[AgedStore, AgedStore]
LOG = Log("audit", 0)


@pytest.fixture(autouse=True)
def _opened(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open archives that are made here, and neither Kafka nor AWS."""
    del custody
    use_aged(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("status",), 1),
        (("show", "audit/0"), 0),
        (("show", "audits/0"), 0),
        (("checkpoint",), 0),
        (("checkpoint", "audits/0"), 0),
    ],
)
def test_a_command(
    custody: Command, aged: Aged, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], code: int
) -> None:
    """It reads what is new, and finds where that begins without going through what is old."""

    def run(store: AgedStore) -> None:
        monkeypatch.setenv("CUSTODY_ARCHIVE", store.url)
        monkeypatch.setenv("CUSTODY_KEYS", store.keys)
        assert custody(*command).code == code

    check_flat(run, *aged)


def test_metrics(custody: Command, aged: Aged, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is not read again."""

    def run(store: AgedStore) -> None:
        size = store.spec.statements - 5
        totals = LogTotals(size, "", {"query_executed": size * EACH}, complete=True)
        state = State(store.spec.archive, store.spec.begin.timestamp(), {"audit/0": totals})
        Path("state.json").write_bytes(msgspec.json.encode(state))
        monkeypatch.setenv("CUSTODY_ARCHIVE", store.url)
        monkeypatch.setenv("CUSTODY_KEYS", store.keys)
        monkeypatch.setenv("CUSTODY_METRICS__STATE", "state.json")
        assert f" {store.spec.statements * EACH}.0\n" in custody("metrics").out

    check_flat(run, *aged)


def test_a_writer_begins(aged: Aged) -> None:
    """A drain finds and checks the end of a log by the newest audit alone, and needs fewer requests by Kafka's head."""

    def begin(store: AgedStore, *known: KnownHead) -> None:
        trust, identity = open_trust([store.keys]), Maker(store.spec, LOG).identity
        heads = read_audited_heads(store, store.spec.archive, trust)
        signer = open_signers(store.keys, datetime.now(UTC)).hmac()
        writer = LogWriter(store, store.spec.archive, identity, signer=signer, trust=trust, writer="test")
        writer.open([heads[str(LOG)], *known])
        assert writer.tip.head == store.nodes(LOG).head(store.spec.statements)

    check_flat(begin, *aged)
    by_audit = aged[1].requests.total
    head = aged[1].nodes(LOG).head(aged[1].spec.statements)
    check_flat(lambda store: begin(store, KnownHead(head.size, head.root, "Kafka")), aged[1], aged[1])
    assert aged[1].requests.total <= by_audit < 16
