"""Every object key of an archive, built and parsed here and nowhere else (FORMAT.md, Objects).

Keys are relative to the archive's root. Parsing returns None for a key that is not of the form asked for: foreign keys
are the caller's finding, not an error.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from custody.errors import ConfigurationError
from custody.format.times import DIGITS, EPOCH, HEX_DIGITS, kafka_moment

__all__ = ["AUDIT_LOG", "Log", "parse_log", "parse_log_text"]

ARCHIVE = "archive.json"
EVENTS = "events/"
QUARANTINE = "quarantine/"
MANIFESTS = "manifests/"
CHECKPOINTS = "checkpoints/"
AUDITS = "audits/"
AUDIT_OBJECTS = f"{AUDITS}objects/"
EVIDENCE = (ARCHIVE, EVENTS, QUARANTINE, MANIFESTS, CHECKPOINTS, AUDITS)
"""The archive's single object and prefixes that are evidence; `tables/` and `reports/` are rebuildable."""

RECORDS = (EVENTS, QUARANTINE)
"""Prefixes of the records themselves. They move to cheaper storage as they grow old, and expire; the rest stays."""

REBUILDABLE = ("tables/", "reports/")

_COMPONENT_LIMIT = 255
_LOG = r"[A-Za-z0-9._-]{1,249}(?:@(?:[2-9]|[1-9][0-9]{1,18}))?"
_NUMBER = b"0" * 12
_MANIFEST_NAME = b"%b.json" % _NUMBER
_AUDIT = re.compile(r"audits/(?P<number>[0-9]{12})\.json")
_AUDIT_OBJECT = re.compile(r"audits/objects/(?P<digest>[0-9a-f]{64})")
_DATE = b"/0000/00/00/00/00/00"
_OFFSETS = b"-%b-%b-" % (b"0" * 20, b"0" * 20)
_DIGEST_NAME = b"%b.jsonl.gz" % (b"0" * 16)
_PARTITION = re.compile(rf"(?P<log>{_LOG})-(?P<partition>0|[1-9][0-9]{{0,9}})")
_RECORDS = re.compile(
    r"(?P<kind>events|quarantine)/[0-9]{4}/(?:[0-9]{2}/){4}[0-9]{2}-"
    rf"{_PARTITION.pattern}-(?P<first>[0-9]{{20}})-(?P<last>[0-9]{{20}})-(?P<digest>[0-9a-f]{{16}})\.jsonl\.gz"
)

Kind = Literal["events", "quarantine"]


@dataclass(frozen=True, slots=True, order=True)
class Log:
    """One epoch of a topic-partition: what chaining and order are about."""

    topic: str
    partition: int
    epoch: int = 1

    @property
    def name(self) -> str:
        """The topic, or `<topic>@<epoch>` from the second epoch on."""
        return self.topic if self.epoch == 1 else f"{self.topic}@{self.epoch}"

    def __str__(self) -> str:
        return f"{self.name}/{self.partition}"


@dataclass(frozen=True, slots=True)
class RecordsKey:
    """The parts of the key of a segment or of a quarantine object."""

    kind: Kind
    log: Log
    first: int
    last: int
    digest: str


AUDIT_LOG = Log("audits", 0)
"""The log of audits, as checkpoints and heads name it. No topic may have that name."""


def check_topic(topic: str, partition: int = 0) -> None:
    """Refuse a topic that cannot be archived.

    Raises:
        ConfigurationError: the name is not a Kafka topic's, is `audits`, or makes a path component longer than 255
            bytes.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) or topic in {".", ".."}:
        raise ConfigurationError(f"{topic!r} is no Kafka topic name (letters, digits, '.', '_' and '-', at most 249)")
    if topic == "audits":
        raise ConfigurationError("a topic may not be called 'audits': the archive keeps its own audits under that name")
    # Room for an epoch of up to four digits, so that a name accepted today still fits after the topic was made again.
    longest = len(f"59-{topic}@9999-{max(partition, 99_999)}-{0:020}-{0:020}-{'f' * 16}.jsonl.gz")
    if longest > _COMPONENT_LIMIT:
        raise ConfigurationError(
            f"topic {topic!r} is too long to archive: its keys would have a path component of {longest} bytes"
            f" (limit {_COMPONENT_LIMIT}); use a topic name at least {longest - _COMPONENT_LIMIT} characters shorter"
        )


def parse_log(name: str, partition: int) -> Log | None:
    """Parse `<topic>` or `<topic>@<epoch>`."""
    return _log(name, partition) if re.fullmatch(_LOG, name) else None


# Each of a listing's keys names a log, and logs are few.
@lru_cache(maxsize=1024)
def _log(name: str, partition: int) -> Log | None:
    """Return the log of a name that matches `_LOG`."""
    topic, _, epoch = name.partition("@")
    if topic in {".", ".."}:
        return None
    return Log(topic, partition, int(epoch) if epoch else 1)


def parse_log_text(text: str) -> Log | None:
    """Parse `<log>/<partition>`, as `str(log)` writes it."""
    name, _, partition = text.rpartition("/")
    return parse_log(name, int(partition)) if re.fullmatch(r"0|[1-9][0-9]{0,9}", partition) else None


def log_prefix(log: Log) -> str:
    """Return the prefix of a log's manifests."""
    return f"{MANIFESTS}{log.name}/{log.partition}/"


def manifest_key(log: Log, sequence: int) -> str:
    """Return the key of a manifest."""
    return f"{log_prefix(log)}{sequence:012}.json"


def checkpoint_prefix(log: Log) -> str:
    """Return the prefix of a log's checkpoints."""
    return f"{CHECKPOINTS}{log.name}/{log.partition}/"


def checkpoint_key(log: Log, size: int) -> str:
    """Return the key of the checkpoint of a log's first `size` statements."""
    return f"{checkpoint_prefix(log)}{size:012}"


def audit_key(sequence: int) -> str:
    """Return the key of an audit."""
    return f"{AUDITS}{sequence:012}.json"


def audit_object_key(sha256: str) -> str:
    """Return the key of what an audit refers to by its hex SHA-256."""
    return f"{AUDIT_OBJECTS}{sha256}"


def parse_audit_object_key(key: str) -> str | None:
    """Return the hex SHA-256 that the key of what an audit refers to names."""
    match = _AUDIT_OBJECT.fullmatch(key)
    return match["digest"] if match else None


def parse_audit_key(key: str) -> int | None:
    """Return the sequence that an audit's key names."""
    match = _AUDIT.fullmatch(key)
    return int(match["number"]) if match else None


def records_key(kind: Kind, log: Log, first: int, last: int, kafka_ms: int | None, sha256: str) -> str:
    """Return the key of a segment or quarantine object.

    Args:
        kind: which of the two.
        log: the log that the records are of.
        first: offset of the first record, event or quarantined, of the manifest's range.
        last: offset of the last one.
        kafka_ms: Kafka's timestamp of the first record in ms since 1970, None where it has none.
        sha256: hex digest of the stored bytes.
    """
    date = kafka_moment(kafka_ms) or EPOCH
    return f"{kind}/{date:%Y/%m/%d/%H/%M/%S}-{log.name}-{log.partition}-{first:020}-{last:020}-{sha256[:16]}.jsonl.gz"


def parse_manifest_key(key: str) -> tuple[Log, int] | None:
    """Return the log and sequence that a manifest's key names."""
    return _numbered(MANIFESTS, _MANIFEST_NAME, key)


def parse_checkpoint_key(key: str) -> tuple[Log, int] | None:
    """Return the log and size that a checkpoint's key names."""
    return _numbered(CHECKPOINTS, _NUMBER, key)


def is_records_key(key: str, kind: Kind, log: Log, first: int, last: int, sha256: str) -> bool:
    """Return whether a key is that of a segment or quarantine object with these records and this digest.

    The date is a convenience, and only its form is looked at. Args are those of `records_key`.
    """
    rest = f"-{log.name}-{log.partition}-{first:020}-{last:020}-{sha256[:16]}.jsonl.gz"
    head = len(kind) + len(_DATE)
    return key.startswith(kind) and key[head:] == rest and _has_form(key[len(kind) : head], _DATE)


def log_of(key: str) -> Log | None:
    """Return the log to which the object of a key belongs, None if it belongs to none."""
    if records := parse_records_key(key):
        return records.log
    numbered = parse_manifest_key(key) or parse_checkpoint_key(key)
    return numbered[0] if numbered else None


def _numbered(prefix: str, form: bytes, key: str) -> tuple[Log, int] | None:
    folder, _, name = key.rpartition("/")
    if not _has_form(name, form):
        return None
    log = _log_in(prefix, folder)
    return (log, int(name[: len(_NUMBER)])) if log else None


def _has_form(text: str, form: bytes, digits: bytes = DIGITS) -> bool:
    """Return whether a text has a digit wherever `form` has a 0, and else the same characters."""
    return text.isascii() and text.encode().translate(digits) == form


# Each of a listing's keys is in the folder of a log, and logs are few.
@lru_cache(maxsize=1024)
def _log_in(prefix: str, folder: str) -> Log | None:
    return parse_log_text(folder.removeprefix(prefix)) if folder.startswith(prefix) else None


def names_records(key: str) -> bool:
    """Return whether a key is of the form of a segment's or quarantine object's: whether it can be parsed.

    A listing asks this of each object, so it takes a quarter of the time of parsing.
    """
    date, name = key.find("/"), len(key) - len(_DIGEST_NAME)
    partition, offsets = date + len(_DATE), name - len(_OFFSETS)
    return (
        key[: date + 1] in RECORDS
        and _has_form(key[date:partition], _DATE)
        and _has_form(key[offsets:name], _OFFSETS)
        and _has_form(key[name:], _DIGEST_NAME, HEX_DIGITS)
        and _names_partition(key[partition:offsets])
    )


# Partitions are few.
@lru_cache(maxsize=1024)
def _names_partition(text: str) -> bool:
    """Return whether a text is `-<log>-<partition>`."""
    match = _PARTITION.fullmatch(text, 1)
    return text.startswith("-") and match is not None and _log(match["log"], int(match["partition"])) is not None


def parse_records_key(key: str) -> RecordsKey | None:
    """Return what the key of a segment or quarantine object names. The date is a convenience and is not looked at."""
    match = _RECORDS.fullmatch(key)
    if not match:
        return None
    log = _log(match["log"], int(match["partition"]))
    if log is None:
        return None
    kind: Kind = "events" if match["kind"] == "events" else "quarantine"
    return RecordsKey(kind, log, int(match["first"]), int(match["last"]), match["digest"])
