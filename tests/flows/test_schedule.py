"""`custody up` with real processes: scheduled runs appear, drain a real Kafka, and come back after being killed."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from custody.errors import ConfigurationError
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from flows.operate.deploy import DEPLOYMENTS
from flows.operate.sample import sample_events
from flows.operate.up import up
from tests.flows.installation import ROOT, Installation, command, ended
from tests.helpers.inbox import Inbox, inbox
from tests.servers.kafka import KafkaServer

INTERVAL = 15
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


class Drained(Installation):
    """An installation with an archive, and with a topic that the schedule drains."""

    def __init__(self, folder: Path, kafka: KafkaServer, database: Path) -> None:
        self.kafka = kafka
        self.topic = kafka.create_topic(kafka.unused_name("audit.schedule"), 2)
        self.produced: list[bytes] = []
        settings = f"""
            archive = "archive"
            keys = "file:keyring.json"
            [kafka]
            bootstrap_servers = "{kafka.bootstrap}"
            topics = ["{self.topic}"]
            group = "{self.topic}"
            [drain]
            seconds = 8
            flush_seconds = 2
            """
        # The schedule that operators get, but for how often the first flow, the drain, runs.
        schedule = DEPLOYMENTS.read_text()
        each_minute = r'- cron: "\* \* \* \* \*"\n +timezone: UTC\n'
        often = re.sub(each_minute, f"- interval: {INTERVAL}\n", schedule, count=1)
        assert often != schedule
        super().__init__(folder, settings, often, database)
        self.run("init")

    def run(self, *arguments: str) -> str:
        """Run a command of custody's and return what it prints."""
        command = [sys.executable, "-c", "from custody.cli.main import main; main()", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def produce(self, number: int) -> None:
        """Send that many new events to Kafka."""
        producer = self.kafka.producer()
        begin = len(self.produced)
        for value in sample_events(number, begin, BEGIN):
            producer.produce(self.topic, value)
            self.produced.append(value)
        assert producer.flush(30) == 0

    def archived(self) -> int:
        """Return how many events the archive holds, which verifies at any moment."""
        store = open_store(str(self.folder / "archive"))
        report = verify(store, open_trust([f"file:{self.folder}/keyring.json"]), now=datetime.now(UTC), workers=0)
        assert [finding for finding in report.findings if finding.severity > 3] == []
        return sum(log.events for log in report.logs)

    def wait_for_archived(self, seconds: float = 240) -> None:
        """Wait until scheduled runs have archived all that was produced."""
        self.wait(lambda: self.archived() >= len(self.produced), seconds, f"{len(self.produced)} events to be archived")

    def drain(self) -> None:
        """Run the deployed drain now, until it has ended."""
        self.finish(self.start("drain/drain-every-minute"))

    def audit(self, **parameters: object) -> Any:
        """Run the deployed audit now, and return its flow run once it has ended."""
        return self.finish(self.start("audit/audit-nightly", **parameters))

    def kill_in_mid_run(self, *, with_up: bool) -> None:
        """Kill worker, flow and server with -9 while a run drains, and `up` too if asked."""
        begun = f"{len(self.produced)} and more"
        segments = len(list((self.folder / "archive").rglob("*.gz")))
        self.produce(500)
        self.wait(
            lambda: self.running() and len(list((self.folder / "archive").rglob("*.gz"))) > segments,
            180,
            f"a run to be in the middle of draining {begun}",
        )
        self.produce(500)
        doomed: list[psutil.Process] = []

        def complete() -> bool:
            # A run may end meanwhile, and then the next one drains what is left.
            doomed[:] = self.children()
            commands = " ".join(command(process) for process in doomed)
            return all(part in commands for part in ("server start", "worker start", "prefect.engine"))

        self.wait(complete, 180, "server, worker and a run at the same time")
        if with_up and self.process is not None:
            self.process.kill()
            self.process.wait()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        gone, alive = psutil.wait_procs(doomed, timeout=10)
        assert gone
        assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)

    def verify(self) -> str:
        """Verify by the command line, and check that every event is archived; return what the command prints."""
        printed = self.run("verify", "--keys", "file:keyring.json")
        assert self.archived() == len(self.produced)
        return printed


@pytest.fixture
def installation(tmp_path: Path, kafka: KafkaServer, prefect_database: Path) -> Iterator[Drained]:
    """An installation whose processes are gone after the test, whatever became of it."""
    made = Drained(tmp_path, kafka, prefect_database)
    with ended(made):
        yield made


@pytest.mark.timeout(600)
def test_scheduled_runs_drain_and_come_back_when_all_but_up_was_killed(installation: Drained) -> None:
    """Runs appear by the schedule and drain; `up` brings back what is killed, and ends without leaving a process."""
    installation.produce(2000)
    installation.up()
    installation.wait_for_archived()
    deployments = {made["name"]: made for made in installation.prefect("deployments/filter")}
    entrypoints = {name: made["entrypoint"] for name, made in deployments.items()}
    assert entrypoints == {
        "drain-every-minute": "flows.drain.drain",
        "detect-every-minute": "flows.detect.detect",
        "audit-nightly": "flows.audit.audit",
        "alert-now": "flows.alert.alert",
        "backfill-plan": "flows.backfill.backfill",
        "backfill-ad-hoc": "flows.backfill.backfill",
        "index-ad-hoc": "flows.index.index",
        "roll-daily": "flows.roll.roll",
    }
    assert [timed["schedule"]["cron"] for timed in deployments["audit-nightly"]["schedules"]] == ["17 2 * * *"]
    installation.wait(
        lambda: any(
            run["auto_scheduled"] and run["deployment_id"] == deployments["drain-every-minute"]["id"]
            for run in installation.prefect("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
        ),
        180,
        "a scheduled run to end as completed",
        every=1,
    )
    installation.kill_in_mid_run(with_up=False)
    installation.produce(500)
    installation.wait_for_archived()
    assert installation.end() == 0
    assert f"{len(installation.produced):,} events" in installation.verify()


@pytest.mark.timeout(600)
def test_ticks_come_back_after_everything_was_killed(installation: Drained) -> None:
    """After kill -9 of `up`, server, worker and flow in mid-run, a new `up` in the same folder drains on.

    It makes each automation again, and none twice.
    """
    installation.up()
    installation.kill_in_mid_run(with_up=True)
    installation.up()
    assert sorted(made["name"] for made in installation.prefect("automations/filter")) == [
        "custody-attack-suspected",
        "custody-audit-failed",
        "custody-audit-silent",
        "custody-backfill-failed",
        "custody-clock-wrong",
        "custody-detect-failed",
        "custody-drain-failed",
        "custody-drain-headroom",
        "custody-drain-silent",
        "custody-index-failed",
        "custody-log-vanished",
        "custody-records-quarantined",
        "custody-records-unreadable",
        "custody-roll-failed",
        "custody-search-behind",
        "custody-transaction-hangs",
    ]
    installation.produce(500)
    installation.wait_for_archived()
    assert installation.end() == 0
    assert f"{len(installation.produced):,} events" in installation.verify()


@pytest.mark.timeout(600)
def test_people_are_told(installation: Drained) -> None:
    """Automations tell people of records that go to quarantine, and of damage that the deployed audit finds."""
    # One test, because each `up` takes as long as what is looked at.
    with inbox() as people:
        path = installation.folder / "custody.toml"
        path.write_text(path.read_text() + f'[alert]\nurls = "{people.url}"\n')
        values = [b'{"nonsense":%d}' % number for number in range(50)]
        send(installation, values)
        installation.up()
        # From now on runs begin when they are asked to: what they say is looked at, and not when.
        for deployment in ("drain/drain-every-minute", "detect/detect-every-minute"):
            installation.pause(deployment)
        check_quarantine_is_told_once(installation, people, values)
        people.received.clear()
        installation.produce(500)
        installation.drain()
        check_failed_audit_is_told(installation, people)
    assert installation.end() == 0


def send(installation: Drained, values: Sequence[bytes]) -> None:
    """Send records that are no events."""
    producer = installation.kafka.producer()
    for value in values:
        producer.produce(installation.topic, value, partition=0)
    assert producer.flush(60) == 0


def check_quarantine_is_told_once(installation: Drained, people: Inbox, values: Sequence[bytes]) -> None:
    """Runs that find no valid record tell people once within the hour, with the share and the reason."""
    installation.drain()
    installation.wait(lambda: people.received, 240, "somebody to be told")
    alert = people.received[0]
    assert alert["title"] == "custody: records go to quarantine"
    parts = (
        f"log.{installation.topic}/0: 100.0% of the run's records are in quarantine (50 of 50)",
        "most often: event_type missing (50), for example: event_type is missing",
        "custody explain custody-records-quarantined",
    )
    assert [part for part in parts if part not in alert["message"]] == []
    # It goes on, in a later run that says the same.
    send(installation, values)
    installation.drain()

    def reported() -> bool:
        runs = installation.prefect("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
        return sum("in quarantine (50 of 50)" in str(run["state"]["message"]) for run in runs) == 2

    installation.wait(reported, 180, "a second run that reports it", every=1)
    installation.finished("alert: custody: records go to quarantine")
    assert len(people.received) == 1


def check_failed_audit_is_told(installation: Drained, people: Inbox) -> None:
    """The deployed audit signs and reports; one that finds damage fails its run, and the automation tells people."""
    assert installation.audit()["state"]["type"] == "COMPLETED"
    assert len(list((installation.folder / "archive/audits").iterdir())) == 1
    assert len(list((installation.folder / "archive/reports").rglob("integrity-*.html"))) == 1
    keys = {artifact["key"] for artifact in installation.prefect("artifacts/latest/filter")}
    assert {"audit", "integrity-report"} <= keys
    assert people.received == []
    segment = next((installation.folder / "archive/events").rglob("*.gz"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.unlink()
    segment.write_bytes(bytes(data))
    failed = installation.audit(full=True)
    assert failed["state"]["type"] == "FAILED"
    assert "segment-hash" in failed["state"]["message"]
    installation.wait(lambda: people.received, 180, "somebody to be told")
    alert = people.received[0]
    assert alert["title"] == "custody: the audit failed"
    key = segment.relative_to(installation.folder / "archive").as_posix()
    page = f"{installation.url}/runs/flow-run/{failed['id']}"
    read_on = "custody explain custody-audit-failed"
    parts = (
        "tampered segment-hash",
        key,
        "To do: keep this object",
        "Read on: custody explain segment-hash",
        "Archive: ",
        "Host: ",
        page,
        read_on,
    )
    assert [part for part in parts if part not in alert["message"]] == []
    # The run's log begins with our lines, and has no traceback of Prefect's.
    lines = installation.lines_of(failed["id"])
    assert any("tampered segment-hash" in line for line in lines)
    assert not any("Traceback" in line or "exited with unexpected exception" in line for line in lines)
    output = (installation.folder / "prefect/up.log").read_text()
    assert "exited with unexpected exception" not in output
    told = installation.finished("alert: custody: the audit failed")
    assert told["state"]["message"] == "custody: the audit failed: told 1 (json)"
    assert re.fullmatch(r"audit \d{4}-\d\d-\d\d \d\d:\d\d, tampered, findings: \d+", failed["name"])


def test_only_one_up_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `up` in the same folder is refused, and says which process is there."""
    monkeypatch.chdir(tmp_path)
    program = (
        "import sys; from flows.operate.up import _only_one; from pathlib import Path\nwith _only_one(Path()): input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
    ) as other:
        deadline = time.monotonic() + 30
        while not (tmp_path / "up.lock").exists() or (tmp_path / "up.lock").read_text() != str(other.pid):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(ConfigurationError, match=str(other.pid)):
            up(tmp_path, 0)
        other.kill()


def test_a_taken_port_is_said(tmp_path: Path, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that somebody else listens on is refused before anything starts."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"{kafka.port}.*in use"):
        up(tmp_path / "prefect", kafka.port)
