"""The targets of a backfill: Elasticsearch, the archive's own tables, a folder; a Kafka topic is in `topic`.

A backfill keeps no state except in its target, so one that was stopped or killed can be started again. Elasticsearch,
tables and folders get each event once, even if two backfills run at the same time. A topic gets each event at least
once.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from custody.errors import ConfigurationError
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.format.manifest import Batch, Statement
from custody.format.members import pack
from custody.format.times import format_time, parse_time
from custody.store.durable import finish_file
from custody.store.protocol import Store
from custody.verify.work import work_of
from tasks.audit.tables import TableWriter
from tasks.backfill.plan import Part
from tasks.search.bulk import Bulk, Sent
from tasks.search.client import Search
from tasks.search.documents import (
    RESTORED_AT,
    Documents,
    index_name,
    is_restored,
    make_documents,
    out_of_range_name,
    restored_name,
)
from tasks.search.indices import prepare
from tasks.settings import Settings

REQUEST_FILE = "backfill.json"
"""The file in a folder that says which events the folder holds."""
_UNFINISHED = ".backfill-"
_MARKED_EVERY = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Content:
    """Chosen events of one batch.

    Attributes:
        statement: the batch's statement.
        batch: the batch.
        member: its stored bytes, one gzip member.
        payload: its lines, each with its newline.
        lines: the chosen lines, without newlines.
        offsets: the offset of each chosen line.
        whole: whether all lines are chosen.
    """

    statement: Statement
    batch: Batch
    member: bytes
    payload: bytes
    lines: Sequence[bytes]
    offsets: Sequence[int]
    whole: bool


class Target(Protocol):
    """A target of a backfill. Not thread-safe."""

    def has(self, part: Part) -> bool:  # noqa: ARG002 - a target that can tell by the part overrides this
        """Return whether a part is known to be copied already, so that it need not be read."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Copy a part.

        Args:
            part: the part.
            contents: its chosen events, batch by batch.
            sent: counts the events, also if an error ends the copy.

        Raises:
            FormatError: an archived object cannot be copied. Errors from `contents` are passed on.
            CustodyError: the target does not accept the events; the next run continues.
        """

    def finish(self) -> None:
        """Finish after every part was copied."""
        return


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


class TablesTarget(Target):
    """The archive's own tables, for statements that have none. Each is of whole statements, as its name says."""

    def __init__(self, store: Store, archive: str, signers: tuple[Signer, Signer]) -> None:
        """Prepare; no request is made yet.

        Args:
            store: the archive.
            archive: its id.
            signers: the HMAC-SHA256 and the Ed25519 key, which sign the list of the tables' files.
        """
        self._store, self._archive, self._signers = store, archive, signers

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Make the tables of a range of statements, and put them after the whole range was read."""
        with TableWriter(
            self._store, part.log, part.first, part.end, archive=self._archive, signers=self._signers
        ) as writer:
            for content in contents:
                writer.add(work_of(content.statement, str(part.log)), content.batch, content.payload)
            sent.created += writer.finish()


class SearchTarget(Target):
    """Elasticsearch: each event becomes a document in the index of its day, as the indexer makes it, exactly once.

    The next roll would delete the index of an old day again. So events of days whose index was deleted go to an index
    with another name (`documents.restored_name`) behind the same alias, and stay for `search.restored_days`. The same
    holds for old out-of-range events. Before events are restored, the index is created and marked with the time. The
    roll counts the days from that mark.
    """

    def __init__(self, settings: Settings, search: Search) -> None:
        """Set the templates.

        Raises:
            SearchError: Elasticsearch does not answer, or refuses.
        """
        self._settings, self._search, self._bulk = settings.search, search, Bulk(search)
        self._oldest = datetime.now(UTC).date() - timedelta(days=settings.search.days)
        self._names: dict[date, str] = {}
        self._marked: dict[str, datetime] = {}
        prepare(search)

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Create documents, about one bulk request at a time. Events before a damaged batch are copied too."""
        self._bulk.send(part.log, (self._documents(part.log, content) for content in contents), sent)

    def _documents(self, log: Log, content: Content) -> Documents:
        naming = partial(self._name, content.statement)
        documents = make_documents(self._settings.days, log, content.statement, content.batch, content.payload, naming)
        chosen = documents if content.whole else documents.only(set(content.offsets))
        for name in {chosen.action(position)["_index"] for position in range(len(chosen.offsets))}:
            if is_restored(self._search.prefix, name):
                self._mark(name)
        return chosen

    def _name(self, statement: Statement, day: date | None) -> str:
        if day is None:
            kept = parse_time(statement.sealed_at).date() >= self._oldest
            return out_of_range_name(self._search.prefix) if kept else restored_name(self._search.prefix, None)
        if day not in self._names:
            own = index_name(self._search.prefix, day)
            with self._search.errors(f"checking whether {own} exists"):
                kept = day >= self._oldest or bool(self._search.client.indices.exists(index=own))
            self._names[day] = own if kept else restored_name(self._search.prefix, day)
        return self._names[day]

    def _mark(self, name: str) -> None:
        """Mark an index of restored events with the present time, and create it if it does not exist."""
        now = datetime.now(UTC)
        # A long backfill repeats the mark, but not often: each one costs a new cluster state.
        if name in self._marked and now - self._marked[name] < _MARKED_EVERY:
            return
        with self._search.errors(f"marking when events were restored to {name}"):
            self._search.create_index(name)
            self._search.client.indices.put_mapping(index=name, meta={RESTORED_AT: format_time(now)})
        self._marked[name] = now
