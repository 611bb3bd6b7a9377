"""What the demo does before and after it drains; tests/test_readme.py runs all of it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from custody.errors import ConfigurationError
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
    refused = f"has {' and '.join(there)}, which no demo made: name another folder with --dir"
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
