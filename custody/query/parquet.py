"""Tables as the bytes of a Parquet file, and back. Whoever may write into the archive may have made the bytes."""

import io
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from custody.errors import FormatError
from custody.format.limits import MIB

TABLE_BYTES: Final = 1024 * MIB
"""What a table may take in memory. Some kilobytes of a file may stand for gigabytes."""
_ROWS: Final = 1024
"""Rows that are decoded at once."""


def encode(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd", compression_level=3)
    return made.getvalue()


def decode(key: str, data: bytes) -> pa.Table:
    """Return the table in a Parquet file. Which columns it has is for the caller to check.

    Args:
        key: names the file in errors.
        data: its bytes.

    Raises:
        FormatError: the bytes are no Parquet file, or too large a table, or have text or a name that is no UTF-8.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        _check_size(key, sum(group.total_byte_size for group in groups))
        size, batches = 0, []
        # Most are small: a scan by threads, as `pq.read_table` does it, would take three times as long.
        for batch in file.iter_batches(_ROWS, use_threads=False):
            size += batch.nbytes
            _check_size(key, size)
            batches.append(batch)
        table = pa.Table.from_batches(batches, file.schema_arrow)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{key} is no Parquet file: {str(error)[:200]}") from None
    return table


def _check_size(key: str, size: int) -> None:
    if size > TABLE_BYTES:
        raise FormatError(f"{key} is a table of more than {TABLE_BYTES:,} bytes")
