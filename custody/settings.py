"""The auditor's settings: arguments, `CUSTODY_…` variables (sections by `__`), `custody.toml`, in this order.

Rules:
- A wrong setting is a `ConfigurationError` that says which one, what it got and what it wants. A value that may be a
  secret is never shown: not in an error, a repr or a dump.
- `custody.toml` is read from the current folder, or from the path in `CUSTODY_CONFIG`, where it must exist.
- Auditor and operator can share one `custody.toml`. Only the names of the sections that `tasks.settings` adds are known
  here, and they are skipped. Any other unknown name is an error: a misspelt section could weaken verification.
- Names are taken from the models' fields, so that sections of a derived model get the same errors.
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
    "endpoint_url": "URL of an S3-compatible server, if it is not AWS",
    "region": "AWS region; default: from the standard AWS settings",
    "sse_kms_key": "KMS key that encrypts the objects",
    "expected_bucket_owner": "Account id; a bucket of another account is refused",
    "retention_mode": "Object Lock mode of each put: GOVERNANCE or COMPLIANCE",
    "retention_days": "Days of Object Lock from the put; default: tiers.life_days",
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
    # Not by a URL parser: a password may contain the characters at which a parser ends the host.
    host, _, path = rest.partition("/")
    if slashes and scheme.lower() != "file" and ("@" in host or (":" in host and "@" in path)):
        raise ValueError("a URL without user name or password: put those into the standard AWS credentials")
    return value


def _key_uri(value: str) -> str:
    # Anything else may be a secret key, given here by mistake.
    if not value.startswith(("file:", "aws-kms:")):
        raise ValueError("file:PATH of a keyring, or aws-kms:///alias/NAME")
    return value


def _not_here(value: Path) -> Path:
    if value == Path():
        raise ValueError("the path of a file, not of this folder; unset it if there is no file")
    return value


def _known_s3(value: object) -> object:
    """Raise an error for a misspelt name, which a dataclass would ignore."""
    if isinstance(value, dict):
        known = S3Options.__dataclass_fields__
        for name in value:
            if name not in known:
                raise ValueError(f"one of {', '.join(known)}, not {name}")
    return value


def _check_s3(value: S3Options, info: ValidationInfo) -> S3Options:
    """Check the options, and set the lock's days to the life of evidence if they are not set."""
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
    """When evidence moves to colder storage classes, and when it expires. Days count from the put."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    warm_days: int = Field(
        default=90, ge=30, description="Days until segments move to the warm class (30 or more, for S3)"
    )
    cold_days: int = Field(default=365, ge=60, description="Days until segments move to the cold class")
    life_days: int = Field(
        default=2555, ge=1, description="Days until segments expire and are deleted, unless archive.json says later"
    )
    warm_class: str = Field(default="STANDARD_IA", description="Storage class of the warm tier")
    cold_class: str = Field(default="DEEP_ARCHIVE", description="Storage class of the cold tier")
    manage: bool = Field(
        default=True, description="Whether the roll sets lifecycle rules; if not, it only reports what differs"
    )
    prices: dict[str, float] = Field(
        default={}, description="Price of a GB and month by class, in your currency; without it no costs are shown"
    )

    @property
    def moves(self) -> tuple[tuple[int, str], ...]:
        """Days since the put, each with the storage class that segments move to, in order."""
        return ((self.warm_days, self.warm_class), (self.cold_days, self.cold_class))

    @property
    def verified_moves(self) -> tuple[tuple[int, str], ...] | None:
        """The moves that verification compares with the bucket's rules. None if none of them is set.

        An auditor who does not know the operator's times has only defaults, which say nothing about the archive.
        """
        return self.moves if self.model_fields_set & {"warm_days", "cold_days", "warm_class", "cold_class"} else None


class Settings(BaseSettings):
    """The auditor's settings.

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
        description="If `keys` is in KMS: a keyring with an Ed25519 key and the leaf secret, or an Ed25519 KMS key",
    )
    keyring_passphrase: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        default=None, description="Passphrase that decrypts the keyring, and encrypts a new one"
    )
    trust: FilePath | None = Field(
        default=None, description="trust.json: keys, pins and known heads, kept outside the archive"
    )
    state: FilePath | None = Field(default=None, description="File in which verification keeps the known heads")
    # Before `s3`, whose check needs it: by default, locks last for life_days.
    tiers: TierSettings = Field(default=TierSettings(), description="Storage classes of evidence by age")
    s3: Annotated[S3Options, BeforeValidator(_known_s3), AfterValidator(_check_s3)] = Field(
        default=S3Options(), description="Options for S3"
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
        """Return the sources by precedence: arguments, then variables, then the file."""
        skipped = set(OPERATORS_SECTIONS) - set(settings_cls.model_fields)
        file = {name: value for name, value in _read_file().items() if name not in skipped}
        return init_settings, _Variables(settings_cls), InitSettingsSource(settings_cls, file)

    def protection(self) -> Protection:
        """Return how the bucket should protect the evidence."""
        return Protection(self.s3.retention_mode, self.s3.retention_days, self.tiers.verified_moves)

    def signers(self, now: datetime) -> "Signers":
        """Return the signers valid at `now`: from `keys`, and from `checkpoint_keys` if it is set.

        Raises:
            ConfigurationError: a URI, keyring or key cannot be used.
            KeyUnavailable: KMS does not answer.
        """
        from custody.keys.open import open_signers

        return open_signers(self.keys, now, self.passphrase(), self.checkpoint_keys)

    def own_trust(self) -> "Trust":
        """Return what a writer of this archive trusts: its own keys, with the limits that `trust.json` sets.

        Raises:
            ConfigurationError: a source cannot be used, or two sources contradict each other.
            KeyUnavailable: KMS does not answer.
        """
        from custody.keys.trust import open_trust

        return open_trust([self.keys], self.trust, self.passphrase(), self.checkpoint_keys)

    def trust_at_hand(self) -> "Trust":
        """Return `own_trust`, or an empty trust if the keys are not available. For reading, which needs no key."""
        from custody.keys.trust import Trust

        try:
            return self.own_trust()
        except ConfigurationError:
            return Trust()
        except SigningError as error:
            logger.warning("signatures are not checked, because the keys are not available now: %s", error)
            return Trust()

    def passphrase(self) -> str | None:
        """Return the keyring's passphrase. Use it only to open the keyring."""
        return self.keyring_passphrase.get_secret_value() if self.keyring_passphrase else None


class _Variables(EnvSettingsSource):
    """Variables. A list or section that is not JSON is passed on, so that validation reports it by its name."""

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
            raise ConfigurationError(f"{CONFIG_VARIABLE} is {str(path)!r}, which does not exist") from None
        return {}
    except OSError as error:
        raise ConfigurationError(f"the settings in {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the settings in {str(path)!r} are not UTF-8; save the file as UTF-8") from None
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
            sections[name] = {inner: inner_field.annotation for inner, inner_field in kind.model_fields.items()}
        elif dataclasses.is_dataclass(kind):
            sections[name] = {option.name: option.type for option in dataclasses.fields(kind)}
    return sections


def _check_variables(model: type[BaseModel]) -> None:
    """Raise an error for a variable that looks like a misspelt setting. Others, such as a cluster's, are ignored."""
    sections = _sections(model)
    for variable in os.environ:
        if not variable.upper().startswith(PREFIX) or variable.upper() == CONFIG_VARIABLE:
            continue
        name = variable[len(PREFIX) :].lower()
        first, nested, rest = name.partition("__")
        if first in {*model.model_fields, *OPERATORS_SECTIONS}:
            continue
        meant = [f"{close}{nested}{rest}" for close in difflib.get_close_matches(first, model.model_fields, 1, 0.8)]
        meant += [
            # After a table of names and values, such as kafka.client, the rest of the variable is one of the names.
            "__".join(filter(None, (section, field, name[len(f"{section}_{field}") :].strip("_"))))
            for section, fields in sections.items()
            for field, kind in fields.items()
            if first == f"{section}_{field}" or (get_origin(kind) is dict and name.startswith(f"{section}_{field}_"))
        ]
        if meant:
            raise ConfigurationError(f"{variable} is not a setting; did you mean {PREFIX}{meant[-1].upper()}?")


def _explain(model: type[BaseModel], error: ValidationError, values: Mapping[str, Any]) -> str:
    """Return a line for each wrong setting: which it is, what it got and what it wants."""
    sections = _sections(model)
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path = tuple(part for part in problem["loc"] if isinstance(part, str) and part not in {"str", "SecretStr"})
        kind, value = problem["type"], problem["input"]
        name = _where(path, values)
        if kind == "extra_forbidden":
            known = sections.get(path[0], ()) if len(path) > 1 else (*model.model_fields, *OPERATORS_SECTIONS)
            meant = difflib.get_close_matches(path[-1], known, 1, 0.6)
            line = f"{name} is not a setting" + (f"; did you mean {'.'.join((*path[:-1], meant[0]))}?" if meant else "")
        else:
            plain = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            wants = _WANTS[kind].format_map(problem.get("ctx", {})) if kind in _WANTS else plain
            got = "" if isinstance(value, dict | S3Options) else f"got {_show(sections, path, value)}, "
            line = f"{name}: {got}wants {wants}"
        lines.setdefault(name, line)
    return "\n".join(lines.values())


def _where(path: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """Return the argument, variable or key of the file that a value came from, in order of precedence."""
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
    """Return a wrong value for an error message, hidden if it may contain a secret."""
    if len(path) > 1:
        kind = sections.get(path[0], {}).get(path[1])
        hidden = kind is None or SecretStr.__name__ in repr(kind)
    else:
        hidden = path not in {("archive",), ("trust",), ("state",)}
    if hidden or "@" in str(value):
        return "a value (hidden)"
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else f"{text[:77]}…"
