"""What the demo does before and after it drains; tests/test_readme.py runs all of it."""

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from custody.archive.writer import create_archive
from custody.errors import ConfigurationError
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.store.open import open_store
from flows.operate.demo import _print_next_steps, demo, new_topic
from tests.helpers.sample import make_archive


def test_a_run_takes_a_topic_of_its_own(tmp_path: Path) -> None:
    """No run drains into an earlier run's log, or copies over an earlier run's copy, whichever of the two is left."""
    make_archive(tmp_path)
    assert new_topic(tmp_path) == "demo-1"
    (tmp_path / "archive" / "manifests" / "demo-9" / "0").mkdir(parents=True)
    (tmp_path / "archive" / "manifests" / "demo-9" / "0" / "000000000000.json").touch()
    (tmp_path / "archive" / "manifests" / "demo-261124-035624" / "0").mkdir(parents=True)
    assert new_topic(tmp_path) == "demo-10"
    (tmp_path / "tampered-demo-12").mkdir()
    assert new_topic(tmp_path) == "demo-13"


def test_an_archive_of_ones_own_without_a_log(tmp_path: Path) -> None:
    """It is refused too: nobody wants made-up events in it for seven years."""
    new_keyring(tmp_path / "keyring.json", datetime.now(UTC))
    create_archive(
        open_store(str(tmp_path / "archive")), open_signers(f"file:{tmp_path}/keyring.json", datetime.now(UTC)).both
    )
    (tmp_path / "trust.json").touch()
    with pytest.raises(ConfigurationError, match="which may not be a demo's"):
        demo(tmp_path, 10)


@pytest.mark.parametrize(
    "there", [["keyring.json"], ["trust.json"], ["archive"], ["archive", "keyring.json", "trust.json"]]
)
def test_a_folder_with_keys_or_an_archive_of_ones_own(tmp_path: Path, there: list[str]) -> None:
    """It is refused before anything is written: the demo would sign with these keys, and drain into that archive."""
    make_archive(tmp_path)
    (tmp_path / "trust.json").touch()
    for name in {"archive", "keyring.json", "trust.json"} - set(there):
        (tmp_path / name).rename(tmp_path / f"no-{name}")
    before = sorted(tmp_path.rglob("*"))
    refused = f"has {' and '.join(there)}, which may not be a demo's: name another one with --dir"
    with pytest.raises(ConfigurationError, match=refused):
        demo(tmp_path, 10)
    assert sorted(tmp_path.rglob("*")) == before


def test_sentences_wrap_and_commands_do_not() -> None:
    """On a narrow terminal a sentence breaks between words, and a command is one line that can be copied."""
    printed = io.StringIO()
    _print_next_steps(Console(file=printed, width=50, markup=False, highlight=False), Path("custody-demo"), 34.0)
    lines = printed.getvalue().splitlines()
    commands = [line for line in lines if line.startswith(("$ ", "  "))]
    assert "$ custody verify custody-demo/archive --keys file:custody-demo/keyring.json" in commands
    assert len(commands) == 5
    assert all(len(line.rstrip()) <= 50 for line in lines if line not in commands)
    assert "In a checkout, put `uv run` before `custody`." in " ".join(printed.getvalue().split())
