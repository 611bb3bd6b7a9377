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
"""In a folder: which events the files hold."""
_UNFINISHED = ".backfill-"


class FolderTarget(Target):
    """Files `<folder>/<log>/<partition>/<first>-<last>.jsonl.gz`, named by the offsets that were looked at.

    A file is there whole or not at all. One that is there is left alone; so a folder holds one choice of events only.
    What a run that was killed left unfinished is removed by the next one.
    """

    def __init__(self, folder: Path, choice: bytes) -> None:
        """Take a folder that is new, empty, or of the same choice of events.

        Args:
            folder: where files go; it is made if it is not there.
            choice: names the archive and which events the files hold.

        Raises:
            ConfigurationError: the folder cannot be written, or holds something else.
        """
        self._folder = folder
        path = folder / REQUEST_FILE
        with _file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(not name.startswith(".") for name in os.listdir(folder)):  # noqa: PTH208 - names are all that is asked
                    raise ConfigurationError(f"the folder {str(folder)!r} holds other things: name an empty one")
                finish_file(*_stage(path.parent), path, choice, mode=0o644)
            if path.read_bytes() != choice:
                raise ConfigurationError(
                    f"the folder {str(folder)!r} holds another choice of events ({path} says which): name an empty one"
                )
            _remove_abandoned(folder)

    def has(self, part: Part) -> bool:
        """Return whether the part's file is there."""
        with _file_errors(self._folder, "read"):
            return self._path(part).exists()

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Write a part's file; a batch that is chosen whole goes into it as it is stored."""
        path, count = self._path(part), 0
        members: list[bytes] = []
        for one in contents:
            lines = b"".join(line + b"\n" for line in one.lines) if not one.whole else b""
            members.append(one.member if one.whole else pack(lines).data)
            count += len(one.offsets)
        with _file_errors(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Even if it is empty: that nothing was chosen is then known, too.
            # The staged file is locked until it has its name: else another run may take it for abandoned.
            data = b"".join(members) or pack(b"").data
            finish_file(*_stage(path.parent), path, data, mode=0o644)
        sent.created += count

    def _path(self, part: Part) -> Path:
        name = f"{part.first_offset:020}-{part.next_offset - 1:020}.jsonl.gz"
        return self._folder / part.log.name / str(part.log.partition) / name


def _stage(folder: Path) -> tuple[int, str]:
    """Make a file of a name that nobody has, which is locked until it is closed, or its process has died."""
    while True:
        descriptor, staged = tempfile.mkstemp(prefix=_UNFINISHED, suffix=".partial", dir=folder)
        # Where nothing can be locked nothing is taken for abandoned.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another run may have come between the two.
        if os.fstat(descriptor).st_nlink:
            return descriptor, staged
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files of runs that have died; a file that cannot be removed is in nobody's way."""
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
            f"the folder {str(folder)!r} cannot be {doing}: {error.strerror or error}; see to it, and start again:"
            " it goes on"
        ) from None
