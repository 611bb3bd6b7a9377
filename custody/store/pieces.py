"""Reads an object of any size in pieces, so that memory stays bounded."""

from collections.abc import Iterator
from hashlib import sha256

from custody.errors import FormatError
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


def read_stated(store: Store, key: str, size: int, digest: str) -> Iterator[bytes]:
    """Yield the bytes of an object that a statement names, in pieces. They count only once all were taken.

    Args:
        store: the archive.
        key: the object's key.
        size: its stated size. Of a larger one, a byte more is read.
        digest: its stated SHA-256, in hex.

    Raises:
        FormatError: the bytes are not the stated ones. It is raised behind the last piece.
        StoreError: it cannot be read.
    """
    stored = sha256()
    for piece in read_pieces(store, key, size + 1):
        stored.update(piece)
        yield piece
    if stored.hexdigest() != digest:
        raise FormatError("its SHA-256 is not the one in the statement")
