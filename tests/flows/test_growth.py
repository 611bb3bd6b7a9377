"""At ten times the age, with the same new data, the operator's and the auditor's commands take hardly more requests.

Nor do commands about a long time: of ten times the statements, they read ten times the rows of the index, in files.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from os import DirEntry
from pathlib import Path

import msgspec
import pytest

from custody.archive import guesses, slots
from custody.archive.writer import LogWriter
from custody.format.layout import Log
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.folder import FolderStore
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from tasks.drain.context import read_audited_heads
from tasks.metrics import collect
from tasks.metrics.state import LogTotals, State
from tasks.metrics.totals import count_logs
from tests.benchmarks.copying import copy_to_folder
from tests.helpers import aged as aged_archives
from tests.helpers.aged import DAY, EACH, MOST, PAGE, AgedStore, Maker, check_flat, make_archive, use_aged
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


@pytest.mark.parametrize(
    "command", [("show", "audit/0"), ("show", "audit/0@{offset}"), ("checkpoint",), ("evidence", "audit/0", "{offset}")]
)
def test_many_nights(custody: Command, aged: Aged, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """The audits of many nights are not listed. Here a page has four keys, so that twenty nights are many."""
    monkeypatch.setattr(aged_archives, "PAGE", 4)
    monkeypatch.setattr(guesses, "_NIGHTS", 2)

    def run(store: AgedStore) -> None:
        monkeypatch.setenv("CUSTODY_ARCHIVE", store.url)
        monkeypatch.setenv("CUSTODY_KEYS", store.keys)
        offset = Maker(store.spec, LOG).first_offset(store.spec.statements - 1)
        Path("evidence.zip").unlink(missing_ok=True)
        more = ("--output", "evidence.zip") if command[0] == "evidence" else ()
        assert custody(*(part.format(offset=offset) for part in command), *more).code == 0

    check_flat(run, *aged)


@pytest.fixture(scope="module")
def filed(aged: Aged, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, FolderStore]:
    """The same archives in folders."""
    stores = []
    for store in aged:
        folder = tmp_path_factory.mktemp("filed")
        copy_to_folder(store, folder, 1)
        stores.append(FolderStore(str(folder)))
    return stores[0], stores[1]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many names of each folder of the root are gone through."""
    counts: Counter[str] = Counter()
    scan = FolderStore._scan

    def counting(store: FolderStore, folder: str, **more: bool) -> Iterator[DirEntry[str]]:
        for entry in scan(store, folder, **more):
            counts[folder.partition("/")[0]] += 1
            yield entry

    monkeypatch.setattr(FolderStore, "_scan", counting)
    return counts


@pytest.mark.parametrize("command", ["status", "show", "checkpoint", "evidence", "writer"])
def test_a_folder_is_not_gone_through(
    custody: Command,
    aged: Aged,
    filed: tuple[FolderStore, FolderStore],
    scanned: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """In a folder, what finds the end of a long log goes through no more names of an old one than of a young one."""
    # Two days of statements would be a short log, which is listed.
    monkeypatch.setattr(slots, "_FEW", DAY)
    counts = []
    for of, store in zip(aged, filed, strict=True):
        monkeypatch.setenv("CUSTODY_ARCHIVE", store.url.removeprefix("file://"))
        monkeypatch.setenv("CUSTODY_KEYS", of.keys)
        offset = str(Maker(of.spec, LOG).first_offset(of.spec.statements - 1))
        scanned.clear()
        match command:
            case "writer":
                begin_writer(of, store)
            case "evidence":
                assert custody("evidence", "audit/0", offset, "--output", f"{of.folder.name}.zip").code == 0
            case "show":
                assert custody("show", "audit/0").code == 0
            case _:
                assert custody(command).code == (1 if command == "status" else 0)
        counts.append(scanned["manifests"])
    # The folders of the topic and of its partition.
    assert counts[1] <= MOST * counts[0] < 20


def begin_writer(aged: AgedStore, store: Store) -> None:
    trust = open_trust([aged.keys])
    heads = read_audited_heads(store, aged.spec.archive, trust)
    signer = open_signers(aged.keys, datetime.now(UTC)).hmac()
    identity = Maker(aged.spec, LOG).identity
    writer = LogWriter(store, aged.spec.archive, identity, signer=signer, trust=trust, writer="test")
    writer.open([heads[str(LOG)]])
    assert writer.tip.head == aged.nodes(LOG).head(aged.spec.statements)


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


# --- what an audit has read

SPAN = 500
"""Statements of a span of the index, as audits make them by default."""


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Aged:
    """Archives of one log, of a day and of ten, with an index of all but the last ten statements."""
    folder, end = tmp_path_factory.mktemp("indexed"), datetime.now(UTC).replace(second=0, microsecond=0)
    young, old = (make_archive(folder / f"{days}", days * DAY + 10, end=end, span=SPAN) for days in (1, 10))
    return young, old


def write_report(custody: Command, store: AgedStore) -> None:
    assert custody("report", "--output", "report.html").code == 0
    assert f"{store.spec.statements * EACH:,}" in Path("report.html").read_text()


def plan_copy(custody: Command, store: AgedStore) -> None:
    until = store.spec.begin + timedelta(minutes=store.spec.statements)
    times = "--since", store.spec.begin.isoformat(), "--until", until.isoformat()
    done = custody("backfill", "--dry-run", "--to", "folder", "--folder", "copy", *times)
    assert f"{store.spec.statements * EACH:,} events" in done.out
    assert store.requests.by_folder["HEAD", "events"] == store.spec.statements


def count_all(custody: Command, store: AgedStore) -> None:
    assert f" {store.spec.statements * EACH}.0\n" in custody("metrics").out
    Path("state.json").unlink()


@pytest.mark.parametrize("run", [write_report, plan_copy, count_all])
def test_what_an_audit_has_read_is_read_by_hundreds(
    custody: Command, indexed: Aged, monkeypatch: pytest.MonkeyPatch, run: Callable[[Command, AgedStore], None]
) -> None:
    """Ten times the statements take hardly more manifests: their rows are in two files a span, and slots are listed."""
    # Without a limit of time, which a busy machine would reach.
    monkeypatch.setattr(collect, "count_logs", lambda state, opened, logs, _: count_logs(state, opened, logs, 600))
    monkeypatch.setenv("CUSTODY_METRICS__STATE", "state.json")
    manifests = []
    for store in indexed:
        monkeypatch.setenv("CUSTODY_ARCHIVE", store.url)
        monkeypatch.setenv("CUSTODY_KEYS", store.keys)
        store.requests.clear()
        run(custody, store)
        requests = store.requests.by_folder
        manifests.append(requests["GET", "manifests"])
        spans = store.spec.statements / SPAN
        assert requests["GET", "reports"] <= 2 * spans + 6, requests
        # Metrics list the slots of each span alone, the others of all.
        assert requests["LIST", "manifests"] <= (spans if run is count_all else store.spec.statements / PAGE) + 12
    assert manifests[1] <= MOST * manifests[0], manifests
