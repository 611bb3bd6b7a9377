"""Counts what is asked of an archive in a folder."""

from collections import Counter
from typing import Any

import pytest

from custody.store.folder import FolderStore


def count_calls(monkeypatch: pytest.MonkeyPatch, *prefixes: str) -> Counter[str]:
    """Return the calls to folders from now on that are about keys with one of these prefixes, by method."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        real = getattr(FolderStore, name)

        def call(self: FolderStore, key: str, *args: Any, **more: Any) -> Any:
            calls[name] += key.startswith(prefixes)
            return real(self, key, *args, **more)

        monkeypatch.setattr(FolderStore, name, call)

    for name in ("read", "exists", "list", "create"):
        counted(name)
    return calls
