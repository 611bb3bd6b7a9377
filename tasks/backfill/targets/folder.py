"""A folder as a target."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from custody.errors import ConfigurationError
from custody.format.members import pack
from custody.store.durable import finish_file
from tasks.backfill.targets.target import Content, Part, Target
from tasks.search.bulk import Sent

REQUEST_FILE = "backfill.json"
"""The file in a folder that says which events the folder holds."""
_UNFINISHED = ".backfill-"


class FolderTarget(Target):
    """Files `<folder>/<log>/<partition>/<first>-<last>.jsonl.gz`, named by the first and last offset of their part.

    A file is complete or does not exist. An existing file is never changed, so a folder holds only one choice of
    events. The next run removes unfinished files of a run that was killed.
    """

    def __init__(self, folder: Path, choice: bytes) -> None:
        """Open a folder that is new, empty, or has the same choice of events.

        Args:
            folder: the folder; it is created if it does not exist.
            choice: names the archive and the choice of events.

        Raises:
            ConfigurationError: the folder cannot be written, or holds something else.
        """
        self._folder = folder
        path = folder / REQUEST_FILE
        with _file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(not name.startswith(".") for name in os.listdir(folder)):  # noqa: PTH208 - only names are needed
                    raise ConfigurationError(f"the folder {str(folder)!r} holds other things: name an empty one")
                finish_file(*_stage(path.parent), path, choice, mode=0o644)
            if path.read_bytes() != choice:
                raise ConfigurationError(
                    f"the folder {str(folder)!r} holds another choice of events ({path} says which): name an empty one"
                )
            _remove_abandoned(folder)

    def has(self, part: Part) -> bool:
        """Return whether the part's file exists."""
        with _file_errors(self._folder, "read"):
            return self._path(part).exists()

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Write a part's file. A batch that is chosen as a whole is copied as it is stored."""
        path, count = self._path(part), 0
        members: list[bytes] = []
        for content in contents:
            lines = b"".join(line + b"\n" for line in content.lines) if not content.whole else b""
            members.append(content.member if content.whole else pack(lines).data)
            count += len(content.offsets)
        with _file_errors(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            # An empty file is written too: it shows that no event of the part was chosen.
            # The staged file is locked until it has its name. Otherwise another run might remove it as abandoned.
            data = b"".join(members) or pack(b"").data
            finish_file(*_stage(path.parent), path, data, mode=0o644)
        sent.created += count

    def _path(self, part: Part) -> Path:
        name = f"{part.first_offset:020}-{part.next_offset - 1:020}.jsonl.gz"
        return self._folder / part.log.name / str(part.log.partition) / name


def _stage(folder: Path) -> tuple[int, str]:
    """Create a file with a new name, locked until it is closed or its process dies."""
    while True:
        descriptor, staged = tempfile.mkstemp(prefix=_UNFINISHED, suffix=".partial", dir=folder)
        # On a file system without locks, no file is removed as abandoned.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another run may have removed the file before it was locked: then try again.
        if os.fstat(descriptor).st_nlink:
            return descriptor, staged
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files of runs that have died. A file that cannot be removed does no harm."""
    name = f"{_UNFINISHED}*.partial"
    for path in (*folder.glob(name), *folder.glob(f"*/*/{name}")):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def _file_errors(folder: Path, doing: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the folder {str(folder)!r} cannot be {doing}: {error.strerror or error}; correct this, then start the"
            " backfill again: it continues"
        ) from None
