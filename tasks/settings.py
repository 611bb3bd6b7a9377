"""The operator's settings: those of an auditor, and those of Kafka, the drain, audits, search, detection and metrics.

It is long because all sections are one list, in the order in which `custody config` and docs/settings.md show them.

Rules, beside those of `custody.settings`:
- Only `tasks` and `flows` read these settings. The library and an auditor's commands never do.
- The value of a librdkafka property is hidden, unless its name is known to be harmless.
- What runs or loads other programs (properties of librdkafka, a task runner by its class) is taken from a variable, and
  never from the file: who stands in a folder of others must not run theirs.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from custody import settings as auditors
from custody.errors import ConfigurationError
from custody.format import limits
from custody.settings import FilePath, Location, shown_name, web_url
from custody.store.protocol import is_loopback, is_plain
from tasks.spread import BackfillSettings, DaskSettings, TaskRunner

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

_RUNS_CODE = re.compile(
    r"plugin|librar|interceptor|callback|(^|\.)cb$|ssl[._]engine|ssl\.providers"
    # The command is run by a shell, and the other two are put into it.
    r"|sasl\.kerberos\.(kinit\.cmd|keytab|principal)"
)
"""librdkafka properties by which it runs or loads other code."""

_OURS = {
    "auto.offset.reset": "the archive says where to resume",
    "bootstrap.servers": "kafka.bootstrap_servers sets it",
    "check.crcs": "records are always checked",
    "enable.auto.commit": "offsets are committed after the manifest",
    "enable.auto.offset.store": "offsets are committed after the manifest",
    "group.id": "kafka.group sets it",
    "isolation.level": "aborted records are never archived as events",
    "metadata.broker.list": "kafka.bootstrap_servers sets it",
}
"""librdkafka properties that an operator cannot set, and why."""


def _size(value: object) -> object:
    """Read a size such as `16MiB`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", value.strip())
    if not match or match[2].lower() not in _UNITS:
        raise ValueError("want a size such as 16MiB, 500kB or 1048576")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _workers(value: object) -> object:
    """Check a number of workers, or `auto`."""
    if value == "auto":
        return value
    number = str(value).strip()
    if not number.isdecimal() or not 1 <= int(number) <= _MOST_WORKERS:
        raise ValueError(f"want auto, or a number from 1 to {_MOST_WORKERS:,}")
    return int(number)


def _servers(value: str) -> str:
    wanted = "want host:port, or several with commas between them"
    for server in value.split(","):
        if not re.fullmatch(r"([A-Z_]+://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@,\[\]]+)(:[0-9]{1,5})?", server.strip()):
            raise ValueError(wanted)
    try:
        _hosts(value)
    except ValueError:
        raise ValueError(wanted) from None
    return value


def _hosts(servers: str) -> list[str]:
    """Return the names or addresses of servers.

    Raises:
        ValueError: an address in brackets is none.
    """
    urls = [urlsplit(f"//{server.rpartition('://')[2].strip()}") for server in servers.split(",")]
    return [url.hostname or "" for url in urls]


def _listed(value: object) -> object:
    """Read `a,b` from a variable, without JSON."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) and value else value


def _topics(value: object) -> object:
    """Read `a,b` or one regular expression from a variable."""
    if isinstance(value, str):
        return [value] if value.startswith("^") else [name.strip() for name in value.split(",")]
    return value


def _urls(value: object) -> object:
    """Read one URL, or several with commas between them, without JSON. A URL may have commas of its own."""
    return re.split(rf",\s*(?={_SCHEME})", value) if isinstance(value, str) and value else value


def _check_urls(value: list[SecretStr]) -> list[SecretStr]:
    for url in value:
        if not re.match(rf"{_SCHEME}.", url.get_secret_value()):
            raise ValueError("want Apprise URLs, such as slack://… or mailto://…")
    return value


def _check_topics(value: list[str]) -> list[str]:
    if len(value) > 1 and any(name.startswith("^") for name in value):
        raise ValueError("want names of topics, or one regular expression that begins with ^, not both")
    for name in value:
        if name.startswith("^"):
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(f"this is not a regular expression: {error}") from None
        elif not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name):
            raise ValueError(
                "want names of topics (letters, digits, '.', '_', '-'), or one regular expression with ^ before it"
            )
    return value


def _client(value: object) -> object:
    """Flatten `[kafka.client]`, use librdkafka's property names, and hide values that are not known to be harmless."""
    if not isinstance(value, dict):
        return value
    flat: dict[str, str | SecretStr] = {}
    for name, setting in _flatten(value):
        # Something else may be a secret that was put into the wrong place.
        if not re.fullmatch(r"[a-z0-9._]+", name):
            raise ValueError(
                "want names of librdkafka's properties, such as security.protocol: letters, digits, '.', '_'"
            )
        if name in _OURS:
            raise ValueError(f"{name} cannot be set here: {_OURS[name]}")
        if isinstance(setting, SecretStr):
            setting = setting.get_secret_value()
        if isinstance(setting, bool):
            setting = str(setting).lower()
        if not isinstance(setting, str | int | float):
            raise ValueError(f"want text or a number as the value of {name}")  # noqa: TRY004 - pydantic collects ValueErrors
        flat[name] = str(setting) if _HARMLESS.fullmatch(name) else SecretStr(str(setting))
    return flat


def _flatten(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            # From CUSTODY_KAFKA__CLIENT__SASL_PASSWORD. Only log_level and ssl_engine… have a "_" in librdkafka's name.
            plain = name if name == "log_level" or name.startswith("ssl_engine") else name.replace("_", ".")
            yield f"{prefix}{plain}".lower(), inner


_SCHEME = "[a-z]{2,12}://"
"""The begin of an Apprise URL."""
_FALSE = {"false", "f", "0", "n", "no"}
"""How librdkafka lets one write it."""

Compression = Literal["auto", "fast", "dense"]
"""When the drain takes more time for fewer bytes."""
Size = Annotated[int, BeforeValidator(_size)]
_MOST_WORKERS = 1024
DAYS = limits.RETENTION_DAYS
"""The largest number of days in a setting. Times minus so many days are still dates."""
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KafkaSettings(BaseModel):
    """Where events come from."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    bootstrap_servers: Annotated[str, AfterValidator(_servers)] = Field(
        default="localhost:9092", description="Brokers to connect to first, as host:port, with commas between them"
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
        default="custody", description="Consumer group in which offsets are committed, for lag monitors"
    )
    client: Annotated[dict[str, str | SecretStr], BeforeValidator(_client)] = Field(
        default={}, description="More properties for librdkafka: security.protocol, sasl.…, ssl.…"
    )

    def librdkafka(self) -> dict[str, str]:
        """Return the servers and the client's properties, with secrets in plain text, for librdkafka only."""
        properties = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self.client.items()
        }
        return {"bootstrap.servers": self.bootstrap_servers, **properties}


class DrainSettings(BaseModel):
    """How a run of the drain works."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    batch_events: int = Field(
        default=1000, ge=1, le=limits.BATCH_EVENTS, description="Events in a batch; each batch is one gzip member"
    )
    segment_bytes: Size = Field(
        default=16 * limits.MIB,
        ge=1,
        le=256 * limits.MIB,
        description="A segment ends at this size of JSONL, such as 16MiB",
    )
    flush_seconds: Seconds = Field(
        default=15, description="A segment ends at the latest this long after its first record was read"
    )
    linger_seconds: float = Field(
        default=0,
        ge=0,
        le=86_400,
        description="A segment that is not full waits in Kafka until the log's last statement is this old",
    )
    seconds: Seconds = Field(default=45, description="Longest time of a run, from when it begins to drain")
    hanging_seconds: Seconds = Field(default=900, description="A transaction that is open longer than this is reported")
    headroom_seconds: Seconds = Field(
        default=21_600,
        description="A run of the flow fails if Kafka's retention deletes unread records within this time",
    )
    compression: Compression = Field(
        default="auto", description="gzip of a batch: dense once its log has caught up, and fast before; or always one"
    )
    level: int = Field(default=1, ge=0, le=3, description="gzip level of isal, for fast batches")
    event_leaves: bool = Field(
        default=False,
        description="Commit to each event of a batch, so that evidence of one shows no other; costs a quarter more CPU",
    )
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_workers)] = Field(
        default="auto",
        description="Shares of the logs drained in parallel, if the backlog is worth it; auto: by cores and memory",
    )
    task_runner: TaskRunner = Field(
        default="processes", description="What drains these shares; of another one than processes, only the flow knows"
    )

    @property
    def shares(self) -> int:
        """How many shares the flow gives to its task runner. Processes are the drain's own matter."""
        return 1 if self.task_runner == "processes" or self.workers == "auto" else self.workers


class AuditSettings(BaseModel):
    """How an audit works."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    reread_days: int = Field(
        default=30,
        ge=1,
        le=limits.RETENTION_DAYS,
        description="Nightly audits read every statement, and list every key, again within this many days",
    )
    piece_statements: int = Field(
        default=500, ge=1, le=100_000, description="Statements in a piece: after each piece an audit can resume"
    )
    tables: bool = Field(default=True, description="Make Parquet tables of new events")
    report: bool = Field(default=True, description="Make the integrity report, and keep it as HTML")
    report_days: int = Field(
        default=31,
        ge=1,
        le=limits.RETENTION_DAYS,
        description="Days of figures in the nightly report; verdicts and findings are whole in any case",
    )
    workers: int = Field(default=2, ge=1, le=1024, description="Shares of the pieces that are verified in parallel")
    task_runner: TaskRunner = Field(default="processes", description="Where the flow runs these shares")


class SourceSettings(BaseModel):
    """Whose events may not be missing (`custody.format.sources`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    expected: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], BeforeValidator(_listed)] = Field(
        default=[],
        description="Services whose lost events make an audit incomplete; those of any other source are a notice",
    )
    settle: int = Field(
        default=60,
        ge=0,
        le=44_640,
        description="Minutes for which missing numbers may still arrive before an audit reports them",
    )
    silent: int = Field(
        default=1_440,
        ge=0,
        le=129_600,
        description="Minutes without an event after which an audit names an expected source that did not stop",
    )


class SearchSettings(BaseModel):
    """Where archived events are searched."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Annotated[Location, AfterValidator(web_url)] | None = Field(
        default=None, description="URL of Elasticsearch, https://host:9200; without it nothing is indexed"
    )
    api_key: SecretStr | None = Field(default=None, description="API key for Elasticsearch")
    ca_certs: FilePath | None = Field(default=None, description="File with the CA certificate of Elasticsearch")
    prefix: str = Field(
        default="fraiseql-audit-logs",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$",
        description="Name of the read alias, and prefix of the daily indices",
    )
    days: int = Field(default=90, ge=1, le=DAYS, description="Days for which events stay searchable")
    restored_days: int = Field(
        default=30, ge=1, le=DAYS, description="Days for which events restored by a backfill stay"
    )
    bulk_bytes: Size = Field(
        default=4 * limits.MIB, ge=1024, le=64 * limits.MIB, description="Approximate size of a bulk request"
    )
    replicas: int = Field(default=1, ge=0, le=10, description="Replicas of each index")
    behind_seconds: Seconds = Field(
        default=900, description="An index that is further behind the archive than this is reported"
    )
    workers: int = Field(default=1, ge=1, le=1024, description="Shares of the logs that the flow indexes in parallel")
    task_runner: TaskRunner = Field(default="threads", description="Where the flow runs these shares")


class DetectSettings(BaseModel):
    """How attacks are looked for in archived events (`tasks.detect`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    enabled: bool = Field(default=True, description="Whether the flow runs the rules; `custody detect run` always does")
    rules: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), BeforeValidator(_listed)] = Field(
        default=["shipped"], description="Folders with rules; shipped is the one that comes with custody"
    )
    topic: str = Field(
        default="", description="Topic to which alerts are sent as events; empty: the first one of kafka.topics"
    )
    late_hours: int = Field(
        default=24,
        ge=1,
        le=168,
        description="How late events may come, and are still looked at together with those of their own time",
    )
    storm: int = Field(
        default=5,
        ge=1,
        le=1_000,
        description="More new alerts of a rule than these, within a minute, are one; the others are recorded",
    )
    warm_up_days: int = Field(
        default=14,
        ge=1,
        le=DAYS,
        description="Days of the archive from which the first run, and a rebuild, learn what is usual",
    )


class AlertSettings(BaseModel):
    """Who is alerted when something is wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    urls: Annotated[list[SecretStr], BeforeValidator(_urls), AfterValidator(_check_urls)] = Field(
        default=[], description="Where alerts are sent: one Apprise URL or several, such as slack:// or mailto:"
    )


class HealthSettings(BaseModel):
    """From where on something counts as a problem of the installation."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    lag_seconds: Seconds = Field(
        default=900,
        description="A log whose records wait longer than this, and drain.linger_seconds, for the archive has failed",
    )
    audit_seconds: Seconds = Field(default=93_600, description="Audits that are further apart than this are reported")


class MetricsSettings(BaseModel):
    """Where the numbers of the installation are exported to. Nothing is, unless one of them is set."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    file: FilePath | None = Field(
        default=None, description="Text file for node exporter, in its textfile directory, such as …/custody.prom"
    )
    otlp_endpoint: Annotated[Location, AfterValidator(web_url)] | None = Field(
        default=None, description="URL of an OpenTelemetry collector, http://host:4318; /v1/metrics is added"
    )
    otlp_headers: dict[str, SecretStr] = Field(
        default={}, description="HTTP headers for the collector, such as Authorization"
    )
    emf: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Where lines for CloudWatch (EMF) are appended: a file, or stdout"
    )
    state: FilePath = Field(
        default=Path("custody-data/metrics.json"), description="File in which totals are kept between runs"
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is exported."""
        return any((self.file, self.otlp_endpoint, self.emf))


class Settings(auditors.Settings):
    """All settings of an operator.

    Raises:
        ConfigurationError: a setting is wrong; the message says which.
    """

    kafka: KafkaSettings = Field(default=KafkaSettings(), description="Where events come from")
    drain: DrainSettings = Field(default=DrainSettings(), description="How a run of the drain works")
    audit: AuditSettings = Field(default=AuditSettings(), description="How the nightly audit works")
    backfill: BackfillSettings = Field(default=BackfillSettings(), description="How a backfill is spread")
    dask: DaskSettings = Field(default=DaskSettings(), description="The cluster of flows that run on Dask")
    sources: SourceSettings = Field(default=SourceSettings(), description="Whose events may not be missing")
    search: SearchSettings = Field(default=SearchSettings(), description="Where archived events are searched")
    detect: DetectSettings = Field(default=DetectSettings(), description="How attacks are looked for")
    alert: AlertSettings = Field(default=AlertSettings(), description="Who is alerted when something is wrong")
    health: HealthSettings = Field(default=HealthSettings(), description="From where on something is a problem")
    metrics: MetricsSettings = Field(default=MetricsSettings(), description="Where metrics are exported to")

    @classmethod
    def check_file(cls, values: Mapping[str, Any]) -> None:
        """Raise an error for a setting that runs code."""
        for name, section in values.items():
            runner = section.get("task_runner") if isinstance(section, dict) else None
            if isinstance(runner, str) and ":" in runner:
                shown = shown_name(name)
                raise ConfigurationError(
                    f"{shown}.task_runner is a class, whose module runs as a program, so a file may not name it: set"
                    f" CUSTODY_{shown.upper()}__TASK_RUNNER instead"
                )
        kafka = values.get("kafka")
        client = kafka.get("client") if isinstance(kafka, dict) else None
        for name, _ in _flatten(client) if isinstance(client, dict) else ():
            if _RUNS_CODE.search(name):
                shown = shown_name(name)
                variable = f"CUSTODY_KAFKA__CLIENT__{shown.replace('.', '_').upper()}"
                raise ConfigurationError(
                    f"kafka.client.{shown} can run other programs, so a file may not set it: set {variable} instead"
                )

    def trusted_files(self) -> list[Path | None]:
        """Return the files that may not be in the archive: what says what is trusted, and what runs write."""
        properties = self.kafka.librdkafka().items()
        tls = [Path(value) for name, value in properties if name.endswith(".location") and value != "probe"]
        # Audits would report these two as foreign.
        written = [self.metrics.file, self.metrics.state] if self.metrics.is_on else []
        cluster = [self.dask.ca_certs, self.dask.certificate, self.dask.key_file]
        return [*super().trusted_files(), self.search.ca_certs, *tls, *written, *cluster]

    def insecure(self) -> list[str]:
        """Return which connections others on the network can read or change."""
        risks = super().insecure()
        if self.search.url and is_plain(self.search.url):
            key = ", and read the API key" if self.search.api_key else ""
            risks.append(f"search.url is http://: others on the network can read or change events{key}; use https://")
        collector = self.metrics.otlp_endpoint
        if collector and is_plain(collector):
            headers = ", and read its headers" if self.metrics.otlp_headers else ""
            risks.append(
                f"metrics.otlp_endpoint is http://: others on the network can read or change metrics{headers}; use https://"
            )
        scheduler = self.dask.address
        if scheduler and scheduler.startswith("tcp://") and not all(map(is_loopback, _hosts(scheduler))):
            risks.append(
                "dask.address is tcp://: others on the network can run programs on its workers, which have the keys;"
                " use tls://"
            )
        kafka = self.kafka.librdkafka()
        if all(map(is_loopback, _hosts(self.kafka.bootstrap_servers))):
            return risks
        if kafka.get("security.protocol", "").lower() == "sasl_plaintext":
            risks.append(
                "kafka.client.security.protocol is SASL_PLAINTEXT: others on the network can read the password"
            )
        if kafka.get("enable.ssl.certificate.verification", "").lower() in _FALSE:
            risks.append("kafka.client.enable.ssl.certificate.verification is off: anyone can pose as the broker")
        if kafka.get("ssl.endpoint.identification.algorithm", "").lower() == "none":
            risks.append(
                "kafka.client.ssl.endpoint.identification.algorithm is none: other servers can pose as the broker"
            )
        return risks
