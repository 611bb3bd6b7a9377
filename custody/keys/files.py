"""Files with keys and trust: open, lock, read, decode strictly, and replace them in one step.

Rules:
1. A file is read from one descriptor, after a check of its mode, and is replaced by renaming a synced file.
2. For any bytes, reading gives a value or a `ConfigurationError`. The error names the file, and never repeats a value,
   which might be a secret.
"""

import base64
import binascii
import contextlib
import fcntl
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

import msgspec

from custody.errors import ConfigurationError, FormatError
from custody.format.strict_json import unique
from custody.format.times import parse_time
from custody.store.durable import replace_file

_Form = TypeVar("_Form")


_KEYRING, _TRUST = "custody/keyring/1", "custody/trust/1"
_OURS = {
    _TRUST: ("a trust.json", "give it with --trust"),
    _KEYRING: ("a keyring", "give it with --keys file:KEYRING"),
    "custody/state/1": ("a state file with known heads", "give it with --state"),
    "custody/archive/1": ("an archive.json", "it says what the archive is, and has no keys"),
    "custody/manifest/1": ("a manifest", "it is a part of the archive, and has no keys"),
    "custody/audit/1": ("an audit", "it is a part of the archive, and has no keys"),
}
"""What each format of ours is, and what to do with such a file that was given by mistake."""
_TOML_LIMIT = 64 * 1024
_SETTINGS = ("a file of settings", "give it with --config")
_MAKERS = {_TRUST: "`custody keys export -o trust.json` makes one", _KEYRING: "`custody keys new` makes one"}


@contextlib.contextmanager
def opened(path: Path, subject: str) -> Iterator[int]:
    """Open a regular file for reading, and close it at the end.

    Raises:
        ConfigurationError: it does not exist, or cannot be opened; the message begins with `subject`.
    """
    try:
        # Non-blocking, so that a pipe with that name is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        advice = f"; `custody keys {'new' if subject == 'keyring' else 'export'}` makes one"
        raise ConfigurationError(f"{subject} {path}: there is no such file{advice}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a possible file name"
        raise ConfigurationError(f"{subject} {path}: cannot be opened: {reason}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "is a folder, and" if stat.S_ISDIR(mode) else "is"
            file = "trust.json" if subject == "trust" else subject
            raise ConfigurationError(f"{subject} {path}: {kind} not a regular file: name the {file} itself")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, subject: str) -> Iterator[int]:
    """Open and lock a keyring or trust file for reading.

    A rotation replaces the file. So after waiting for the lock, check again that the file still has this name.
    """
    while True:
        with opened(path, subject) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(path.stat(), os.fstat(descriptor))
            except OSError:
                current = False
            if current:
                yield descriptor
                return


def check_private(status: os.stat_result, subject: str) -> None:
    """Raise an error if anyone but the owner can read or write a file with secrets.

    Raises:
        ConfigurationError: others can read or write it.
    """
    if status.st_mode & 0o077:
        raise ConfigurationError(
            f"{subject}: it has secrets, but others can read or write it (mode {stat.S_IMODE(status.st_mode):04o});"
            " run `chmod 600` on it, and rotate the keys if others may have read it"
        )


def read_all(descriptor: int, limit: int, subject: str) -> tuple[bytes, os.stat_result]:
    """Return all bytes of an open file, and its status.

    Raises:
        ConfigurationError: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{subject}: cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ConfigurationError(f"{subject}: is larger than {limit} bytes")
    return data, os.fstat(descriptor)


def write(path: Path, data: bytes, *, create: bool, subject: str, mode: int = 0o600) -> None:
    """Write or replace a file in one step, and sync it.

    Args:
        path: the file. If it is a symbolic link, its target is replaced.
        data: the whole content.
        create: raise an error if the file exists.
        subject: the kind of file, for errors.
        mode: of the file.

    Raises:
        ConfigurationError: it cannot be written, or exists already.
    """
    try:
        # Beside a symbolic link's target, so that the link stays.
        replace_file(path.resolve(), data, mode=mode, create=create)
    except FileExistsError:
        advice = ", and replacing it would lose its keys; run `custody keys rotate`, or choose another name"
        raise ConfigurationError(f"{subject} {path}: exists already{advice if subject == 'keyring' else ''}") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a possible file name"
        raise ConfigurationError(f"{subject} {path}: cannot be written: {reason}") from None


def other_file(data: bytes, wanted: str) -> str | None:
    """Return what a file is that was given instead of one of a format, and what to do; None if it may be one.

    Args:
        data: the file's bytes.
        wanted: the format.
    """
    if not data.strip():
        return f"it is empty{f'; {_MAKERS[wanted]}' if wanted in _MAKERS else ''}"
    # An archive.json and a manifest have a second line.
    stated = _stated_format(data) or _stated_format(data.partition(b"\n")[0])
    if stated == wanted:
        return None
    kind, advice = _OURS.get(stated or "", _SETTINGS if _is_toml(data) else ("", ""))
    return f"it is {kind}, not {_OURS[wanted][0]}: {advice}" if kind else None


def _format_of(form: object) -> str | None:
    """Return the format of a file that is decoded as a type; None if it has none."""
    if not isinstance(form, type) or not issubclass(form, msgspec.Struct):
        return None
    hint = get_type_hints(form).get("format")
    return next((name for name in get_args(hint) if name in _MAKERS), None)


def _unlike(data: bytes, wanted: str, reason: str = "") -> str:
    """Return what a file is that is not of the wanted format, and what to do."""
    return other_file(data, wanted) or f"it is not {_OURS[wanted][0]}{reason}; {_MAKERS[wanted]}"


def _stated_format(data: bytes) -> str | None:
    """Return the format that a file of JSON states, whatever else is in it; None if it states none."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    stated = document.get("format") if isinstance(document, dict) else None
    return stated if isinstance(stated, str) else None


def _is_toml(data: bytes) -> bool:
    """Return whether a file is TOML. A large one is not: ours are small."""
    try:
        return len(data) <= _TOML_LIMIT and bool(tomllib.loads(data.decode()))
    except (ValueError, RecursionError):
        return False


def decode_document(data: bytes, subject: str, form: type[_Form]) -> _Form:
    """Decode a file strictly. Errors never repeat a value, which might be a misplaced secret.

    Args:
        data: the file's bytes.
        subject: the name of the file in errors.
        form: what it is decoded as. If it has a `format`, errors say what another file is.
    """
    wanted = _format_of(form)
    try:
        value = msgspec.json.decode(data, type=form)
        json.loads(data, object_pairs_hook=unique)
    except FormatError:
        raise ConfigurationError(f"{subject}: an object has the same field twice") from None
    except msgspec.ValidationError as error:
        reason, _, json_path = str(error).partition(" - at ")
        if wanted and _stated_format(data) != wanted:
            raise ConfigurationError(f"{subject}: {_unlike(data, wanted)}") from None
        if reason.startswith("Invalid enum value"):
            reason = "a value that is not one of those allowed"
        elif reason.startswith("Object contains unknown field"):
            reason = "an unknown field"
        raise ConfigurationError(f"{subject}: {reason}{f' at {json_path}' if json_path else ''}") from None
    except msgspec.DecodeError as error:
        reason = _unlike(data, wanted, f": {error}") if wanted else str(error)
        raise ConfigurationError(f"{subject}: {reason}") from None
    except (ValueError, OverflowError, RecursionError):
        reason = "it is not UTF-8, a number is too long, or it is nested too deep"
        raise ConfigurationError(f"{subject}: {reason}") from None
    return value


def encode_base64(data: bytes) -> str:
    """Return bytes in base64, with padding."""
    return base64.b64encode(data).decode()


def decode_base64(text: str, subject: str, name: str, size: int | None = None) -> bytes:
    """Decode canonical base64 and check its size. Errors never repeat the text."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{subject}: {name} is not base64") from None
    if encode_base64(data) != text:
        raise ConfigurationError(f"{subject}: {name} is not canonical base64")
    if size is not None and len(data) != size:
        raise ConfigurationError(f"{subject}: {name} has {len(data)} bytes; it must have {size}")
    return data


def parse_moment(text: str | None, subject: str, name: str) -> datetime | None:
    """Return the time in a field, None if it is null.

    Raises:
        ConfigurationError: it does not have our form of times.
    """
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise ConfigurationError(f"{subject}: {name} is not a time of the form YYYY-MM-DDTHH:MM:SS.ffffffZ") from None
