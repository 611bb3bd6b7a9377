"""Runs get their numbers out by each way, and no way that fails costs a run more than two seconds or its result."""

import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import SecretStr

from custody.errors import ConfigurationError
from custody.store import retries
from flows.operate.sample import sample_events
from flows.publish import finish
from tasks.drain.signals import stop_on_signals
from tasks.health import kafka as health_kafka
from tasks.metrics import state as metrics_state
from tasks.metrics import textfile
from tasks.metrics.export import export, show, try_export
from tasks.metrics.run import Run
from tasks.metrics.state import open_state
from tasks.settings import KafkaSettings, MetricsSettings, Settings
from tests.helpers.commands import Command
from tests.helpers.commands import custody as custody_fixture
from tests.helpers.environment import clear_settings
from tests.helpers.metrics import values_of
from tests.helpers.sample import Growing
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports

custody = custody_fixture
CANARY = "canary-7f3a"


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


def settings_of(growing: Growing, **metrics: Any) -> Settings:
    (port,) = free_ports(1)
    given = MetricsSettings.model_validate({"state": growing.root / "metrics.json", **metrics})
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", topics=["audit.grows"])
    return Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}", kafka=kafka, metrics=given)


def ended(flow: str = "drain", **steps: float) -> Run:
    run = Run(flow)
    run.steps = list(steps.items())
    run.succeed()
    return run


class Collector:
    """A real HTTP server that takes what a collector would be sent."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the signature is the library's
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator["Collector"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@contextmanager
def silent_server(answer: bytes) -> Iterator[str]:
    """A server that takes a connection, sends a byte of its answer now and then, and never ends."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                # No test connected.
                return
            with connection:
                for byte in answer:
                    if stop.wait(0.3):
                        return
                    connection.sendall(bytes([byte]))
                stop.wait(30)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_all_ways_at_once(growing: Growing, tmp_path: Path) -> None:
    """The text file, the collector and the lines for CloudWatch get the same numbers."""
    file, lines = tmp_path / "custody.prom", tmp_path / "emf.log"
    with Collector().serving() as collector:
        headers = {"Authorization": f"Bearer {CANARY}"}
        settings = settings_of(
            growing, file=file, otlp_endpoint=f"{collector.url}/", otlp_headers=headers, emf=str(lines)
        )
        assert export(settings, ended(find=0.2, drain=31.0))
    values = values_of(file.read_bytes())
    assert values["custody_events_archived_total", growing.log, "auth_attempt"] == 3
    assert values["custody_quarantined_total", growing.log, "not JSON"] == 0
    assert values["custody_head_age_seconds", growing.log] > 60
    assert values["custody_step_duration_seconds_sum", "drain", "drain"] == 31.0
    assert time.time() - 60 < values["custody_last_success_timestamp_seconds", "drain"] <= time.time()
    # Kafka does not answer, and there is no audit: nothing is said of either.
    assert not {name for name, *_ in values} & {"custody_lag_records", "custody_audit_ok", "custody_audit_age_seconds"}
    ((path, sent, document),) = collector.requests
    assert (path, sent["Content-Type"], sent["Authorization"]) == (
        "/v1/metrics",
        "application/json",
        f"Bearer {CANARY}",
    )
    (scope,) = document["resourceMetrics"][0]["scopeMetrics"]
    names = {metric["name"].replace(".", "_") for metric in scope["metrics"]}
    assert {re.sub("(_seconds)?(_bucket|_count|_sum|_total)?$", "", name) for name, *_ in values} == names
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    (raw,) = [line for line in read if line.get("kind") == "raw"]
    assert raw["custody_bytes_archived_total"] == values["custody_bytes_archived_total", growing.log, "raw"]


def test_the_text_file_is_replaced_and_everybody_may_read_it(growing: Growing, tmp_path: Path) -> None:
    """Node exporter never reads half of it, and needs no right of its own. Nothing else that ends in .prom is there."""
    folder = tmp_path / "textfile"
    folder.mkdir()
    settings = settings_of(growing, file=folder / "custody.prom")
    before = os.umask(0o077)
    try:
        assert export(settings, ended())
        with (folder / "custody.prom").open("rb") as kept:
            first = kept.read()
            assert export(settings, ended(find=1.0))
            kept.seek(0)
            assert kept.read() == first
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == ["custody.prom"]
    assert stat.S_IMODE((folder / "custody.prom").stat().st_mode) == 0o644
    assert stat.S_IMODE((growing.root / "metrics.json").stat().st_mode) == 0o600


def test_totals_go_on_across_runs(growing: Growing, tmp_path: Path) -> None:
    """A run adds to what runs before it counted, and a run that failed leaves the last success as it was."""
    settings = settings_of(growing, file=tmp_path / "custody.prom")
    export(settings, ended(find=0.2))
    first = values_of((tmp_path / "custody.prom").read_bytes())
    growing.append(1)
    failed = Run("drain")
    failed.steps = [("find", 0.3)]
    export(settings, failed)
    export(settings, ended("audit", read=90.0))
    values = values_of((tmp_path / "custody.prom").read_bytes())
    kind = "custody_events_archived_total", growing.log
    assert sum(value for key, value in values.items() if key[:2] == kind) == 20
    assert values["custody_step_duration_seconds_count", "drain", "find"] == 2
    assert values["custody_step_duration_seconds_count", "audit", "read"] == 1
    success = "custody_last_success_timestamp_seconds"
    assert values[success, "drain"] == first[success, "drain"]
    assert values[success, "audit"] > first[success, "drain"]


def _export_often(settings: Settings, flow: str, runs: int) -> None:
    logging.disable()
    for _ in range(runs):
        assert export(settings, ended(flow, work=1.0))


def test_runs_at_once_lose_nothing_of_each_other(growing: Growing, tmp_path: Path) -> None:
    """Drains and audits that end at the same time, in processes of their own, all count, and no total ever falls."""
    file = tmp_path / "custody.prom"
    settings = settings_of(growing, file=file)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_export_often, args=(settings, flow, 4), daemon=True) for flow in ("drain", "audit")
    ]
    for process in processes:
        process.start()
    before: dict[tuple[str, ...], float] = {}
    while any(process.is_alive() for process in processes):
        values = values_of(file.read_bytes()) if file.exists() else {}
        totals = {key: value for key, value in values.items() if key[0].endswith(("_total", "_count"))}
        assert {key for key, value in before.items() if totals.get(key, 0) < value} == set()
        before = totals
        time.sleep(0.01)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    values = values_of(file.read_bytes())
    assert values["custody_step_duration_seconds_count", "drain", "work"] == 4
    assert values["custody_step_duration_seconds_count", "audit", "work"] == 4


@pytest.mark.parametrize("server", ["refused", "silent", "slow", "no page", "header"])
def test_a_collector_costs_two_seconds_at_most(
    growing: Growing, tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it does, that is one line in the log, without a header, and the text file is written."""
    file, headers = tmp_path / "custody.prom", {"Authorization": CANARY}
    if server == "header":
        headers["X-Wrong"] = f"{CANARY}\r\nmore\u20ac"
    with (
        silent_server(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100 if server == "slow" else b"") as silent,
        Collector(503).serving() as busy,
    ):
        (port,) = free_ports(1)
        url = {"refused": f"http://127.0.0.1:{port}", "no page": busy.url, "header": busy.url}.get(server, silent)
        settings = settings_of(growing, file=file, otlp_endpoint=url, otlp_headers=headers)
        assert not try_export(settings_of(growing, file=file))
        begin = time.monotonic()
        assert not try_export(settings_of(growing, file=file))
        alone = time.monotonic() - begin
        caplog.clear()
        begin = time.monotonic()
        assert not export(settings, ended())
        assert time.monotonic() - begin < 2 * alone + 4
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tasks.metrics.export"]
    assert line.startswith(f"no metrics by OTLP: the collector at {url}/v1/metrics did not take them: ")
    reasons = {"refused": "ConnectError", "no page": "status 503", "header": "UnicodeEncodeError"}
    assert line.endswith(f": {reasons.get(server, 'it did not answer within 2 s')}")
    assert CANARY not in caplog.text
    assert ("custody_last_success_timestamp_seconds", "drain") in values_of(file.read_bytes())


def test_no_failure_fails_a_run(
    growing: Growing, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, no archive, a lock that somebody has, or a bug: one line each, and the other ways are tried."""
    lines = tmp_path / "emf.log"
    assert not export(settings_of(growing, file=tmp_path / "nowhere" / "custody.prom", emf=str(lines)), ended())
    (record,) = caplog.records
    nowhere = f"{tmp_path / 'nowhere' / 'custody.prom'} cannot be written: No such file or directory"
    assert record.getMessage() == f"no metrics for node exporter: {nowhere}"
    assert "custody_events_archived_total" in lines.read_text()
    with open_state(growing.root / "metrics.json") as state:
        assert "drain" in state.last_success, "the state was kept"

    caplog.clear()
    with monkeypatch.context() as patched, open_state(growing.root / "metrics.json"):
        patched.setattr(metrics_state, "LOCK_SECONDS", 0.2)
        assert not export(settings_of(growing, file=tmp_path / "custody.prom"), ended())
    (record,) = caplog.records
    assert "another process has held" in record.getMessage()

    caplog.clear()
    with monkeypatch.context() as patched:
        patched.setattr(textfile, "render", lambda _: 1 / 0)
        assert not export(settings_of(growing, file=tmp_path / "custody.prom"), ended())
    (record,) = caplog.records
    assert record.getMessage() == "no metrics for node exporter: ZeroDivisionError"

    caplog.clear()
    empty = Settings(archive=str(tmp_path / "none"), metrics=MetricsSettings(file=tmp_path / "custody.prom"))
    assert not export(empty, ended())
    (record,) = caplog.records
    assert "there is no archive" in record.getMessage()


def test_nothing_is_read_or_written_unless_it_is_wanted(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting of [metrics], a run costs nothing more."""
    monkeypatch.setattr("tasks.metrics.export.read_now", lambda _: pytest.fail("read"))
    assert export(settings_of(growing), ended())
    assert not (growing.root / "metrics.json").exists()


def test_a_stopped_run_exports_nothing(growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that is stopped must end at once: it asks no server that may hang. The file stays as it was."""
    monkeypatch.setattr("tasks.metrics.export.read_now", lambda _: pytest.fail("read"))
    run = Run("drain")
    with stop_on_signals(signal.SIGUSR1), run.step("drain"):
        signal.raise_signal(signal.SIGUSR1)
    assert export(settings_of(growing, file=tmp_path / "custody.prom"), run)
    assert not (tmp_path / "custody.prom").exists()


def test_no_file_of_metrics_lies_in_the_archive(growing: Growing) -> None:
    """There, audits would report it as foreign."""
    for name in ("file", "state"):
        given = {"file": growing.root / "custody.prom", name: growing.folder / "x"}
        with pytest.raises(ConfigurationError, match="in the archive"):
            settings_of(growing, **given)


def test_a_flow_exports_at_its_end(growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that completed is a success, one that failed is not, and the state of both stays as it was."""
    settings = settings_of(growing, file=tmp_path / "custody.prom")
    variables = {
        "ARCHIVE": settings.archive,
        "KEYS": settings.keys,
        "KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "METRICS__FILE": str(settings.metrics.file),
        "METRICS__STATE": str(settings.metrics.state),
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"CUSTODY_{name}", value)
    good: State[Any] = Completed(message="done")
    bad: State[Any] = Failed(message="broken")
    assert finish(Run("roll"), good) is good
    assert finish(Run("audit"), bad) is bad
    values = values_of((tmp_path / "custody.prom").read_bytes())
    flows = [key[1] for key in values if key[0] == "custody_last_success_timestamp_seconds"]
    assert flows == ["roll"]
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "")
    assert finish(Run("audit"), bad) is bad


def test_the_command(
    growing: Growing,
    custody: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`custody metrics` prints the text, and counts all statements for it; `--export` says why it could not export."""
    (port,) = free_ports(1)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{port}")
    shown = custody("metrics")
    assert (shown.code, values_of(shown.out.encode())["custody_quarantined_total", growing.log, "other"]) == (0, 0)
    assert f"Kafka at 127.0.0.1:{port} does not answer" in caplog.text
    refused = custody("metrics", "--export")
    assert (refused.code, "set metrics.file" in refused.err) == (2, True)
    monkeypatch.setenv("CUSTODY_METRICS__FILE", str(tmp_path / "custody.prom"))
    assert custody("metrics", "--export")[:2] == (0, "")
    assert ("custody_quarantined_total", growing.log, "other") in values_of((tmp_path / "custody.prom").read_bytes())
    monkeypatch.setenv("CUSTODY_METRICS__FILE", str(tmp_path / "nowhere" / "custody.prom"))
    failed = custody("metrics", "--export", "--quiet")
    nowhere = f"{tmp_path / 'nowhere' / 'custody.prom'} cannot be written: No such file or directory"
    assert failed[:2] == (1, "")
    assert failed.err == f"custody: no metrics for node exporter: {nowhere}\n"


def test_a_drain_exports(kafka: KafkaServer, tmp_path: Path, custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody drain` leaves lag, head and totals of what it archived."""
    monkeypatch.setattr(health_kafka, "REQUEST_SECONDS", 10)
    topic = kafka.create_topic(kafka.unused_name("metrics"), 1)
    producer = kafka.producer()
    for record in (*sample_events(20, 1, datetime(2026, 3, 1, tzinfo=UTC)), b"no event"):
        producer.produce(topic, record)
    assert producer.flush(60) == 0
    for name, value in {
        "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "KAFKA__TOPICS": topic,
        "KAFKA__GROUP": topic,
        "METRICS__FILE": str(tmp_path / "custody.prom"),
    }.items():
        monkeypatch.setenv(f"CUSTODY_{name}", value)
    assert custody("init").code == 0
    assert custody("drain", "--once").code == 0
    values, log = values_of((tmp_path / "custody.prom").read_bytes()), f"{topic}/0"
    assert (values["custody_lag_records", log], values["custody_lag_seconds", log]) == (0, 0)
    assert 0 <= values["custody_head_age_seconds", log] < 120
    assert values["custody_quarantined_total", log, "not JSON"] == 1
    assert sum(value for key, value in values.items() if key[:2] == ("custody_events_archived_total", log)) == 20
    assert values["custody_step_duration_seconds_count", "drain", "drain"] == 1
    assert ("custody_last_success_timestamp_seconds", "drain") in values


def test_headers_are_hidden() -> None:
    """A collector's headers are secrets."""
    settings = MetricsSettings(otlp_headers={"Authorization": SecretStr(CANARY)})
    assert CANARY not in repr(settings)
    assert CANARY not in settings.model_dump_json()


def test_retries_add_up_over_runs(growing: Growing, tmp_path: Path) -> None:
    """Each run adds the calls that it made again. Without a run they are shown as they were, and not lost."""
    settings = settings_of(growing, file=tmp_path / "custody.prom")
    retries.take()
    for _ in range(2):
        retries.count("s3", "503")
        retries.count("kafka", "_TRANSPORT")
        assert export(settings, ended())
    retries.count("s3", "503")
    for text in ((tmp_path / "custody.prom").read_bytes(), show(settings)):
        values = values_of(text)
        assert values["custody_retries_total", "kafka", "_TRANSPORT"] == 2
        assert values["custody_retries_total", "s3", "503"] == 2
    assert retries.take() == {("s3", "503"): 1}
