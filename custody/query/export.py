"""Writes events as OCSF to files: one class a file, sorted by time, all files or none.

1. `stage` reads the archive once, into a table of the connection's own file. Now it is known what is unverified.
2. `write` sorts and writes one file after another, in a hidden folder beside the targets, and moves them at the end.

DuckDB moves to disk what does not fit into `MEMORY`, so memory does not grow with the number of events.
"""

import gzip
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from custody.errors import ConfigurationError, CustodyError
from custody.query import ocsf
from custody.query.ocsf import Class
from custody.store.durable import sync_folder

Form = Literal["jsonl", "parquet"]
UNVERIFIED = "unverified"
"""The label of each event of an export in which something is unverified."""
MEMORY, THREADS = "1GB", 4
"""What DuckDB may use. Each thread needs a part of the memory."""

_ENDINGS: dict[Form, str] = {"jsonl": "jsonl.gz", "parquet": "parquet"}
_ROWS = 10_000
"""Rows that are made at a time."""
_ROW_GROUP = 50_000
"""Rows of a row group, which is in memory."""
_REGION = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)
_SOURCE = re.compile(r"[A-Za-z0-9_-]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lake:
    """How Amazon Security Lake names files: a source for each class, and a folder for each day.

    Attributes:
        region: AWS's name of it.
        account: the AWS account that the events are of.
        source: how the names of the sources begin.
        exported: the name of the files: what was exported.
    """

    region: str
    account: str
    source: str
    exported: str

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ConfigurationError: one cannot be part of such a path.
        """
        if not _REGION.fullmatch(self.region):
            raise ConfigurationError(f"--region {self.region!r} is no region of AWS; write it as eu-central-1")
        if not _ACCOUNT.fullmatch(self.account):
            raise ConfigurationError(f"--account {self.account!r} is no AWS account: it has 12 digits")
        if not _SOURCE.fullmatch(self.source):
            raise ConfigurationError(f"--source {self.source!r} must have 1 to 15 letters, digits, - or _")

    def path(self, of: Class, day: date) -> str:
        """Return the path of the file of a class and a day."""
        folder = f"ext/{self.source}-{of.uid}/region={self.region}/accountId={self.account}/eventDay={day:%Y%m%d}"
        return f"{folder}/{self.exported}.parquet"


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written."""

    file: str
    class_name: str
    class_uid: int
    events: int
    bytes: int


def exported_name(since: datetime | None, until: datetime) -> str:
    """Return a name for what is exported: statements sealed in a time."""
    first = f"{since.astimezone(UTC):%Y%m%dT%H%M%SZ}" if since else "begin"
    return f"{first}-{until.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def stage(connection: duckdb.DuckDBPyConnection, classes: Sequence[Class]) -> int:
    """Read the events of classes into the table `exported`. Return how many others are left out.

    Others are those that `ocsf.mapped` leaves out, such as events of own types. They are counted if all classes are
    exported: they would not be read otherwise.
    """
    kinds = [kind for of in classes for kind in of.kinds]
    whole = len(classes) == len(ocsf.CLASSES)
    condition = "" if whole else f"WHERE {ocsf.mapped(kinds)}"
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute(f"SET threads = {min(THREADS, os.cpu_count() or 1)}")
    # All names are ours.
    columns = f"* REPLACE (CAST(NULL AS VARCHAR) AS event), {ocsf.mapped(kinds)} AS maps"
    connection.execute(f"CREATE TABLE exported AS SELECT {columns} FROM events {condition}")  # noqa: S608
    row = connection.execute("SELECT count(*) FROM exported WHERE maps IS NOT TRUE").fetchone()
    return int(row[0]) if row else 0


def write(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    classes: Sequence[Class],
    form: Form,
    *,
    lake: Lake | None = None,
    label: str | None = None,
    overwrite: bool = False,
) -> list[Written]:
    """Write what was staged, all files or none. A process that is killed while they get their names leaves whole ones.

    Args:
        connection: with the table `exported`.
        folder: for the files; it is made if it is not there.
        classes: which to write. A class without events gets no file.
        form: of the files.
        lake: names files as Amazon Security Lake does.
        label: of each event.
        overwrite: whether files that are there are replaced.

    Raises:
        ConfigurationError: the folder cannot be written, or a file is there already.
        CustodyError: a file cannot be written in full.
    """
    planned: list[tuple[str, Class, str, int]] = []
    for of in classes:
        for condition, path, events in _files(connection, of, form, lake):
            planned.append((path, of, condition, events))
    if not overwrite:
        for path, *_ in planned:
            if (folder / path).exists():
                raise ConfigurationError(f"{folder / path} exists: give another folder with -o, or --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".custody-export-", dir=folder)
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be written: {error.strerror}") from None
    written: list[Written] = []
    try:
        with staging as hidden:
            for number, (path, of, condition, events) in enumerate(planned):
                staged = Path(hidden, str(number))
                _write(connection, staged, of, condition, form, label)
                written.append(Written(path, of.name, of.uid, events, staged.stat().st_size))
            for number, (path, *_) in enumerate(planned):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Path(hidden, str(number)).replace(folder / path)
                sync_folder(str((folder / path).parent))
    except OSError as error:
        raise CustodyError(f"{folder} could not be written: {error.strerror or error}") from None
    return written


def _files(
    connection: duckdb.DuckDBPyConnection, of: Class, form: Form, lake: Lake | None
) -> Iterator[tuple[str, str, int]]:
    """Yield the files of a class: the condition of its events, its path, and how many events it has."""
    condition = f"maps AND event_type IN ({', '.join(repr(kind) for kind in of.kinds)})"
    day = "time::DATE" if lake else "NULL::DATE"
    sql = f"SELECT {day} AS day, count(*) FROM exported WHERE {condition} GROUP BY 1 ORDER BY 1"  # noqa: S608
    for when, events in connection.execute(sql).fetchall():
        if lake is not None:
            yield f"{condition} AND time::DATE = '{when}'", lake.path(of, when), events
        else:
            yield condition, f"{of.name}.{_ENDINGS[form]}", events


def _write(
    connection: duckdb.DuckDBPyConnection, path: Path, of: Class, condition: str, form: Form, label: str | None
) -> None:
    """Write a file of a class: the events that meet a condition, in the order of their time."""
    # DuckDB keeps the order of what it selects from. To sort the events as they become would take more memory.
    rows = f'SELECT {ocsf.given(label)} FROM exported WHERE {condition} ORDER BY time, log, "offset"'  # noqa: S608
    sql = f"SELECT {ocsf.columns(of.kinds)} FROM ({rows})"  # noqa: S608
    if form == "jsonl":
        sql = f"SELECT {ocsf.as_json(of.kinds)} FROM ({sql})"  # noqa: S608
    # Audit records are in it: it is its owner's alone.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        (_write_jsonl if form == "jsonl" else _write_parquet)(connection.sql(sql), file)
        file.flush()
        os.fsync(file.fileno())


def _write_jsonl(result: Any, file: Any) -> None:
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
        for batch in result.to_arrow_reader(_ROWS):
            packed.write("".join(f"{line}\n" for line in batch.column(0).to_pylist()).encode())


def _write_parquet(result: Any, file: Any) -> None:
    reader = result.to_arrow_reader(_ROWS)
    at = reader.schema.get_field_index("time_dt")
    schema = reader.schema.set(at, pa.field("time_dt", pa.timestamp("us", tz="UTC")))
    waiting: list[Any] = []
    # Lists have three levels: others are not read by Athena.
    with pq.ParquetWriter(file, schema, compression="zstd", use_compliant_nested_type=True) as writer:
        for batch in reader:
            zoned = pc.assume_timezone(batch.column(at), "UTC")
            waiting.append(
                pa.RecordBatch.from_arrays([*batch.columns[:at], zoned, *batch.columns[at + 1 :]], schema=schema)
            )
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
