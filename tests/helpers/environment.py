"""The environment of a test: what the machine's own settings and clock are must not matter."""

import os
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest


def clear_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every variable of ours away until the test ends."""
    for name in list(os.environ):
        if name.upper().startswith("CUSTODY_"):
            monkeypatch.delenv(name)


def use_archive(monkeypatch: pytest.MonkeyPatch, archive: Path, keyring: Path) -> None:
    """Name an archive and its keys in the settings, and nothing else, until the test ends."""
    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(archive))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{keyring}")


def shifted(by: timedelta) -> type[datetime]:
    """Return a datetime whose `now` is that of a host with a wrong clock."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    return Shifted
