"""A log without news: what a run asks the archive for, and that nothing is signed without the checks of its end."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.writer import Entry, LogWriter
from custody.errors import CustodyError, Fenced, HeadRollback, StoreError
from custody.format.layout import Log
from custody.tlog.head import KnownHead
from tasks.drain import loop, resume
from tasks.drain.run import drain_and_index, drain_logs
from tasks.settings import SearchSettings
from tests.helpers.asked import count_calls
from tests.helpers.environment import shifted
from tests.helpers.search import delete_indices
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.tasks.drain.sites import Site, another_writer, archived, events, make_site, send, until

HEARTBEAT = 3600
LOGS = 3


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return make_site(kafka, tmp_path, HEARTBEAT)


@pytest.fixture
def topic(site: Site) -> str:
    topic = site.kafka.create_topic(site.kafka.unused_name("quiet"), LOGS)
    producer = site.kafka.producer()
    for partition in range(LOGS):
        send(producer, topic, events(5, partition), partition=partition)
    return topic


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, topic: str) -> Counter[str]:
    """Count the calls to the archive that are about statements and checkpoints of the logs."""
    return count_calls(monkeypatch, f"manifests/{topic}/", f"checkpoints/{topic}/")


def test_what_a_run_asks_of_a_log_without_news(site: Site, topic: str, asked: Counter[str]) -> None:
    """It reads the newest statement, and looks for the next one; with `once`, also for the checkpoint of the head."""
    site.drain(topic)
    sizes = {name: result.size for name, result in site.drain(topic).items()}
    asked.clear()
    quiet = site.drain(topic)
    assert +asked == {"read": LOGS, "exists": 2 * LOGS}
    assert {name: (result.outcome, result.statements) for name, result in quiet.items()} == dict.fromkeys(
        sizes, ("drained", 0)
    )
    assert {name: result.size for name, result in quiet.items()} == sizes


def test_the_indexer_beside_it_asks_nothing(
    site: Site, topic: str, asked: Counter[str], elastic: ElasticsearchServer
) -> None:
    """Beside a drain, a log without news costs the archive nothing more if it is indexed."""
    search = SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0, days=36_500)
    settings = site.settings(topic).model_copy(update={"search": search})
    drain_and_index(settings, once=True)
    asked.clear()
    drained, indexed = drain_and_index(settings, once=True)
    assert +asked == {"read": LOGS, "exists": 2 * LOGS}
    assert [(each.log, each.sequence, each.problem) for each in indexed] == [
        (each.log, each.size, None) for each in drained
    ]
    delete_indices(settings)


def test_a_log_with_a_heartbeat_due_is_opened_with_all_checks(
    site: Site, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A glance is not enough then, whether the heartbeat is written or not."""
    site.drain(topic)
    opened = _logs_of(monkeypatch, "open")
    assert {result.statements for result in site.drain(topic).values()} == {0}
    assert opened == []
    for module in (loop, resume):
        monkeypatch.setattr(module, "datetime", shifted(timedelta(seconds=HEARTBEAT)))
    assert {result.statements for result in site.drain(topic).values()} == {1}
    assert len(opened) == LOGS
    site.read()


def test_no_checkpoint_of_a_log_that_was_longer(site: Site, topic: str) -> None:
    """A run that owes a checkpoint looks at all that is behind the end first. It fails if more was signed."""
    size = site.drain(topic)[f"{topic}/0"].size
    folder = Path(site.archive)
    (checkpoint,) = folder.glob(f"checkpoints/{topic}/0/*")
    checkpoint.unlink()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    other = another_writer(site, Log(topic, 0), str(copy))
    other.open()
    offset = other.next_offset or 0
    for _ in range(2):
        other.append(Entry(first_offset=offset, next_offset=offset))
    behind = f"manifests/{topic}/0/{size + 1:012}.json"
    shutil.copy(copy / behind, folder / behind)
    results = site.drain(topic)
    assert {name: result.outcome for name, result in results.items()} == {
        f"{topic}/0": "failed", f"{topic}/1": "drained", f"{topic}/2": "drained",
    }  # fmt: skip
    assert "is missing, but" in str(results[f"{topic}/0"].problem)
    assert not checkpoint.exists()


@pytest.mark.parametrize("remembers", [True, False], ids=["the offset", "nothing"])
def test_a_log_with_records_is_opened_with_all_checks(
    site: Site, topic: str, monkeypatch: pytest.MonkeyPatch, *, remembers: bool
) -> None:
    """If records wait, or if the group remembers no offset, a run does not begin with a glance."""
    glances = _logs_of(monkeypatch, "glance")
    site.drain(topic)
    if remembers:
        send(site.kafka.producer(), topic, events(5, 9), partition=1)
    else:
        site.group = site.kafka.unused_name("group")
    glances.clear()
    site.drain(topic)
    assert sorted(glances) == ([f"{topic}/0", f"{topic}/2"] if remembers else [])


@pytest.mark.parametrize(("error", "outcome"), [(HeadRollback, "failed"), (Fenced, "fenced"), (StoreError, "drained")])
def test_a_checkpoint_that_cannot_be_put(
    site: Site, topic: str, error: type[CustodyError], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log fails if another history was signed. Otherwise its records are archived all the same."""

    def refuse(*_: object) -> None:
        raise error("no checkpoint")

    monkeypatch.setattr("tasks.drain.appends.put_checkpoint", refuse)
    results = site.drain(topic).values()
    assert {(result.outcome, result.events) for result in results} == {(outcome, 5)}


def test_records_that_come_after_a_glance(site: Site, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are archived by the same run, after all checks."""
    site.drain(topic)
    results, sent = _drain_during(site, topic, monkeypatch)
    assert {result.outcome for result in results} == {"drained"}
    assert sum(result.events for result in results) == len(sent)
    assert site.read()[f"{topic}/0"].events[-len(sent) :] == archived(sent)


def test_a_writer_that_nobody_remembers(site: Site, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement behind a slot that was passed over is not seen by a glance: the run is fenced, and the next goes on.

    The writer of that statement died before it committed its offset.
    """
    before = site.drain(topic)[f"{topic}/0"]
    log = Log(topic, 0)
    other = another_writer(site, log)
    other.open([KnownHead(before.size, bytes.fromhex(before.root), "a test")])
    other.tip = other.tip.pass_over("00" * 32)
    offset = other.next_offset or 0
    other.append(Entry(first_offset=offset, next_offset=offset))
    results, sent = _drain_during(site, topic, monkeypatch)
    of_log = next(result for result in results if result.log == str(log))
    assert (of_log.outcome, of_log.events) == ("fenced", 0)
    after = site.drain(topic)[str(log)]
    assert (after.outcome, after.events) == ("drained", len(sent))
    assert site.read(3)[str(log)].events[-len(sent) :] == archived(sent)


def _logs_of(monkeypatch: pytest.MonkeyPatch, method: str) -> list[str]:
    """Return the logs for whose writers a method is called from now on."""
    logs: list[str] = []
    real = getattr(LogWriter, method)

    def call(self: LogWriter, *args: Any) -> Any:
        logs.append(str(self.log))
        return real(self, *args)

    monkeypatch.setattr(LogWriter, method, call)
    return logs


def _drain_during(site: Site, topic: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """Send records to the first log after a run has glanced at all of them; return its results, and what was sent."""
    opened: list[Log] = []
    real = resume.open_log

    def open_log(*args: Any) -> Any:
        run = real(*args)
        opened.append(run.writer.log)
        return run

    monkeypatch.setattr(resume, "open_log", open_log)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(drain_logs, site.settings(topic, flush_seconds=1), seconds=8)
        until(lambda: len(opened) == LOGS)
        sent = send(site.kafka.producer(), topic, events(6, 8))
        return run.result(60), sent
