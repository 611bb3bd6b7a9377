"""Opens the files of an archive for DuckDB, through the archive's own store."""

import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from custody.errors import CustodyError, FormatError
from custody.query.tables import FILE_LIMIT
from custody.store.protocol import Store

_BLOCK = 4 * 1_048_576
_READERS = 4
"""Threads that hash tables: each holds one, of 16 MiB or little more."""


def read_signed(store: Store, key: str, digest: str) -> bytes:
    """Return the bytes of a table.

    Args:
        store: the archive.
        key: of the table.
        digest: its SHA-256 in a signed list.

    Raises:
        FormatError: it has other bytes.
        StoreError: it cannot be read.
    """
    data = store.read(key, limit=FILE_LIMIT)
    if sha256(data).hexdigest() != digest:
        raise FormatError(f"{key} is not the table that was signed: delete it, and find out who modified it")
    return data


def check_signed(store: Store, digests: Mapping[str, str], keys: Iterable[str]) -> dict[str, CustodyError]:
    """Return the error of each table that has other bytes than were signed: a query cannot do without its files."""

    def problem(key: str) -> CustodyError | None:
        try:
            read_signed(store, key, digests[key])
        except CustodyError as error:
            return error
        return None

    signed = [key for key in keys if key in digests]
    with ThreadPoolExecutor(_READERS) as threads:
        return {key: error for key, error in zip(signed, threads.map(problem, signed), strict=True) if error}


class Files(AbstractFileSystem):  # type: ignore[misc]
    """Opens the archive's Parquet files: reads them in blocks through its store, or whole if a digest is known."""

    protocol = "custody"
    cachable = False

    def __init__(self, store: Store, digests: Mapping[str, str]) -> None:
        """Set up. `digests` are the SHA-256 of tables in signed lists, by key."""
        super().__init__()
        self.store, self._digests = store, digests

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return a file's size."""
        name = self._strip_protocol(path)
        return {"name": name, "size": self.store.status(name).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """Return when a file was made. It never changes."""
        return self.store.status(self._strip_protocol(path)).created

    created = modified

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        digest = self._digests.get(path)
        if digest is None:
            return _File(self, path, mode, block_size=_BLOCK, cache_type="readahead")
        return io.BytesIO(read_signed(self.store, path, digest))


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """An open file."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.store.read(self.path, limit=end - start, start=start, size=end - start)
        return data
