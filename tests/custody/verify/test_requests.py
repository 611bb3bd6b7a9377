"""How many requests a verification makes: each object is read once, and a small one with one request."""

from collections import Counter
from pathlib import Path

import pytest

from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.store.pieces import PIECE, read_pieces
from custody.verify.run import verify
from tests.helpers.archives import KEY_ID, NOTE_NAME, NOTE_PUBLIC, SECRET, Builder, good
from tests.helpers.memory import MemoryStore

TRUST = Trust(
    keys={
        KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
        NOTE_NAME: TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC),
    }
)


def loaded(builder: Builder) -> MemoryStore:
    """Return a store of an archive's objects that counts its calls."""
    files = (path for path in builder.root.rglob("*") if path.is_file())
    return MemoryStore({path.relative_to(builder.root).as_posix(): path.read_bytes() for path in files})


def test_each_object_is_read_with_one_request(tmp_path: Path) -> None:
    """A full verification asks once for each manifest, each small segment and each small quarantine object."""
    builder = good(tmp_path / "archive")
    store = loaded(builder)
    report = verify(store, TRUST, now=builder.clock, workers=0)
    assert report.exit_code == 0
    reads = Counter(key for name, key in store.calls if name == "read")
    named = [key for key in store.objects if key.startswith(("manifests/", "events/", "quarantine/"))]
    assert {reads[key] for key in named} == {1}


@pytest.mark.parametrize("change", ["longer", "shorter", "empty"])
def test_a_length_is_checked_without_another_request(tmp_path: Path, change: str) -> None:
    """A segment or quarantine object of another length than stated is found all the same."""
    builder = good(tmp_path / "archive")
    store = loaded(builder)
    for kind in ("events/", "quarantine/"):
        key = next(key for key in store.objects if key.startswith(kind))
        data = store.objects[key]
        store.objects[key] = {"longer": data + b"\0", "shorter": data[:-1], "empty": b""}[change]
    report = verify(store, TRUST, now=builder.clock, workers=0)
    assert {problem.finding for problem in report.findings} == {"segment-size"}
    assert len(report.findings) == 2


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_pieces_end_with_the_object(size: int) -> None:
    """An object is read whole, in as few requests as its size needs: one if it is smaller than a piece."""
    store = MemoryStore({"a": bytes(size)})
    assert sum(map(len, read_pieces(store, "a", 10 * PIECE))) == size
    assert len(store.calls) == size // PIECE + 1
