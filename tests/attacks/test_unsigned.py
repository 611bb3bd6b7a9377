"""THREATS.md, rows 71 and 72: what nobody signed raises alarms, and steers no command.

Each forgery is one that somebody can make who may write into the archive, and has no key. Then every command that needs
no server runs on the forged archive and on its twin. Either they do the same, or they say what is wrong. The list of
such inputs is in docs/guarantees.md; where a server holds the input, the test is beside its door:

- committed offsets: tests/tasks/drain/test_drain.py, test_what_other_clients_commit
- cursors and documents of Elasticsearch: tests/attacks/test_search.py
- the broker's answers: tests/attacks/test_kafka.py
- versions, locks and rules of a bucket: tests/attacks/test_buckets.py
"""

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import custody
from custody.archive.reader import list_logs, read_archive
from custody.cli.main import main
from custody.errors import TransientSourceError
from custody.format import layout, limits
from custody.format.layout import Log
from custody.keys.trust import open_trust
from custody.query import tables
from custody.store.open import open_store
from custody.verify.report import Report
from custody.verify.run import verify
from tasks.audit.conclude import conclude
from tasks.audit.objects import put_report
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.backfill import plan as backfill
from tasks.drain.kafka import Broker
from tasks.drain.resume import find_epochs, newest_epoch
from tasks.health.read import read_health
from tasks.roll.expire import expire
from tasks.settings import AuditSettings, Settings
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing

LOG = "audit.grows/0"
SIZE = 6
"""Statements when something is forged."""
EVENTS = 'SELECT "offset", event_type, request_id FROM events ORDER BY 1'


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read no settings of the tests' machine, and wait for no broker."""

    def silent(broker: Broker) -> str:
        raise TransientSourceError(f"{broker} does not answer")

    clear_settings(monkeypatch)
    monkeypatch.setattr(Broker, "cluster", silent)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """An archive of six statements: an audit has read four of them, has made tables of them, and has a report."""
    growing = Growing(tmp_path / "good")
    growing.append(4)
    audit(growing)
    put_report(settings(growing), 0, b"<p>a report</p>")
    growing.append(2)
    return growing


def settings(growing: Growing, **more: Any) -> Settings:
    given = {"archive": str(growing.folder), "keys": f"file:{growing.keyring}"} | more
    return Settings(**given, audit=AuditSettings(piece_statements=2))


def audit(growing: Growing) -> tuple[str, list[tuple[str, str | None]]]:
    """Audit, and return the verdict and the findings."""
    given = settings(growing)
    plan = plan_audit(given, Request(), datetime.now(UTC))
    outcome = conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))
    return outcome.verdict, sorted(((found["finding"], found.get("key")) for found in outcome.findings), key=str)


def opened(growing: Growing) -> Log:
    """Return the log that a drain opens for the partition. No head is known to it."""
    with closing(open_store(str(growing.folder))) as store:
        trust = open_trust([f"file:{growing.keyring}"])
        context: Any = SimpleNamespace(store=store, archive=read_archive(store), trust=trust)
        return newest_epoch(context, find_epochs(list_logs(store), {}, context.trust), ("audit.grows", 0))


def judged(growing: Growing) -> Report:
    with closing(open_store(str(growing.folder))) as store:
        trust = open_trust([f"file:{growing.keyring}"])
        return verify(store, trust, now=datetime.now(UTC), workers=0)


def asked(archive: Path, *queries: str) -> list[list[tuple[Any, ...]]]:
    with closing(custody.connect(str(archive))) as connection:
        return [connection.execute(sql).fetchall() for sql in queries]


@pytest.fixture
def _keys(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")


def overwrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def signed_by_nobody(path: Path, **changed: Any) -> bytes:
    """Return a signed file with other fields and the same signatures."""
    line, signatures = path.read_bytes().split(b"\n", 1)
    return json.dumps(json.loads(line) | changed, separators=(",", ":")).encode() + b"\n" + signatures


def by_an_invented_key(path: Path, **changed: Any) -> bytes:
    """Return a signed file with other fields, and a signature that names a key which nobody has."""
    signature = {"key": "hmac-0", "algorithm": "HMAC-SHA256", "value": base64.b64encode(bytes(32)).decode()}
    line = signed_by_nobody(path, **changed).split(b"\n")[0]
    return line + b"\n" + json.dumps({"signatures": [signature]}, separators=(",", ":")).encode() + b"\n"


def empty_table(first: int, end: int) -> tuple[str, bytes]:
    """Return the key and the bytes of a table without rows that claims statements `[first, end)`."""
    path = Path("empty.parquet")
    tables.open_file(str(path)).close()
    data = path.read_bytes()
    return tables.table_key(Log("audit.grows", 0), "2026-03-01", first, end, 1, 1, data), data


def an_epoch(folder: Path) -> None:
    (folder / "manifests/audit.grows@7/0").mkdir(parents=True)


def an_epoch_with_a_statement(folder: Path) -> None:
    (folder / "manifests/audit.grows@9/0").mkdir(parents=True)
    shutil.copy(folder / layout.manifest_key(Log("audit.grows", 0), 0), folder / "manifests/audit.grows@9/0")


def an_epoch_by_an_invented_key(folder: Path) -> None:
    first = folder / layout.manifest_key(Log("audit.grows", 0), 0)
    log = json.loads(first.read_bytes().split(b"\n")[0])["log"] | {"epoch": 7}
    overwrite(folder / layout.manifest_key(Log("audit.grows", 0, 7), 0), by_an_invented_key(first, log=log))


def an_epoch_of_garbage(folder: Path) -> None:
    for sequence in range(limits.PASSED_OVER + 1):
        overwrite(folder / layout.manifest_key(Log("audit.grows", 0, 7), sequence), b"garbage")


def garbage_in_the_next_slot(folder: Path) -> None:
    overwrite(folder / layout.manifest_key(Log("audit.grows", 0), SIZE), b"garbage")


def a_statement_in_the_next_slot(folder: Path) -> None:
    newest = folder / layout.manifest_key(Log("audit.grows", 0), SIZE - 1)
    forged = signed_by_nobody(newest, sequence=SIZE, first_offset=10**6, next_offset=10**6)
    overwrite(newest.with_name(f"{SIZE:012}.json"), forged)


def a_statement_far_ahead(folder: Path) -> None:
    newest = folder / layout.manifest_key(Log("audit.grows", 0), SIZE - 1)
    overwrite(newest.with_name(f"{10**11:012}.json"), signed_by_nobody(newest, sequence=10**11))


def an_audit(folder: Path) -> None:
    heads = {LOG: {"size": 999, "root": "00" * 32}, "gone/0": {"size": 5, "root": "00" * 32}}
    first = folder / layout.audit_key(0)
    overwrite(folder / layout.audit_key(1), signed_by_nobody(first, sequence=1, heads=heads, verdict="tampered"))


def garbage_for_an_audit(folder: Path) -> None:
    overwrite(folder / layout.audit_key(1), b"\x00" * 100)


def a_checkpoint(folder: Path) -> None:
    overwrite(folder / layout.checkpoint_key(Log("audit.grows", 0), 999), b"")


def checkpoints_of_a_log(folder: Path) -> None:
    overwrite(folder / layout.checkpoint_key(Log("never", 0), 3), b"")


def a_table(folder: Path) -> None:
    key, data = empty_table(4, 6)
    overwrite(folder / key, data)


def a_table_of_everything(folder: Path) -> None:
    key, data = empty_table(0, 10**11)
    overwrite(folder / key, data)


def a_table_that_is_none(folder: Path) -> None:
    key, _ = empty_table(4, 6)
    overwrite(folder / key, b"no Parquet")


def a_table_with_a_list(folder: Path) -> None:
    key, data = empty_table(4, 6)
    overwrite(folder / key, data)
    made = min((folder / "tables/signed").iterdir())
    files = [{"key": key, "sha256": sha256(data).hexdigest(), "rows": 0}]
    listed = signed_by_nobody(made, first=4, end=6, files=files)
    overwrite(folder / tables.list_key(Log("audit.grows", 0), 4, 6, listed), listed)


def a_result_of_a_piece(folder: Path) -> None:
    piece = min((folder / "reports").rglob("pieces/**/*.json"))
    forged = signed_by_nobody(piece, audit=1, piece={"log": LOG, "first": 4, "end": 6, "read": "new"})
    overwrite(folder / f"reports/audits/{1:012}/pieces/{LOG}/{4:012}-{6:012}-new.json", forged)


def a_report(folder: Path) -> None:
    path = folder / f"reports/audits/{0:012}/report.json"
    overwrite(path, signed_by_nobody(path, sha256="00" * 32))


def a_segment(folder: Path) -> None:
    overwrite(folder / "events/audit.grows/0/garbage.jsonl.gz", b"garbage")


def other_times_of_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))


FORGERIES: dict[Callable[[Path], None], tuple[set[str], set[str]]] = {
    an_epoch: (set(), set()),
    an_epoch_with_a_statement: ({"identity", "unlisted", "sequence-gap"}, {"damaged"}),
    an_epoch_by_an_invented_key: ({"key-unknown", "identity", "statement", "new-epoch", "head-fork"}, {"damaged"}),
    an_epoch_of_garbage: ({"statement", "unlisted"}, {"damaged"}),
    garbage_in_the_next_slot: ({"statement", "passed-over"}, {"damaged"}),
    a_statement_in_the_next_slot: (
        {"signature", "statement", "tree", "batch-order", "offset-gap", "passed-over"},
        {"damaged"},
    ),
    a_statement_far_ahead: ({"sequence-gap", "signature", "statement", "tree"}, {"damaged"}),
    an_audit: ({"audit", "passed-over"}, {"damaged"}),
    garbage_for_an_audit: ({"audit", "passed-over"}, {"damaged"}),
    a_checkpoint: ({"checkpoint", "head-rollback"}, set()),
    checkpoints_of_a_log: ({"checkpoint", "head-rollback"}, {"damaged"}),
    a_table: ({"tables"}, {"ignored"}),
    a_table_of_everything: ({"tables"}, {"ignored"}),
    a_table_that_is_none: ({"tables"}, {"ignored"}),
    a_table_with_a_list: ({"tables"}, {"ignored"}),
    a_result_of_a_piece: (set(), set()),
    a_report: (set(), set()),
    a_segment: ({"foreign"}, set()),
    other_times_of_files: (set(), set()),
}
"""Each forgery, the findings that it may cause, and the kinds of warnings of a query."""


def segments(growing: Growing) -> list[str]:
    """Return the digests of all segments."""
    paths = (growing.folder / "events").rglob("*.gz")
    return sorted(sha256(path.read_bytes()).hexdigest() for path in paths if path.name != "garbage.jsonl.gz")


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_what_nobody_signed(growing: Growing, tmp_path: Path, forge: Callable[[Path], None]) -> None:
    """Writer, audit, verification, queries, status, backfill and roll do as without it, or say that it is there."""
    findings, warnings = FORGERIES[forge]
    twin = growing.copy(tmp_path / "twin")
    forge(growing.folder)

    queries = (EVENTS, "FROM audits", "FROM manifests", "FROM quarantined", "FROM findings")
    *rows, warned = asked(growing.folder, *queries, "SELECT kind FROM warnings")
    assert [*rows, []] == asked(twin.folder, *queries, "SELECT kind FROM warnings")
    assert {kind for (kind,) in warned} == warnings
    now = datetime.now(UTC)
    health, wanted = read_health(settings(growing), now), read_health(settings(twin), now)
    logs = {log.log: log for log in health.logs}
    log = logs.pop(LOG)
    # Garbage in the next slot is said, and changes nothing else.
    assert {problem.kind for problem in log.problems} <= {"log-damaged"}
    assert (dataclasses.replace(log, problems=()),) == wanted.logs
    assert all(log.problems for log in logs.values())
    assert health.audit == wanted.audit
    kinds = [problem.kind for problem in health.general if problem.kind != "audit-unreadable"]
    assert kinds == [problem.kind for problem in wanted.general]
    assert {found.finding for found in judged(growing).findings} <= findings

    plans: list[object] = []
    for archive in (growing, twin):
        actions = expire(settings(archive), datetime.now(UTC), dry_run=True)
        # Of an epoch that nobody signed, the roll says that it cannot tell what has expired.
        mine = [action for action in actions if "@" not in action.target or action.outcome == "planned"]
        plans.append([str(action).replace(str(archive.folder), "") for action in mine])
        since, until = (datetime(year, 1, 1, tzinfo=UTC) for year in (2026, 2027))
        request = backfill.Request(since=since, until=until, target="folder", folder=str(tmp_path / "out"))
        plans.append(backfill.plan_backfill(settings(archive), request).parts)
        request = backfill.Request(since=since, until=until, target="tables")
        plans.append(backfill.plan_backfill(settings(archive), request).parts)
    assert plans[:3] == plans[3:]

    for archive in (growing, twin):
        assert opened(archive) == Log("audit.grows", 0)
        archive.append(2)
    assert segments(growing) == segments(twin)
    assert len(segments(growing)) == SIZE + 2
    verdict, found = audit(growing)
    assert audit(twin) == ("verified", [])
    assert {name for name, _ in found} <= findings
    assert verdict == "verified" or found
    # An audit counts what an unknown key signed as read, and says so.
    read = "SELECT 1" if "key-unknown" in findings else "SELECT sum(statements), sum(events) FROM audits"
    assert asked(growing.folder, EVENTS, read) == asked(twin.folder, EVENTS, read)


def test_many_garbage_epochs(
    growing: Growing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a drain reads to find the newest epoch grows by a request or two for each folder that nobody signed."""
    calls: list[str] = []
    store_type = type(open_store(str(growing.folder)))
    for name in ("read", "exists", "list"):
        original = getattr(store_type, name)

        def counted(*args: Any, original: Callable[..., Any] = original, **more: Any) -> Any:
            calls.append(str(args[1:2]))
            return original(*args, **more)

        monkeypatch.setattr(store_type, name, counted)
    counts, made = [], 2
    for many in (10, 20, 40):
        for epoch in range(made, 2 + many):
            for sequence in range(50):
                overwrite(growing.folder / layout.manifest_key(Log("audit.grows", 0, epoch), sequence), b"garbage")
        made = 2 + many
        calls.clear()
        caplog.clear()
        assert opened(growing) == Log("audit.grows", 0)
        counts.append(len(calls))
        assert f"and {many - 1} others have no statement signed by trusted keys" in caplog.text
    assert counts[1] - counts[0] <= 2 * 10
    assert counts[2] - counts[1] <= 2 * 20
    # A true epoch among them is found: its first statement, or the one before it, shows it.
    shutil.rmtree(growing.folder / "manifests/audit.grows@9")
    later = Growing(growing.root)
    later._log_id = msgspec.structs.replace(later._log_id, epoch=9)
    later.append(2)
    assert opened(growing) == Log("audit.grows", 0, 9)


@pytest.mark.parametrize("invented", [True, False], ids=["an invented key", "garbage"])
def test_a_later_epoch_that_has_begun(growing: Growing, *, invented: bool) -> None:
    """An epoch with a statement that counts stays the newest one, whatever is in its next slots."""
    later = Growing(growing.root)
    later._log_id = msgspec.structs.replace(later._log_id, epoch=2)
    later.append(2)
    log = Log("audit.grows", 0, 2)
    for sequence in range(2, 3 if invented else 3 + limits.PASSED_OVER):
        first = growing.folder / layout.manifest_key(log, 0)
        data = by_an_invented_key(first, sequence=sequence) if invented else b"garbage"
        overwrite(growing.folder / layout.manifest_key(log, sequence), data)
    assert opened(growing) == log


@pytest.mark.usefixtures("_keys")
def test_another_archive_file(growing: Growing, tmp_path: Path) -> None:
    """With another `archive.json`, no command calls anything verified, and no log disappears."""
    other = Growing(tmp_path / "other")
    other.append(1)
    overwrite(growing.folder / layout.ARCHIVE, (other.folder / layout.ARCHIVE).read_bytes())
    ((kind, message), *_), events = asked(growing.folder, "SELECT kind, message FROM warnings", EVENTS)
    assert (kind, len(events)) == ("unverified", SIZE * 5)
    assert "archive.json is not signed by trusted keys" in message
    health = read_health(settings(growing), datetime.now(UTC))
    assert [(log.log, log.size) for log in health.logs] == [(LOG, 0)]
    (problem,) = (problem for problem in health.problems if problem.kind == "archive-untrusted")
    assert problem.level == "failed"
    assert "archive.json is not signed by trusted keys" in problem.message


# --- queries: what is signed was changed, or is gone


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors of `custody query`."""
    with pytest.raises(SystemExit) as ended:
        main(["query", *arguments])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("data", [b"no Parquet", None], ids=["garbage", "a table without rows"])
def test_a_changed_table(growing: Growing, capfd: pytest.CaptureFixture[str], data: bytes | None) -> None:
    """Signed tables with other bytes are ignored with a warning, and their events are read from the segments."""
    everything = 'SELECT * EXCLUDE (day) FROM events ORDER BY log, "offset"'
    (wanted,) = asked(growing.folder, everything)
    path, *_, other = sorted((growing.folder / "tables").rglob("*.parquet"))
    overwrite(path, data or empty_table(0, 2)[1])
    changed = bytearray(other.read_bytes())
    changed[50] ^= 1
    overwrite(other, bytes(changed))
    found, warnings = asked(growing.folder, everything, "SELECT kind, message FROM warnings")
    assert found == wanted
    assert [kind for kind, _ in warnings] == ["ignored", "ignored"]
    for table in (path, other):
        assert any(f"{table.name} is not the table that was signed" in message for _, message in warnings)
    code, out, err = run(capfd, "SELECT count(*) AS n FROM events", "--archive", str(growing.folder), "--json")
    assert (code, json.loads(out)["n"], err) == (0, len(wanted), "")


@pytest.mark.usefixtures("_keys")
def test_a_table_that_changes_while_it_is_queried(growing: Growing) -> None:
    """A table is hashed whenever it is read: one that has changed since is replaced by its segments."""
    with closing(custody.connect(str(growing.folder))) as connection:
        everything = 'SELECT * EXCLUDE (day) FROM events ORDER BY log, "offset"'
        wanted = connection.execute(everything).fetchall()
        path = min((growing.folder / "tables").rglob("*.parquet"))
        overwrite(path, b"no Parquet")
        assert connection.execute(everything).fetchall() == wanted
        ((kind, message),) = connection.execute("SELECT kind, message FROM warnings").fetchall()
        assert kind == "ignored"
        assert f"{path.name} is not the table that was signed" in message


def test_without_keys(growing: Growing, capfd: pytest.CaptureFixture[str]) -> None:
    """Without keys, the first line says that nothing was verified, and so does a field of each row in JSON.

    A table that is none is replaced by its segments.
    """
    arguments = ("SELECT count(*) AS n FROM audits", "--archive", str(growing.folder))
    # A process of its own: pytest takes what is logged in this one.
    done = subprocess.run(
        [sys.executable, "-m", "custody", "query", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[0].startswith("unverified: no keys are at hand")
    assert json.loads(done.stdout) == {"unverified": True, "n": 1}
    overwrite(min((growing.folder / "tables").rglob("*.parquet")), b"no Parquet")
    code, out, err = run(capfd, "SELECT count(*) AS n FROM events", "--archive", str(growing.folder), "--json")
    assert (code, json.loads(out)["n"]) == (0, SIZE * 5)
    assert "Traceback" not in err


def test_public_keys_alone(growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An auditor without the HMAC secret takes only audits and tables that the Ed25519 key signed.

    Statements that the audit's checkpoint covers are not called unverified; the later ones are.
    """
    keys = open_trust([f"file:{growing.keyring}"]).keys.values()
    entries = [
        {"id": key.id, "algorithm": key.algorithm, "from": None, "to": None}
        | ({"public": base64.b64encode(key.public).decode()} if key.public else {})
        for key in keys
    ]
    (tmp_path / "trust.json").write_text(json.dumps({"format": "custody/trust/1", "keys": entries}))
    monkeypatch.setenv("CUSTODY_TRUST", str(tmp_path / "trust.json"))
    wanted = asked(growing.folder, EVENTS)
    an_audit(growing.folder)
    a_table_of_everything(growing.folder)
    ((audits,),), warnings, events = asked(
        growing.folder, "SELECT count(*) FROM audits", "SELECT kind, message FROM warnings", EVENTS
    )
    assert (audits, [events]) == (1, wanted)
    assert [kind for kind, _ in warnings] == ["damaged", "unverified", "ignored"]
    assert warnings[1][1].startswith("2 signatures could not be checked")
    for path in (growing.folder / "checkpoints/audit.grows/0").iterdir():
        path.unlink()
    # The time index of a signed audit covers its statements, too. Without it, only checkpoints do.
    for index, many in ((True, 2), (False, SIZE)):
        (unverified,) = asked(growing.folder, "SELECT message FROM warnings WHERE kind = 'unverified'")
        assert [message[:2] for (message,) in unverified] == [f"{many} "]
        if index:
            shutil.rmtree(growing.folder / "reports/index")


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("data", [b"7\n", b"", b"[[\n"])
def test_findings_that_are_none(
    growing: Growing, monkeypatch: pytest.MonkeyPatch, data: bytes, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """An object of findings with other bytes than the audit says is named, and shows nothing."""
    monkeypatch.setattr("custody.format.audit.FINDINGS_INLINE", 0)
    for path in (growing.folder / "events").rglob("*.gz"):
        overwrite(path, b"garbage")
    audit(growing)
    ((count,),), _, warned = asked(growing.folder, "SELECT count(*) FROM findings", EVENTS, "FROM warnings")
    # The segments are damaged, which shows where events are read; the findings are not.
    assert (count > 0, [kind for kind, *_ in warned]) == (True, ["damaged"])
    (listed,) = (path for path in (growing.folder / "audits/objects").iterdir() if b'"segment-' in path.read_bytes())
    overwrite(listed, data)
    code, out, _ = run(capfd, "SELECT count(*) AS n FROM findings", "--archive", str(growing.folder), "--json")
    assert (code, json.loads(out)) == (0, {"n": 0})
    assert "the findings of audit 1 are not those that were signed" in caplog.text


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ([0], "no valid statement in the slots 0 to 0"),
        ([0, 1, 3], "no valid statement in the slots 0 to 1, 3 to 3"),
        ([4], "no valid statement in the slots 4 to 4"),
        ([5], "it ends at size 5, but audit 1 knows size 6"),
        ([2, 3, 4, 5], "it ends at size 2, but"),
        (list(range(SIZE)), "it ends at size 0, but"),
    ],
    ids=str,
)
def test_missing_statements(growing: Growing, missing: list[int], said: str) -> None:
    """A log that lacks statements says so, and shows the others, also those of a range of time."""
    audit(growing)
    # With the tables and the index of a signed audit, no row is missing: tests/custody/query/test_growth.py.
    shutil.rmtree(growing.folder / "tables")
    shutil.rmtree(growing.folder / "reports/index")
    for sequence in missing:
        (growing.folder / layout.manifest_key(Log("audit.grows", 0), sequence)).unlink()
    left = [(sequence,) for sequence in range(SIZE) if sequence not in missing]
    shown, warned, events = asked(
        growing.folder,
        "SELECT sequence FROM manifests ORDER BY 1",
        "FROM warnings",
        "SELECT DISTINCT sequence FROM events ORDER BY 1",
    )
    assert (shown, events) == (left, left)
    ((log, message),) = [(log, message) for kind, log, message in warned if kind == "damaged"]
    assert log == LOG
    assert said in message
    with closing(
        custody.connect(str(growing.folder), since=growing.sealed_at(1), until=growing.sealed_at(5))
    ) as connection:
        shown = connection.execute("SELECT sequence FROM manifests ORDER BY 1").fetchall()
        assert shown == [row for row in left if 1 <= row[0] < 5]
