"""A store in memory that counts its calls: for tests of who calls it, and for fuzzing, which needs a fast one."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from custody.errors import FormatError, ObjectExists, ObjectMissing
from custody.store.protocol import Capabilities, ObjectInfo, ObjectStatus, Version

PUT_AT = datetime(2026, 3, 1, tzinfo=UTC)
"""When each object was put."""


@dataclass
class MemoryStore:
    """Objects in a dict."""

    objects: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, list[bytes | None]] = field(default_factory=dict)
    """What a bucket keeps besides: versions of a key, the newest first; None is a delete marker."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Each call's name, and its key or prefix."""
    before: Callable[[str, str], None] | None = None
    """Called before each call, so that a test can come between."""

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Return a store of the objects in a folder."""
        return cls(
            {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        )

    @property
    def url(self) -> str:
        return "memory:"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(versions=self)

    def _call(self, name: str, key: str) -> None:
        self.calls.append((name, key))
        if self.before is not None:
            self.before(name, key)

    def _get(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(f"there is no object {key}")
        return self.objects[key]

    def create(self, key: str, data: bytes) -> None:
        self._call("create", key)
        if self.objects.setdefault(key, data) != data:
            raise ObjectExists(f"{key} holds other bytes")

    def read(self, key: str, *, limit: int, start: int = 0, size: int | None = None, restored: bool = False) -> bytes:
        del restored
        self._call("read", key)
        data = self._get(key)[start : None if size is None else start + size]
        if len(data) > limit:
            raise FormatError(f"{key} is too large")
        return data

    def exists(self, key: str) -> bool:
        self._call("exists", key)
        return key in self.objects

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        under = list(self.list(prefix))
        folders = {info.key[len(prefix) :].split("/")[0] for info in under if "/" in info.key[len(prefix) :]}
        return sorted(folders), [info for info in under if "/" not in info.key[len(prefix) :]]

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        self._call("list", prefix)
        # A copy, because other threads put objects meanwhile.
        listed = sorted(
            key
            for key in tuple(self.objects)
            if key.startswith(prefix)
            and key > after
            and key[: key.find("/") + 1] not in without
            and (not through or key <= through)
        )
        return (ObjectInfo(key, len(self.objects[key])) for key in listed if key in self.objects)

    def status(self, key: str) -> ObjectStatus:
        self._call("status", key)
        return ObjectStatus(len(self._get(key)), PUT_AT)

    def history(self, prefix: str = "", *, after: str = "", through: str = "") -> Iterator[Version]:
        self._call("history", prefix)
        for key, kept in self.versions.items():
            if key.startswith(prefix) and key > after and (not through or key <= through):
                for number, data in enumerate(kept):
                    yield Version(key, str(number), data is None, number == 0, len(data or b""))

    def at_versions(self, chosen: Mapping[str, Version]) -> "MemoryStore":
        shown = {key: self.versions[key][int(version.id)] for key, version in chosen.items()}
        return MemoryStore(self.objects | {key: data for key, data in shown.items() if data is not None})

    def has_history(self, key: str) -> bool:
        self._call("has_history", key)
        return key in self.versions

    def remove(self, key: str) -> None:
        self._call("remove", key)
        self.objects.pop(key, None)

    def close(self) -> None:
        pass

    def copy(self) -> "MemoryStore":
        """Return a store of the same objects, without versions, that counts its own calls."""
        return MemoryStore(dict(self.objects))
