"""`custody check-events`: the drain's verdict on the lines of a file, before they are produced."""

import errno
import gzip
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from custody.cli import check_events, common
from custody.cli.check_events import Tally, refused
from custody.errors import ConfigurationError
from custody.format import limits
from custody.format.events import reason
from tests.helpers.commands import Command
from tests.helpers.corpus import BASE, CASES, TIME, sized

OWN = json.dumps({"event_type": "user_login", "timestamp": TIME, "user": "ada"}).encode()
LINES = [case.value for case in CASES if b"\n" not in case.value]


def verdicts(text: bytes, *, own_types: bool = True) -> tuple[dict[int, str], Tally]:
    """Return the reasons by the number of their lines, and the counts."""
    tally = Tally()
    return dict(refused(io.BytesIO(text), tally, own_types=own_types)), tally


@pytest.mark.parametrize("own_types", [True, False])
@pytest.mark.parametrize("together", [1, 7, 1000])
def test_each_line_has_the_verdict_of_the_drain(
    monkeypatch: pytest.MonkeyPatch, together: int, own_types: bool
) -> None:
    """Whatever a line holds, and whatever is beside it, its reason is the one with which it would be quarantined."""
    monkeypatch.setattr(check_events, "TOGETHER_LINES", together)
    reasons = {number: reason(value, own_types=own_types) for number, value in enumerate(LINES, 1)}
    for end in (b"", b"\n"):
        text = b"\n".join(LINES) + end
        if not LINES[-1] and not end:
            continue
        got, tally = verdicts(text, own_types=own_types)
        assert got == {number: why for number, why in reasons.items() if why is not None}
        assert (tally.lines, tally.quarantined) == (len(LINES), len(got))
        assert sum(tally.types.values()) + tally.others == len(LINES) - len(got)


@pytest.mark.parametrize("size", [limits.EVENT_BYTES, limits.EVENT_BYTES + 1, limits.EVENT_BYTES + 2, 3_000_000])
def test_large_lines(size: int) -> None:
    """A line has the drain's reason on either side of the limit, with and without a newline, and blank or not."""
    for value in (sized(size), b" " * size):
        for text in (value, value + b"\n", BASE + b"\n" + value + b"\n" + OWN):
            number = 2 if text.startswith(BASE + b"\n") and text != value + b"\n" else 1
            expected = {} if (why := reason(value)) is None else {number: why}
            got, tally = verdicts(text)
            assert (got, tally.lines) == (expected, 3 if number == 2 else 1)


class Endless(io.RawIOBase):
    """A stream of one line of many bytes, which are not kept anywhere."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Give more of the line."""
        number = min(len(buffer), self.left)
        buffer[:number] = b"x" * number
        self.left -= number
        return number


def test_memory_does_not_grow_with_a_line() -> None:
    """A line of 200 MB takes a few MB, and its reason has its whole size."""
    size = 200_000_000
    tracemalloc.start()
    try:
        got = dict(refused(io.BufferedReader(Endless(size)), Tally(), own_types=True))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == {1: f"the value has {size} bytes, more than the {limits.EVENT_BYTES} of an event"}
    assert most < 8 * limits.MIB


def test_types_are_bounded() -> None:
    """Types beyond the first thousand are counted together."""
    lines = [OWN.replace(b"user_login", b"type %d" % number) for number in range(check_events.TYPES + 30)]
    _, tally = verdicts(b"\n".join([*lines, lines[0]]))
    assert (len(tally.types), tally.types["type 0"], tally.others) == (check_events.TYPES, 2, 30)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a file with two events and a line that is none."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join([BASE, b"\x1b[2Jno event", OWN, b""]))
    return path


def test_what_people_see(custody: Command, file: Path) -> None:
    """The bad line has its number and its reason, each type its number, and own types are named as such."""
    shown = custody("check-events", file)
    assert shown.code == 1
    assert shown.out.splitlines()[0] == f"line 2: {reason(b'no event')}"
    assert "1 of 3 lines would be quarantined." in shown.out
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["query_executed", "1", "checked"] in rows
    assert ["user_login", "1", "own", "type,", "not", "checked"] in rows
    file.write_bytes(BASE + b"\n")
    assert (custody("check-events", file).code, "The line is an event." in custody("check-events", file).out) == (
        0,
        True,
    )


def test_a_misspelt_type_is_pointed_out(custody: Command, file: Path) -> None:
    """A type that reads like one of the six is archived unchecked, so its name is questioned."""
    file.write_bytes(BASE.replace(b"query_executed", b"Query_Execute"))
    shown = custody("check-events", file)
    assert (shown.code, "did you mean query_executed?" in shown.out) == (0, True)


def test_json(custody: Command, file: Path) -> None:
    """Each bad line is a document, and the counts are the last one."""
    shown = custody("check-events", file, "--json")
    bad, counts = map(json.loads, shown.out.splitlines())
    assert (shown.code, bad) == (1, {"kind": "quarantined", "line": 2, "reason": reason(b"\x1b[2Jno event")})
    assert counts == {
        "kind": "checked", "lines": 3, "events": 2, "quarantined": 1,
        "types": {"query_executed": 1, "user_login": 1}, "other_types": 0, "own_types": True,
    }  # fmt: skip


def test_strict_and_the_setting(custody: Command, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--strict` and `events.unknown_types` refuse own types alike, and neither needs an archive."""
    strict = custody("check-events", file, "--strict")
    monkeypatch.setenv("CUSTODY_EVENTS__UNKNOWN_TYPES", "quarantine")
    assert custody("check-events", file) == strict
    assert (strict.code, "line 3: event_type 'user_login' is not one of" in strict.out) == (1, True)
    monkeypatch.setenv("CUSTODY_EVENTS__UNKNOWN_TYPES", "drop")
    wrong = custody("check-events", file)
    assert (wrong.code, "events.unknown_types" in wrong.err, "'quarantine'" in wrong.err) == (2, True, True)


def test_stdin(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(OWN + b"\n{}\n"))))
    shown = custody("check-events", "-", "--json")
    assert [json.loads(line).get("line") for line in shown.out.splitlines()] == [2, None]


def test_wrong_files(custody: Command, tmp_path: Path) -> None:
    """No file, a folder, odd names and nothing to check are exit code 2 and a line that says so."""
    (tmp_path / "empty").touch()
    for name, words in (
        (tmp_path / "nowhere", "No such file"),
        (tmp_path, "Is a directory"),
        ("\0", "embedded null byte"),
        (tmp_path / "empty", "has no lines, so nothing was checked"),
    ):
        refusal = custody("check-events", name)
        assert (refusal.code, words in refusal.err, len(refusal.err.splitlines())) == (2, True, 1), refusal


class Broken(io.RawIOBase):
    """A file that fails after its first bytes, as on a broken disk."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.pieces:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        piece = self.pieces.pop(0)
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("pieces", [(), (BASE + b"\n", OWN + b"\n")], ids=["at once", "later"])
@pytest.mark.parametrize("command", [("check-events", "-"), ("query", "-")], ids=" ".join)
def test_an_input_that_breaks_is_one_line(
    custody: Command, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], pieces: tuple[bytes, ...]
) -> None:
    """A disk that fails while it is read is one line that names the input, and no traceback."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken(*pieces))))
    shown = custody(*command)
    wrong = "the input on stdin cannot be read: Input/output error"
    assert (shown.code, shown.err) == (2, f"custody: {wrong}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken(*pieces))))
    with pytest.raises(ConfigurationError, match=wrong):
        common.file_digest(Path("-"), "report")


def test_no_line_is_an_event(custody: Command, file: Path) -> None:
    """Where no line is an event, a note says that each must be one."""
    file.write_text(f"a line\n{json.dumps(json.loads(BASE), indent=1)}")
    shown = custody("check-events", file)
    assert (shown.code, "Each line must be one JSON object" in shown.err) == (1, True)


def test_equal_reasons_are_counted(custody: Command, file: Path) -> None:
    """After 20 lines in a row with one reason, a screen gets the count; JSON has each line."""
    wrong = json.dumps({"event_type": "user_login", "timestamp": 5}).encode()
    file.write_bytes(b"\n".join([wrong] * 1000 + [b"{}", OWN, b""]))
    lines = custody("check-events", file).out.splitlines()
    hint = "timestamp is not a string: write RFC 3339, such as 2026-01-31T23:59:59.123Z"
    assert lines[:20] == [f"line {number}: {hint}" for number in range(1, 21)]
    assert lines[20].startswith("line 1,001: ")
    assert lines[21] == f"980 more lines: {hint}"
    assert len(custody("check-events", file, "--json").out.splitlines()) == 1002


def test_blank_lines_are_skipped(custody: Command, file: Path) -> None:
    """A blank line is no record, and keeps its number."""
    file.write_bytes(b"\n" + BASE + b"\n\n  \nno event\n\n")
    shown = custody("check-events", file)
    assert shown.out.startswith("line 5: ")
    assert "1 of 2 lines would be quarantined." in shown.out
    file.write_bytes(b"\n\n")
    assert custody("check-events", file).code == 2


def test_a_gzip_file(custody: Command, tmp_path: Path) -> None:
    """A file that ends in .gz is inflated; a damaged one is one clear error."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(BASE + b"\n" + OWN + b"\n"))
    assert "All 2 lines are events." in custody("check-events", path).out
    for data in (path.read_bytes()[:-9], BASE):
        path.write_bytes(data)
        shown = custody("check-events", path)
        assert shown.code == 2
        assert "no whole gzip file" in shown.err


@pytest.mark.parametrize(("document", "command"), [({"a": 1}, "`jq -c .`"), ([{"a": 1}], "`jq -c '.[]'`")])
def test_a_json_document_of_several_lines(custody: Command, file: Path, document: object, command: str) -> None:
    """A pretty-printed document is one error, and not one for each of its lines."""
    file.write_text(json.dumps(document, indent=2))
    shown = custody("check-events", file)
    assert (shown.code, shown.out) == (2, "")
    assert command in shown.err


@pytest.mark.parametrize("command", [("check-events", "-"), ("query", "-")])
def test_a_closed_stdin_is_one_line(
    custody: Command, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """After `<&-` there is no input at all: a mistake of the caller, and no traceback."""
    monkeypatch.setattr(sys, "stdin", None)
    refused = custody(*command)
    assert (refused.code, refused.out) == (2, "")
    assert "stdin cannot be read: it is closed" in refused.err
