"""Spools as a process leaves them, and what another one gets out of them."""

from collections.abc import Sequence
from pathlib import Path

from custody.emit.spool import Spool
from custody.emit.spool_segment import frame, head

LIMIT = 1 << 26
ORPHAN = "host-1-1"


def lines(count: int, first: int = 0) -> list[bytes]:
    """Return lines that differ, of different lengths."""
    return [b'{"n":%d,"fill":"%s"}' % (number, b"x" * (number % 7)) for number in range(first, first + count)]


def segment(content: Sequence[bytes]) -> bytes:
    """Return a whole segment."""
    return head() + b"".join(map(frame, content))


def orphan(root: Path, *segments: bytes, name: str = ORPHAN) -> Path:
    """Write the folder of a process that has ended, and return it."""
    root.mkdir(mode=0o700, exist_ok=True)
    folder = root / name
    folder.mkdir(mode=0o700)
    for number, data in enumerate(segments, 1):
        path = folder / f"{number:012}.segment"
        path.write_bytes(data)
        path.chmod(0o600)
    return folder


def drain(spool: Spool, limit: int = 1000) -> list[bytes]:
    """Return all lines of a spool, and have them done."""
    replayed: list[bytes] = []
    while (batch := spool.peek(limit)).lines:
        replayed += batch.lines
        spool.done(batch)
    return replayed
