"""A writer for processes of tests: its sink is a file that several processes append to."""

import os
from collections.abc import Sequence
from pathlib import Path

from custody.emit.builders import AuditEvent, own
from custody.emit.quiet import QuietLog
from custody.emit.sink import Report, Sink
from custody.emit.writer import Options, QueuedWriter


class FileSink:
    """Appends each group of lines by one call, so that those of other processes are not cut in two."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        os.write(self._file, b"".join(b"%b\n" % line for line in lines))
        for line in lines:
            report(line, "delivered")
        return len(lines)

    def poll(self, seconds: float) -> None:
        pass

    def close(self, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        os.close(self._file)


class FileWriter(QueuedWriter):
    """A writer to a file. Where it cannot be made, the sink is away."""

    kind = "Kafka"

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(options, "file")
        self._path = path

    def open_sink(self, quiet: QuietLog) -> Sink:  # noqa: ARG002 - the interface's
        return FileSink(self._path)


def event(n: int) -> AuditEvent:
    """Return an own event with a number of the test's."""
    return own("test.event", n=n)
