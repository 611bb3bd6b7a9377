"""Where each log stands: its head in the archive, and how far that is behind Kafka."""

from collections.abc import Iterator
from dataclasses import dataclass

from custody.archive import find_head, list_logs
from custody.errors import CustodyError, SourceError
from custody.settings import Settings
from custody.store import open_store
from tasks.kafka import Broker


@dataclass(frozen=True, slots=True)
class LogStatus:
    """One log as it is now.

    Attributes:
        log: `<log>/<partition>`.
        size: statements in it.
        root: root of the tree over them, in hex.
        next_offset: the first offset that the archive does not account for.
        sealed_at: when the newest statement was sealed.
        lag: offsets from there to the partition's read-uncommitted end, None where Kafka did not say.
        problem: what kept us from reading it, or None.
    """

    log: str
    size: int = 0
    root: str = ""
    next_offset: int | None = None
    sealed_at: str | None = None
    lag: int | None = None
    problem: str | None = None


def read_status(settings: Settings) -> Iterator[LogStatus]:
    """Yield the status of each log of the archive. Kafka need not answer.

    Raises:
        StoreError: the archive's storage does not answer.
    """
    store = open_store(settings.archive, settings.s3)
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        try:
            cluster: str | None = broker.cluster()
        except SourceError:
            cluster = None
        for log in list_logs(store):
            try:
                head = find_head(store, log)
            except CustodyError as error:
                yield LogStatus(str(log), problem=str(error))
                continue
            if head.newest is None:
                continue
            statement = head.newest.statement
            lag = None
            if statement.log.cluster == cluster:
                try:
                    lag = max(0, broker.bounds(log.topic, log.partition).end - statement.next_offset)
                except SourceError:
                    lag = None
            yield LogStatus(str(log), head.size, head.root, statement.next_offset, statement.sealed_at, lag)
    store.close()
