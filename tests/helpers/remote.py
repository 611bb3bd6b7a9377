"""A folder that passes for a bucket: whoever reads it must not wait for one answer after the other."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import custody.store.open
from custody.store.folder import FolderStore
from custody.store.protocol import ObjectInfo

T = TypeVar("T")

URL = "s3://bucket/archive"
_TOGETHER = 4
_PATIENCE_SECONDS = 0.3


class Together:
    """Finds out how many reads of keys with a prefix are under way at once, and listings: "list " and their prefix.

    Each waits for a moment until there are some beside it, so that what is begun together is seen together.

    Attributes:
        most: by prefix, the most that were under way.
        all: by prefix, how many there were.
    """

    def __init__(self, *prefixes: str) -> None:
        self.most: Counter[str] = Counter(dict.fromkeys(prefixes, 0))
        self.all: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._changed = threading.Condition()

    def ask(self, subject: str, ask: Callable[[], T]) -> T:
        """Ask for an object or a listing."""
        prefix = next((prefix for prefix in self.most if subject.startswith(prefix)), None)
        if prefix is None:
            return ask()
        with self._changed:
            self._now[prefix] += 1
            self.all[prefix] += 1
            self.most[prefix] = max(self.most[prefix], self._now[prefix])
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most[prefix] >= _TOGETHER, _PATIENCE_SECONDS)
        try:
            return ask()
        finally:
            with self._changed:
                self._now[prefix] -= 1

    @property
    def one_by_one(self) -> list[str]:
        """The prefixes of what was asked for one after the other."""
        return [prefix for prefix, most in self.most.items() if most < _TOGETHER]


class RemoteFolder(FolderStore):
    """A folder that lists in order, as S3 does, and has no file URL."""

    def __init__(self, folder: Path, together: Together) -> None:
        super().__init__(str(folder))
        self.url, self._folder, self._together = URL, folder, together

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("it is for one process")

    def read(self, key: str, **how: Any) -> bytes:
        return self._together.ask(key, lambda: super(RemoteFolder, self).read(key, **how))

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        listed = super().list(prefix, after=after, through=through, without=without)
        return iter(self._together.ask(f"list {prefix}", lambda: sorted(listed, key=lambda info: info.key)))


def pass_for_a_bucket(monkeypatch: pytest.MonkeyPatch, folder: Path, *prefixes: str) -> Together:
    """Return what is found out about reads of keys with the prefixes. `URL` names the archive in the folder now."""
    together = Together(*prefixes)
    monkeypatch.setattr(custody.store.open, "S3Store", lambda *_: RemoteFolder(folder, together))
    return together
