"""Reasons come from the object that a statement signed, and from nothing else."""

from collections.abc import Callable
from pathlib import Path
from zlib import decompress

import pytest
from msgspec.structs import replace

from custody.archive.quarantined import read_reasons
from custody.errors import TerminalStoreError, TransientStoreError
from custody.format.manifest import QuarantineRef, parse
from custody.format.members import pack
from custody.store.open import open_store
from custody.store.protocol import Store
from tests.helpers.sample import Growing


@pytest.fixture
def quarantined(tmp_path: Path) -> tuple[Store, QuarantineRef, Path]:
    """An archive with a statement of five bad records, its reference to them, and their file."""
    growing = Growing(tmp_path)
    growing.append(1, content=lambda offset: b"{" if offset else b"{}")
    (manifest,) = growing.folder.rglob("manifests/**/*.json")
    ref = parse(manifest.read_bytes()).statement.quarantine
    assert ref is not None
    return open_store(str(growing.folder)), ref, growing.folder / ref.key


def test_reasons_are_read(quarantined: tuple[Store, QuarantineRef, Path]) -> None:
    """Each record counts with its kind, and the example is the first one's."""
    store, ref, _ = quarantined
    reasons = read_reasons(store, ref)
    assert reasons.counts == {"event_type missing": 1, "not JSON": 4}
    assert set(reasons.examples) == set(reasons.counts)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "other reasons": lambda _: pack(b'{"error":"not JSON: x"}\n' * 5, 1).data,
    # Of the same size, so that only the digest shows it.
    "another reason": lambda data: pack(decompress(data, wbits=31).replace(b"not JSON", b"not TRUE"), 1).data,
    "damaged": lambda data: data[:-3],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_object_is_not_believed(quarantined: tuple[Store, QuarantineRef, Path], change: str) -> None:
    """Records whose object has other bytes than were signed have a reason that is not known."""
    store, ref, path = quarantined
    data = CHANGES[change](path.read_bytes())
    path.unlink()
    path.write_bytes(data)
    assert read_reasons(store, ref).counts == {"not known": 5}


def test_an_object_that_has_expired(quarantined: tuple[Store, QuarantineRef, Path]) -> None:
    """Neither is one that is gone, and a statement that counts other records than its object has."""
    store, ref, path = quarantined
    assert read_reasons(store, replace(ref, records=6)).counts == {"not known": 6}
    path.unlink()
    assert read_reasons(store, ref).counts == {"not known": 5}


def test_a_store_that_does_not_give_it(
    quarantined: tuple[Store, QuarantineRef, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal stays, so the reasons are not known. A store that is away answers later: it is an error."""
    store, ref, _ = quarantined

    def refuse(*_: object, **__: object) -> bytes:
        raise TerminalStoreError("no")

    def fail(*_: object, **__: object) -> bytes:
        raise TransientStoreError("later")

    monkeypatch.setattr(store, "read", refuse)
    assert read_reasons(store, ref).counts == {"not known": 5}
    monkeypatch.setattr(store, "read", fail)
    with pytest.raises(TransientStoreError):
        read_reasons(store, ref)
