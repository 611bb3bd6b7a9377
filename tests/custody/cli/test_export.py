"""`custody export`: what is in its files, that all or none are written, and what it refuses."""

import gzip
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from custody.format.events import EVENT_TYPES
from custody.query import export, ocsf, tables
from tests.helpers.commands import Command, Result
from tests.helpers.corpus import EVENTS
from tests.helpers.environment import clear_settings
from tests.helpers.ocsf import check_ocsf, from_columns, nulls
from tests.helpers.querying import audit, row
from tests.helpers.sample import Growing

BEGUN = datetime(2026, 11, 28, 23, 50, tzinfo=UTC)
STATEMENTS = 20
"""One a minute, of five events each: so half of them are sealed on the next day."""
OWN, NO_EVENT = 7, 19
"""Which of 20 offsets is of an own type, and which is no event."""
LAKE = ("--layout", "security-lake", "--region", "eu-central-1", "--account", "123456789012")

Export = Callable[..., Result]


def happened(offset: int) -> datetime:
    """Return when an event happened: not in the order of offsets, and one in ten a day before."""
    return BEGUN + timedelta(
        minutes=offset // 5, seconds=-7 * (offset % 5), microseconds=offset, days=-(offset % 10 == 3)
    )


def content(offset: int) -> bytes:
    """Return a record: an event of the six types in turn, but for some."""
    if offset % 20 == NO_EVENT:
        return b"no event"
    kind = list(EVENT_TYPES)[offset % 6]
    fields: dict[str, Any] = {"timestamp": happened(offset).isoformat(), "request_id": f"request-{offset}"}
    if offset % 20 == OWN:
        fields["event_type"] = "an own one"
    return json.dumps(EVENTS[kind] | fields).encode()


MAPPED = [offset for offset in range(5 * STATEMENTS) if offset % 20 not in {OWN, NO_EVENT}]


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Growing:
    """Make an archive; the last statements have no tables."""
    with pytest.MonkeyPatch.context() as patched:
        clear_settings(patched)
        made = Growing(tmp_path_factory.mktemp("exported"), begun=BEGUN)
        made.append(STATEMENTS - 4, content)
        audit(made.folder, made.keyring)
        made.append(4, content)
    return made


@pytest.fixture
def run(custody: Command, growing: Growing) -> Export:
    """`custody export --ocsf` of the archive, with its keys."""

    def run(*arguments: object) -> Result:
        return custody("export", "--ocsf", "--archive", growing.folder, "--keys", growing.keyring, *arguments)

    return run


@pytest.fixture(scope="module")
def kept() -> dict[str, tuple[Path, Result]]:
    """Return what `exported` has made in this module."""
    return {}


@pytest.fixture
def exported(
    run: Export, tmp_path_factory: pytest.TempPathFactory, kept: dict[str, tuple[Path, Result]]
) -> dict[str, tuple[Path, Result]]:
    """Give the folder, and the result, of an export of all events in each form."""
    if not kept:
        for form in ("jsonl", "parquet"):
            folder = tmp_path_factory.mktemp(form)
            kept[form] = folder, run("-o", folder / "out", "--format", form)
    return {form: (folder / "out", result) for form, (folder, result) in kept.items()}


def files(folder: Path) -> dict[str, Path]:
    """Return all that is in a folder, hidden files too."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file, which is read as others would."""
    if path.suffix == ".parquet":
        return [from_columns(row) for row in pq.read_table(path).to_pylist()]
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def offsets(*paths: Path) -> list[int]:
    """Return the offsets of the events of files."""
    return [event["metadata"]["sequence"] for path in paths for event in events(path)]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_files_have_each_event_once(exported: dict[str, tuple[Path, Result]], form: str) -> None:
    """Each event of the six types is in the file of its class, valid, without nulls, in the order of time."""
    folder, done = exported[form]
    assert (done.code, done.err) == (0, "")
    made = files(folder)
    ending = "parquet" if form == "parquet" else "jsonl.gz"
    assert set(made) == {f"{each.name}.{ending}" for each in ocsf.CLASSES}
    assert sorted(offsets(*made.values())) == MAPPED
    for of in ocsf.CLASSES:
        several = events(made[f"{of.name}.{ending}"])
        for event in several:
            check_ocsf(event)
            assert list(nulls(event)) == []
            offset = event["metadata"]["sequence"]
            assert event["class_uid"] == of.uid
            assert event["metadata"]["event_code"] == list(EVENT_TYPES)[offset % 6]
            assert event["metadata"]["correlation_uid"] == f"request-{offset}"
            assert datetime.fromisoformat(event["time_dt"]) == happened(offset)
        assert all(first["time_dt"] <= second["time_dt"] for first, second in pairwise(several))
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.values()} == {0o600}
    assert f"Exported {len(MAPPED)} events to 4 files." in done.out
    assert "5 events were left out: OCSF has no class for own types." in done.out


def test_both_forms_have_the_same(exported: dict[str, tuple[Path, Result]]) -> None:
    """JSON lines and Parquet say the same of each event."""
    lines, tables = exported["jsonl"][0], exported["parquet"][0]
    for of in ocsf.CLASSES:
        assert events(lines / f"{of.name}.jsonl.gz") == events(tables / f"{of.name}.parquet")


def test_parquet_is_as_data_lakes_read_it(exported: dict[str, tuple[Path, Result]]) -> None:
    """Compressed by zstd, lists of three levels, JSON as text, and no attribute that the class lacks."""
    for of in ocsf.CLASSES:
        file = pq.ParquetFile(exported["parquet"][0] / f"{of.name}.parquet")
        paths = [file.schema.column(number).path for number in range(len(file.schema))]
        lists = {path for path in paths if ".list." in path}
        assert lists >= {"observables.list.element.type_id", "metadata.profiles.list.element"}
        assert all(".list.element" in path for path in lists)
        assert {file.metadata.row_group(0).column(number).compression for number in range(len(paths))} == {"ZSTD"}
        assert set(file.schema_arrow.names) == set(ocsf.tree(of.kinds).fields)
        assert file.schema_arrow.field("unmapped").type == pa.string()
        assert file.schema_arrow.field("time").type == pa.int64()
        assert file.schema_arrow.field("time_dt").type == pa.timestamp("us", tz="UTC")


def test_security_lake(run: Export, tmp_path: Path) -> None:
    """A source for each class, a folder for each day of the events, and late events in the folder of their day."""
    until = BEGUN + timedelta(hours=1)
    assert run("-o", tmp_path, *LAKE, "--until", until.isoformat()).code == 0
    days = set()
    for path, file in files(tmp_path).items():
        ext, source, region, account, day, name = path.split("/")
        assert (ext, region, account) == ("ext", "region=eu-central-1", "accountId=123456789012")
        assert name == "begin-20261129T005000Z.parquet"
        assert {f"custody-{event['class_uid']}" for event in events(file)} == {source}
        assert {f"eventDay={datetime.fromisoformat(event['time_dt']):%Y%m%d}" for event in events(file)} == {day}
        days.add(day)
    assert days == {"eventDay=20261127", "eventDay=20261128", "eventDay=20261129"}
    assert sorted(offsets(*files(tmp_path).values())) == MAPPED


def test_one_export_after_the_other(run: Export, tmp_path: Path) -> None:
    """Exports whose times meet have each event once, however late it came, and their files have different names."""
    at = (BEGUN + timedelta(minutes=7)).isoformat()
    assert run("-o", tmp_path, *LAKE, "--until", at).code == 0
    before = files(tmp_path)
    assert sorted(offsets(*before.values())) == [offset for offset in MAPPED if offset < 35]
    assert run("-o", tmp_path, *LAKE, "--since", at).code == 0
    after = files(tmp_path)
    assert before.items() < after.items()
    assert sorted(offsets(*after.values())) == MAPPED


@pytest.mark.parametrize("name", ["authentication", "3002"])
def test_one_class(run: Export, tmp_path: Path, name: str) -> None:
    """A class is chosen by its name or its number, and the report as JSON has what the files have."""
    done = run("-o", tmp_path, "--class", name, "--json")
    file, summary = map(json.loads, done.out.splitlines())
    several = events(tmp_path / "authentication.jsonl.gz")
    assert list(files(tmp_path)) == [file["file"]] == ["authentication.jsonl.gz"]
    size = (tmp_path / file["file"]).stat().st_size
    assert file == {
        "kind": "file",
        "file": "authentication.jsonl.gz",
        "class_name": "authentication",
        "class_uid": 3002,
        "events": len(several),
        "bytes": size,
    }
    counts = {"files": 1, "events": len(several), "left_out": 0, "unverified": False}
    assert summary == {"kind": "exported", **counts}


def test_nothing_to_export(run: Export, tmp_path: Path) -> None:
    """A time without events is no error, and makes no file."""
    done = run("-o", tmp_path / "out", "--until", "2026-01-01")
    assert (done.code, done.out) == (0, "Exported 0 events to 0 files.\n")
    assert files(tmp_path / "out") == {}


def test_what_is_no_valid_event_is_left_out(tmp_path: Path) -> None:
    """A line that only the holder of a key can have archived is counted, and not exported: it would not be valid."""
    lines = [json.dumps(EVENTS["auth_attempt"] | more).encode() for more in ({}, {"client_ip": 7}, {"status": [1]})]
    with duckdb.connect() as connection:
        table = pa.Table.from_pylist([row(line) for line in lines], schema=tables.SCHEMA)
        connection.register("events", table)
        assert export.stage(connection, ocsf.CLASSES) == 2
        (written,) = export.write(connection, tmp_path, ocsf.CLASSES, "jsonl")
    assert written.events == 1
    check_ocsf(*events(tmp_path / written.file))


# --- all or nothing


def test_files_are_replaced_only_if_asked(run: Export, tmp_path: Path) -> None:
    """A file that is there stops the export before any is written, unless --overwrite is given."""
    there = tmp_path / "detection_finding.jsonl.gz"
    there.write_bytes(b"mine")
    refused = run("-o", tmp_path)
    assert (refused.code, list(files(tmp_path)), there.read_bytes()) == (2, [there.name], b"mine")
    assert f"{there} exists: give another folder with -o, or --overwrite" in refused.err
    assert run("-o", tmp_path, "--overwrite").code == 0
    assert len(events(there)) == sum(offset % 6 == 4 for offset in MAPPED)


def test_a_full_disk_leaves_no_file(run: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last file cannot be written, none of them is there, and nothing hidden is left."""
    real, written = export._write_jsonl, []

    def write(result: Any, file: Any) -> None:
        written.append(file)
        if len(written) == len(ocsf.CLASSES):
            raise OSError(28, "No space left on device")
        real(result, file)

    monkeypatch.setattr(export, "_write_jsonl", write)
    failed = run("-o", tmp_path / "out")
    assert failed.code == 1
    assert failed.err == f"custody: {tmp_path / 'out'} could not be written: No space left on device\n"
    assert len(written) == len(ocsf.CLASSES)
    assert list((tmp_path / "out").iterdir()) == []


# --- what is unverified


def test_unverified_events_are_marked_or_refused(custody: Command, growing: Growing, tmp_path: Path) -> None:
    """Without keys nothing is written and the code is 12. With --unverified each event has the label, and is valid."""
    words = ("export", "--ocsf", "--archive", growing.folder, "-o", tmp_path / "out")
    refused = custody(*words)
    assert (refused.code, (tmp_path / "out").exists()) == (12, False)
    assert "nothing was exported: some events are unverified" in refused.err
    done = custody(*words, "--unverified", "--format", "parquet")
    assert (done.code, "each with the label unverified" in done.out) == (0, True)
    several = [event for path in files(tmp_path / "out").values() for event in events(path)]
    assert len(several) == len(MAPPED)
    for event in several:
        check_ocsf(event)
        assert event["metadata"]["labels"] == ["unverified"]


def test_the_label_is_for_what_is_unverified(run: Export, tmp_path: Path) -> None:
    """With the keys, --unverified labels nothing."""
    assert run("-o", tmp_path, "--unverified", "--class", "2004").code == 0
    assert {"labels" in event["metadata"] for event in events(tmp_path / "detection_finding.jsonl.gz")} == {False}


# --- mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--class", "process_activity"), "no class that events map to: give one of api_activity (6003), "),
        (("--since", "2d", "--until", "3d"), "must be later than --since"),
        (("--layout", "security-lake", "--region", "eu-central-1"), "needs --region and --account"),
        ((*LAKE, "--format", "jsonl"), "Security Lake takes Parquet only"),
        ((*LAKE, "--account", "1234"), "it has 12 digits"),
        ((*LAKE, "--region", "../up"), "is no region of AWS"),
        ((*LAKE, "--source", "a/b"), "must have 1 to 15 letters"),
    ],
)
def test_mistakes(run: Export, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    """A wrong argument is exit code 2 and one line, before anything is read."""
    refused = run("-o", tmp_path / "out", *words)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert line in refused.err
    assert not (tmp_path / "out").exists()


def test_the_form_is_named(custody: Command, growing: Growing, tmp_path: Path) -> None:
    """Without --ocsf nothing is exported: other forms may come."""
    refused = custody("export", "--archive", growing.folder, "-o", tmp_path / "out")
    assert (refused.code, "give --ocsf" in refused.err) == (2, True)


def test_a_folder_that_is_none(run: Export, tmp_path: Path) -> None:
    """A folder that cannot be made is exit code 2, and names it."""
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        refused = run("-o", folder)
        assert (refused.code, len(refused.err.splitlines())) == (2, 1)
        assert f"the folder {folder} cannot be written" in refused.err
