"""Where a backfill copies events to: Elasticsearch, the archive's own tables, a Kafka topic, a folder.

What a target has already is the only memory of a backfill: each target knows it by itself, so that a backfill that was
stopped, killed or started twice leaves each event there once. Two at the same time do so too, but for a topic, which
takes no answer for an event that the other has not sent yet.
"""

import fcntl
import json
import os
import re
import tempfile
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from elasticsearch import ApiError

from custody.errors import ConfigurationError, TransientSourceError
from custody.format.envelope import Signer
from custody.format.layout import Log, check_topic
from custody.format.manifest import Batch, Statement
from custody.format.segment import pack
from custody.format.times import format_time, parse_time
from custody.store.protocol import Store
from custody.verify.accounting import unlined_ranges
from custody.verify.contents import Work
from tasks.audit.tables import TableWriter
from tasks.drain.kafka import PARTITION_EOF, REQUEST_SECONDS, logger, map_error
from tasks.search.client import Search, Sent
from tasks.search.documents import (
    BROUGHT,
    Documents,
    index_name,
    is_restored,
    make_documents,
    outlying_name,
    restored_name,
)
from tasks.settings import Settings

TOPIC_SECONDS = 120.0
"""How long Kafka may take to acknowledge a record, or to give the next one of what a topic holds."""
_POLL_SECONDS = 0.2
_MARKED_EVERY = timedelta(hours=1)
REQUEST_FILE = "backfill.json"
"""In a folder: which events the files hold."""
_UNFINISHED = ".backfill-"


class Part(msgspec.Struct, frozen=True):
    """What is copied as a whole: a log's statements `[first, end)`; offsets `[first_offset, next_offset)` of them."""

    log: Log
    first: int
    end: int
    first_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Content:
    """Chosen events of one batch.

    Attributes:
        statement: what the batch belongs to.
        batch: the batch.
        member: its stored bytes, one gzip member.
        payload: its lines, each with its newline.
        lines: the chosen ones, without newlines.
        offsets: where each is in its log.
        whole: whether all are chosen.
    """

    statement: Statement
    batch: Batch
    member: bytes
    payload: bytes
    lines: Sequence[bytes]
    offsets: Sequence[int]
    whole: bool


class Target(Protocol):
    """Somewhere that events are copied to. Not thread-safe."""

    def has(self, part: Part) -> bool:
        """Say whether a part is known to be there, so that it need not be read."""

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Copy a part.

        Args:
            part: the part.
            contents: its chosen events, batch by batch.
            sent: is counted up, also where an error ends it.

        Raises:
            FormatError: what the archive holds cannot be copied. What goes wrong in `contents` passes through.
            CustodyError: the target does not take it; the next run goes on.
        """


class SearchTarget:
    """Elasticsearch: each event is a document of its day, as the indexer makes it, and is created once.

    The index of a day that has aged out, and is gone, would be deleted again by the next roll. So such days come back
    under another name (`documents.restored_name`), behind the same alias, and stay for `search.restored_days`; so do
    outlying events that were sealed so long ago. Such an index says when something was last brought there, and is made
    and marked before anything is: the roll counts from then on.
    """

    def __init__(self, settings: Settings, search: Search) -> None:
        """Set the templates.

        Raises:
            SearchError: Elasticsearch does not answer, or says no.
        """
        self._settings, self._search = settings.search, search
        self._oldest = datetime.now(UTC).date() - timedelta(days=settings.search.days)
        self._names: dict[date, str] = {}
        self._marked: dict[str, datetime] = {}
        search.prepare()

    def has(self, part: Part) -> bool:  # noqa: ARG002 - creating again is as quick as asking
        """Say no: what is there is not created again."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Create documents, about as many at a time as go into a request."""
        size = 0
        waiting: list[Documents] = []
        try:
            for one in contents:
                waiting.append(self._documents(part.log, one))
                size += len(one.payload)
                if size >= self._settings.bulk_bytes:
                    self._create(part.log, waiting, sent)
                    size = 0
        finally:
            # What was read before something was found damaged is copied all the same.
            self._create(part.log, waiting, sent)

    def _documents(self, log: Log, one: Content) -> Documents:
        where = (self._search.prefix, self._settings.days, log, one.statement, one.batch, one.payload)
        naming = partial(self._name, one.statement)
        return make_documents(*where, among=() if one.whole else one.offsets, naming=naming)

    def _create(self, log: Log, waiting: list[Documents], total: Sent) -> None:
        if not waiting:
            return
        found, waiting[:] = Documents.join(waiting), []
        for name in {msgspec.json.decode(action)["create"]["_index"] for action in found.actions}:
            if is_restored(self._search.prefix, name):
                self._mark(name)
        self._search.create(log, found).add_to(total)

    def _name(self, statement: Statement, day: date | None) -> str:
        if day is None:
            kept = parse_time(statement.sealed_at).date() >= self._oldest
            return outlying_name(self._search.prefix) if kept else restored_name(self._search.prefix, None)
        if day not in self._names:
            own = index_name(self._search.prefix, day)
            with self._search.errors(f"whether there is {own}"):
                kept = day >= self._oldest or bool(self._search.client.indices.exists(index=own))
            self._names[day] = own if kept else restored_name(self._search.prefix, day)
        return self._names[day]

    def _mark(self, name: str) -> None:
        """Say in an index of restored events that some are brought there now, and make it if it is not there."""
        now = datetime.now(UTC)
        # A long backfill says it again; each time costs the cluster a new state.
        if name in self._marked and now - self._marked[name] < _MARKED_EVERY:
            return
        indices = self._search.client.indices
        with self._search.errors(f"when events were brought to {name}"):
            try:
                indices.create(index=name)
            except ApiError as error:
                if error.error != "resource_already_exists_exception":
                    raise
            indices.put_mapping(index=name, meta={BROUGHT: format_time(now)})
        self._marked[name] = now


class TablesTarget:
    """The archive's own tables, of statements that have none: whole statements, for a table says which it holds."""

    def __init__(self, store: Store, archive: str, signers: tuple[Signer, Signer]) -> None:
        """Prepare; nothing is asked.

        Args:
            store: the archive.
            archive: its id.
            signers: the HMAC-SHA256 and the Ed25519 key, which sign which files are the tables.
        """
        self._store, self._archive, self._signers = store, archive, signers

    def has(self, part: Part) -> bool:  # noqa: ARG002 - the plan has left out what is tabled
        """Say no: the plan has left out what there are tables of."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Make the tables of a range of statements; they are put once all of it was read."""
        with TableWriter(
            self._store, part.log, part.first, part.end, archive=self._archive, signers=self._signers
        ) as writer:
            for one in contents:
                writer.add(_work(part.log, one.statement), one.batch, one.payload)
            sent.created += writer.finish()


def _work(log: Log, statement: Statement) -> Work:
    return Work(
        log=str(log),
        sequence=statement.sequence,
        first_offset=statement.first_offset,
        next_offset=statement.next_offset,
        segment=statement.segment,
        batches=statement.batches,
        types=statement.types,
        quarantine=None,
        unlined=unlined_ranges(statement),
        sealed_at=statement.sealed_at,
    )


class FolderTarget:
    """Files `<folder>/<log>/<partition>/<first>-<last>.jsonl.gz`, named by the offsets that were looked at.

    A file is there whole or not at all. One that is there is left alone; so a folder holds one choice of events only.
    What a run that was killed left unfinished is removed by the next one.
    """

    def __init__(self, folder: Path, archive: str, chosen: dict[str, Any]) -> None:
        """Take a folder that is new, empty, or of the same choice of events.

        Args:
            folder: where files go; it is made if it is not there.
            archive: the archive's id.
            chosen: which events, as plain values.

        Raises:
            ConfigurationError: the folder cannot be written, or holds something else.
        """
        self._folder = folder
        wanted = json.dumps({"archive": archive, **chosen}, sort_keys=True).encode() + b"\n"
        path = folder / REQUEST_FILE
        with _file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(not name.startswith(".") for name in os.listdir(folder)):  # noqa: PTH208 - names are all that is asked
                    raise ConfigurationError(f"the folder {str(folder)!r} holds other things: name an empty one")
                _write(path, wanted)
            if path.read_bytes() != wanted:
                raise ConfigurationError(
                    f"the folder {str(folder)!r} holds another choice of events ({path} says which): name an empty one"
                )
            _remove_abandoned(folder)

    def has(self, part: Part) -> bool:
        """Say whether the part's file is there."""
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
            _write(path, b"".join(members) or pack(b"").data)
        sent.created += count

    def _path(self, part: Part) -> Path:
        name = f"{part.first_offset:020}-{part.next_offset - 1:020}.jsonl.gz"
        return self._folder / part.log.name / str(part.log.partition) / name


def _write(path: Path, data: bytes) -> None:
    """Put a file that is there whole, on disk, or not at all."""
    descriptor, staged = _stage(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # While it is locked: else another run may take it for abandoned.
            Path(staged).chmod(0o644)
            Path(staged).rename(path)
    except BaseException:
        with suppress(OSError):
            Path(staged).unlink()
        raise


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


class TopicTarget:
    """A Kafka topic: the event as the value, where it comes from as key and headers, partitions as in its log's topic.

    Kafka takes whatever is sent, so what the topic holds is read first, once, and not sent again. Records have the time
    of sending, for by the events' own a topic's retention would delete them at once.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        """Look at what the topic holds.

        Raises:
            ConfigurationError: there is no such topic, or it is one that is archived itself.
            SourceError: Kafka does not answer, or says no.
        """
        check_topic(topic)
        if any(re.search(one, topic) if one.startswith("^") else one == topic for one in settings.kafka.topics):
            raise ConfigurationError(
                f"topic {topic!r} is archived itself (kafka.topics): what is sent to it would be archived again;"
                " name another"
            )
        self._topic = topic
        client = settings.kafka.librdkafka()
        self._there, self._partitions = _holdings(client, settings.kafka.group, topic)
        # The broker says what is too large for it; the client's own limit is below an event's with its headers.
        ours = {"enable.idempotence": True, "linger.ms": 20, "compression.type": "lz4", "message.max.bytes": 2_097_152}
        self._producer = _made(lambda: Producer({"client.id": "custody", **client, **ours}, logger=logger))
        self._problem: KafkaError | None = None
        self._rejected = 0

    def has(self, part: Part) -> bool:  # noqa: ARG002 - which events are chosen is not known before they are read
        """Say no: which of a part's events are chosen is known once they are read."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Send what the topic lacks, and wait until it is acknowledged."""
        log, self._rejected = part.log, 0
        there = self._there.get(str(log), array("q"))
        try:
            for one in contents:
                headers = [("topic", log.topic.encode()), ("partition", str(log.partition).encode())]
                headers += [("epoch", str(log.epoch).encode())] if log.epoch > 1 else []
                for line, offset in zip(one.lines, one.offsets, strict=True):
                    place = bisect_left(there, offset)
                    if place < len(there) and there[place] == offset:
                        sent.there += 1
                        continue
                    self._send(log, line, offset, headers)
                    sent.created += 1
        finally:
            self._flush()
            sent.created -= self._rejected
            sent.rejected += self._rejected

    def _send(self, log: Log, line: bytes, offset: int, headers: list[tuple[str, bytes]]) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    line,
                    f"{log}/{offset}".encode(),
                    log.partition % self._partitions,
                    self._delivered,
                    headers=[*headers, ("offset", str(offset).encode())],
                )
            except BufferError:
                self._producer.poll(1)
                self._check()
            except KafkaException as error:
                raise map_error(error.args[0], f"topic {self._topic} does not take {log}, offset {offset}") from None
            else:
                self._producer.poll(0)
                return

    def _delivered(self, error: KafkaError | None, _message: Any) -> None:
        if error is None:
            return
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._rejected += 1
        else:
            self._problem = self._problem or error

    def _check(self) -> None:
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise map_error(problem, f"topic {self._topic} does not take events")

    def _flush(self) -> None:
        left = self._producer.flush(TOPIC_SECONDS)
        self._check()
        if left:
            raise TransientSourceError(
                f"topic {self._topic} did not acknowledge {left:,} records within {TOPIC_SECONDS:.0f} s; the next run"
                " goes on"
            )


def _made(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except KafkaException as error:
        # librdkafka repeats a property's value in some messages, and a value may be a password.
        raise ConfigurationError(
            f"librdkafka does not take a property of kafka.client (error {error.args[0].code()})"
        ) from None


def _holdings(client: dict[str, str], group: str, topic: str) -> tuple[dict[str, "array[int]"], int]:
    """Return the offsets of each log that a topic holds, sorted, and how many partitions it has."""
    ours = {
        "group.id": group,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    }
    found: dict[str, array[int]] = {}
    with closing(_made(lambda: Consumer({"client.id": "custody", **client, **ours}, logger=logger))) as consumer:
        try:
            # Of all topics: asked for by its name, one that is not there might be made.
            listed = consumer.list_topics(timeout=REQUEST_SECONDS).topics.get(topic)
            if listed is None or listed.error is not None or not listed.partitions:
                raise ConfigurationError(f"there is no topic {topic!r} on Kafka: create it first")
            places = [TopicPartition(topic, partition) for partition in listed.partitions]
            bounds = {one.partition: consumer.get_watermark_offsets(one, REQUEST_SECONDS) for one in places}
            left = {partition for partition, (low, high) in bounds.items() if high > low}
            consumer.assign([TopicPartition(topic, partition, bounds[partition][0]) for partition in sorted(left)])
            heard = time.monotonic()
            while left:
                # It waits for as many as are asked for, or for as long: so not for long.
                messages = consumer.consume(10_000, _POLL_SECONDS)
                heard = time.monotonic() if messages else heard
                if time.monotonic() - heard > TOPIC_SECONDS:
                    raise TransientSourceError(f"topic {topic} gives nothing for {TOPIC_SECONDS:.0f} s; try again")
                for message in messages:
                    error = message.error()
                    if error is not None and error.code() == PARTITION_EOF:
                        left.discard(message.partition())
                    elif error is not None:
                        raise map_error(error, f"topic {topic} cannot be read")
                    else:
                        _note(found, message.key())
        except KafkaException as error:
            raise map_error(error.args[0], f"topic {topic} cannot be read") from None
    return {log: array("q", sorted(offsets)) for log, offsets in found.items()}, len(listed.partitions)


def _note(found: dict[str, "array[int]"], key: bytes | None) -> None:
    log, _, offset = (key or b"").decode(errors="replace").rpartition("/")
    if log and re.fullmatch(r"[0-9]{1,18}", offset):
        found.setdefault(log, array("q")).append(int(offset))
