"""The settings: arguments, `CUSTODY_…` variables (sections by `__`), `custody.toml`, in this order of precedence.

Rules:
- A wrong setting is a `ConfigurationError` that says which one, what it got and what it wants. What may be a secret is
  never shown: not in an error, not in a repr, not in a dump.
- A `custody.toml` is read from the current folder, or from where `CUSTODY_CONFIG` says; there it has to exist.
- What goes to librdkafka is hidden unless its name is known to be harmless.

It is one module because all sections are read from the same sources, and their errors and dumps hide the same secrets.
"""

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from custody.errors import ConfigurationError, SigningError
from custody.store.protocol import S3Options
from custody.verify.protection import Protection

if TYPE_CHECKING:
    from custody.keys.keyring import Signers
    from custody.keys.trust import Trust

logger = logging.getLogger(__name__)

PREFIX = "CUSTODY_"
CONFIG_FILE = "custody.toml"
CONFIG_VARIABLE = "CUSTODY_CONFIG"

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

S3_MEANINGS = {
    "endpoint_url": "A server that speaks S3, where it is not AWS",
    "region": "Where the standard AWS settings do not say",
    "sse_kms_key": "KMS key that objects are encrypted with",
    "expected_bucket_owner": "Account id: a bucket of any other is refused",
    "retention_mode": "Object Lock of each put: GOVERNANCE or COMPLIANCE",
    "retention_days": "For how long from the put; tiers.life_days where it is not set",
    "legal_hold": "Whether each put sets a legal hold",
}
"""The options of S3 in the order in which they are shown."""

_WANTS = {
    "string_type": "text",
    "string_too_short": "something: it is empty",
    "too_short": "something: it is empty",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a table of names and values",
    "model_type": "a table of names and values",
    "dataclass_type": "a table of names and values",
}
"""What a setting wants, by pydantic's type of error."""

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


def _without_credentials(value: str) -> str:
    scheme, slashes, rest = value.partition("://")
    # Not by a URL parser: a password may hold the characters that one would end the host at.
    host, _, path = rest.partition("/")
    if slashes and scheme.lower() != "file" and ("@" in host or (":" in host and "@" in path)):
        raise ValueError("a URL without user name or password: those belong into the standard AWS credentials")
    return value


def _key_uri(value: str) -> str:
    # Anything else may be a key itself, put into the wrong place.
    if not value.startswith(("file:", "aws-kms:")):
        raise ValueError("file:PATH of a keyring, or aws-kms:///alias/NAME")
    return value


def _servers(value: str) -> str:
    if not all(
        re.fullmatch(r"([A-Z_]+://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@,]+)(:[0-9]{1,5})?", one.strip())
        for one in value.split(",")
    ):
        raise ValueError("host:port, or several with commas between them")
    return value


def _not_here(value: Path) -> Path:
    if value == Path():
        raise ValueError("a file's path, and not this folder; unset it where there is none")
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


def _known_s3(value: object) -> object:
    """Refuse a misspelt name, which a dataclass would pass over."""
    if isinstance(value, dict):
        known = S3Options.__dataclass_fields__
        for name in value:
            if name not in known:
                raise ValueError(f"one of {', '.join(known)}, not {name}")
    return value


def _check_s3(value: S3Options, info: ValidationInfo) -> S3Options:
    """Check the options, and let a lock last for all of the life where nothing else is set."""
    _without_credentials(value.endpoint_url or "")
    if value.retention_days is not None and value.retention_days < 1:
        raise ValueError("retention_days of 1 or more")
    if value.retention_mode is None and value.retention_days is not None:
        raise ValueError("a retention_mode, GOVERNANCE or COMPLIANCE, for these retention_days")
    tiers = info.data.get("tiers")
    if value.retention_mode and value.retention_days is None and tiers is not None:
        return replace(value, retention_days=tiers.life_days)
    return value


Size = Annotated[int, BeforeValidator(_size)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
FilePath = Annotated[Path, AfterValidator(_not_here)]
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

    batch_events: int = Field(default=1000, ge=1, le=10_000, description="Events in a batch, one gzip member")
    segment_bytes: Size = Field(
        default=16 * _MIB, ge=1, le=256 * _MIB, description="A segment is cut at this size of JSONL, such as 16MiB"
    )
    flush_seconds: Seconds = Field(default=15, description="A segment is cut this long after its first record was read")
    seconds: Seconds = Field(default=38, description="A run's time, counted from the start of its process")
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
    api_key: SecretStr | None = Field(default=None, description="What the client says who it is by")
    ca_certs: FilePath | None = Field(default=None, description="The authority that signed the server's certificate")
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="fraiseql-audit-logs", description="The read alias, and what the names of daily indices begin with"
    )
    days: int = Field(default=90, ge=1, description="How long a day stays searchable")
    restored_days: int = Field(default=30, ge=1, description="How long a day that a backfill brought back stays")
    bulk_bytes: Size = Field(default=4 * _MIB, ge=1024, le=64 * _MIB, description="About the size of a bulk request")
    replicas: int = Field(default=1, ge=0, le=10, description="Copies of each index beside the first")
    behind_seconds: Seconds = Field(default=900, description="An index further behind the archive is alarmed")


class TierSettings(BaseModel):
    """Where evidence lies as it grows old, and when its life ends. Days count from the put."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    warm_days: int = Field(default=90, ge=30, description="Then segments go to the warm class; S3 wants 30 at least")
    cold_days: int = Field(default=365, ge=60, description="Then they go to the cold class")
    life_days: int = Field(
        default=2555, ge=1, description="Then they expire and are deleted; archive.json may say later"
    )
    warm_class: str = Field(default="STANDARD_IA", description="Storage class of the warm tier")
    cold_class: str = Field(default="DEEP_ARCHIVE", description="Storage class of the cold tier")
    manage: bool = Field(default=True, description="Whether the roll sets lifecycle rules; else it says what drifts")
    prices: dict[str, float] = Field(
        default={}, description="What a GB and month costs, by class, in your currency; else no costs are shown"
    )

    @property
    def moves(self) -> tuple[tuple[int, str], ...]:
        """Days since the put, and the class moved to, in order."""
        return ((self.warm_days, self.warm_class), (self.cold_days, self.cold_class))

    @property
    def verified_moves(self) -> tuple[tuple[int, str], ...] | None:
        """The moves that verification compares the bucket's rules with: None where nothing of them is set.

        An auditor who was not told the times has only the defaults, and these say nothing of the archive.
        """
        return self.moves if self.model_fields_set & {"warm_days", "cold_days", "warm_class", "cold_class"} else None


class AlertSettings(BaseModel):
    """Who is told when something is wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: list[SecretStr] = Field(
        default=[], description="Where alerts go: URLs as Apprise has them, slack://, mailto:"
    )


class Settings(BaseSettings):
    """All that an operator or auditor sets.

    Raises:
        ConfigurationError: a setting is wrong; the message says which.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    archive: Location = Field(
        default="custody-data/archive", description="The archive: s3://BUCKET/PREFIX, file:///DIR or a folder"
    )
    keys: Annotated[Location, AfterValidator(_key_uri)] = Field(
        default="file:keyring.json", description="The signing keys: file:PATH or aws-kms:///alias/NAME"
    )
    checkpoint_keys: Annotated[Location, AfterValidator(_key_uri)] | None = Field(
        default=None,
        description="Where `keys` is a KMS: a keyring with the Ed25519 key and the secret of leaves, or such a KMS key",
    )
    keyring_passphrase: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        default=None, description="Opens the keyring's file, and encrypts a new one"
    )
    trust: FilePath | None = Field(
        default=None, description="trust.json: what verification is given from outside the archive"
    )
    state: FilePath | None = Field(default=None, description="Where verification remembers the heads it has seen")
    # Before `s3`, whose locks last as long as the life where nothing else is set.
    tiers: TierSettings = Field(default=TierSettings(), description="Where evidence lies as it grows old")
    s3: Annotated[S3Options, BeforeValidator(_known_s3), AfterValidator(_check_s3)] = Field(
        default=S3Options(), description="How objects are put into S3"
    )
    kafka: KafkaSettings = Field(default=KafkaSettings(), description="Where events come from")
    drain: DrainSettings = Field(default=DrainSettings(), description="How a run of the drain works")
    audit: AuditSettings = Field(default=AuditSettings(), description="How the nightly audit works")
    search: SearchSettings = Field(default=SearchSettings(), description="Where archived events are searched")
    alert: AlertSettings = Field(default=AlertSettings(), description="Who is told when something is wrong")

    def __init__(self, **values: Any) -> None:
        try:
            _check_variables()
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, values)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then variables, then the file."""
        return init_settings, _Variables(settings_cls), InitSettingsSource(settings_cls, _read_file())

    def protection(self) -> Protection:
        """Return how the bucket is meant to protect the evidence."""
        return Protection(self.s3.retention_mode, self.s3.retention_days, self.tiers.verified_moves)

    def signers(self, now: datetime) -> "Signers":
        """Return what signs at `now`: the keys of `keys`, and of `checkpoint_keys` where that is set.

        Raises:
            ConfigurationError: a URI, keyring or key cannot be used.
            KeyUnavailable: KMS does not answer.
        """
        from custody.keys.keyring import open_signers

        return open_signers(self.keys, now, self.passphrase(), self.checkpoint_keys)

    def own_trust(self) -> "Trust":
        """Return what a writer of this archive trusts: its own keys, within what `trust.json` says of them.

        Raises:
            ConfigurationError: a source cannot be used, or two contradict each other.
            KeyUnavailable: KMS does not answer.
        """
        from custody.keys.trust import open_trust

        return open_trust([self.keys], self.trust, self.passphrase(), self.checkpoint_keys)

    def trust_at_hand(self) -> "Trust":
        """Return what `own_trust` does, and no key at all where none can be had: for reading, which needs none."""
        from custody.keys.trust import Trust

        try:
            return self.own_trust()
        except ConfigurationError:
            return Trust()
        except SigningError as error:
            logger.warning("signatures are not checked, for the keys cannot be had now: %s", error)
            return Trust()

    def passphrase(self) -> str | None:
        """Return the keyring's passphrase, for opening it alone."""
        return self.keyring_passphrase.get_secret_value() if self.keyring_passphrase else None


class _Variables(EnvSettingsSource):
    """Variables, in which a list or section that is not JSON is left for validation to judge, by name."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value


def _read_file() -> dict[str, Any]:
    path = _file()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if CONFIG_VARIABLE in os.environ:
            raise ConfigurationError(f"{CONFIG_VARIABLE} names {str(path)!r}, which does not exist") from None
        return {}
    except OSError as error:
        raise ConfigurationError(f"the settings in {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"the settings in {str(path)!r} are not UTF-8; write the file again as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the settings in {str(path)!r} are not TOML: {error}") from None


def _file() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def _check_variables() -> None:
    """Refuse variables that are a setting's name but for a slip; others, such as a cluster's own, are let be."""
    known = list(Settings.model_fields)
    sections = {"s3": list(S3Options.__dataclass_fields__), "kafka": list(KafkaSettings.model_fields)}
    sections["drain"] = list(DrainSettings.model_fields)
    for variable in os.environ:
        if not variable.upper().startswith(PREFIX) or variable.upper() == CONFIG_VARIABLE:
            continue
        name = variable[len(PREFIX) :].lower()
        first, nested, _ = name.partition("__")
        if first in known:
            continue
        meant = difflib.get_close_matches(first, known, 1, 0.8)
        if not nested:
            meant += [
                f"{section}__{field}"
                for section, fields in sections.items()
                for field in fields
                if name == f"{section}_{field}"
            ]
        if meant:
            raise ConfigurationError(f"{variable} is no setting; did you mean {PREFIX}{meant[-1].upper()}?")


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Say of each wrong setting which it is, what it got and what it wants."""
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        path = tuple(part for part in one["loc"] if isinstance(part, str) and part not in {"str", "SecretStr"})
        name = _where(path, values)
        if one["type"] == "extra_forbidden":
            line = f"{name} is no setting{_suggest(path)}"
        else:
            plain = one["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            wants = _WANTS[one["type"]].format_map(one.get("ctx", {})) if one["type"] in _WANTS else plain
            got = "" if isinstance(one["input"], dict | S3Options) else f"got {_show(path, one['input'])}, "
            line = f"{name}: {got}wants {wants}"
        lines.setdefault(name, line)
    return "\n".join(lines.values())


def _where(path: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """Name the variable, the file's key or the argument that a value came from, in order of precedence."""
    if path and path[0] in values:
        return f"the argument {'.'.join(path)}"
    set_here = {name.upper(): name for name in os.environ}
    for length in range(len(path), 0, -1):
        variable = PREFIX + "__".join(path[:length]).upper()
        if variable in set_here:
            rest = ".".join(path[length:])
            return f"{rest} in {set_here[variable]}" if rest else set_here[variable]
    inner = PREFIX + "__".join(path).upper() + "__"
    return f"{inner}…" if any(name.startswith(inner) for name in set_here) else f"{'.'.join(path)} in {_file()}"


def _suggest(path: tuple[str, ...]) -> str:
    models: dict[str, type[BaseModel]] = {"kafka": KafkaSettings, "drain": DrainSettings}
    model = models.get(path[0], Settings)
    meant = difflib.get_close_matches(path[-1], list(model.model_fields), 1, 0.6)
    return f"; did you mean {'.'.join((*path[:-1], meant[0]))}?" if meant else ""


def _show(path: tuple[str, ...], value: object) -> str:
    """Show a wrong value, unless it may hold a secret."""
    shown = len(path) > 1 or path in {("archive",), ("trust",), ("state",)}
    if path[:2] == ("kafka", "client") or not shown or "@" in str(value):
        return "a value (hidden)"
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else f"{text[:77]}…"
