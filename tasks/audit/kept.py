"""Keeps what an audit has read, so that each object is read once in a run.

The survey reads each new manifest to check its chain. A piece verifies the same manifests with all that they name, and
makes tables and the index of them. So the bytes that the survey read are kept, and the pieces take them. Rules:

1. Nothing counts because it was kept. A piece verifies these bytes as it verifies bytes that it reads, and makes tables
   of the bytes that it verified.
2. Only whole objects are kept that were there. Whether an object exists, its lock and its versions are asked anew. The
   end of the log of audits is read again before an audit is signed.
3. Memory is bounded. Manifests of the survey wait in a temporary file, small objects and those of a piece in memory.
   What is beyond a bound, or cannot be kept or taken, is read again.
4. Threads, and processes of this machine, take manifests from that file. Workers on other machines get theirs with
   their share.
"""

import logging
import os
import zlib
from array import array
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import Any, Self, cast

from custody.format import layout, limits
from custody.store.over import Over
from custody.store.protocol import Store

logger = logging.getLogger(__name__)

FILE_BYTES = 1024 * limits.MIB
"""Compressed manifests that wait in the file: half a million of ten batches each, which 300 logs get in a day."""
SENT_BYTES = 64 * limits.MIB
"""Compressed manifests that are sent along with all shares of a run, to workers on other machines."""
SMALL_BYTES = 8 * limits.MIB
"""Other objects that a run needs more than once; and as much again of checkpoints."""
PIECE_BYTES = 16 * limits.MIB
"""What a piece needs more than once."""
_SMALL = (layout.ARCHIVE, layout.AUDITS, "reports/")
_OF_PIECE = (layout.MANIFESTS, "tables/signed/")
_LOCKS = 256
"""So that threads that read different objects seldom wait for each other."""
_RUN = 64
"""Statements whose places in the file are noted together, in a kilobyte."""
_RUNS = 65_536

_Run = tuple[str, int]
"""A log, and the number of a run of its statements."""


class _ReadOnce(Over):
    """A store from which whole objects are read once, as far as they are kept."""

    def __init__(
        self,
        store: Store,
        get: Callable[[str], bytes | None],
        put: Callable[[str, bytes], None],
        reader: Callable[[str], AbstractContextManager[Any]],
    ) -> None:
        super().__init__(store)
        self._get, self._put, self._reader = get, put, reader

    def read(self, key: str, *, limit: int, **part: Any) -> bytes:
        if part:
            return self._store.read(key, limit=limit, **part)
        with self._reader(key):
            kept = self._get(key)
            # A larger one is refused by the store.
            if kept is not None and len(kept) <= limit:
                return kept
            data = self._store.read(key, limit=limit)
            self._put(key, data)
            return data


class _Objects:
    """Objects in memory, up to a number of bytes: those whose keys begin with one of some prefixes."""

    def __init__(self, prefixes: tuple[str, ...], room: int, locks: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self._prefixes, self._room = prefixes, room
        self._locks = [Lock() for _ in range(locks)]

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def put(self, key: str, data: bytes) -> None:
        if key.startswith(self._prefixes) and len(data) <= self._room and key not in self.objects:
            self._room -= len(data)
            self.objects[key] = data

    def reader(self, key: str) -> AbstractContextManager[Any]:
        locked = self._locks and key.startswith(self._prefixes)
        return self._locks[hash(key) % len(self._locks)] if locked else nullcontext()


class OfPiece:
    """What the pieces of a share read one after another: of each piece, and the manifest with which the next begins."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._objects = _Objects(_OF_PIECE, PIECE_BYTES)

    def reading(self, store: Store, first: str) -> Store:
        """Return the store for the next piece.

        Args:
            store: the archive.
            first: key of the manifest with which this piece begins, which the one before may have read.
        """
        before, self._objects = self._objects, _Objects(_OF_PIECE, PIECE_BYTES)
        kept = before.get(first)
        if kept is not None:
            self._objects.put(first, kept)
        objects = self._objects
        return cast("Store", _ReadOnce(store, objects.get, objects.put, objects.reader))


class Kept:
    """What a run of an audit has read. Leave it as a context manager, so that its file is deleted."""

    def __init__(self) -> None:
        """Begin with nothing. The file is made when it is needed."""
        self._small = _Objects(_SMALL, SMALL_BYTES, _LOCKS)
        self._checkpoints = _Objects((layout.CHECKPOINTS,), SMALL_BYTES)
        self._places: dict[_Run, array[int]] = {}
        self._lock = Lock()
        self._file: Any = None
        self._path = ""
        self._end, self._left = 0, SENT_BYTES
        self._take: Callable[[int, int], bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._take, self._end = None, FILE_BYTES
            if self._file is not None:
                self._file.close()

    def reading(self, store: Store, *, manifests: bool = False) -> Store:
        """Return a store that keeps what is read, and takes what was kept; `manifests` says whether it keeps them too.

        The survey's are taken by pieces. What a piece reads beside them, no other needs.
        """
        put = self.put if manifests else self._put_small
        return cast("Store", _ReadOnce(store, self.get, put, self._small.reader))

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes; None if they are not here."""
        parsed = layout.parse_manifest_key(key)
        if parsed is None:
            return self._small.get(key) or self._checkpoints.get(key)
        offset, size = self._place(str(parsed[0]), parsed[1])
        take = self._take
        if not size or take is None:
            return None
        try:
            return zlib.decompress(take(offset, size))
        except (OSError, ValueError, zlib.error) as error:
            logger.debug("%s is read again: %s", key, error)
            return None

    def put(self, key: str, data: bytes) -> None:
        """Keep an object's bytes, if there is room."""
        parsed = layout.parse_manifest_key(key)
        if parsed is None:
            self._put_small(key, data)
            return
        packed = zlib.compress(data, 1)
        with self._lock:
            number, at = divmod(parsed[1], _RUN)
            run = str(parsed[0]), number
            full = self._end + len(packed) > FILE_BYTES or (run not in self._places and len(self._places) == _RUNS)
            if full or self._place(str(parsed[0]), parsed[1])[1]:
                return
            try:
                if self._file is None:
                    self._file = NamedTemporaryFile(prefix="custody-", buffering=0)  # noqa: SIM115 - until the run ends
                    self._path, self._take = self._file.name, _taken_from(self._file)
                os.pwrite(self._file.fileno(), packed, self._end)
            except OSError as error:
                logger.warning("manifests are read again, because they cannot be kept in a temporary file: %s", error)
                self._end = FILE_BYTES
                return
            places = self._places.setdefault(run, array("Q", bytes(16 * _RUN)))
            places[2 * at], places[2 * at + 1] = self._end, len(packed)
            self._end += len(packed)

    def share(self, spans: Iterable[tuple[str, int, int]], *, sent: bool) -> "Share":
        """Return what the pieces of a share may take.

        Args:
            spans: `<log>/<partition>`, first statement and end of each piece. The statement at the end is included.
            sent: whether it goes to another machine, so that manifests are sent along, as far as there is room.
        """
        spans = list(spans)
        runs = {(log, run) for log, first, end in spans for run in range(first // _RUN, end // _RUN + 1)}
        places = {run: self._places[run] for run in sorted(runs & self._places.keys())}
        size = sum(sum(each[1::2]) for each in places.values())
        along = sent and size <= self._left
        self._left -= size if along else 0
        names = {log for log, _, _ in spans}
        checkpoints = {key: data for key, data in self._checkpoints.objects.items() if _log_of(key) in names}
        return Share(self, places, checkpoints, along=along)

    def adopt(self, places: dict[_Run, "array[int]"], objects: dict[str, bytes], data: str | bytes) -> None:
        """Take over, in another process, what was sent.

        Args:
            places: of manifests, in the file or in the bytes.
            objects: other objects.
            data: the file's path, or the compressed manifests themselves.
        """
        self._places, self._end = places, FILE_BYTES
        self._small.objects |= objects
        if isinstance(data, bytes):
            self._take = lambda offset, size: data[offset : offset + size]
        elif data:
            self._path, self._take = data, _taken_at(data)

    def sent(self, places: dict[_Run, "array[int]"], *, along: bool) -> tuple[Any, ...]:
        """Return the arguments of `adopt` for some of the places."""
        objects = dict(self._small.objects)
        if not along or self._take is None:
            return places, objects, self._path
        packed, moved = bytearray(), {}
        try:
            for run, each in places.items():
                moved[run] = array("Q", each)
                for at in range(0, len(each), 2):
                    moved[run][at] = len(packed)
                    packed += self._take(each[at], each[at + 1]) if each[at + 1] else b""
        except OSError as error:
            logger.warning("a share reads its manifests again, because they cannot be sent along: %s", error)
            return {}, objects, ""
        return moved, objects, bytes(packed)

    def _put_small(self, key: str, data: bytes) -> None:
        self._small.put(key, data)
        self._checkpoints.put(key, data)

    def _place(self, log: str, sequence: int) -> tuple[int, int]:
        """Return where a manifest is; (0, 0) if it is not here."""
        number, at = divmod(sequence, _RUN)
        places = self._places.get((log, number))
        return (places[2 * at], places[2 * at + 1]) if places is not None else (0, 0)


class Share:
    """What the pieces of a share may take. In another process it has that alone.

    Attributes:
        kept: the bytes.
    """

    def __init__(
        self, kept: Kept, places: dict[_Run, "array[int]"], checkpoints: dict[str, bytes], *, along: bool
    ) -> None:
        """Begin; `along` says whether manifests are sent along."""
        self.kept, self._places, self._checkpoints, self._along = kept, places, checkpoints, along

    def __reduce__(self) -> tuple[Any, ...]:
        places, objects, data = self.kept.sent(self._places, along=self._along)
        return _adopted, (places, objects | self._checkpoints, data)


def _adopted(places: dict[_Run, "array[int]"], objects: dict[str, bytes], data: str | bytes) -> Share:
    kept = Kept()
    kept.adopt(places, objects, data)
    # A scheduler may send it on.
    return Share(kept, places, {}, along=isinstance(data, bytes))


def _log_of(key: str) -> str:
    parsed = layout.parse_checkpoint_key(key)
    return str(parsed[0]) if parsed else ""


def _taken_from(file: Any) -> Callable[[int, int], bytes]:
    return lambda offset, size: os.pread(file.fileno(), size, offset)


def _taken_at(path: str) -> Callable[[int, int], bytes]:
    """Return what takes bytes from a file of another process. Nobody closes it here, so it is opened each time."""

    def take(offset: int, size: int) -> bytes:
        with Path(path).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    return take
