"""Tables fit a screen of 80 columns: numbers and hashes stay whole, names stay known, and what is left out is named."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from custody.archive.copy import Copied, Refusal
from custody.cli import render
from custody.cli.terminal import unpadded
from custody.findings import Findings, Severity
from custody.format import layout
from custody.keys.keyring import new_keyring
from flows.summaries import roll_table
from tasks.roll.record import Action
from tests.helpers.growth import check_growth

DIGEST = hashlib.sha256(b"").hexdigest()
LOG = f"audit.{'orders.of.a.shop.' * 3}events/17"
ROOT = Path(__file__).resolve().parents[3]


def screen(part: RenderableType, width: int = 80) -> str:
    file = StringIO()
    Console(width=width, file=file, markup=False, highlight=False).print(part)
    assert all(len(line) <= width for line in file.getvalue().splitlines())
    return file.getvalue()


def many(number: int) -> Findings:
    made = Findings()
    for at in range(number):
        made.report("segment-hash", "its hash differs", log=LOG, sequence=at, expected=DIGEST, found=DIGEST[::-1])
    return made


@pytest.mark.parametrize("width", [80, 99, 100, 160])
def test_hashes_of_findings_are_whole(width: int) -> None:
    """A SHA-256 is never broken, so that it can be copied and searched for."""
    text = screen(render.FindingsTable(many(1).kept), width)
    assert f"expected {DIGEST}" in text
    assert f"found    {DIGEST[::-1]}" in text
    assert Severity.TAMPERED.name.lower() in text


KEY = layout.records_key("events", layout.Log("audit.events", 0), 0, 99, 1_777_777_777_000, DIGEST)


@pytest.mark.parametrize("width", [60, 80, 110, 160])
@pytest.mark.parametrize("kind", ["findings", "refusals"])
def test_keys_are_whole(width: int, kind: str) -> None:
    """An object's key is in one line on any screen, also where it is wider; sentences are broken between words."""
    sentence = "what is said about it is a sentence that is broken between its words, and never in one of them"
    made = Findings()
    made.report("segment-hash", sentence, log="audit.events/0", sequence=0, key=KEY)
    copied = Copied(refused=[Refusal("unsigned", KEY, Severity.NOTICE, sentence)])
    file = StringIO()
    part = render.FindingsTable(made.kept) if kind == "findings" else render.refusals_table(copied)
    Console(width=width, file=file, markup=False, highlight=False).print(part, crop=False)
    lines = file.getvalue().splitlines()
    assert sum(KEY in line for line in lines) == 1
    assert max(len(line) for line in lines if KEY not in line) <= width
    assert sentence in " ".join(file.getvalue().split())


@pytest.mark.parametrize("width", [80, 160])
def test_findings_that_are_not_shown_are_counted(width: int) -> None:
    """However wide the screen is, the reader learns how many findings there are."""
    assert "The worst 100 of 101; --json lists them all." in screen(render.FindingsTable(many(101).kept), width)


def test_what_does_not_fit_is_named() -> None:
    """Columns go in the given order, the caption names them, and a name is shortened in its middle."""
    table = render.table("!log", "#events", "#lost", "#head")
    table.caption = "The first 1 of 2 logs."
    table.add_row(render.safe(LOG), "123,456,789", "1,234", f"1,234,567 {DIGEST[:12]}")
    fitted = render.Fitted(table, ("head", "lost"), names="log")
    wide, narrow = screen(fitted, 160), screen(fitted, 40)
    assert LOG in wide
    assert "Left out" not in wide
    assert "The first 1 of 2 logs." in narrow
    assert "Left out, to fit the screen: head;" in " ".join(narrow.split())
    row = next(line for line in narrow.splitlines() if "123,456,789" in line)
    assert "…" in row.split()[0]
    assert row.split()[0].endswith("/17")
    assert row.split()[1:] == ["123,456,789", "1,234"]


def test_a_roll_names_its_targets() -> None:
    """On 80 columns the name of an index is on one line, and the reason is folded beside it."""
    target = "custody-events-0192837465-2026.11.28"
    action = Action("delete", target, "done", "it is older than the retention, and all its events are in the archive")
    text = screen(roll_table([action]))
    assert target in text
    assert "in the archive" in " ".join(text.split())


def test_a_pipe_gets_no_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    """What is compared or kept in a file has no blanks at the end of lines."""
    table = render.table("name", "meaning")
    table.add_row("a", "short")
    table.add_row("a longer name", "a longer meaning")
    render.console().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert any("short" in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []


def test_blanks_cost_as_much_as_they_are() -> None:
    """Foreign text of nothing but blanks takes no more than its size to print."""

    def write(data: bytes) -> None:
        unpadded(StringIO()).write(data.decode())

    check_growth(write, lambda size: b" " * size + b"x")


def run(folder: Path, arguments: Sequence[str]) -> str:
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "custody", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_keys_on_80_columns(tmp_path: Path) -> None:
    """Each key is one line, the public key is left out, and the caption says where it is."""
    ring = new_keyring(tmp_path / "keyring.json", datetime.now(UTC))
    text = run(tmp_path, ["keys", "list", "--keys", "keyring.json"])
    lines = text.splitlines()
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
    for key in ring.keys:
        assert sum(key.key_id in line for line in lines) == 1
    assert "Left out, to fit the screen: public, as a vkey;" in " ".join(text.split())
