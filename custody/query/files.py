"""Opens the Parquet files of an archive for Arrow, through the archive's own store, and only when they are read.

A file counts as it was signed. If it is missing, or has other bytes, its rows are made from the statements: so a query
gives the same rows, whatever happened to what is derived.

Arrow's threads never call Python: a query that ends early waits for them while it holds Python's lock. So files are
read here, a few ahead, and Arrow gets local paths and memory of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from hashlib import sha256
from operator import and_
from threading import Lock
from typing import Any, Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing, TerminalStoreError
from custody.query import tables
from custody.query.lazy import EVENTS
from custody.store.ahead import in_order
from custody.store.protocol import Store

_AHEAD = 4
"""Files that are read ahead, each of 16 MiB or little more."""
_OPTIONS = {"batch_readahead": 4, "fragment_readahead": 2}
"""Row groups of a file, and local files, that Arrow reads ahead."""
_PLAIN = ds.ParquetFileFormat()
# Few different values: DuckDB groups by their numbers, several times as fast.
_EVENTS = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns=tables.REPEATING))
_SYSTEM = fs.LocalFileSystem()
_ADVICE = "delete it, and find out who modified it"

Fragment = Callable[[Any], Any]
"""Makes Arrow's fragment of a dataset of the path of a local file, or of bytes in memory."""


class Ref(Protocol):
    """A reference to a file: its key, and the SHA-256 of its bytes."""

    @property
    def key(self) -> str:
        """The key in the archive."""
        ...

    @property
    def sha256(self) -> str:
        """The digest, in hex."""
        ...


def read_signed(store: Store, ref: Ref) -> bytes:
    """Return the bytes of a file.

    Raises:
        FormatError: it has other bytes than were signed.
        ObjectMissing: there is none.
        StoreError: it cannot be read.
    """
    data = store.read(ref.key, limit=tables.FILE_LIMIT)
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError(f"{ref.key} is not the table that was signed: {_ADVICE}")
    return data


@dataclass(eq=False)
class Source:
    """Where the rows of a part of a table come from.

    Attributes:
        key: of its file in the archive; None if there is none.
        ref: what was signed of the file; None if nothing was.
        make: writes the same rows from the statements, and returns the path of that local file.
        changed: called if the file is missing, or has other bytes than were signed.
    """

    key: str | None = None
    ref: Ref | None = None
    make: Callable[[], str] | None = None
    changed: Callable[[CustodyError], None] | None = None
    _made: str | None = None
    _lock: Lock = field(default_factory=Lock)

    @property
    def path(self) -> str | None:
        """The local file that was made of it, None if there is none."""
        return self._made

    def open(self, store: Store, fragment: Fragment) -> Any:
        """Return the file as a fragment.

        Raises:
            CustodyError: it cannot be read.
        """
        if self._made is None and self.key is not None:
            try:
                return read_table(store, self.key, self.ref, fragment)
            except ObjectArchived:
                if self.make is None:
                    raise
            except (FormatError, ObjectMissing) as error:
                if self.make is None:
                    raise
                if self.changed is not None:
                    self.changed(error)
        with self._lock:
            if self._made is None:
                if self.make is None:
                    raise FormatError(f"{self.key} has no statements")
                self._made = self.make()
            return fragment(self._made)


Part = tuple[Source, Any]
"""A part of a table: where its rows come from, and an expression that each of them meets, or None."""


def local(path: str) -> Source:
    """Return the source of a local file that was made."""
    return Source(_made=path)


def _fragment(kind: Any, opened: Any, guarantee: Any = None) -> Any:
    return kind.make_fragment(opened, _SYSTEM if isinstance(opened, str) else None, guarantee)


def _event_fragment(opened: Any) -> Any:
    return _fragment(_EVENTS, opened)


def read_table(store: Store, key: str, ref: Ref | None, fragment: Fragment = _event_fragment) -> Any:
    """Return a file as it was signed; if nothing was signed, as it is.

    Raises:
        FormatError: it has other bytes than were signed, or is no Parquet file of events.
        ObjectMissing: there is none.
        StoreError: it cannot be read.
    """
    return fragment(_buffer(read_signed(store, ref))) if ref else _unsigned(store, key, fragment)


def _unsigned(store: Store, key: str, fragment: Fragment) -> Any:
    """Return a file that nobody signed, if its columns are those of events. Raises as `read_table`.

    Its pages are not read here: they may be damaged.
    """
    if store.url.startswith("file://"):
        store.status(key)
        made = fragment(unquote(store.url.removeprefix("file://")) + "/" + key)
    else:
        made = fragment(_buffer(store.read(key, limit=tables.FILE_LIMIT)))
    wanted = {name: EVENTS.field(name).type for name in tables.SCHEMA.names}
    try:
        # Arrow keeps what it reads of the file here, for the scan.
        columns = [(column.name, column.type) for column in made.physical_schema]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(key, error) from None
    if len(dict(columns)) < len(columns):
        raise FormatError(f"{key} has two columns of one name: {_ADVICE}")
    for name, found in columns:
        if wanted.get(name, found) != found:
            raise FormatError(f"{key} has a column `{name}` of {str(found)[:200]}, not of {wanted[name]}: {_ADVICE}")
    return made


def _damaged(key: str, error: Exception) -> Exception:
    """Return what to raise in the place of an error of Arrow's about a file that nobody signed."""
    if isinstance(error, MemoryError):
        return error
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, OSError) and error.errno is not None:
        return TerminalStoreError(f"{key} cannot be read: {reason}")
    return FormatError(f"{key} is damaged: {_ADVICE} ({reason})")


def offsets(key: str, file: Any) -> pa.Array:
    """Return the offsets of the events in a file, if it has that column. Raises FormatError if it is damaged."""
    try:
        if "offset" not in file.physical_schema.names:
            return pa.array([], pa.int64())
        return file.to_table(columns=["offset"])["offset"].combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(key, error) from None


def _buffer(data: bytes) -> Any:
    """Return a copy in Arrow's memory, which its threads free without Python's lock."""
    made = pa.BufferOutputStream()
    made.write(data)
    return made.getvalue()


class Scan:
    """The rows of parts that meet a condition, as DuckDB asks for them."""

    def __init__(self, schema: Any, batches: Iterator[Any]) -> None:
        """Set up. `schema` has the columns of `batches`."""
        self._schema, self._batches = schema, batches

    def to_reader(self) -> Any:
        """Return a reader of the rows: DuckDB calls it."""
        return pa.RecordBatchReader.from_batches(self._schema, self._batches)


def scan(
    store: Store,
    parts: Sequence[Part],
    schema: Any,
    columns: Sequence[str],
    condition: Any,
    rest: Callable[[str | None], Any],
    failed: Callable[[BaseException], None],
) -> Scan:
    """Return the rows of parts.

    Args:
        store: the archive.
        parts: of the table; those that cannot meet the condition are not opened.
        schema: of the table.
        columns: which of its columns.
        condition: an expression that rows must meet; None for all rows.
        rest: returns what the rows of a file must meet too, by its key; None for all rows.
        failed: called with the error that ends the rows.
    """
    kind = _EVENTS if any(pa.types.is_dictionary(column.type) for column in schema) else _PLAIN
    numbered = [_fragment(kind, str(number), guarantee) for number, (_, guarantee) in enumerate(parts)]
    wanted = ds.FileSystemDataset(numbered, schema, kind, _SYSTEM).get_fragments(condition)
    chosen = [parts[int(each.path)] for each in wanted]

    def rows(fragments: list[Any], wanted: Any) -> Iterator[Any]:
        dataset = ds.FileSystemDataset(fragments, schema, kind, _SYSTEM)
        yield from dataset.scanner(columns=list(columns), filter=wanted, **_OPTIONS).to_batches()

    def batches() -> Iterator[Any]:
        try:
            made = [_fragment(kind, source.path, guarantee) for source, guarantee in chosen if source.path is not None]
            yield from rows(made, condition)
            others = [part for part in chosen if part[0].path is None]
            for (source, _), opened in zip(others, _opened(store, others, kind), strict=True):
                both = [each for each in (condition, rest(source.key)) if each is not None]
                found = rows([opened], reduce(and_, both) if both else None)
                yield from _checked(source.key, found) if source.key and not source.ref else found
        except GeneratorExit:
            raise
        # DuckDB makes an error of its own of each one, of Ctrl-C too.
        except BaseException as error:
            failed(error)
            raise

    return Scan(pa.schema([schema.field(name) for name in columns]), batches())


def _checked(key: str, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the rows of a file that nobody signed. Raises FormatError if its pages are damaged, or text is no UTF-8."""
    try:
        for batch in batches:
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise _damaged(key, error) from None


def _opened(store: Store, parts: Sequence[Part], kind: Any) -> Iterator[Any]:
    """Yield the fragments of parts, and open a few ahead."""

    def opened(part: Part) -> Any:
        source, guarantee = part
        return source.open(store, partial(_fragment, kind, guarantee=guarantee))

    threads = ThreadPoolExecutor(_AHEAD)
    try:
        yield from in_order(threads, opened, parts, _AHEAD + 1)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
