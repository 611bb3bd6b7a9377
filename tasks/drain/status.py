"""The status of each log: its head in the archive, and how far that is behind Kafka."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from custody.archive.reader import Tip, find_tip, list_logs, read_archive
from custody.archive.trusted import find_trusted_tip, standing
from custody.errors import (
    ConfigurationError,
    CustodyError,
    FormatError,
    ObjectMissing,
    SigningError,
    SourceError,
    TerminalStoreError,
)
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.drain.kafka import Broker
from tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class LogStatus:
    """One log as it is now.

    Attributes:
        log: `<log>/<partition>`.
        size: statements in it.
        root: root of the tree over them, in hex.
        next_offset: the first offset that the archive does not account for.
        sealed_at: when the newest statement was sealed.
        lag: offsets from there to the partition's read-uncommitted end; None if Kafka did not answer.
        problem: why the log could not be read, or None.
    """

    log: str
    size: int = 0
    root: str = ""
    next_offset: int | None = None
    sealed_at: str | None = None
    lag: int | None = None
    problem: str | None = None


def read_status(settings: Settings) -> Iterator[LogStatus]:
    """Yield the status of each log of the archive. Neither Kafka nor a key is required.

    With keys, a log's head is the newest one that they signed. Without keys, signatures are not checked.

    Raises:
        StoreError: the archive's storage does not answer.
    """
    store = open_store(settings.archive, settings.s3)
    find, problem = _finder(settings, store)
    if problem is not None:
        yield LogStatus(layout.ARCHIVE, problem=f"heads are not checked: {problem}")
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        cluster: str | None = None
        with suppress(SourceError):
            cluster = broker.cluster()
        for log in list_logs(store):
            try:
                tip = find(log)
            except CustodyError as error:
                yield LogStatus(str(log), problem=str(error))
                continue
            if tip.newest is None:
                continue
            statement, head = tip.newest.statement, tip.head
            lag = None
            if statement.log.cluster == cluster:
                with suppress(SourceError):
                    lag = max(0, broker.bounds(log.topic, log.partition).end - statement.next_offset)
            yield LogStatus(str(log), head.size, head.root.hex(), statement.next_offset, statement.sealed_at, lag)
    store.close()


def _finder(settings: Settings, store: Store) -> tuple[Callable[[Log], Tip[Manifest]], str | None]:
    """Return what finds a log's head, and why it cannot check signatures although there may be keys."""
    problem = None
    try:
        archive, trust = read_archive(store).id, settings.own_trust()
    except (ConfigurationError, SigningError, FormatError, ObjectMissing):
        pass
    except TerminalStoreError as error:
        problem = str(error)
    else:
        return (lambda log: find_trusted_tip(store, log, archive, trust)), None
    holds = standing(store, None, Trust())
    return (lambda log: find_tip(store, log, holds(log))), problem
