"""A store in memory, so that a fuzzer's archive costs nothing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from custody.errors import FormatError, ObjectMissing
from custody.store.protocol import ObjectInfo, ObjectStatus, Store, Version


class MemoryStore:
    """Objects in a mapping."""

    url = "file:///memory"

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects

    def create(self, key: str, data: bytes) -> None:
        """Nobody writes here."""
        raise NotImplementedError(key, data)

    def read(
        self,
        key: str,
        *,
        limit: int,
        start: int = 0,
        size: int | None = None,
        restored: bool = False,
        version: str = "",
    ) -> bytes:
        """Return bytes of an object."""
        del restored, version
        data = self._objects.get(key)
        if data is None:
            raise ObjectMissing(f"there is no object {key}")
        data = data[start : None if size is None else start + size]
        if len(data) > limit:
            raise FormatError(f"{key} is too large")
        return data

    def exists(self, key: str) -> bool:
        """Say whether there is an object."""
        return key in self._objects

    def list(self, prefix: str = "", *, after: str = "", without: Collection[str] = ()) -> Iterator[ObjectInfo]:
        """Yield the objects."""
        for key, data in self._objects.items():
            if key.startswith(prefix) and key > after and key[: key.find("/") + 1] not in without:
                yield ObjectInfo(key, len(data))

    def names(self, prefix: str) -> Sequence[str]:
        """Return the next path components."""
        return sorted({key[len(prefix) :].split("/")[0] for key in self._objects if key.startswith(prefix)})

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Return folders and objects right under a prefix."""
        found = list(self.list(prefix))
        folders = {info.key[len(prefix) :].split("/")[0] for info in found if "/" in info.key[len(prefix) :]}
        return sorted(folders), [info for info in found if "/" not in info.key[len(prefix) :]]

    def status(self, key: str, *, version: str = "") -> ObjectStatus:
        """Return what is known of an object."""
        del version
        return ObjectStatus(len(self._objects[key]), datetime(2026, 3, 1, tzinfo=UTC))

    def history(self, prefix: str = "") -> Iterator[Version]:
        """Nothing was ever overwritten."""
        del prefix
        return iter(())

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """There are no versions."""
        del chosen
        return self

    def lifecycle(self) -> None:
        """There are no rules."""

    def has_history(self, key: str) -> bool:
        """Nothing was ever overwritten."""
        del key
        return False

    def close(self) -> None:
        """There is nothing to give up."""
