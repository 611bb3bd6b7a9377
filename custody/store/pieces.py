"""Reads an object of any size in pieces, so that memory stays bounded."""

from collections.abc import Iterator

from custody.store.protocol import Store

PIECE = 8 * 1_048_576
"""The size of a piece, in bytes."""


def read_pieces(store: Store, key: str, limit: int) -> Iterator[bytes]:
    """Yield an object's bytes in pieces, up to a limit."""
    position = 0
    while position < limit:
        data = store.read(key, limit=PIECE, start=position, size=min(PIECE, limit - position))
        if not data:
            return
        yield data
        position += len(data)
