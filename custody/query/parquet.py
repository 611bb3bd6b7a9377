"""Tables as the bytes of a Parquet file, and back. Whoever may write into the archive may have made the bytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from custody.errors import FormatError


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
        FormatError: it is none, or has text or a name that is no UTF-8.
    """
    try:
        # Most are small: a scan by threads, as `pq.read_table` does it, would take three times as long.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{key} is no Parquet file: {str(error)[:200]}") from None
    return table
