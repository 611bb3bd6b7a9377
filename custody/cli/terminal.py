"""The one door for all that is printed or logged: foreign text is escaped, and no failure to print ends a command.

Keys, findings, events and servers' answers may be hostile. Their control characters never reach a terminal, and never
add a line to a log.
"""

import codecs
import contextlib
import errno
import io
import logging
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator
from typing import Any, TextIO, cast

from custody.errors import escape

_BOUND = "\u00a0"
"""A space at which no line is broken."""


def echo(text: str, *, err: bool = False) -> None:
    """Print lines of text. Escape foreign text in it before: here its newlines look like ours."""
    stream = sys.stderr if err else sys.stdout
    stream.write("\n".join(map(escape, text.split("\n"))) + "\n")
    stream.flush()


def write(pieces: Iterator[bytes]) -> None:
    """Write the exact bytes, or escaped text if stdout is a terminal. End as `check_written` if not all was written."""
    out, terminal = sys.stdout.buffer, sys.stdout.isatty()
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for piece in pieces:
        out.write(_harmless(decoder.decode(piece)) if terminal else piece)
        if _failure() is not None:
            break
    check_written()


def screen_width(*, err: bool = False) -> int | None:
    """Return how wide the screen is; None for a file or a pipe, unless `COLUMNS` is set: no line is broken there."""
    if "COLUMNS" not in os.environ and not (sys.stderr if err else sys.stdout).isatty():
        return None
    return shutil.get_terminal_size().columns


def wrap(text: str, width: int | None, indent: int = 0) -> list[str]:
    """Return a paragraph as lines for a terminal. A command that fits in a line stays in one, to be copied.

    Args:
        text: the paragraph, with commands between backticks.
        width: of a line; None for one line.
        indent: blanks before the lines after the first.
    """
    if width is None:
        return [text]
    room = width - indent
    bound = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", _BOUND) if len(code[0]) <= room else code[0], text)
    lines = textwrap.wrap(bound, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
    return [line.replace(_BOUND, " ") for line in lines]


class _Unpadded(io.TextIOBase):
    """A stream that drops the blanks with which tables fill their lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        # Looking behind a blank for another keeps a pattern linear: each run of blanks is tried once.
        self._stream.write(re.sub(r"(?<! ) +(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def unpadded(stream: TextIO) -> TextIO:
    """Return a stream that writes lines to another one, without the blanks at their ends."""
    return cast("TextIO", _Unpadded(stream))


def check_written() -> None:
    """End a command whose output is its result with exit code 1, unless all of it was written so far.

    A reader that closed its pipe has what it wanted. In both cases `report_lost` prints the reason.
    """
    sys.stdout.flush()
    failed = _failure()
    if failed is not None and failed.errno != errno.EPIPE:
        sys.exit(1)


def report_lost() -> None:
    """Print on stderr that not all of the output was written, if so. No exit code depends on it.

    A reader that closed its pipe, such as `head`, has what it wanted.
    """
    sys.stdout.flush()
    failed = _failure()
    if failed is not None and failed.errno != errno.EPIPE:
        echo(f"custody: the output could not be written in full: {failed.strerror}", err=True)


def _failure() -> OSError | None:
    """Return the error with which a write to stdout failed; None if all succeeded."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failed if isinstance(raw, _Output) else None


def _harmless(text: str) -> bytes:
    if not text.replace("\n", "").isprintable():
        # JSON keeps its meaning: a control character can only be in a string, where \u means the same.
        text = "".join(
            char if char.isprintable() or char in "\n\t" else f"\\u{ord(char):04x}" if ord(char) < 0x10000 else "?"
            for char in text
        )
    return text.encode("utf-8", "backslashreplace")


class _Output(io.FileIO):
    """A standard stream that remembers the first failed write, and drops what comes after it."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or do as if."""
        if self.failed is None:
            try:
                return super().write(data) or 0
            except OSError as error:
                self.failed = error
        return len(data)


class _Closed(_Output):
    """A standard stream that was closed before this process began."""

    def write(self, data: Any) -> int:
        """Do as if."""
        self.failed = OSError(errno.EBADF, "it is closed")
        return len(data)


def prepare() -> None:
    """Replace stdout and stderr, so that no command fails because one is closed or full, or by its encoding."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Closed before this process began. Its number may be another file's by now.
            nowhere = io.BufferedWriter(_Closed(os.devnull, "w"))
            setattr(sys, name, io.TextIOWrapper(nowhere, "utf-8", "backslashreplace"))
        elif stream is getattr(sys, f"__{name}__"):
            with contextlib.suppress(OSError):
                stream.flush()
            raw = io.BufferedWriter(_Output(number, "w", closefd=False))
            encoding, lines = stream.encoding, stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=lines))


def _record(*args: Any, **values: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **values)
    try:
        message = record.getMessage()
    except (TypeError, ValueError):
        # A bug of the caller's, which the handler reports.
        return record
    if not message.isprintable():
        record.msg, record.args = escape(message), None
    if record.exc_info and record.exc_info[0]:
        lines = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        record.exc_text = "\n".join(map(escape, lines.split("\n")))
    return record


def escape_logs() -> None:
    """Escape all that this process logs, for each handler, Prefect's too."""
    logging.setLogRecordFactory(_record)
