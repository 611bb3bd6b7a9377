"""The operator's settings: what the auditor's are, and those of Kafka, the drain, audits, search and alerts.

Rules, beside those of `custody.settings`:
- Whoever runs something of `tasks` or `flows` reads these; the library and an auditor's commands never do.
- What goes to librdkafka is hidden unless its name is known to be harmless.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from custody import settings as auditors
from custody.format import limits
from custody.settings import FilePath, Location

_MIB = 1024 * 1024
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

_HARMLESS = re.compile(
    r"security\.protocol|sasl\.mechanisms?|sasl\.kerberos\.(service\.name|principal)|sasl\.oauthbearer\.(method|scope)"
    r"|ssl\.(ca|certificate|key|crl)\.location|ssl\.ca\.certificate\.stores|ssl\.endpoint\.identification\.algorithm"
    r"|ssl\.(cipher\.suites|curves\.list|sigalgs\.list)|enable\.ssl\.certificate\.verification"
    r"|client\.(id|rack|dns\.lookup)|broker\.(address\.family|version\.fallback)|api\.version\.request|debug|log_level"
    r"|(socket|fetch|queued|session|heartbeat|reconnect|connections|metadata|statistics|topic|message|receive|retry)"
    r"\.[a-z.]*(ms|bytes|kbytes|messages|fails|enable)|test\.mock\.[a-z.]*"
)
"""librdkafka properties whose values may be shown."""

_OURS = {
    "auto.offset.reset": "the archive says where to go on",
    "bootstrap.servers": "kafka.bootstrap_servers sets it",
    "check.crcs": "records are always checked",
    "enable.auto.commit": "offsets are committed after the manifest",
    "enable.auto.offset.store": "offsets are committed after the manifest",
    "group.id": "kafka.group sets it",
    "isolation.level": "aborted records are never archived as events",
    "metadata.broker.list": "kafka.bootstrap_servers sets it",
}
"""librdkafka properties that are not the operator's to set, and why."""


def _size(value: object) -> object:
    """Read a size such as `16MiB`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", value.strip())
    if not match or match[2].lower() not in _UNITS:
        raise ValueError("a size such as 16MiB, 500kB or 1048576")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _servers(value: str) -> str:
    if not all(
        re.fullmatch(r"([A-Z_]+://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@,]+)(:[0-9]{1,5})?", one.strip())
        for one in value.split(",")
    ):
        raise ValueError("host:port, or several with commas between them")
    return value


def _topics(value: object) -> object:
    """Read `a,b` or one regular expression from a variable."""
    if isinstance(value, str):
        return [value] if value.startswith("^") else [name.strip() for name in value.split(",")]
    return value


def _check_topics(value: list[str]) -> list[str]:
    patterns = [name for name in value if name.startswith("^")]
    if patterns and len(value) > 1:
        raise ValueError("names of topics, or one regular expression that begins with ^, not both")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"a regular expression that is one ({error})") from None
    for name in value:
        if not name.startswith("^") and not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name):
            raise ValueError(
                "names of topics (letters, digits, '.', '_', '-'), or one regular expression with ^ before it"
            )
    return value


def _client(value: object) -> object:
    """Flatten `[kafka.client]`, name properties as librdkafka does, and hide what is not known to be harmless."""
    if not isinstance(value, dict):
        return value
    flat: dict[str, str | SecretStr] = {}
    for name, setting in _flatten(value):
        if name in _OURS:
            raise ValueError(f"no {name}: {_OURS[name]}")
        if isinstance(setting, SecretStr):
            setting = setting.get_secret_value()
        if isinstance(setting, bool):
            setting = str(setting).lower()
        if not isinstance(setting, str | int | float):
            raise ValueError(f"text or a number as the value of {name}")  # noqa: TRY004 - pydantic collects ValueErrors
        flat[name] = str(setting) if _HARMLESS.fullmatch(name) else SecretStr(str(setting))
    return flat


def _flatten(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            # From CUSTODY_KAFKA__CLIENT__SASL_PASSWORD. Of librdkafka's names only log_level and ssl_… have a "_".
            plain = name if name == "log_level" or name.startswith("ssl_engine") else name.replace("_", ".")
            yield f"{prefix}{plain}".lower(), inner


Size = Annotated[int, BeforeValidator(_size)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KafkaSettings(BaseModel):
    """Where events come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap_servers: Annotated[str, AfterValidator(_servers)] = Field(
        default="localhost:9092", description="Brokers to ask first, as host:port, with commas between them"
    )
    topics: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1),
        BeforeValidator(_topics),
        AfterValidator(_check_topics),
    ] = Field(
        default=[r"^audit\..*"], description="Topics to archive: names, or one regular expression that begins with ^"
    )
    group: Annotated[str, Field(min_length=1)] = Field(
        default="custody", description="Consumer group whose offsets are committed for lag monitors"
    )
    client: Annotated[dict[str, str | SecretStr], BeforeValidator(_client)] = Field(
        default={}, description="More properties for librdkafka: security.protocol, sasl.…, ssl.…"
    )

    def librdkafka(self) -> dict[str, str]:
        """Return the servers and the client's properties with their secrets, for librdkafka alone."""
        properties = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self.client.items()
        }
        return {"bootstrap.servers": self.bootstrap_servers, **properties}


class DrainSettings(BaseModel):
    """How a run of the drain works."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_events: int = Field(
        default=1000, ge=1, le=limits.BATCH_EVENTS, description="Events in a batch, one gzip member"
    )
    segment_bytes: Size = Field(
        default=16 * _MIB, ge=1, le=256 * _MIB, description="A segment is cut at this size of JSONL, such as 16MiB"
    )
    flush_seconds: Seconds = Field(default=15, description="A segment is cut this long after its first record was read")
    seconds: Seconds = Field(default=38, description="A run's time, counted from when the flow begins")
    hanging_seconds: Seconds = Field(default=900, description="A transaction open for longer than this is alarmed")
    level: int = Field(default=1, ge=0, le=3, description="gzip level of isal")
    event_leaves: bool = Field(
        default=False,
        description="Whether a batch commits to each event alone, so that evidence shows no other; a quarter more CPU",
    )
    workers: int = Field(default=1, ge=1, le=1024, description="Logs drained at the same time")
    task_runner: Literal["threads", "processes", "dask", "ray"] = Field(
        default="threads", description="What the flow spreads logs over"
    )


class AuditSettings(BaseModel):
    """How an audit works."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reread_days: int = Field(default=30, ge=1, description="Everything is read again within so many days")
    piece_statements: int = Field(
        default=500, ge=1, le=100_000, description="Statements that are verified, and remembered as done, at a time"
    )
    tables: bool = Field(default=True, description="Whether what is read becomes Parquet tables")
    report: bool = Field(default=True, description="Whether the integrity notebook is run, and kept as HTML")
    workers: int = Field(default=2, ge=1, le=1024, description="Pieces verified at the same time")
    task_runner: Literal["threads", "processes", "dask", "ray"] = Field(
        default="processes", description="What the flow spreads pieces over"
    )


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", value):
        raise ValueError("lower-case letters, digits, '-' and '_', beginning with a letter or digit")
    return value


class SearchSettings(BaseModel):
    """Where archived events are searched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Location | None = Field(default=None, description="Elasticsearch, https://host:9200; without it, no index")
    api_key: SecretStr | None = Field(default=None, description="API key for Elasticsearch")
    ca_certs: FilePath | None = Field(default=None, description="The authority that signed the server's certificate")
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="fraiseql-audit-logs", description="The read alias, and what the names of daily indices begin with"
    )
    days: int = Field(default=90, ge=1, description="How long a day stays searchable")
    restored_days: int = Field(default=30, ge=1, description="How long a day that a backfill restored stays")
    bulk_bytes: Size = Field(default=4 * _MIB, ge=1024, le=64 * _MIB, description="About the size of a bulk request")
    replicas: int = Field(default=1, ge=0, le=10, description="Copies of each index beside the first")
    behind_seconds: Seconds = Field(default=900, description="An index further behind the archive is alarmed")


class AlertSettings(BaseModel):
    """Who is told when something is wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: list[SecretStr] = Field(
        default=[], description="Where alerts go: URLs as Apprise has them, slack://, mailto:"
    )


class Settings(auditors.Settings):
    """All that an operator sets.

    Raises:
        ConfigurationError: a setting is wrong; the message says which.
    """

    kafka: KafkaSettings = Field(default=KafkaSettings(), description="Where events come from")
    drain: DrainSettings = Field(default=DrainSettings(), description="How a run of the drain works")
    audit: AuditSettings = Field(default=AuditSettings(), description="How the nightly audit works")
    search: SearchSettings = Field(default=SearchSettings(), description="Where archived events are searched")
    alert: AlertSettings = Field(default=AlertSettings(), description="Who is told when something is wrong")
