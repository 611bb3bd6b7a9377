"""Objects are read in pieces, and count once all of them are known to be the stated ones."""

import io
from hashlib import sha256

import pytest

from custody.errors import FormatError, ObjectMissing
from custody.store import pieces
from custody.store.pieces import read_stated
from tests.helpers.memory import MemoryStore

PIECE = 10


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", PIECE)


def stored(size: int) -> tuple[MemoryStore, bytes, str]:
    """Return a store of an object of some bytes, these bytes, and their digest."""
    data = bytes(range(size))
    return MemoryStore({"a": data}), data, sha256(data).hexdigest()


def given_before_the_error(store: MemoryStore, size: int, digest: str) -> bytes:
    given, taken = read_stated(store, "a", size, digest), io.BytesIO()
    with pytest.raises(FormatError, match="its SHA-256 is not the one in the statement"):
        taken.writelines(given)
    return taken.getvalue()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5])
def test_an_object_as_stated(size: int) -> None:
    """All of its bytes are given, in pieces, with a request each."""
    store, data, digest = stored(size)
    given = list(read_stated(store, "a", size, digest))
    assert b"".join(given) == data
    assert all(0 < len(piece) <= PIECE for piece in given)
    assert len(store.calls) == size // PIECE + 1


@pytest.mark.parametrize("stated", [0, 1, PIECE, 2 * PIECE - 1])
def test_a_larger_object_than_stated(stated: int) -> None:
    """It is refused, and no more than a byte beyond its stated size is read of it."""
    store, data, _ = stored(5 * PIECE)
    for digest in (sha256(data).hexdigest(), sha256(data[:stated]).hexdigest()):
        assert len(given_before_the_error(store, stated, digest)) == stated + 1


@pytest.mark.parametrize("size", [0, PIECE, PIECE + 1])
def test_other_bytes_than_stated(size: int) -> None:
    """Shorter or changed: the error comes behind the last piece."""
    store, data, digest = stored(size)
    assert given_before_the_error(store, size, sha256(b"other").hexdigest()) == data
    store.objects["a"] = data[:-1] + b"x" * (not data)
    assert given_before_the_error(store, size, digest) == store.objects["a"]


def test_no_object() -> None:
    """It is missing, which is not the same as empty."""
    with pytest.raises(ObjectMissing):
        list(read_stated(MemoryStore(), "a", 0, sha256(b"").hexdigest()))
