"""The environment of a test: what the machine's own settings are must not matter."""

import os

import pytest


def clear_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every variable of ours away until the test ends."""
    for name in list(os.environ):
        if name.upper().startswith("CUSTODY_"):
            monkeypatch.delenv(name)
