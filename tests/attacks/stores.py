"""Rows 31 and 40: stores that refuse, answer garbage, or list as they like."""

from collections.abc import Callable, Iterator
from typing import Any

from custody.errors import TerminalStoreError, TransientStoreError
from custody.store.protocol import ObjectInfo, Store
from tests.attacks.objects import kept_too_long, put
from tests.attacks.registry import attack


class Bent:
    """A store that is as another, but for what a test bends."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Refusing(Bent):
    """Says no to each read of some objects."""

    def __init__(self, store: Store, part: str, error: type[Exception]) -> None:
        super().__init__(store)
        self._part = part
        self._error = error

    def read(self, key: str, **more: Any) -> bytes:
        if self._part in key:
            raise self._error(f"503 for {key}")
        return self._store.read(key, **more)


class Jumbled(Bent):
    """Lists in another order, and everything twice."""

    def list(self, prefix: str = "", **more: Any) -> Iterator[ObjectInfo]:
        found = sorted(self._store.list(prefix, **more), key=lambda info: info.key[::-1])
        yield from found
        yield from reversed(found)

    def level(self, prefix: str) -> Any:
        folders, objects = self._store.level(prefix)
        return [*reversed(folders), *folders], [*reversed(objects), *objects]


class Halting(Bent):
    """Breaks off each listing."""

    def list(self, prefix: str = "", **more: Any) -> Iterator[ObjectInfo]:
        yield from list(self._store.list(prefix, **more))[:5]
        raise TransientStoreError("503 in the middle of a listing")


def refusing(part: str, error: type[Exception] = TransientStoreError) -> Callable[[Store], Store]:
    return lambda store: Refusing(store, part, error)


def jumbled(store: Store) -> Store:
    return Jumbled(store)


def nothing(_: object) -> None:
    pass


LITTER = (
    ".DS_Store",
    "events/.DS_Store",
    "events/2026/Thumbs.db",
    "events/2026/03/01/._x",
    "quarantine/desktop.ini",
    "manifests/audit/0/.nfs0001",
    "checkpoints/audit/.directory",
    "audits/lost+found/1",
    "audits/objects/.x.swp",
)
"""What operating systems, editors and people leave in a copy."""


def litter(scene: Any) -> None:
    """Leave all of it, where no segment is any more."""
    for key in LITTER:
        put(key)(scene)
    scene.main.segment(7).unlink()


def segment_too(scene: Any) -> None:
    """Something else that is wrong, to see that the rest is verified."""
    scene.main.segment(7).unlink()


ATTACKS = [
    attack(
        31,
        "no to a manifest",
        segment_too,
        "unreadable segment-missing",
        12,
        store=refusing("manifests/audit/0/000000000003"),
    ),
    attack(
        31,
        "no to archive.json",
        segment_too,
        "unreadable segment-missing",
        12,
        store=refusing("archive.json", TerminalStoreError),
    ),
    attack(
        31,
        "no to a segment",
        segment_too,
        "unreadable segment-missing",
        12,
        store=refusing("-audit-0-00000000000000000100-"),
    ),
    attack(
        31,
        "no to a checkpoint",
        segment_too,
        "unreadable segment-missing",
        12,
        store=refusing("checkpoints/audit/0/000000000009"),
    ),
    attack(31, "no to an audit", segment_too, "unreadable segment-missing", 12, store=refusing("audits/000000000001")),
    attack(
        31, "no to what may be kept past its time", kept_too_long, "unreadable", 12, store=refusing("-forgotten-0-")
    ),
    attack(31, "a listing that breaks off", nothing, "unreadable", 12, store=Halting),
    attack(40, "another order, and twice", nothing, "", 0, store=jumbled),
    attack(40, "foreign key at the root", put("notes.txt"), "foreign", 10, store=jumbled),
    attack(
        40,
        "foreign key between manifests",
        put("manifests/audit/0/000000000003.json.bak"),
        "foreign",
        10,
        store=jumbled,
    ),
    attack(40, "foreign key between segments", put("events/2026/03/01/notes.txt"), "foreign", 10, store=jumbled),
    attack(40, "foreign keys, and a deleted segment", litter, "segment-missing" + " foreign" * len(LITTER), 11),
    attack(
        40,
        "foreign keys between checkpoints and audits",
        lambda scene: (put("checkpoints/x")(scene), put("audits/x")(scene)),
        "foreign foreign",
        10,
    ),
    attack(
        40, "tables and reports", lambda scene: (put("tables/a.parquet")(scene), put("reports/b.html")(scene)), "", 0
    ),
]
