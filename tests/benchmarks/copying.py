"""Copies an archive that makes its objects (`tests.helpers.aged`) to files or to a bucket, in several processes."""

import contextlib
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

from custody.format import layout
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, S3Options
from tests.helpers.aged import DAY, REREAD, AgedStore

_COPIERS = 4
"""Processes that put an archive into a bucket."""
_WRITERS = os.cpu_count() or 1
"""Processes that write an archive to files."""
_STRETCH = 1000
"""Statements that one of them writes before the next ones are another's."""
_THREADS = 8
"""Of each process that puts objects into SeaweedFS."""


def _processes(number: int) -> ProcessPoolExecutor:
    """Return processes that are not forked from this one: it may have threads, and a copy of them may die."""
    return ProcessPoolExecutor(number, mp_context=get_context("forkserver"))


def copy_to_folder(store: AgedStore, folder: Path, segment_days: int) -> None:
    """Write an archive's objects as files, without waiting for the disk.

    Args:
        store: the archive.
        folder: the root of the files.
        segment_days: the days at the end whose segments are written, besides those of the first statements.
    """
    parts = [(store.folder, folder, segment_days, part) for part in range(_WRITERS)]
    with _processes(_WRITERS) as processes:
        list(processes.map(_write_files, *zip(*parts, strict=True)))


def _write_files(source: Path, folder: Path, segment_days: int, part: int) -> None:
    """Write each `_WRITERS`-th stretch of an archive's statements as files, and the same part of all else."""
    store = AgedStore.opened(source)
    made: set[str] = set()

    def write(key: str, data: bytes) -> None:
        path = f"{folder}/{key}"
        above = path[: path.rindex("/")]
        if above not in made:
            os.makedirs(above, exist_ok=True)  # noqa: PTH103 - millions of times
            made.add(above)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(descriptor, data)
        os.close(descriptor)

    count = store.spec.statements
    for log in store.spec.names:
        for start in range(part * _STRETCH, count, _WRITERS * _STRETCH):
            numbers = range(start, min(start + _STRETCH, count))
            for sequence, (key, data, segment, events) in zip(numbers, store.statements(log, numbers), strict=True):
                write(key, data)
                if sequence < REREAD or sequence >= count - segment_days * DAY:
                    write(segment, events)
    folders, objects = store.level("")
    others = (f"{name}/" for name in folders if f"{name}/" not in {layout.MANIFESTS, layout.EVENTS})
    for info in islice(chain(objects, *map(store.list, others)), part, None, _WRITERS):
        write(info.key, store.read(info.key, limit=1 << 26))


def copy_to_s3(store: AgedStore, url: str, endpoint: str) -> None:
    """Put an archive's objects into a bucket."""
    with _processes(_COPIERS) as processes:
        parts = ((store.folder, url, endpoint, part) for part in range(_COPIERS))
        list(processes.map(_put_objects, *zip(*parts, strict=True)))


def _put_objects(source: Path, url: str, endpoint: str, part: int) -> None:
    """Put each `_COPIERS`-th object of an archive into a bucket."""
    store = AgedStore.opened(source)
    with contextlib.closing(open_store(url, S3Options(endpoint_url=endpoint))) as to:

        def copy(info: ObjectInfo) -> None:
            to.create(info.key, store.read(info.key, limit=1 << 26))

        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(copy, islice(store.list(), part, None, _COPIERS)):
                pass
