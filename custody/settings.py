"""The auditor's settings: arguments, `CUSTODY_…` variables (sections by `__`), `custody.toml`, in this order.

Rules:
- A wrong setting is a `ConfigurationError` with its name, its source and pydantic's message. A value that may be a
  secret is never shown: not in an error, a repr or a dump. Nor is a name that no setting could have.
- `custody.toml` is read from the current folder, or from the path in `CUSTODY_CONFIG`, where it must exist. It is
  refused if others may write to it, or to a folder on its path: it names keys and what is trusted. One that is not
  named is refused too if others own it or its folder.
- No custody.toml, key, trust.json or state lies in the archive, where an attacker could have put it.
- A connection on which others can read or change what is sent is warned of, once in each process.
- Auditor and operator can share one `custody.toml`. Only the names of the sections that `tasks.settings` adds are known
  here, and they are skipped. Any other unknown name is an error: a misspelt section could weaken verification.
- Names are taken from the models' fields, so that sections of a derived model get the same errors.

This is one module because a value, its source, its check and its error belong together.
"""

import difflib
import functools
import grp
import json
import logging
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
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

from custody.errors import ConfigurationError, CustodyError, SigningError
from custody.format import limits
from custody.store.protocol import READABLE, S3Options, is_plain
from custody.verify.protection import Protection

if TYPE_CHECKING:
    from custody.keys.signers import Signers
    from custody.keys.trust import Trust

__all__ = ["Settings", "TierSettings"]

logger = logging.getLogger(__name__)

PREFIX = "CUSTODY_"
CONFIG_FILE = "custody.toml"
CONFIG_VARIABLE = "CUSTODY_CONFIG"

OPTIONS: dict[str, str] = {}
"""Variables that an option of the running command stands in, each with that option."""

OPERATORS_SECTIONS = (
    *("kafka", "drain", "audit", "backfill", "dask", "sources", "search", "detect", "alert", "health", "metrics"),
)
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

_SHOWN = ("bool_", "finite_", "float_", "greater_", "int_", "less_", "literal_")
"""Starts of pydantic's error types whose input is shown: they are about numbers and choices, which hold no secret."""


def _without_credentials(value: str) -> str:
    scheme, slashes, rest = value.partition("://")
    # Not by a URL parser: a password may contain the characters at which a parser ends the host.
    host, _, path = rest.partition("/")
    if slashes and scheme.lower() != "file" and ("@" in host or (":" in host and "@" in path)):
        raise ValueError("a URL here has no user name or password; put those into the standard AWS credentials")
    return value


def web_url(value: str) -> str:
    """Return the URL of a server if it is one.

    Raises:
        ValueError: it is not.
    """
    try:
        parts = urlsplit(value)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("want https://HOST or http://HOST:PORT")
    return value


def _key_uri(value: str) -> str:
    # Anything else may be a secret key, given here by mistake: only a plain file name is shown.
    if not value.startswith(("file:", "aws-kms:")):
        shown = value if re.fullmatch(r"[\w./-]{1,200}\.json", value, re.ASCII) else "PATH"
        raise ValueError(f"want file:PATH of a keyring, or aws-kms:///alias/NAME; for a path write file:{shown}")
    return value


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("it is empty; want the path of a file, or unset it if there is no file")
    return value


def _not_here(value: Path) -> Path:
    if value == Path():
        raise ValueError("'.' is a folder; want the path of a file, or unset it if there is no file")
    return value


def _check_s3(value: S3Options, info: ValidationInfo) -> S3Options:
    """Check the options, and set the lock's days to the life of evidence if they are not set."""
    if value.endpoint_url is not None:
        web_url(_without_credentials(value.endpoint_url))
    if value.retention_mode is None and value.retention_days is not None:
        raise ValueError("retention_days needs a retention_mode: set it to GOVERNANCE or COMPLIANCE")
    tiers = info.data.get("tiers")
    if value.retention_mode and value.retention_days is None and tiers is not None:
        return replace(value, retention_days=tiers.life_days)
    return value


Location = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_not_here)]


class TierSettings(BaseModel):
    """When evidence moves to colder storage classes, and when it expires. Days count from the put."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    warm_days: int = Field(
        default=90, ge=30, description="Days until segments move to the warm class (30 or more, for S3)"
    )
    cold_days: int = Field(default=365, ge=60, description="Days until segments move to the cold class")
    life_days: int = Field(
        default=2555,
        ge=1,
        le=limits.RETENTION_DAYS,
        description="Days until segments expire and are deleted, unless archive.json says later",
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


class EventSettings(BaseModel):
    """Which records are archived as events, and how many others are too many."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    unknown_types: Literal["archive", "quarantine"] = Field(
        default="archive", description="What becomes of events of other types than custody's six: archive or quarantine"
    )
    quarantined_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="If a larger share of a log's records than this, from 0 to 1, is no event, people are told",
    )

    @property
    def own_types(self) -> bool:
        """Whether events of an application's own types are taken."""
        return self.unknown_types == "archive"


class Settings(BaseSettings):
    """The auditor's settings.

    Raises:
        ConfigurationError: a setting is wrong; the message says which.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

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
    s3: Annotated[S3Options, AfterValidator(_check_s3)] = Field(default=S3Options(), description="Options for S3")
    events: EventSettings = Field(default=EventSettings(), description="Which records are archived as events")

    _given: frozenset[str] = PrivateAttr(default=frozenset())
    """Settings that were given as arguments."""

    def __init__(self, **values: Any) -> None:
        try:
            _check_variables(type(self))
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(*_explain(type(self), error, values)) from None
        self._given = frozenset(values)
        self._refuse_files_inside()
        for warning in self.insecure():
            _warn(warning)

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
        cls.check_file(file)
        return init_settings, _Variables(settings_cls), InitSettingsSource(settings_cls, file)

    @classmethod
    def check_file(cls, values: Mapping[str, Any]) -> None:
        """Raise an error for what the file may not set. The operator's settings have such things."""

    def insecure(self) -> list[str]:
        """Return which connections others on the network can read or change."""
        url = self.s3.endpoint_url
        return [f"s3.endpoint_url is http://: {READABLE}; use https://"] if url and is_plain(url) else []

    def trusted_files(self) -> list[Path | None]:
        """Return the files, beside the keys, that say what is trusted."""
        return [self.trust, self.state]

    def _refuse_files_inside(self) -> None:
        from custody.keys.open import keyring_path
        from custody.store.open import open_store

        if self.archive.lower().startswith("s3:"):
            return
        files = [*self.trusted_files(), _file() if _file().exists() else None]
        for name, uri in (("keys", self.keys), ("checkpoint_keys", self.checkpoint_keys)):
            path = keyring_path(uri) if uri else None
            # The default may name a file that is not there, for somebody who stands in the archive.
            if path and (name in self.model_fields_set or path.exists()):
                files.append(path)
        # What cannot be opened is an error where it is opened.
        try:
            url = open_store(self.archive).url
        except CustodyError:
            return
        refuse_inside(url, [path for path in files if path])

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

    def life_days(self, archive_days: int, trust_days: int | None) -> int:
        """Return for how many days evidence is kept.

        Args:
            archive_days: `retention_days` of `archive.json`.
            trust_days: `retention_days` of `trust.json`; None if that names none.

        Raises:
            ConfigurationError: `tiers.life_days` is set to fewer days than one of them.
        """
        chosen = self.tiers.life_days
        for name, days in (("archive.json", archive_days), ("trust.json", trust_days or 0)):
            if chosen < days and "life_days" in self.tiers.model_fields_set:
                raise ConfigurationError(
                    f"tiers.life_days is {chosen}, but retention_days in {name} is {days}: evidence may not expire"
                    f" earlier. Set tiers.life_days to {days} or more, or remove it"
                )
        return max(chosen, archive_days, trust_days or 0)

    def own_trust(self) -> "Trust":
        """Return what a writer of this archive trusts: its own keys, with the limits that `trust.json` sets.

        Raises:
            ConfigurationError: a source cannot be used, or two sources contradict each other. Or `trust.json` lists
                keys, but none of the writer's.
            KeyUnavailable: KMS does not answer.
        """
        from custody.keys.trust import check_writer, open_trust

        trust = open_trust([self.keys], self.trust, self.passphrase(), self.checkpoint_keys)
        if self.trust:
            check_writer(trust, self.trust)
        return trust

    def trust_at_hand(self) -> "Trust":
        """Return what a reader trusts, or an empty trust if the keys are not available. Reading needs no key.

        It is `own_trust`. If `trust` is set, and `keys` is not or cannot be opened, it is only `trust.json`.
        """
        from custody.keys.trust import Trust, open_trust

        named = self.model_fields_set & {"keys", "trust"}
        try:
            if self.trust and "keys" not in named:
                return open_trust([], self.trust, self.passphrase(), self.checkpoint_keys)
            return self.own_trust()
        except (ConfigurationError, SigningError) as error:
            if self.trust:
                with suppress(ConfigurationError):
                    trust = open_trust([], self.trust)
                    logger.warning("only the keys in %s are used, because the others cannot be: %s", self.trust, error)
                    return trust
            # The default keyring need not be there.
            if named or isinstance(error, SigningError):
                logger.warning("unverified: signatures are not checked, because the keys cannot be used: %s", error)
            return Trust()

    def origins(self, names: Iterable[str]) -> dict[str, str]:
        """Return where each setting comes from: `argument`, options, variables, a file's path, or `default`."""
        file = _read_file()
        return {name: self._source_of(name, file) for name in names}

    def _source_of(self, name: str, file: Mapping[str, Any]) -> str:
        path = name.split(".")
        sources = ["argument"] if path[0] in self._given else []
        sources += _variables_of(path)
        sources += [str(_file().absolute())] if _is_in(file, path) else []
        value: Any = self
        for part in path:
            value = getattr(value, part)
        # Only a table, such as kafka.client, is put together from several sources.
        return ", ".join(sources if isinstance(value, Mapping) else sources[:1]) or "default"

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


@functools.cache
def _warn(text: str) -> None:
    logger.warning("%s", text)


def refuse_inside(archive: str, paths: Sequence[Path]) -> None:
    """Raise an error if a file is in the archive, where an attacker could have put it.

    Raises:
        ConfigurationError: a file, or the target of its link, is in the archive.
    """
    for path in paths:
        try:
            resolved = (path.parent.resolve() / path.name, path.resolve())
        except (OSError, RuntimeError, ValueError):
            raise ConfigurationError(f"{path} is not a possible file name, or its links lead nowhere") from None
        for real in resolved:
            if f"{real.as_uri()}/".startswith(f"{archive}/"):
                raise ConfigurationError(
                    f"{path} lies in the archive, and cannot be trusted: anyone who can change the archive could have"
                    " put it there. Use your own copy, and keep keys, trust.json and the state file elsewhere"
                )


def _read_file() -> dict[str, Any]:
    path = _file()
    try:
        # Without a flag, opening a pipe waits for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"the settings in {str(path)!r} cannot be read: it is not a regular file")
            _check_owners(path, status)
            return tomllib.load(file)
    except FileNotFoundError:
        if CONFIG_VARIABLE in os.environ:
            raise ConfigurationError(f"{CONFIG_VARIABLE} is {str(path)!r}, which does not exist") from None
        return {}
    except OSError as error:
        raise ConfigurationError(f"the settings in {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"the settings in {str(path)!r} are not TOML in UTF-8: {error}") from None


def _check_owners(path: Path, status: os.stat_result) -> None:
    """Raise an error if somebody else than this user or root can write the file, or put another one there.

    Whoever names a file trusts its owner. The file of the current folder is read without being named.
    """
    named = CONFIG_VARIABLE in os.environ
    owned = set() if named else {path, Path.cwd(), path.resolve().parent}
    wrong = []
    for checked, checked_status in [(path, status), *((folder, folder.stat()) for folder in _folders(path))]:
        # In a folder such as /tmp, others cannot replace a file.
        sticky = stat.S_ISDIR(checked_status.st_mode) and checked_status.st_mode & stat.S_ISVTX
        if checked in owned and checked_status.st_uid not in {0, os.geteuid()}:
            wrong.append(f"{str(checked)!r} belongs to somebody else")
        elif not sticky and (
            checked_status.st_mode & 0o002
            or (checked_status.st_mode & 0o020 and (_has_acl(checked) or not _is_private(checked_status)))
        ):
            wrong.append(f"{str(checked)!r} can be written by others (`chmod go-w` it)")
    if wrong:
        other = "name" if named else f"if you trust its owner, set {CONFIG_VARIABLE} to it; or name"
        raise ConfigurationError(
            f"the settings in {str(path)!r} are refused, because {' and '.join(wrong)}, and settings name keys and what"
            f" is trusted: look at it first; {other} a file of yours in {CONFIG_VARIABLE}"
        )


def _folders(path: Path) -> list[Path]:
    """Return the folders in which a file could be replaced: all on its path, and on the path of each link."""
    steps: set[Path] = set()
    paths = [path.absolute()]
    while paths:
        more = {paths[-1], *paths.pop().parents} - steps
        steps |= more
        paths += [step.parent / step.readlink() for step in more if step.is_symlink()]
    return sorted({step.parent for step in steps})


def _has_acl(path: Path) -> bool:
    """Return whether an access list names more users or groups. Then the group's rights are the most that they have."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        # There is none, or the file system knows none.
        return False


def _is_private(status: os.stat_result) -> bool:
    """Return whether a group has no other member than the owner or this user, as with umask 002."""
    try:
        group = grp.getgrgid(status.st_gid)
        users = {pwd.getpwuid(uid).pw_name for uid in (status.st_uid, os.geteuid())}
    except KeyError:
        # A user of the host is unknown in a container.
        return status.st_gid == status.st_uid
    return group.gr_name in users and set(group.gr_mem) <= {group.gr_name}


def _file() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def file_in_use() -> Path | None:
    """Return the path of the file with settings, None if there is none."""
    return _file().absolute() if _file().exists() else None


def variables_in_use(model: type[BaseModel]) -> list[str]:
    """Return the names of the variables that are settings of a model, sorted, without those of options."""
    starts = {f"{PREFIX}{name}".upper() for name in model.model_fields}
    return sorted(
        shown_name(variable)
        for variable in os.environ
        if variable.upper().partition("__")[0] in starts and variable not in OPTIONS
    )


def _variables_of(path: Sequence[str]) -> list[str]:
    """Return the variables that give a value to a setting, the one that counts first."""
    name = PREFIX + "__".join(path).upper()
    given = {}
    for variable, text in os.environ.items():
        upper = variable.upper()
        if upper == name or upper.startswith(f"{name}__"):
            given[variable] = upper
        elif name.startswith(f"{upper}__"):
            # A section as JSON.
            inner = path[upper.count("__") + 1 :]
            with suppress(ValueError, RecursionError):
                if _is_in(json.loads(text), inner):
                    given[variable] = upper
    return [_origin(variable) for variable in sorted(given, key=lambda variable: (-len(given[variable]), variable))]


def _origin(variable: str) -> str:
    """Return a variable's name, or the option that set it."""
    return OPTIONS.get(variable) or shown_name(variable)


def _is_in(values: Any, path: Sequence[str]) -> bool:
    """Return whether nested values have one at a path."""
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _names(model: type[BaseModel]) -> list[str]:
    """Return the names of all settings and sections. The name of a table, such as kafka.client, ends in a dot."""
    names = [*model.model_fields, *OPERATORS_SECTIONS]
    for section, field in model.model_fields.items():
        names += [f"{section}.{name}" for name in getattr(field.annotation, "__dataclass_fields__", ())]
        for name, inner in getattr(field.annotation, "model_fields", {}).items():
            names.append(f"{section}.{name}" + ("." if get_origin(inner.annotation) is dict else ""))
    return names


def _check_variables(model: type[BaseModel]) -> None:
    """Raise an error for a variable that looks like a misspelt setting. Others, such as a cluster's, are ignored."""
    names = _names(model)
    flat_names = {f"{name.strip('.')}_".replace(".", "_"): name for name in names if "." in name}
    for variable in os.environ:
        name = variable[len(PREFIX) :].lower()
        section, nested, rest = name.partition("__")
        if not variable.upper().startswith(PREFIX) or variable.upper() == CONFIG_VARIABLE or section in names:
            continue
        meant = [f"{close}{nested}{rest}" for close in difflib.get_close_matches(section, model.model_fields, 1, 0.8)]
        flat = f"{name}_".replace("__", "_")
        for flat_name, known in flat_names.items():
            if flat == flat_name or (known.endswith(".") and flat.startswith(flat_name)):
                meant.append(f"{known}{flat[len(flat_name) :]}".strip("._").replace(".", "__"))
        if meant:
            raise ConfigurationError(f"{variable} is not a setting; did you mean {PREFIX}{meant[-1].upper()}?")


def shown_name(name: str) -> str:
    """Return a setting's name for an error. If it can be no name it may be a secret, and is hidden."""
    return name if re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII) else "(a hidden name)"


_WANTED = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "want true or false"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "want a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "want a number"),
    **dict.fromkeys(("string_too_short", "too_short"), "it is empty"),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dataclass_type", "dict_type"), "want settings, each by its name"
    ),
    "string_type": "want text",
    "literal_error": "want {expected}",
    "finite_number": "want a finite number",
    "greater_than": "want more than {gt}",
    "greater_than_equal": "want {ge} or more",
    "less_than": "want less than {lt}",
    "less_than_equal": "want {le} or less",
}
"""What is wanted instead of a wrong value, by pydantic's type of an error. Of other types, its own message is shown."""


def _explain(model: type[BaseModel], error: ValidationError, values: Mapping[str, Any]) -> Iterable[str]:
    """Return a line for each wrong setting: its name and source, what is wanted, and the value if not secret."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path = [part for part in problem["loc"] if isinstance(part, str) and part not in {"str", "SecretStr"}]
        name, kind = ".".join(path), problem["type"]
        line = f"{'.'.join(map(shown_name, path))} in {_source(path, values)}"
        if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
            line += " is not a setting"
            for meant in difflib.get_close_matches(name, _names(model), 1):
                line += f"; did you mean {meant.strip('.')}?"
        else:
            wanted = _WANTED.get(kind, "").format(**problem.get("ctx", {}))
            line += f": {wanted or problem['msg'].removeprefix('Value error, ')}"
            line += f", not {problem['input']!r:.80}" if kind.startswith(_SHOWN) else ""
        lines.setdefault(name, line)
    return lines.values()


def _source(path: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return where a value came from: the arguments, a variable or the file, in order of precedence."""
    if path[0] in values:
        return "the arguments"
    name = PREFIX + "__".join((*path, "")).upper()
    # A variable with the setting, with the section that it is in, or with a part of it.
    variables = {f"{variable}__".upper(): variable for variable in os.environ}
    related = [variables[upper] for upper in variables if upper.startswith(name) or name.startswith(upper)]
    variable = max(related, key=len, default=None)
    return _origin(variable) if variable else str(_file())
