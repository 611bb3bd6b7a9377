"""The operator's commands, without Kafka and Prefect: what they show and refuse before either is needed."""

import json
import re
import shutil
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from custody.cli import render
from custody.cli.main import main
from custody.cli.operators import COMMANDS
from custody.errors import TransientSourceError
from flows.operate import check
from flows.operate.cli import app as operators
from flows.summaries import drain_table, index_table
from tasks.check.model import PARTS, Line
from tasks.drain.kafka import Broker
from tasks.drain.log_run import LogResult
from tasks.health.model import Level
from tasks.search.index import IndexResult
from tests.helpers.environment import clear_settings
from tests.helpers.inbox import inbox
from tests.helpers.sample import Sample, make_archive


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write an archive that tests only read."""
    return make_archive(tmp_path_factory.mktemp("sample"))


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Sample) -> None:
    """Point at the archive, and at a broker that does not answer, without the ten seconds that it takes to know."""

    def silent(broker: Broker) -> str:
        raise TransientSourceError(f"{broker} does not answer")

    monkeypatch.setattr(Broker, "cluster", silent)
    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(sample.folder))
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_status_shows_heads_while_kafka_is_away(capsys: pytest.CaptureFixture[str], sample: Sample) -> None:
    """The heads come from the archive, so they are there when the broker is not; the lag is then unknown."""
    assert run("status", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    (row,) = document["logs"]
    head = sample.tip.head
    assert (row["log"], row["size"], row["root"]) == (str(sample.log), head.size, head.root.hex())
    assert row["lag_records"] is None
    assert document["kafka"] == {"address": "127.0.0.1:9", "reachable": False}
    assert run("status") == 1
    assert str(sample.log) in capsys.readouterr().out


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch, sample: Sample, tmp_path: Path) -> Path:
    """The newest manifest of a copy of the archive, at which the settings point."""
    folder = tmp_path / "copy"
    shutil.copytree(sample.folder, folder)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(folder))
    return max((folder / "manifests").rglob("*.json"))


def test_status_names_a_log_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], sample: Sample, newest: Path
) -> None:
    """A head that does not hold together is said, with a failing exit code."""
    root = json.loads(newest.read_bytes().split(b"\n")[0])["tree"]["root"]
    newest.write_bytes(newest.read_bytes().replace(root.encode(), b"0" * 64))
    assert run("status", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    (problem,) = (problem for problem in document["problems"] if problem["kind"] == "log-damaged")
    assert (problem["subject"], problem["level"]) == (str(sample.log), "failed")
    assert newest.name in problem["message"]


@pytest.mark.parametrize("keys", [True, False])
def test_status_passes_over_what_is_no_statement(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sample: Sample, newest: Path, *, keys: bool
) -> None:
    """Whoever can write into the archive, and has no key, cannot hide where a log ends. It is said, whatever it is."""
    if keys:
        monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    newest.with_name(f"{sample.tip.size:012}.json").write_bytes(b"not a manifest")
    run("status", "--json")
    (row,) = json.loads(capsys.readouterr().out)["logs"]
    assert row["level"] == "failed"
    assert (row["size"], row["root"]) == (sample.tip.head.size, sample.tip.head.root.hex())


@pytest.mark.parametrize("command", [("drain", "--once"), ("status",), ("new-epoch", "audit.events")])
def test_wrong_setting_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """An operator's command refuses a wrong setting in one line, without waiting for Prefect."""
    monkeypatch.setenv("CUSTODY_DRAIN__BATCH_EVENTS", "20000")
    assert run(*command) == 2
    assert capsys.readouterr().err.startswith("custody: drain.batch_events in CUSTODY_DRAIN__BATCH_EVENTS:")


def test_check_shows_each_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sample: Sample
) -> None:
    """Each part has a heading, each thing that is wrong its remedy, and the exit code is that of the worst line."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    monkeypatch.setenv("CUSTODY_ALERT__URLS", "slack://TokenA/TokenB/TokenC/#channel")
    assert run("check") == 1
    shown = capsys.readouterr().out
    assert [part for part in PARTS if f"\n{part}\n" not in f"\n{shown}"] == []
    assert "failed  login" in shown
    assert "→ run 'custody up'" in shown
    assert re.search(r"^\d+ failed, \d+ warnings?, \d+ ok$", shown.rstrip().splitlines()[-1])
    assert run("check", "--json") == 1
    document = json.loads(printed := capsys.readouterr().out)
    assert document["level"] == "failed"
    assert {line["part"] for line in document["lines"]} == set(PARTS)
    assert all(line["remedy"] for line in document["lines"] if line["level"] != "ok")
    assert "Token" not in shown + printed


@pytest.mark.parametrize(("levels", "code"), [(("ok",), 0), (("ok", "warning"), 3), (("warning", "failed", "ok"), 1)])
def test_check_has_the_exit_codes_of_status(
    monkeypatch: pytest.MonkeyPatch, levels: tuple[Level, ...], code: int
) -> None:
    """0 if all is ok, 3 for warnings alone, 1 if something failed."""
    lines = tuple(Line("alerts", "a subject", level, "a message") for level in levels)
    monkeypatch.setattr(check, "run_checks", lambda *_, **__: lines)
    assert run("check") == code


@pytest.mark.parametrize("command", ["check", "status"])
def test_what_takes_seconds_shows_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Servers are asked while a terminal shows that something is being done."""
    monkeypatch.setattr(Console, "is_terminal", property(lambda _: True))
    monkeypatch.setattr(render, "PROGRESS_AFTER", 0.0)
    monkeypatch.setattr(Broker, "cluster", lambda _: time.sleep(0.5))
    run(command)
    assert {"check": "checking", "status": "asking the archive"}[command] in capsys.readouterr().err


def test_help_lists_operators_commands_beside_the_auditors(capsys: pytest.CaptureFixture[str]) -> None:
    """In a checkout there is one command line for both."""
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in (*COMMANDS, "verify", "show", "keys", "config", "init"):
        assert command in shown
    commands = [one.name or getattr(one.callback, "__name__", "") for one in operators.registered_commands]
    groups = [str(one.name) for one in operators.registered_groups]
    assert sorted(COMMANDS) == sorted(name.rstrip("_") for name in (*commands, *groups))


def test_a_table_of_logs_shows_whole_names() -> None:
    """However narrow the terminal is, a log's name is not cut: its end tells partitions apart."""
    log = f"audit.{'x' * 60}.events/17"
    result = LogResult(log=log, outcome="drained", lag=0, root="0" * 64)
    console = Console(width=80, file=StringIO())
    console.print(drain_table([result]))
    assert isinstance(console.file, StringIO)
    rows, _, caption = console.file.getvalue().partition("Left out")
    assert "".join(line.split()[0] for line in rows.splitlines()[3:] if line.strip()) == log
    assert ": head" in caption
    for whole in ("events", "quarantined", "lost", "lag"):
        assert whole in rows


def names_in(table: render.Fitted) -> list[str]:
    """Return the first column of a printed table."""
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return [line.split("  ")[0].strip() for line in captured.get().splitlines()[3:] if line.strip()]


def test_a_table_of_many_logs_shows_those_with_news() -> None:
    """Among hundreds of quiet logs, one that failed is seen. A table of few logs has them all."""
    quiet = [LogResult(f"audit.quiet/{number}", lag=0, size=7, root="0" * 64) for number in range(300)]
    news = [
        LogResult("audit.drained/0", lag=0, events=5),
        LogResult("audit.quarantined/0", lag=0, quarantined=1),
        LogResult("audit.lost/0", lag=0, lost=1),
        LogResult("audit.unreadable/0", lag=0, unreadable=1),
        LogResult("audit.behind/0", lag=1),
        LogResult("audit.unknown/0"),
        LogResult("audit.headroom/0", lag=0, headroom_unknown="Kafka says no"),
        LogResult("audit.failed/0", "failed", lag=0),
    ]

    assert names_in(drain_table([*quiet, *news])) == [*(result.log for result in news), "300 logs: no new events"]
    assert names_in(drain_table(quiet[:50])) == [result.log for result in quiet[:50]]
    assert names_in(drain_table(quiet[:51])) == ["51 logs: no new events"]
    indexed = [IndexResult(f"audit.quiet/{number}", sequence=9) for number in range(300)]
    news_of_index = [
        IndexResult("audit.created/0", created=5),
        IndexResult("audit.there/0", there=5),
        IndexResult("audit.rejected/0", rejected=1),
        IndexResult("audit.behind/0", behind=0.3),
        IndexResult("audit.failed/0", problem="Elasticsearch says no"),
    ]
    rows = [*(result.log for result in news_of_index), "300 logs: nothing to index"]
    assert names_in(index_table([*indexed, *news_of_index])) == rows
    assert names_in(index_table(indexed[:50])) == [result.log for result in indexed[:50]]


@pytest.mark.parametrize("damaged", [False, True])
def test_an_audit_as_json(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    *,
    damaged: bool,
) -> None:
    """Each line is a document: the findings, and then the audit. The exit code is the verdict."""
    own = make_archive(tmp_path_factory.mktemp("own"))
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(own.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{own.keyring}")
    monkeypatch.setenv("CUSTODY_AUDIT__TABLES", "false")
    if damaged:
        path = next((own.folder / "events").rglob("*.gz"))
        path.unlink()
        path.write_bytes(b"altered")
    assert run("audit", "--json") == (13 if damaged else 0)
    *findings, audit = map(json.loads, capsys.readouterr().out.splitlines())
    assert (audit["kind"], audit["verdict"]) == ("audit", "tampered" if damaged else "verified")
    assert audit["counts"]["statements"] > 0
    assert audit["findings"] == len(findings)
    assert bool(findings) == damaged


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch, sample: Sample, tmp_path: Path) -> str:
    """The key of an altered segment, in a copy of the archive at which the settings point."""
    folder = tmp_path / "damaged"
    shutil.copytree(sample.folder, folder)
    path = next((folder / "events").rglob("*.gz"))
    path.unlink()
    path.write_bytes(b"altered")
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    monkeypatch.setenv("CUSTODY_AUDIT__TABLES", "false")
    return path.relative_to(folder).as_posix()


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "alert: told 1 (json)"), (500, "custody: the alert did not reach everybody: nobody was told; 1 (json): ")],
)
def test_an_audit_alerts_as_the_nightly_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, damaged: str, status: int, said: str
) -> None:
    """People get the worst findings and what to do. Whether they were told is a line, and the code is the verdict's."""
    with inbox(status) as people:
        monkeypatch.setenv("CUSTODY_ALERT__URLS", people.url)
        assert run("audit") == 13
    (message,) = people.received
    assert (message["title"], message["type"]) == ("custody: the audit failed", "failure")
    for part in (damaged, "To do: ", "Read on: custody explain custody-audit-failed"):
        assert part in message["message"]
    assert said in capsys.readouterr().err


def test_an_audit_without_receivers_says_so(
    capsys: pytest.CaptureFixture[str],
    damaged: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nobody is alerted, and a line says so. Findings have what to do, and where to read on."""
    monkeypatch.setenv("COLUMNS", "200")
    assert run("audit") == 13
    shown = capsys.readouterr()
    assert "nobody is alerted: set alert.urls" in shown.err
    assert damaged in shown.out
    assert "→ " in shown.out
    assert "'custody explain NAME' says more" in shown.out
    good = make_archive(tmp_path_factory.mktemp("good"))
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(good.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{good.keyring}")
    assert run("audit", "--full") == 0
    assert "alert" not in capsys.readouterr().err
