"""The auditor's settings: arguments, `CUSTODY_…` variables (sections by `__`), `custody.toml`, in this order.

Rules:
- A wrong setting is a `ConfigurationError` that says which one, what it got and what it wants. What may be a secret is
  never shown: not in an error, not in a repr, not in a dump.
- A `custody.toml` is read from the current folder, or from where `CUSTODY_CONFIG` says; there it has to exist.
- One `custody.toml` may serve both auditor and operator. The sections that `tasks.settings` adds are known here by name
  alone, and passed over. Any other unknown name is an error: a misspelt section would leave less to be verified.
- Names are taken from the models' fields, so that a section that a derived model adds has the same errors.
"""

import dataclasses
import difflib
import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

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
    from custody.keys.signers import Signers
    from custody.keys.trust import Trust

__all__ = ["Settings", "TierSettings"]

logger = logging.getLogger(__name__)

PREFIX = "CUSTODY_"
CONFIG_FILE = "custody.toml"
CONFIG_VARIABLE = "CUSTODY_CONFIG"

OPERATORS_SECTIONS = ("kafka", "drain", "audit", "search", "alert")
"""What `tasks.settings` adds to these settings."""

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


def _not_here(value: Path) -> Path:
    if value == Path():
        raise ValueError("a file's path, and not this folder; unset it where there is none")
    return value


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


Location = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
FilePath = Annotated[Path, AfterValidator(_not_here)]


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


class Settings(BaseSettings):
    """All that an auditor sets.

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

    def __init__(self, **values: Any) -> None:
        try:
            _check_variables(type(self))
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(type(self), error, values)) from None

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
        passed_over = set(OPERATORS_SECTIONS) - set(settings_cls.model_fields)
        file = {name: value for name, value in _read_file().items() if name not in passed_over}
        return init_settings, _Variables(settings_cls), InitSettingsSource(settings_cls, file)

    def protection(self) -> Protection:
        """Return how the bucket is meant to protect the evidence."""
        return Protection(self.s3.retention_mode, self.s3.retention_days, self.tiers.verified_moves)

    def signers(self, now: datetime) -> "Signers":
        """Return what signs at `now`: the keys of `keys`, and of `checkpoint_keys` where that is set.

        Raises:
            ConfigurationError: a URI, keyring or key cannot be used.
            KeyUnavailable: KMS does not answer.
        """
        from custody.keys.open import open_signers

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


def _sections(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the settings of each section of a model, with their types."""
    sections: dict[str, dict[str, Any]] = {}
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            sections[name] = {inner: one.annotation for inner, one in kind.model_fields.items()}
        elif dataclasses.is_dataclass(kind):
            sections[name] = {one.name: one.type for one in dataclasses.fields(kind)}
    return sections


def _check_variables(model: type[BaseModel]) -> None:
    """Refuse variables that are a setting's name but for a slip; others, such as a cluster's own, are let be."""
    sections = _sections(model)
    for variable in os.environ:
        if not variable.upper().startswith(PREFIX) or variable.upper() == CONFIG_VARIABLE:
            continue
        name = variable[len(PREFIX) :].lower()
        first, nested, rest = name.partition("__")
        if first in {*model.model_fields, *OPERATORS_SECTIONS}:
            continue
        meant = [f"{one}{nested}{rest}" for one in difflib.get_close_matches(first, model.model_fields, 1, 0.8)]
        meant += [
            # Below a table of names and values, such as kafka.client, what follows is such a name.
            "__".join(filter(None, (section, field, name[len(f"{section}_{field}") :].strip("_"))))
            for section, fields in sections.items()
            for field, kind in fields.items()
            if first == f"{section}_{field}" or (get_origin(kind) is dict and name.startswith(f"{section}_{field}_"))
        ]
        if meant:
            raise ConfigurationError(f"{variable} is no setting; did you mean {PREFIX}{meant[-1].upper()}?")


def _explain(model: type[BaseModel], error: ValidationError, values: Mapping[str, Any]) -> str:
    """Return a line for each wrong setting: which it is, what it got and what it wants."""
    sections = _sections(model)
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        path = tuple(part for part in one["loc"] if isinstance(part, str) and part not in {"str", "SecretStr"})
        name = _where(path, values)
        if one["type"] == "extra_forbidden":
            known = sections.get(path[0], ()) if len(path) > 1 else (*model.model_fields, *OPERATORS_SECTIONS)
            meant = difflib.get_close_matches(path[-1], known, 1, 0.6)
            line = f"{name} is no setting" + (f"; did you mean {'.'.join((*path[:-1], meant[0]))}?" if meant else "")
        else:
            plain = one["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            wants = _WANTS[one["type"]].format_map(one.get("ctx", {})) if one["type"] in _WANTS else plain
            got = "" if isinstance(one["input"], dict | S3Options) else f"got {_show(sections, path, one['input'])}, "
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


def _show(sections: Mapping[str, Mapping[str, Any]], path: tuple[str, ...], value: object) -> str:
    """Return a wrong value as it is shown: hidden where it may hold a secret."""
    if len(path) > 1:
        kind = sections.get(path[0], {}).get(path[1])
        hidden = kind is None or SecretStr.__name__ in repr(kind)
    else:
        hidden = path not in {("archive",), ("trust",), ("state",)}
    if hidden or "@" in str(value):
        return "a value (hidden)"
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else f"{text[:77]}…"
