"""`custody check-events`: which lines of a file would be quarantined, and why. Needs no Kafka and no archive.

Each line is taken for a record's value, and checked by the code that the drain uses. Memory does not grow with the
file, nor with a line.
"""

import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from json import dumps
from pathlib import Path
from typing import IO, Annotated

import typer

from custody.cli import common
from custody.cli.common import App
from custody.cli.terminal import echo
from custody.errors import ConfigurationError, counted, escape
from custody.format import limits

app = App()

TOGETHER_BYTES = 4 * limits.MIB
"""Lines are checked together up to this size, or this number."""
TOGETHER_LINES = 1000
TYPES = 1000
"""Types that are counted one by one; more of them are counted together."""
REASON_CHARACTERS = 1_000
"""Characters of a reason, as the drain keeps them."""
SAME = 20
"""Lines in a row with the same reason that are printed one by one. Of more, each reason is counted."""
_NO_TIME = "timestamp is not a string"
_TIME_HINT = ": write RFC 3339, such as 2026-01-31T23:59:59.123Z"
_UNREADABLE = (OSError, EOFError, zlib.error)
"""What is raised while a file is read: its disk, or what should be gzip, is broken, or it is a folder."""
_PIECE = limits.EVENT_BYTES + 2
"""A line of this many bytes is too large, with and without its newline."""


@dataclass(slots=True)
class Tally:
    """What was counted.

    Attributes:
        lines: all lines.
        quarantined: those that would be quarantined.
        types: events of each type.
        others: events of types beyond the first `TYPES`.
        blank: lines without anything. They are skipped, and are in no other count.
    """

    lines: int = 0
    quarantined: int = 0
    types: Counter[str] = field(default_factory=Counter)
    others: int = 0
    blank: int = 0

    def skip_blank(self) -> None:
        """Count the last line, which was refused, as blank."""
        self.blank += 1
        self.quarantined -= 1

    def add(self, types: Counter[str]) -> None:
        """Count events."""
        for name, number in types.items():
            if name in self.types or len(self.types) < TYPES:
                self.types[name] += number
            else:
                self.others += number


class Source:
    """A file of events, whose errors name it. They are of reading alone: printing has errors of its own."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name, self._stream = name, stream

    def readline(self, size: int) -> bytes:
        """Return the next line, or a piece of it of this many bytes.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            return self._stream.readline(size)
        except _UNREADABLE as error:
            raise self._refused(error) from None

    def peek(self, size: int) -> bytes:
        """Return about as many of the next bytes, which are read again.

        Raises:
            ConfigurationError: they cannot be read.
        """
        try:
            return self._stream.peek(size)  # type: ignore[attr-defined, no-any-return]
        except _UNREADABLE as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> ConfigurationError:
        broken = isinstance(error, EOFError | gzip.BadGzipFile | zlib.error)
        reason = f"it is no whole gzip file: {error}" if broken else getattr(error, "strerror", None) or str(error)
        return ConfigurationError(f"{self._name} cannot be read: {reason}")


@app.command(
    "check-events",
    rich_help_panel=common.START,
    epilog="kcat -C -e -t audit.events | custody check-events -",
)
def check_events(
    file: Annotated[
        Path, typer.Argument(help="JSON lines, each one record's value. `-` is stdin.", metavar="FILE", allow_dash=True)
    ],
    strict: Annotated[
        bool,
        typer.Option("--strict", help='As with events.unknown_types = "quarantine": only the six types are events.'),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines: each line that is no event, then the counts.")
    ] = False,
) -> None:
    """Check which lines of a file would be archived as events, and which quarantined, and why."""
    own_types = common.open_settings().events.own_types and not strict
    tally = Tally()
    with _opened(file) as stream:
        _check_lines(file, stream)
        printed = _Printed()
        for number, reason in _skipping_blank(refused(stream, tally, own_types=own_types), tally):
            shown = reason[:REASON_CHARACTERS]
            if as_json:
                echo(dumps({"kind": "quarantined", "line": number, "reason": shown}))
            else:
                printed.add(number, shown + (_TIME_HINT if _NO_TIME in shown else ""))
    tally.lines -= tally.blank
    printed.end()
    if not tally.lines:
        raise ConfigurationError(
            f"{_name(file)} has no lines, so nothing was checked: give a file with one event a line"
        )
    if as_json:
        counts = {"lines": tally.lines, "events": tally.lines - tally.quarantined, "quarantined": tally.quarantined}
        types = {"types": dict(tally.types), "other_types": tally.others}
        echo(dumps({"kind": "checked", **counts, **types, "own_types": own_types}))
    else:
        _print(tally)
    if tally.quarantined:
        sys.exit(1)


class _Printed:
    """Prints lines with their reasons. After many in a row with the same reason, it only counts them."""

    def __init__(self) -> None:
        self._last, self._row = "", 0
        self._left: Counter[str] = Counter()

    def add(self, number: int, reason: str) -> None:
        """Print a line, or count it."""
        self._row = self._row + 1 if reason == self._last else 1
        self._last = reason
        if self._row <= SAME or (reason not in self._left and len(self._left) >= TYPES):
            echo(f"line {number:,}: {escape(reason)}")
        else:
            self._left[reason] += 1

    def end(self) -> None:
        """Print how many lines of each reason were only counted."""
        for reason, many in self._left.most_common():
            echo(f"{counted(many, 'more line')}: {escape(reason)}")


def _skipping_blank(wrong: Iterator[tuple[int, str]], tally: Tally) -> Iterator[tuple[int, str]]:
    """Yield the refused lines without blank ones: at a file's end they are no records."""
    from custody.format.events import reason

    blank = reason(b"")
    for number, why in wrong:
        if why == blank:
            tally.skip_blank()
        else:
            yield number, why


def _check_lines(file: Path, stream: Source) -> None:
    """Check that a file does not begin as a JSON document of several lines does.

    Raises:
        ConfigurationError: it does.
    """
    first = stream.peek(64).lstrip().splitlines(keepends=True)[:1]
    for opening, write in ((b"{", "jq -c ."), (b"[", "jq -c '.[]'")):
        if first and first[0].endswith(b"\n") and first[0].strip() == opening:
            raise ConfigurationError(
                f"{_name(file)} is a JSON document of several lines, and not one event a line: `{write}` writes it so"
            )


def refused(stream: IO[bytes] | Source, tally: Tally, *, own_types: bool) -> Iterator[tuple[int, str]]:
    """Yield the number and the reason of each line that the drain would quarantine, and count all lines.

    Args:
        stream: the lines.
        tally: they are added to it.
        own_types: whether events of other types than the six are taken.
    """
    from custody.format.events import check

    for values in _together(_lines(stream)):
        if isinstance(values, str):
            wrong: Iterable[tuple[int, str]] = [(0, values)]
            size = 1
        else:
            checked = check(values, own_types=own_types)
            wrong, size = checked.refused, len(values)
            tally.add(checked.types)
        for index, reason in wrong:
            tally.quarantined += 1
            yield tally.lines + index + 1, reason
        tally.lines += size


def _lines(stream: IO[bytes] | Source) -> Iterator[bytes | str]:
    """Yield each line without its newline; of one that is too large to be held, why it is no event."""
    from custody.format.events import reason
    from custody.format.lines import oversize

    while piece := stream.readline(_PIECE):
        if piece.endswith(b"\n") or len(piece) < _PIECE:
            yield piece.removesuffix(b"\n")
            continue
        size, blank = 0, True
        while piece:
            size += len(piece.removesuffix(b"\n"))
            blank = blank and not piece.strip()
            piece = b"" if piece.endswith(b"\n") else stream.readline(_PIECE)
        yield (reason(b"") or "") if blank else oversize(size)


def _together(lines: Iterable[bytes | str]) -> Iterator[list[bytes] | str]:
    """Yield lines that are checked together, and each reason by itself."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and (isinstance(line, str) or size >= TOGETHER_BYTES or len(held) >= TOGETHER_LINES):
            yield held
            held, size = [], 0
        if isinstance(line, str):
            yield line
        else:
            held.append(line)
            size += len(line)
    if held:
        yield held


@contextmanager
def _opened(file: Path) -> Iterator[Source]:
    """Open a file; `-` is stdin, and a name that ends in `.gz` is inflated as it is read.

    Raises:
        ConfigurationError: it cannot be opened.
    """
    if str(file) == "-":
        yield Source(_name(file), common.stdin())
        return
    name = f"the file of events {file}"
    try:
        stream = file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
    with stream:
        yield Source(name, stream if file.suffix != ".gz" else gzip.GzipFile(fileobj=stream))  # type: ignore[arg-type]


def _name(file: Path) -> str:
    return "the input on stdin" if str(file) == "-" else str(file)


def _print(tally: Tally) -> None:
    from custody.cli import render
    from custody.format.events import EVENT_TYPES

    if tally.types:
        table = render.table("type", "#events", "fields")
        for name, number in tally.types.most_common():
            close = get_close_matches(name.lower(), EVENT_TYPES, 1, 0.85)
            meant = f"own type, not checked; did you mean {close[0]}?" if close else "own type, not checked"
            table.add_row(render.safe(name), f"{number:,}", "checked" if name in EVENT_TYPES else meant)
        if tally.others:
            table.add_row("more types", f"{tally.others:,}", "own types, not checked")
        render.console().print(table)
    if not tally.quarantined:
        echo("The line is an event." if tally.lines == 1 else f"All {tally.lines:,} lines are events.")
        return
    echo(f"{tally.quarantined:,} of {counted(tally.lines, 'line')} would be quarantined.")
    if tally.quarantined == tally.lines:
        common.note("Each line must be one JSON object: `jq -c .` writes JSON so, and `jq -c '.[]'` a list.")
