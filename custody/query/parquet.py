"""Tables as the bytes of a Parquet file, and back. Whoever may write into the archive may have made the bytes."""

import io
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from custody.errors import FormatError
from custody.format.limits import MIB

TABLE_BYTES: Final = 1024 * MIB
"""What a table may have, as `size_of` counts. Some hundred bytes of a file may stand for gigabytes."""
_TEXT = pa.dictionary(pa.int32(), pa.string())


class NotParquet(FormatError):
    """Bytes are no Parquet file, or it has text that is no UTF-8."""


def size_of(table: pa.Table) -> int:
    """Return the bytes of a table: eight for each value, whatever it is, and those of its texts."""
    values: int = table.num_rows * table.num_columns * 8
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    return values + sum(map(_text_bytes, chunks))


def _is_too_large(table: pa.Table) -> bool:
    # To look at each text takes longer: only if there may be too many bytes.
    chunks = [chunk for column in table.columns for chunk in column.chunks if chunk.type == _TEXT]
    most = sum(len(chunk) * (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) for chunk in chunks)
    return table.num_rows * table.num_columns * 8 + most > TABLE_BYTES and size_of(table) > TABLE_BYTES


def _text_bytes(chunk: pa.Array) -> int:
    if pa.types.is_string(chunk.type):
        return pc.sum(pc.binary_length(chunk)).as_py() or 0
    if chunk.type == _TEXT:
        return pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
    return 0


def encode(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd", compression_level=3)
    return made.getvalue()


def decode(key: str, data: bytes, columns: pa.Schema) -> pa.Table:
    """Return the table in a Parquet file.

    Args:
        key: names the file in errors.
        data: its bytes.
        columns: those that it may have, of plain types. It may lack some.

    Raises:
        NotParquet: the bytes are no Parquet file, or it has text that is no UTF-8.
        FormatError: it has other columns, or is larger than `TABLE_BYTES`.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
        schema = metadata.schema.to_arrow_schema()
        names = schema.names
        if len(set(names)) < len(names) or any(column not in columns for column in schema):
            raise FormatError(f"{key} has other columns")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        values = sum(group.num_rows for group in groups) * len(schema) * 8
        # Pages have a little beside the values.
        if values > TABLE_BYTES or sum(group.total_byte_size for group in groups) > TABLE_BYTES * 5 // 4:
            raise _too_large(key)
        # Texts stay in dictionaries until it is known how long they are all together.
        texts = [column.name for column in schema if pa.types.is_string(column.type)]
        file = pq.ParquetFile(pa.BufferReader(data), metadata=metadata, read_dictionary=texts)
        # Most are small: a scan by threads, as `pq.read_table` does it, would take three times as long.
        table = file.read(use_threads=False)
        table.validate(full=True)
        if _is_too_large(table):
            raise _too_large(key)
        return table.cast(schema)
    except MemoryError:
        # Arrow's error of it is one of Arrow's too, and says nothing of the file.
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise NotParquet(f"{key} is no Parquet file: {str(error)[:200]}") from None


def _too_large(key: str) -> FormatError:
    return FormatError(f"{key} is a table of more than {TABLE_BYTES:,} bytes, which is not read")
