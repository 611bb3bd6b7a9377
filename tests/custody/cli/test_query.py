"""`custody query` as its user meets it: on a terminal, in a pipe, with a typo, with a damaged archive."""

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from custody.cli.query import ENDINGS, ROWS_SHOWN
from custody.format import layout, manifest
from custody.query.views import VIEWS
from custody.store.folder import FolderStore
from tests.helpers.commands import Command, Result
from tests.helpers.querying import audit
from tests.helpers.sample import Growing, Sample

ROOT = Path(__file__).resolve().parents[3]
FORMATS = ("--line", "--markdown", "--csv", "--spreadsheet", "--json")
EVENTS = 148
"""Of the sample."""

BEFORE = 400_000
"""Rows that fill DuckDB's buffer, so that it reads no more before some of them are taken."""

Query = Callable[..., Result]


@pytest.fixture
def query(custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> Query:
    """`custody query` of the sample, with its keys."""

    def run(*arguments: object, archive: Path = sample.folder, keyring: Path = sample.keyring) -> Result:
        return custody("query", "--archive", archive, "--keys", keyring, *arguments)

    monkeypatch.setenv("COLUMNS", "80")
    return run


def test_all_rows_in_a_pipe(query: Query) -> None:
    """A pipe gets all rows, unless a limit is given; at 80 columns what is left out is said."""
    whole = query("FROM events")
    assert len(whole.out.splitlines()) > EVENTS
    assert max(map(len, whole.out.splitlines())) <= 80
    assert f"{EVENTS} rows, {len(VIEWS[0].columns)} columns" in whole.out
    assert "Not shown: " in whole.out
    assert f"{EVENTS} rows (5 shown)" in query("SELECT log FROM events", "--limit", 5).out
    assert query("SELECT log FROM events", "--limit", 0).out.count("audit.events/0") == EVENTS


@pytest.mark.parametrize(("more", "rows"), [((), ROWS_SHOWN), (("--limit", "0"), EVENTS), (("--line",), ROWS_SHOWN)])
def test_a_terminal_gets_the_first_rows(sample: Sample, tmp_path: Path, more: tuple[str, ...], rows: int) -> None:
    """A terminal gets as many rows as a person reads, and how many there are."""
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "custody", "query", "SELECT log, time FROM events", "--archive", sample.folder, *more],
        stdout=follower,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)},
    )
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 65536):
            shown += piece
    except OSError:
        # Linux answers so when nobody writes any more.
        pass
    os.close(leader)
    assert done.wait(60) == 0
    assert shown.count(b"audit.events/0") == rows
    if rows < EVENTS:
        assert f"{EVENTS} rows ({rows} shown)".encode() in shown


def test_json_and_csv_have_all_rows_and_all_columns(query: Query) -> None:
    """What machines read is never cut; a limit that leaves rows out is said on stderr."""
    assert len(query("FROM events", "--json").out.splitlines()) == EVENTS
    assert len(list(csv.reader(query("FROM events", "--csv").out.splitlines()))) == EVENTS + 1
    limited = query("FROM events", "--json", "--limit", 2)
    assert len(limited.out.splitlines()) == 2
    assert f"{EVENTS} rows (2 shown)" in limited.err


def test_two_formats_exclude_each_other(query: Query) -> None:
    """Two formats are a usage error that names both."""
    for first in FORMATS:
        for second in FORMATS:
            if first != second and {first, second} != {"--csv", "--spreadsheet"}:
                refused = query("SELECT 1", first, second)
                assert (refused.code, refused.out) == (2, ""), (first, second)
                assert "exclude each other" in refused.err


def test_a_range_that_ends_before_it_begins(query: Query) -> None:
    """A range without any time is a usage error, and not an empty result."""
    refused = query("FROM events", "--since", "today", "--until", "yesterday")
    assert (refused.code, refused.out) == (2, "")
    assert "must be later than --since" in refused.err


def test_sql_from_a_file_or_stdin(query: Query, tmp_path: Path, sample: Sample) -> None:
    """The SQL comes from one of the three; none and several are usage errors."""
    path = tmp_path / "a.sql"
    path.write_bytes(b"\xef\xbb\xbfSELECT count(*) AS n\nFROM events -- all\n")
    assert json.loads(query("--file", path, "--json").out) == {"n": EVENTS}
    done = subprocess.run(
        [sys.executable, "-m", "custody", "query", "-", "--json", "--archive", sample.folder],
        input=path.read_bytes(),
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert json.loads(done.stdout)["n"] == EVENTS
    path.write_bytes(b"\xff")
    wrong = [(), ("SELECT 1", "--file", path), ("--file", path), ("--file", tmp_path / "none"), ("--file", tmp_path)]
    for arguments in wrong:
        refused = query(*arguments)
        assert (refused.code, refused.out) == (2, ""), arguments
        assert "Traceback" not in refused.err


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_has_the_format_of_its_ending(query: Query, tmp_path: Path, ending: str) -> None:
    """The file has what the option prints, whole, whatever the width; nothing else is left beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / f"result{ending.upper() if ending == '.csv' else ending}"
    path.write_text("an older result")
    done = query("FROM events", "-o", path)
    assert done.code == 0
    assert f"{EVENTS} rows" in done.out
    option = {"csv": ["--csv"], "json": ["--json"], "markdown": ["--markdown"], "table": []}[ENDINGS[ending]]
    if option:
        assert path.read_text() == query("FROM events", *option).out
    else:
        assert "2026-03-01" in path.read_text()
        assert "…" not in path.read_text()
    assert list(folder.iterdir()) == [path]


def test_a_file_that_cannot_be_written(query: Query, tmp_path: Path) -> None:
    """A file is replaced only by a whole result, and what is no file is left alone."""
    kept = tmp_path / "kept.csv"
    kept.write_text("kept")
    failed = query("SELECT CASE WHEN \"offset\" < 1140 THEN 1 ELSE error('late') END FROM events", "-o", kept)
    assert (failed.code, failed.out, kept.read_text()) == (1, "", "kept")
    for path in (tmp_path / "none" / "a.csv", tmp_path / "a.unknown", Path("/dev/null"), tmp_path):
        refused = query("SELECT 1", "-o", path)
        assert refused.code == 2, path
    refused = query("SELECT 1", "-o", "/dev/null", "--csv")
    assert refused.code == 2
    assert "it is not a file" in refused.err
    assert Path("/dev/null").is_char_device()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".kept")] == []
    link = tmp_path / "link.csv"
    link.symlink_to(kept)
    assert query("SELECT 1 AS n", "-o", link).code == 0
    assert (link.is_symlink(), kept.read_text()) == (True, "n\n1\n")


def test_the_output_is_checked_before_the_archive_is_read(query: Query, tmp_path: Path) -> None:
    """A file that cannot be written is said at once, and not after the query has run."""
    refused = query("SELECT 1", "-o", tmp_path / "none" / "a.csv", archive=tmp_path / "no archive")
    assert refused.code == 2
    assert "a.csv cannot be written: No such file" in refused.err


def test_a_file_of_sql_needs_its_option(query: Query, tmp_path: Path) -> None:
    """Who gives a file where the SQL belongs is told the option."""
    path = tmp_path / "q.sql"
    path.write_text("SELECT 1")
    refused = query(str(path))
    assert refused.code == 2
    assert f"read the SQL from it with --file {path}" in refused.err


# --- wrong names

WRONG = {
    "SELECT * FROM evnts": "did you mean events?",
    "SELECT * FROM nothing": (
        "tables are events, sources, detections, ocsf, batches, manifests, quarantined, audits, findings, warnings"
    ),
    "SELECT event_typ FROM events": "did you mean event_type of events",
    "SELECT type FROM events": "did you mean event_type of events or alert_type of events or resource_type of events?",
    "SELECT client FROM events": "did you mean client_ip of events",
    "SELECT key FROM events": "did you mean api_key_id of events or key_version of events or key_age_days of events?",
    "SELECT e.sequense FROM events e": "did you mean sequence of events",
    "SELECT xyzzy FROM warnings": "warnings has kind, log, message",
    "SELECT log, offset FROM events": 'write the column as "offset", in double quotes',
}


@pytest.mark.parametrize("sql", WRONG)
def test_a_wrong_name_is_answered_with_ours(query: Query, sql: str) -> None:
    """A typo is answered with our tables and columns, never with DuckDB's own tables."""
    refused = query(sql)
    assert (refused.code, refused.out) == (1, "")
    assert WRONG[sql] in refused.err
    assert "pg_" not in refused.err
    assert "duckdb_" not in refused.err
    assert all(line.startswith("custody: ") and line != "custody: " for line in refused.err.splitlines())


def test_the_help_names_tables_and_columns(custody: Command) -> None:
    """Who has installed the wheel has no docs: the help has each table and all its columns, at 80 columns of text."""
    lines = custody("query", "--help").out.partition("Tables")[2]
    shown = " ".join(lines.split())
    for view in VIEWS:
        assert f"{view.name} {', '.join(column.name for column in view.columns)}" in shown
    assert max(map(len, lines.splitlines())) <= 80


# --- damaged archives


def _first_manifest(growing: Growing) -> str:
    (growing.folder / layout.manifest_key(layout.Log("audit.grows", 0), 0)).unlink()
    return "records up to offset 4 are not shown"


def _middle_manifest(growing: Growing) -> str:
    (growing.folder / layout.manifest_key(layout.Log("audit.grows", 0), 2)).unlink()
    return "records at offsets 10 to 14 are not shown"


def _segment(growing: Growing) -> Path:
    path = growing.folder / layout.manifest_key(layout.Log("audit.grows", 0), 2)
    segment = manifest.parse(path.read_bytes()).statement.segment
    assert segment
    return growing.folder / segment.key


def _lost_segment(growing: Growing) -> str:
    path = _segment(growing)
    path.unlink()
    return f"audit.grows/0/2: {path.relative_to(growing.folder)} is missing"


def _changed_segment(growing: Growing) -> str:
    path = _segment(growing)
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.unlink()
    path.write_bytes(data)
    return f"audit.grows/0/2: {path.relative_to(growing.folder)}: "


DAMAGE = [_first_manifest, _middle_manifest, _lost_segment, _changed_segment]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("since", [(), ("--since", "2d")])
def test_no_event_vanishes_in_silence(
    query: Query,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Growing], str],
    since: tuple[str, ...],
) -> None:
    """What is not shown is a warning that names the log and the object or the offsets. The exit code stays 0."""
    growing = Growing(tmp_path)
    growing.append(5)
    where = {"archive": growing.folder, "keyring": growing.keyring}
    sql = ("SELECT count(*) AS n FROM events", "--json", *since)
    before = query(*sql, **where)
    assert (before.code, json.loads(before.out), caplog.messages) == (0, {"n": 25}, [])
    said = damage(growing)
    after = query(*sql, **where)
    assert after.code == 0
    assert json.loads(after.out)["n"] < 25
    (line,) = caplog.messages
    assert line.startswith("damaged: audit.grows/0: ")
    assert said.lower() in line.lower()


def test_warnings_are_on_stderr_in_each_format(tmp_path: Path) -> None:
    """The warnings are lines on stderr, one each, and stdout has the result alone; `--quiet` leaves them out."""
    growing = Growing(tmp_path)
    growing.append(5)
    _first_manifest(growing)
    arguments = ["SELECT count(*) AS n FROM events", "--archive", growing.folder, "--keys", growing.keyring]
    wanted = {"--json": '{"n": 20}\n', "--csv": "n\n20\n", "--spreadsheet": "n\n20\n", "--line": "n = 20\n"}
    for form in ("", *FORMATS, "--quiet"):
        # A process of its own: pytest takes what is logged in this one.
        done = subprocess.run(
            [sys.executable, "-m", "custody", "query", *map(str, arguments), *([form] if form else [])],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        lines = done.stderr.splitlines()
        assert [line.partition(" no valid")[0] for line in lines] == ["damaged: audit.grows/0:"] * (
            form != "--quiet"
        ), form
        assert "damaged" not in done.stdout
        assert done.stdout == wanted.get(form, done.stdout)


def test_a_lost_quarantine_object_is_said(query: Query, altered: Sample, caplog: pytest.LogCaptureFixture) -> None:
    """The table of quarantined records is not empty in silence either."""
    path = next((altered.folder / "quarantine").rglob("*.gz"))
    path.unlink()
    shown = query("FROM quarantined", archive=altered.folder)
    assert (shown.code, len(caplog.messages)) == (0, 1)
    assert f"{path.relative_to(altered.folder)} is missing" in caplog.text


def test_expired_objects_are_no_damage(query: Query, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Objects of statements that were declared expired may be gone."""
    growing = Growing(tmp_path)
    growing.append(5)
    growing.expire(0, 3)
    _segment(growing).unlink()
    shown = query("SELECT count(*) AS n FROM events", "--json", archive=growing.folder, keyring=growing.keyring)
    assert (shown.code, json.loads(shown.out), caplog.messages) == (0, {"n": 20}, [])


def test_many_losses_are_one_line(query: Query, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log that lost all its segments is one line."""
    growing = Growing(tmp_path)
    growing.append(9)
    for path in list((growing.folder / "events").rglob("*.gz")):
        path.unlink()
    query("SELECT count(*) AS n FROM events", archive=growing.folder, keyring=growing.keyring)
    (line,) = caplog.messages
    assert "; and 6 more; run `custody verify`" in line


def test_public_keys_alone_are_enough(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """An auditor gives trust.json with `--trust`: rows that a signed checkpoint covers are not marked."""
    trust = tmp_path / "trust.json"
    assert custody("keys", "export", "--archive", sample.folder, "--keys", sample.keyring, "--output", trust).code == 0
    ask = ("query", "--archive", sample.folder, "--trust", trust, "SELECT count(*) AS n FROM events", "--json")
    assert json.loads(custody(*ask).out) == {"unverified": True, "n": EVENTS}
    audit(sample.folder, sample.keyring)
    assert json.loads(custody(*ask).out) == {"n": EVENTS}


def test_rows_are_marked_as_they_are_read(custody: Command, tmp_path: Path) -> None:
    """Rows of what is unverified are marked, although rows that come before them are written first."""
    growing = Growing(tmp_path / "unaudited")
    growing.append(3)
    trust = tmp_path / "trust.json"
    assert (
        custody("keys", "export", "--archive", growing.folder, "--keys", growing.keyring, "--output", trust).code == 0
    )
    sql = f'SELECT -1 AS n FROM range({BEFORE}) UNION ALL SELECT "offset" FROM events'  # noqa: S608 - a number
    file = tmp_path / "rows.jsonl"
    ask = ("query", "--archive", growing.folder, "--trust", trust, sql, "--json", "--output", file)
    assert custody(*ask).code == 0
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert len(rows) == BEFORE + growing.events
    assert all(row.get("unverified") for row in rows if row["n"] >= 0)


@pytest.mark.parametrize("part", ["manifests/", "reports/index/", "tables/day="])
@pytest.mark.parametrize("ending", [KeyboardInterrupt, MemoryError])
def test_what_ends_a_scan_ends_the_command(
    query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, ending: type[BaseException]
) -> None:
    """Ctrl-C, or too little memory, is no error of the query, wherever DuckDB waits for rows."""
    growing = Growing(tmp_path / "ends")
    growing.append(5)
    audit(growing.folder, growing.keyring)
    growing.append(1)
    raised: list[str] = []
    real = FolderStore.read

    def read(self: FolderStore, key: str, *given: Any, **more: Any) -> bytes:
        if key.startswith(part):
            raised.append(key)
            raise ending
        return real(self, key, *given, **more)

    monkeypatch.setattr(FolderStore, "read", read)
    done = query("SELECT request_id FROM events", archive=growing.folder, keyring=growing.keyring)
    assert raised
    assert done.code == (130 if ending is KeyboardInterrupt else 1)
    assert "DuckDB" not in done.err
    assert "Invalid Input" not in done.err
    assert ("MemoryError" in done.err) is (ending is MemoryError)


def test_an_interrupt_between_scans_ends_the_command(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB ends its own work at Ctrl-C by a plain RuntimeError: no traceback comes of it."""

    def interrupted(*_: object) -> None:
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr("custody.cli.rows.Rows.__init__", interrupted)
    done = query("SELECT 1")
    assert (done.code, "Traceback" in done.err) == (130, False)
