"""Copies an archive that makes its objects (`tests.helpers.aged`) to files or to a bucket, in several processes."""

import contextlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, S3Options
from tests.helpers.aged import AgedStore

_COPIERS = 4
"""Processes that copy an archive."""
_THREADS = 8
"""Of each process that puts objects into SeaweedFS."""


def copy_to_folder(store: AgedStore, folder: Path) -> None:
    """Write an archive's objects as files, without waiting for the disk."""
    with ProcessPoolExecutor(_COPIERS) as processes:
        list(
            processes.map(_write_files, *zip(*((store.folder, folder, part) for part in range(_COPIERS)), strict=True))
        )


def _write_files(source: Path, folder: Path, part: int) -> None:
    """Write each `_COPIERS`-th object of an archive as a file."""
    store = AgedStore.opened(source)
    made: set[Path] = set()
    for info in islice(store.list(), part, None, _COPIERS):
        path = folder / info.key
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(store.read(info.key, limit=1 << 26))


def copy_to_s3(store: AgedStore, url: str, endpoint: str) -> None:
    """Put an archive's objects into a bucket."""
    with ProcessPoolExecutor(_COPIERS) as processes:
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
