"""Reads an object of any size in pieces, so that memory stays bounded."""

from collections.abc import Iterator

from custody.store.protocol import Store

PIECE = 8 * 1_048_576
"""The size of a piece, in bytes."""


def read_pieces(store: Store, key: str, limit: int) -> Iterator[bytes]:
    """Yield an object's bytes in pieces, up to a limit. An object smaller than a piece takes one request."""
    position = 0
    while position < limit:
        size = min(PIECE, limit - position)
        data = store.read(key, limit=PIECE, start=position, size=size)
        if data:
            yield data
        if len(data) < size:
            # A read that returns less than was asked for has reached the end.
            return
        position += size
