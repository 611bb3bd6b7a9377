"""Commands do not read a bucket's statements and segments one after the other: each answer takes its time."""

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.store.folder import FolderStore
from custody.store.s3_client import CONNECTIONS
from tasks.roll import run
from tests.helpers.commands import Command
from tests.helpers.commands import custody as custody_fixture
from tests.helpers.remote import URL, pass_for_a_bucket
from tests.helpers.sample import Growing

custody = custody_fixture

STATEMENTS, LOGS = 40, 12
YEARS = ("--since", "2026-01-01T00:00Z", "--until", "2027-01-01T00:00Z")
BOTH = ("manifests/", "events/")


def use(monkeypatch: pytest.MonkeyPatch, growing: Growing, archive: str) -> None:
    """Name an archive to commands, and the keys of its writer."""
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    monkeypatch.setenv("CUSTODY_ARCHIVE", archive)


def append(logs: Sequence[Growing], statements: int) -> None:
    """Append some statements to each log."""
    for log in logs:
        log.append(statements)


def grown(custody: Command, monkeypatch: pytest.MonkeyPatch, root: Path) -> Sequence[Growing]:
    """Return many logs of an archive that commands read: each has a statement that was audited, and a new one."""
    begun = datetime.now(UTC) - timedelta(minutes=10)
    logs = [Growing(root, partition, begun) for partition in range(LOGS)]
    use(monkeypatch, logs[0], str(logs[0].folder))
    append(logs, 1)
    assert custody("audit").code in {0, 3}
    append(logs, 1)
    return logs


def one_by_one(
    custody: Command, monkeypatch: pytest.MonkeyPatch, growing: Growing, command: Sequence[str], *subjects: str
) -> list[str]:
    """Run a command on an archive that passes for a bucket, and return what it asked for one after the other."""
    together = pass_for_a_bucket(monkeypatch, growing.folder, *subjects)
    monkeypatch.setenv("CUSTODY_ARCHIVE", URL)
    done = custody(*command)
    assert done.code in {0, 3}, done.err
    return together.one_by_one


@pytest.mark.parametrize(
    ("command", "prefixes"),
    [
        (["query", "SELECT count(*) FROM events"], BOTH),
        (["query", "SELECT count(*) FROM manifests"], BOTH),
        (["query", "SELECT count(*) FROM events", "--since", "1h"], BOTH),
        (["export", "--ocsf", *YEARS, "--output", "exported"], BOTH),
        (["verify"], BOTH),
        (["verify", "--log", "audit.grows/0"], BOTH),
        (["verify", "--chain-only"], ["manifests/"]),
        (["audit"], BOTH),
        (["audit", "--full"], BOTH),
        (["audit", "--since", "1h"], BOTH),
        (["detect", "run"], BOTH),
        (["backfill", *YEARS, "--to", "folder", "--folder", "copied"], BOTH),
        (["copy", URL, "copied"], BOTH),
        (["report", "--output", "report.html"], ["manifests/"]),
    ],
    ids=" ".join,
)
def test_reads_are_made_together(
    custody: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: Sequence[str],
    prefixes: Sequence[str],
) -> None:
    """Of many new statements, several are asked for at once, and several of their segments."""
    growing = Growing(tmp_path, begun=datetime.now(UTC) - timedelta(minutes=STATEMENTS + 10))
    use(monkeypatch, growing, str(growing.folder))
    growing.append(3)
    assert custody("audit").code in {0, 3}
    growing.append(STATEMENTS)
    assert one_by_one(custody, monkeypatch, growing, command, *prefixes) == []


@pytest.mark.parametrize(
    ("command", "subjects"),
    [
        (["checkpoint"], ["list checkpoints/", "checkpoints/"]),
        (["checkpoint", "--write"], ["list manifests/", "manifests/"]),
        (["report", "--output", "report.html"], ["list manifests/", "list checkpoints/", "checkpoints/"]),
        (["query", "SELECT count(*) FROM events"], ["list manifests/", "list checkpoints/"]),
        (["copy", URL, "copied"], ["list checkpoints/", "checkpoints/"]),
        (["backfill", *YEARS, "--to", "folder", "--folder", "copied"], ["list checkpoints/"]),
        (["roll"], ["list manifests/", "manifests/"]),
        (["audit"], ["list manifests/", "manifests/"]),
        (["verify"], ["manifests/", "checkpoints/"]),
        (["verify", "--chain-only"], ["manifests/", "checkpoints/"]),
        (["detect", "run"], ["list manifests/", "manifests/"]),
    ],
    ids=" ".join,
)
def test_logs_do_not_wait_for_each_other(
    custody: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Sequence[str], subjects: Sequence[str]
) -> None:
    """What is asked about each of many logs is asked about several at once, also where no log has anything new."""
    begun = datetime.now(UTC) - timedelta(minutes=10)
    logs = [Growing(tmp_path, partition, begun) for partition in range(LOGS)]
    append(logs, 1)
    use(monkeypatch, logs[0], str(logs[0].folder))
    assert custody("audit").code in {0, 3}
    assert custody("roll").code in {0, 3}
    # The rules of a bucket are not asked of the archive's store.
    monkeypatch.setattr(run, "roll_bucket", lambda *_, **__: iter(()))
    assert one_by_one(custody, monkeypatch, logs[0], command, *subjects) == []


@pytest.mark.parametrize(
    "command",
    [["query", "SELECT count(*) FROM events"], ["query", "SELECT count(*) FROM events", "--since", "1h"], ["audit"]],
    ids=" ".join,
)
def test_new_statements_of_logs_do_not_wait_for_each_other(
    custody: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Sequence[str]
) -> None:
    """The one new statement of each of many logs is read with those of others, and so is its segment."""
    logs = grown(custody, monkeypatch, tmp_path)
    assert one_by_one(custody, monkeypatch, logs[0], command, *BOTH) == []


@pytest.mark.parametrize(
    "command",
    [
        ["query", "SELECT count(*) FROM events"],
        ["query", "SELECT count(*) FROM manifests", "--since", "1h"],
        ["export", "--ocsf", *YEARS, "--output", "exported"],
        ["verify"],
        ["verify", "--chain-only"],
        ["report", "--output", "report.html"],
    ],
    ids=" ".join,
)
def test_logs_do_not_wait_for_each_other_with_public_keys_alone(
    custody: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Sequence[str]
) -> None:
    """An auditor's commands read the checkpoints of several logs at once, and audits no more often for many logs."""
    logs = grown(custody, monkeypatch, tmp_path)
    assert custody("checkpoint", "--write").code == 0
    trust = logs[0].publish()
    together = pass_for_a_bucket(monkeypatch, logs[0].folder, "manifests/", "checkpoints/", "audits/", "list audits/")
    use(monkeypatch, logs[0], URL)
    monkeypatch.delenv("CUSTODY_KEYS")
    done = custody(*command, "--trust", trust)
    assert done.code in {0, 3}, done.err
    assert {"manifests/", "checkpoints/"}.isdisjoint(together.one_by_one)
    assert together.all["audits/"] + together.all["list audits/"] < LOGS


@pytest.mark.parametrize(
    ("command", "statements", "least"),
    [
        (["backfill", *YEARS, "--late-days", "2", "--to", "folder", "--folder", "copied"], 2 * STATEMENTS, 2),
        (["roll"], 2 * STATEMENTS, 2),
        (["audit"], 2 * STATEMENTS, 2),
        # Of more logs at once, if these are small.
        (["audit"], 8, 33),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_connections_are_enough(
    custody: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: Sequence[str],
    statements: int,
    least: int,
) -> None:
    """Where several statements of each of several logs are read at once, S3's client has a connection for each."""
    # One client has all of an audit's pieces.
    monkeypatch.setenv("CUSTODY_AUDIT__WORKERS", "1")
    years = 8 if command == ["roll"] else 0
    begun = datetime.now(UTC) - timedelta(days=years * 365.25, minutes=2 * STATEMENTS + 10)
    logs = [Growing(tmp_path, partition, begun) for partition in range(LOGS)]
    append(logs, statements)
    pass_for_a_bucket(monkeypatch, logs[0].folder)
    monkeypatch.setattr(run, "roll_bucket", lambda *_, **__: iter(()))
    use(monkeypatch, logs[0], URL)
    read, changed, now, most = FolderStore.read, threading.Condition(), 0, 0

    def slow(store: FolderStore, key: str, **how: Any) -> bytes:
        nonlocal now, most
        with changed:
            now += 1
            most = max(most, now)
            changed.notify_all()
            # What is begun together is seen together.
            changed.wait_for(lambda: most >= least, 0.2)
        time.sleep(0.05)
        try:
            return read(store, key, **how)
        finally:
            with changed:
                now -= 1

    monkeypatch.setattr(FolderStore, "read", slow)
    done = custody(*command)
    assert done.code in {0, 3}, done.err
    assert least <= most <= CONNECTIONS
