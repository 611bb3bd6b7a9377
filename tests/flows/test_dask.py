"""Flows on a Dask cluster of two workers: the same archive as with threads, and nothing lost with a worker.

Longer than 5 seconds, because two workers start, and each imports Prefect.
"""

import gzip
import importlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import distributed
import psutil
import pytest
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from distributed.scheduler import KilledWorker, NoWorkerError
from prefect import task
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from custody.archive.writer import create_archive
from custody.errors import ConfigurationError, CustodyError
from custody.format.layout import Log
from custody.keys.keyring import new_keyring
from custody.store.open import open_store
from custody.verify.run import verify
from flows.audit import audit
from flows.backfill import backfill
from flows.cluster import cluster_errors, cluster_runner
from flows.drain import drain
from flows.index import index
from flows.operate.sample import sample_events
from flows.runners import _Here, run_parallel
from tasks.drain import loop
from tasks.drain.run import drain_logs
from tasks.settings import Settings
from tasks.spread import DaskSettings
from tests.helpers.environment import clear_settings
from tests.helpers.reading import read_archive_records
from tests.helpers.search import delete_indices, document_id, documents
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports

PARTITIONS = 3
EVENTS = 300
NOBODY: Any = None
UNPROFILED = {"distributed.worker.profile.enabled": False}
"""Of workers that an operator starts, as docs/machines.md has it."""
ANSWERED = ("elastic_transport:Transport.perform_request", "/_bulk", "after")
"""Where documents were created, and who asked for that has not heard of it (`Kill`)."""
SECRETS = ("passphrase-of-the-keyring", "prefect:credentials-of-its-api")


class Sent(SchedulerPlugin):
    """Keeps what the scheduler is handed, as it is kept there and sent to workers."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.tasks: list[bytes] = []

    def transition(self, key: Any, start: str, finish: str, *_: Any, stimulus_id: str, **more: Any) -> None:  # noqa: ARG002
        if finish == "processing":
            self.tasks.append(cloudpickle.dumps(self.scheduler.tasks[key].run_spec))


class Kill(WorkerPlugin):
    """Kills a worker with -9 at a call of a function: the first worker that gets there, and no other.

    Args:
        where: the function, `package.module:function` or `package.module:Class.method`.
        wants: what one of its arguments, as text, has in it.
        at: whether the call is not begun, or done.
        mark: a file that does not exist; it does once the worker is to be killed.
    """

    def __init__(self, where: str, wants: str, at: str, mark: Path) -> None:
        self.where, self.wants, self.at, self.mark = where, wants, at, mark
        self.owner: Any = None
        self.inner: Any = None

    def setup(self, worker: Any) -> None:  # noqa: ARG002 - the signature is Dask's
        """Wrap the function, in a worker."""
        module, _, path = self.where.partition(":")
        self.owner = importlib.import_module(module)
        *owners, name = path.split(".")
        for each in owners:
            self.owner = getattr(self.owner, each)
        self.inner = getattr(self.owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            wanted = any(self.wants in str(each) for each in (*arguments, *named.values()))
            if wanted and self.at == "before":
                self.kill()
            result = self.inner(*arguments, **named)
            if wanted and self.at == "after":
                self.kill()
            return result

        setattr(self.owner, name, call)

    def kill(self) -> None:
        """Kill this process, if it is the first."""
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def teardown(self, worker: Any) -> None:  # noqa: ARG002 - the signature is Dask's
        """Undo it."""
        setattr(self.owner, self.where.rpartition(":")[2].rpartition(".")[2], self.inner)


class Site:
    """A folder of settings, which the processes of the cluster read too, with a topic and its events."""

    def __init__(self, folder: Path, kafka: KafkaServer) -> None:
        self.folder, self.kafka, self.file = folder, kafka, folder / "custody.toml"
        self.cluster: Any = None
        self.cluster_of_runs = ""
        self.sent: Sent
        new_keyring(folder / "keyring.json", datetime.now(UTC) - timedelta(days=1), SECRETS[0])

    def topic(self) -> str:
        """Make a topic, and produce its events."""
        topic = self.kafka.create_topic(self.kafka.unused_name("audit.dask"), PARTITIONS)
        producer = self.kafka.producer()
        for partition in range(PARTITIONS):
            for value in sample_events(EVENTS, partition, datetime.now(UTC) - timedelta(hours=1)):
                producer.produce(topic, value, partition=partition)
        assert producer.flush(30) == 0
        return topic

    def use(self, archive: str, topic: str, runner: str, more: str = "", *, tables: bool = False) -> Path:
        """Write the settings for an archive, which is created if it is new, and return its folder."""
        spread = f'workers = 2\ntask_runner = "{runner}"\n'
        self.file.write_text(
            f'archive = "{self.folder / archive}"\nkeys = "file:{self.folder}/keyring.json"\n'
            f'[kafka]\nbootstrap_servers = "{self.kafka.bootstrap}"\ntopics = ["{topic}"]\ngroup = "{topic}"\n'
            f"[drain]\nbatch_events = 20\nsegment_bytes = 20000\n{spread}"
            f"[audit]\npiece_statements = 2\nreport = false\ntables = {str(tables).lower()}\n{spread}"
            f"[backfill]\n{spread}"
            f"[dask]\n{self.cluster_of_runs}\n{more}"
        )
        folder = self.folder / archive
        if not folder.exists():
            settings = Settings()
            create_archive(open_store(settings.archive), settings.signers(datetime.now(UTC)).both)
        return folder

    @contextmanager
    def killed(self, *points: tuple[str, str, str]) -> Iterator[None]:
        """Kill a worker at each of these points (`Kill`), all of which are reached meanwhile."""
        # They stay: a worker that starts late may still have the wrapper, and must live.
        folder = Path(tempfile.mkdtemp(prefix="killed-", dir=self.folder))
        marks = {f"{folder.name}-{number}": folder / str(number) for number in range(len(points))}
        with distributed.Client(self.cluster, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            for (name, mark), point in zip(marks.items(), points, strict=True):
                client.register_plugin(Kill(*point, mark), name=name)
            try:
                yield
                assert all(mark.exists() for mark in marks.values()), "each point was reached"
            finally:
                # The last wrapper first: each puts back what it found.
                for name in reversed(marks):
                    client.unregister_worker_plugin(name)

    def judge(self, allowed: Collection[str] = ()) -> int:
        """Return how many events the archive of the settings holds, after the verifier has read all of it."""
        settings = Settings()
        report = verify(open_store(settings.archive), settings.own_trust(), now=datetime.now(UTC), workers=0)
        assert {finding.finding for finding in report.findings} <= set(allowed), list(report.findings)
        return sum(log.events for log in report.logs)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaServer, prefect_server: None) -> Iterator[Site]:  # noqa: ARG001
    """A cluster of two workers, who have custody's settings, the passphrase and Prefect's credentials by themselves."""
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("CUSTODY_")]:
            patched.delenv(name)
        made = Site(tmp_path_factory.mktemp("dask"), kafka)
        patched.setenv("CUSTODY_CONFIG", str(made.file))
        patched.setenv("CUSTODY_KEYRING_PASSPHRASE", SECRETS[0])
        # Workers that are killed leave their temporary files.
        patched.setenv("TMPDIR", str(made.folder))
        patched.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        patched.setenv("PREFECT_API_AUTH_STRING", SECRETS[1])
        with (
            temporary_settings({PREFECT_API_AUTH_STRING: SECRETS[1]}),
            distributed.LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0, config=UNPROFILED
            ) as cluster,
        ):
            made.cluster, made.cluster_of_runs = cluster, f'address = "{cluster.scheduler_address}"'
            made.sent = Sent(cluster.scheduler)
            cluster.scheduler.add_plugin(made.sent)
            yield made


def events_of(archive: Path) -> dict[str, list[tuple[int, bytes]]]:
    return {name: log.events for name, log in read_archive_records(archive).items()}


@pytest.mark.timeout(800)
def test_the_same_archive_as_with_threads(site: Site, elastic: ElasticsearchServer) -> None:
    """A drain on Dask writes the archive that one on threads writes. Audit, index and backfill read all of it there.

    What is sent to workers holds no secret.
    """
    topic, now = site.topic(), datetime.now(UTC)
    archives = {}
    for runner in ("threads", "dask"):
        archives[runner] = site.use(runner, topic, runner)
        assert drain(once=True, return_state=True).is_completed()
        assert site.judge() == PARTITIONS * EVENTS
    threads, dask = (events_of(archive) for archive in archives.values())
    assert threads == dask
    assert [len(events) for events in dask.values()] == [EVENTS] * PARTITIONS

    ended = audit(return_state=True)
    assert f"verified. {PARTITIONS * EVENTS:,} events" in str(ended.message)
    copy = site.folder / "copy"
    ended = backfill(now - timedelta(days=1), now, target="folder", folder=str(copy), return_state=True)
    assert f"{PARTITIONS * EVENTS:,} copied" in str(ended.message)
    files = sorted((copy / topic).rglob("*.gz"))
    assert [line for path in files for line in gzip.decompress(path.read_bytes()).splitlines()] == [
        value for events in dask.values() for _, value in events
    ]
    search = f'url = "{elastic.url}"\nreplicas = 0\nprefix = "{elastic.unused_prefix()}"\n'
    site.use("dask", topic, "dask", f'[search]\nworkers = 2\ntask_runner = "dask"\n{search}')
    try:
        ended = index(return_state=True)
        assert ended.is_completed(), ended.message
        assert len(documents(Settings())) == PARTITIONS * EVENTS
    finally:
        delete_indices(Settings())

    sent = site.sent.tasks
    assert sum(topic.encode() in task for task in sent) >= 8, "two shares of each flow at least"
    assert [secret for secret in SECRETS if any(secret.encode() in task for task in sent)] == []


def test_a_worker_that_is_killed_costs_time_alone(site: Site) -> None:
    """Dask runs a dead worker's share again, and each event is archived once, in order, by this run or the next.

    Six seconds of a run are enough to see its first statement, and to kill a worker that is not done.
    """
    topic = site.topic()
    archive = site.use("killed", topic, "dask")
    begun = len(site.sent.tasks)

    def kill() -> None:
        while not list((archive / "manifests").rglob("*.json")):
            threading.Event().wait(0.02)
        busy = next(state for state in site.cluster.scheduler.workers.values() if state.processing)
        psutil.Process(site.cluster.workers[busy.name].pid).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ended = drain(seconds=6, return_state=True)
    killer.join()
    assert ended.is_completed(), ended.message
    assert len(site.sent.tasks) - begun == 3, "two shares, and one of them again"
    assert drain(once=True, return_state=True).is_completed()
    assert site.judge(allowed=["orphan"]) == PARTITIONS * EVENTS
    assert [[offset for offset, _ in events] for events in events_of(archive).values()] == [
        list(range(EVENTS)) for _ in range(PARTITIONS)
    ]


@pytest.fixture(scope="module")
def drained(site: Site) -> str:
    """The topic of an archive with that name, which tests copy where they write."""
    topic = site.topic()
    site.use("drained", topic, "threads")
    with pytest.MonkeyPatch.context() as patched:
        # By small reads, each log gets several segments, and so several tables and files.
        patched.setattr(loop, "READ_RECORDS", 100)
        assert sum(result.events for result in drain_logs(Settings(), once=True)) == PARTITIONS * EVENTS
    return topic


def audited(archive: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what the first audit says, without times and what has one in it, and the tables that it made."""
    said = json.loads((archive / "audits" / f"{0:012}.json").read_bytes().splitlines()[0])
    for name in ("started_at", "sealed_at", "writer", "objects"):
        del said[name]
    for marks in said["marks"].values():
        marks.pop("reread_at")
    tables = archive / "tables"
    return said, {str(path.relative_to(tables)): path.read_bytes() for path in tables.rglob("*.parquet")}


def test_an_audit_whose_workers_are_killed(site: Site, drained: str) -> None:
    """An audit says the same as on threads, and makes the same tables, though workers die in the middle of pieces.

    One dies with a table put of which no list says so, and one with a piece signed that nobody has heard of.
    """
    made = {}
    for runner in ("threads", "dask"):
        shutil.copytree(site.folder / "drained", site.folder / f"audited-{runner}")
        archive = site.use(f"audited-{runner}", drained, runner, tables=True)
        create = "custody.store.folder:FolderStore.create"
        points = ((create, "tables/day=", "after"), (create, "/pieces/", "after")) if runner == "dask" else ()
        with site.killed(*points):
            ended = audit(return_state=True)
        assert f"verified. {PARTITIONS * EVENTS:,} events" in str(ended.message)
        made[runner] = audited(archive)
    assert made["threads"] == made["dask"]
    assert len(made["dask"][1]) > PARTITIONS
    assert site.judge() == PARTITIONS * EVENTS

    # All is read again, and each table is compared with its list.
    site.use("audited-dask", drained, "threads", tables=True)
    ended = audit(full=True, return_state=True)
    assert f"verified. {PARTITIONS * EVENTS:,} events" in str(ended.message)


def test_a_backfill_to_a_folder_whose_workers_are_killed(site: Site, drained: str) -> None:
    """A folder gets the files that it gets on threads, and nothing is left of one that was not finished."""
    now, made = datetime.now(UTC), {}
    for runner in ("threads", "dask"):
        site.use("drained", drained, runner)
        copy = site.folder / f"copy-{runner}"
        finish = "tasks.backfill.targets:finish_file"
        points = ((finish, "jsonl.gz", "before"), (finish, "jsonl.gz", "after")) if runner == "dask" else ()
        with site.killed(*points):
            ended = backfill(
                now - timedelta(days=1), now, target="folder", folder=str(copy), logs=[drained], return_state=True
            )
        assert ended.is_completed(), ended.message
        made[runner] = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert made["threads"] == made["dask"]
    assert len(made["dask"]) > PARTITIONS + 1
    assert site.judge() == PARTITIONS * EVENTS


def run_into(elastic: ElasticsearchServer, site: Site, drained: str, runner: str, flow: Any, *arguments: Any) -> Any:
    """Run a flow that writes documents of `drained` into indices of its own, and return them by id."""
    search = f'url = "{elastic.url}"\nreplicas = 0\nbulk_bytes = 10000\nprefix = "{elastic.unused_prefix()}"\n'
    site.use("drained", drained, runner, f'[search]\nworkers = 2\ntask_runner = "{runner}"\n{search}')
    try:
        ended = flow(*arguments, return_state=True)
        assert ended.is_completed(), ended.message
        written = documents(Settings())
    finally:
        delete_indices(Settings())
    for document in written.values():
        del document["_index"]
    return written


@pytest.fixture(scope="module")
def indexed(site: Site, drained: str, elastic: ElasticsearchServer) -> dict[str, Any]:
    """The documents of all events, by id, as the index writes them on threads."""
    written: dict[str, Any] = run_into(elastic, site, drained, "threads", index)
    logs = [Log(drained, partition) for partition in range(PARTITIONS)]
    assert written.keys() == {document_id(log, offset) for log in logs for offset in range(EVENTS)}
    return written


def test_an_index_whose_workers_are_killed(
    site: Site, drained: str, elastic: ElasticsearchServer, indexed: dict[str, Any]
) -> None:
    """The index writes the documents that it writes on threads, each once.

    One worker dies after a request of which it did not get the answer, and one before it could say how far it is.
    """
    with site.killed(ANSWERED, ("tasks.search.index:put_cursor", drained, "before")):
        written = run_into(elastic, site, drained, "dask", index)
    assert written == indexed
    assert site.judge() == PARTITIONS * EVENTS


def test_a_backfill_to_elasticsearch_whose_worker_is_killed(
    site: Site, drained: str, elastic: ElasticsearchServer, indexed: dict[str, Any]
) -> None:
    """A backfill writes the documents that the index writes, each once, though a worker dies without an answer."""
    now = datetime.now(UTC)
    with site.killed(ANSWERED):
        written = run_into(elastic, site, drained, "dask", backfill, now - timedelta(days=1), now)
    assert written == indexed
    assert site.judge() == PARTITIONS * EVENTS


def test_a_run_starts_workers_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an address a run starts its workers, whom Dask does not profile. What is said there is encrypted.

    The scheduler is told to end the run when all of them have been gone for five minutes.
    """

    @task
    def repeated() -> tuple[set[str], float]:
        worker = distributed.get_worker()
        client: Any = worker.client
        wait = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.no_workers_timeout)
        return set(worker.periodic_callbacks), wait

    monkeypatch.setattr(site, "cluster_of_runs", "adaptive = true")
    site.use("own", "nothing", "dask")
    caplog.set_level("INFO", "distributed")
    for done in run_parallel(repeated, [(), ()], "dask", 1):
        assert not isinstance(done, CustodyError)
        names, wait = done
        assert names & {"heartbeat", "profile"} == {"heartbeat"}
        assert wait == 300
    assert "Register worker addr: tls://127.0.0.1" in caplog.text
    # The nanny of an earlier test may still say that it has closed.
    assert not re.search(r"(Scheduler at|Start Nanny at|Register worker addr): +'?tcp://", caplog.text)


def test_a_worker_that_dies_again_comes_back(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask does not drop a worker of the run that is just starting when Dask looks, 15 seconds after a death.

    The test takes those 15 seconds.
    """

    @task
    def dying(folder: str) -> int:
        died = len(list(Path(folder).iterdir()))
        if died == 1:
            (first,) = Path(folder).iterdir()
            # A worker takes a second at least to start, so it is not there when Dask looks.
            time.sleep(max(0, first.stat().st_mtime + 14.6 - time.time()))
        if died < 2:
            (Path(folder) / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return died

    monkeypatch.setattr(site, "cluster_of_runs", "")
    site.use("own", "nothing", "dask")
    assert run_parallel(dying, [(str(tmp_path),)], "dask", 1) == [2]


def test_a_cluster_that_does_not_answer_fails_in_one_line() -> None:
    """A scheduler that is not there, and one without workers, end a run after `dask.wait_seconds`."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ConfigurationError, match="does not answer") as refused:
        cluster_runner(DaskSettings(address=address, wait_seconds=0.2), 2)
    assert "\n" not in str(refused.value)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,  # type: ignore[no-untyped-call]
        pytest.raises(ConfigurationError, match="has had no worker"),
    ):
        cluster_runner(DaskSettings(address=empty.scheduler_address, wait_seconds=0.2), 2)


def test_certificates_open_a_cluster_that_takes_no_others(tmp_path: Path) -> None:
    """A scheduler with TLS is reached with certificates of its authority, and with none of another one."""
    own, other = (distributed.Security.temporary() for _ in range(2))  # type: ignore[no-untyped-call]

    def settings(security: Any, address: str) -> DaskSettings:
        files = {"ca_certs": security.tls_ca_file, "certificate": security.tls_client_cert}
        files["key_file"] = security.tls_client_key
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        paths = {name: tmp_path / name for name in files}
        return DaskSettings.model_validate({"address": address, "wait_seconds": 1, **paths})

    with distributed.LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=0, dashboard_address="127.0.0.1:0", security=own
    ) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        with pytest.raises(ConfigurationError, match="has had no worker"):
            cluster_runner(settings(own, cluster.scheduler_address), 2)
        with pytest.raises(ConfigurationError, match="does not answer"):
            cluster_runner(settings(other, cluster.scheduler_address), 2)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("kind", ["of the run", "of the settings"])
def test_a_cluster_that_cannot_be_opened_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str
) -> None:
    """Workers that do not start, and a scheduler that goes away once it has answered, end a run without traceback."""
    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(tmp_path / "archive"))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{tmp_path}/keyring.json")
    if kind == "of the settings":
        monkeypatch.setenv("CUSTODY_DASK__ADDRESS", f"tcp://127.0.0.1:{free_ports(1)[0]}")
        monkeypatch.setenv("CUSTODY_DASK__WAIT_SECONDS", "0.2")
        monkeypatch.setattr("flows.cluster._reach", lambda *_: None)

    def refuse(**_: Any) -> Any:
        raise RuntimeError("Cluster failed to start:\nNanny failed to start.")

    @task
    def never() -> None:
        raise AssertionError

    monkeypatch.setattr(distributed, "LocalCluster", refuse)
    with pytest.raises(CustodyError, match="cannot be used") as ended:
        run_parallel(never, [(), ()], "dask", 2)
    assert "Nothing is lost: the next run continues" in str(ended.value)
    assert "\n" not in str(ended.value)
    assert [record for record in caplog.records if record.exc_info and record.name.startswith("prefect")] == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KilledWorker("drain-share-1", NOBODY, 3), "4 Dask workers died while they ran it"),
        (NoWorkerError("drain-share-1", 300), "all workers of the Dask cluster are gone for 300 s"),
        (distributed.CancelledError("scheduler-restart"), "dropped a share of the work (scheduler-restart)"),
    ],
)
def test_what_ends_a_share_is_said_in_one_line(error: Exception, says: str) -> None:
    """A run that the cluster failed ends with what happened, and that the next one continues."""
    with pytest.raises(CustodyError) as ended, cluster_errors():
        raise error
    assert says in str(ended.value)
    assert "Nothing is lost: the next run continues" in str(ended.value)
    assert "\n" not in str(ended.value)


def test_a_share_is_sent_without_the_others() -> None:
    """The flow goes along with each of its tasks, and must not take the arguments of all of them."""
    assert list(_Here([1, 2])) == [1, 2]
    assert list(cloudpickle.loads(cloudpickle.dumps(_Here([1, 2])))) == []
