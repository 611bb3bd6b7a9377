"""Checks Kafka: the login, the topics, what this client may do with each, the group, and whether records are events."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from custody.errors import SourceError, TransientSourceError, counted, legible
from custody.format.times import duration_text, moment_of
from tasks.check import clock
from tasks.check.model import Line, Reporter
from tasks.check.sample import Sample, read_samples
from tasks.drain.bounds import Bounds
from tasks.drain.kafka import MOCK_CLUSTER, Broker, Topic
from tasks.drain.linger import least_headroom
from tasks.drain.retention import read_retention
from tasks.settings import Settings

REQUEST_SECONDS = 3.0
"""Timeout of one request."""
ASKING_SECONDS = 6.0
"""How long topics are asked about, all together."""
_NAMES = 10
"""Topics that are named."""
_PARTITIONS = 32
"""Partitions of a topic that are asked about."""

_report = Reporter("kafka")
_RIGHTS = "allow this client Describe, Read and DescribeConfigs on the topic (docs/kafka.md)"


def check(settings: Settings) -> Iterator[Line]:
    """Yield what this client may do on the cluster, and what is in the topics."""
    kafka = settings.kafka
    readable: dict[str, dict[int, Bounds]] = {}
    with Broker(kafka.librdkafka(), kafka.group, REQUEST_SECONDS) as broker:
        try:
            cluster, topics = broker.cluster(), broker.topics(kafka.topics)
        except SourceError as error:
            yield _refused("login", error, "check that it runs, and the settings of kafka")
            return
        yield _report.ok("login", f"cluster {cluster} at {kafka.bootstrap_servers}")
        yield from _named(settings, topics)
        until = time.monotonic() + ASKING_SECONDS
        left_out = 0
        for topic in topics:
            if time.monotonic() > until:
                left_out += 1
                continue
            try:
                readable[topic.name] = _bounds(broker, topic)
            except SourceError as error:
                yield _refused(topic.name, error, _RIGHTS)
                continue
            yield from _configuration(settings, broker, topic, cluster)
        if left_out:
            message = f"{counted(left_out, 'topic')} could not be tried: Kafka answers slowly"
            yield _report.warning("topics", message, "look at the brokers, and try again")
        if topics:
            yield _group(settings, broker, topics[0])
    samples = read_samples(settings, readable)
    for name, sample in samples.items():
        yield _content(settings, name, sample)
    yield from _clock(samples)


def _refused(subject: str, error: SourceError, remedy: str) -> Line:
    """Return the line for an error. Its remedy stands after a semicolon, if it has one."""
    message, _, own = str(error).rpartition("; ")
    passing = isinstance(error, TransientSourceError)
    text, advice = (message, own) if message and subject == "login" else (message or own, remedy)
    return _report.failed(subject, text, advice, passing=passing)


def _named(settings: Settings, topics: Sequence[Topic]) -> Iterator[Line]:
    """Yield which topics the settings name, and those that do not exist."""
    wanted, names = settings.kafka.topics, {topic.name for topic in topics}
    for name in wanted:
        if not name.startswith("^") and name not in names:
            message = "the topic does not exist, or this client may not see it"
            yield _report.failed(name, message, "create it, or correct kafka.topics")
    if topics:
        partitions = sum(topic.partitions for topic in topics)
        shown = ", ".join(topic.name for topic in topics[:_NAMES])
        more = f", and {len(topics) - _NAMES:,} more" if len(topics) > _NAMES else ""
        counts = f"{counted(len(topics), 'topic')} with {counted(partitions, 'partition')}"
        yield _report.ok("topics", f"{counts}: {shown}{more}")
    elif wanted[0].startswith("^"):
        message = f"no topic matches kafka.topics ({', '.join(wanted)})"
        yield _report.failed("topics", message, "create the topics, or correct kafka.topics")


def _bounds(broker: Broker, topic: Topic) -> dict[int, Bounds]:
    """Return where the partitions begin and end: this needs Describe. Raises SourceError."""
    return {number: broker.bounds(topic.name, number) for number in range(min(topic.partitions, _PARTITIONS))}


def _configuration(settings: Settings, broker: Broker, topic: Topic, cluster: str) -> Iterator[Line]:
    """Yield a warning if this client may not see how long the topic keeps records, or if lingering takes longer."""
    if cluster.startswith(MOCK_CLUSTER):
        return
    try:
        retention = read_retention(broker, topic.name)
    except SourceError as error:
        message = f"its retention is not known, so no alert warns before records are lost: {error}"
        yield _report.warning(topic.name, message, _RIGHTS)
        return
    lingers = settings.drain.linger_seconds
    least = lingers + least_headroom(settings.drain)
    if lingers and retention.compacts_after is not None and retention.compacts_after < least:
        message = "drain.linger_seconds has no effect: compaction may remove a record before it is archived"
        remedy = (
            f"set the topic's min.compaction.lag.ms to at least {math.ceil(least * 1000)}, or drain.linger_seconds to 0"
        )
        yield _report.warning(topic.name, message, remedy)
    elif lingers and retention.bytes is not None:
        message = "drain.linger_seconds has no effect: what comes next decides how soon retention.bytes deletes records"
        yield _report.warning(
            topic.name, message, "remove the topic's retention.bytes, or set drain.linger_seconds to 0"
        )
    elif lingers and retention.seconds is not None and retention.seconds < least:
        left = duration_text(max(0.0, retention.seconds - least_headroom(settings.drain)))
        message = f"records linger for {left} at most, so that headroom is no problem, and not for drain.linger_seconds"
        remedy = "raise the topic's retention.ms, or lower drain.linger_seconds or drain.headroom_seconds"
        yield _report.warning(topic.name, message, remedy)


def _group(settings: Settings, broker: Broker, topic: Topic) -> Line:
    """Return whether this client may read the offsets of the group."""
    group = settings.kafka.group
    try:
        broker.remembered([(topic.name, 0)], "")
    except TransientSourceError as error:
        return _report.warning("group", f"{group}: its offsets are not known: {error}", "try again")
    except SourceError as error:
        message, remedy = f"{group}: {error}", "allow this client Describe and Read on the group (docs/kafka.md)"
        return _report.failed("group", message, remedy)
    return _report.ok("group", f"{group}: its offsets can be read")


def _content(settings: Settings, topic: str, sample: Sample) -> Line:
    """Return whether the newest records of a topic are events."""
    if sample.refusal:
        return _report.failed(topic, sample.refusal, _RIGHTS)
    if not sample.records and sample.waiting:
        return _report.warning(topic, "no record came in time", "look at the brokers, and try again")
    if not sample.records:
        return _report.ok(topic, "it has no records yet; it can be described and read")
    newest = f"its {counted(sample.records, 'newest record')}"
    if not sample.refused:
        return _report.ok(topic, f"it can be described and read; {newest} would be archived as events")
    (reason, _), *_ = sample.reasons.most_common(1)
    message = f"of {newest}, {sample.refused:,} would be quarantined, most because: {legible(reason)}"
    remedy = "correct what its producers write (docs/events.md); custody check-events tries a file of events"
    if sample.refused == sample.records:
        return _report.failed(topic, message, remedy)
    if sample.refused / sample.records > settings.events.quarantined_share:
        return _report.warning(topic, message, remedy)
    return _report.ok(topic, message)


def _clock(samples: Mapping[str, Sample]) -> Iterator[Line]:
    """Yield a line if append times show that the host is behind, or if there are none. Old ones show nothing."""
    newest = max((sample.appended for sample in samples.values() if sample.appended is not None), default=None)
    if newest is None:
        if any(sample.records for sample in samples.values()):
            yield _report.ok("broker", "its time is not known: its topics have no append times")
        return
    ahead = datetime.now(UTC) - moment_of(newest)
    if ahead < timedelta(0):
        yield clock.compare("broker", ahead)
