"""Files that hold keys and trust: opened, locked, read whole, decoded strictly, and replaced in one step.

Rules:
1. A file is read from one descriptor, whose mode is looked at first, and replaced by one rename of a synced file.
2. Whatever bytes a file holds, reading it gives a value or a `ConfigurationError` that names the file and not the
   secret: no message repeats a value.
"""

import base64
import binascii
import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from custody.errors import ConfigurationError, FormatError
from custody.format.strict_json import unique
from custody.format.times import parse_time
from custody.store.durable import replace_file

_Form = TypeVar("_Form")


class _Formatted(msgspec.Struct):
    format: str


@contextlib.contextmanager
def locked(path: Path, what: str = "keyring") -> Iterator[int]:
    """Open a keyring or trust for reading, under a lock on the file that has the name now.

    A rotation replaces the file, so whoever waited for the lock may hold that of the old one, and has to look again.
    """
    while True:
        descriptor = open_plain(path, what)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(path.stat(), os.fstat(descriptor))
            except OSError:
                current = False
            if current:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def open_plain(path: Path, what: str) -> int:
    """Open a regular file for reading, and return its descriptor.

    Raises:
        ConfigurationError: there is none, or it cannot be opened; the message begins with `what`.
    """
    try:
        # Not blocking, so that a pipe under that name is refused rather than waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        advice = f"; `custody keys {'new' if what == 'keyring' else 'export'}` makes one"
        raise ConfigurationError(f"{what} {path}: there is no such file{advice}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise ConfigurationError(f"{what} {path}: cannot be opened: {reason}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "is a folder, and" if stat.S_ISDIR(mode) else "is"
        raise ConfigurationError(f"{what} {path}: {kind} not a regular file")
    return descriptor


def check_private(status: os.stat_result, what: str) -> None:
    """Refuse a file with secrets in it that others than its owner can read or write.

    Raises:
        ConfigurationError: they can.
    """
    if status.st_mode & 0o077:
        raise ConfigurationError(
            f"{what}: others can read or write it (mode {stat.S_IMODE(status.st_mode):04o}) and it holds secrets;"
            " run `chmod 600` on it, and think about whether they have been read"
        )


def read_all(descriptor: int, limit: int, what: str) -> bytes:
    """Return all bytes of an open file.

    Raises:
        ConfigurationError: it cannot be read, or has more than `limit` bytes.
    """
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ConfigurationError(f"{what}: is larger than {limit} bytes")
    return data


def refuse_other(data: bytes, what: str, other: str, advice: str) -> None:
    """Refuse a file of another format by that one's name: it was given where this one belongs.

    Args:
        data: the file's bytes.
        what: it is in errors.
        other: the format that it may be mistaken for.
        advice: what to do with one of that.

    Raises:
        ConfigurationError: it is of that format.
    """
    try:
        format_ = msgspec.json.decode(data, type=_Formatted).format
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return
    if format_ == other:
        raise ConfigurationError(f"{what}: {advice}")


def write(path: Path, data: bytes, *, create: bool, what: str = "keyring", mode: int = 0o600) -> None:
    """Put bytes where a file is, or is to be, in one step, and sync them.

    Args:
        path: the file; where it is a symbolic link, its target is replaced.
        data: all that it is to hold.
        create: refuse to replace one.
        what: it is in errors.
        mode: of the file.

    Raises:
        ConfigurationError: it cannot be written, or is there already.
    """
    # Beside a symbolic link's target, so that the link stays.
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError):
        raise ConfigurationError(f"{what} {path}: cannot be written: no file can have that name") from None
    try:
        replace_file(path, data, mode=mode, create=create)
    except FileExistsError:
        advice = ", and replacing it would lose its keys; run `custody keys rotate`, or choose another name"
        raise ConfigurationError(f"{what} {path}: is there already{advice if what == 'keyring' else ''}") from None
    except OSError as error:
        raise ConfigurationError(f"{what} {path}: cannot be written: {error.strerror}") from None


def decode_document(data: bytes, what: str, form: type[_Form]) -> _Form:
    """Decode a file strictly. No message repeats a value: it might be a secret in the wrong place."""
    try:
        value = msgspec.json.decode(data, type=form)
        json.loads(data, object_pairs_hook=unique)
    except FormatError:
        raise ConfigurationError(f"{what}: a field stands twice in one object") from None
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at ")
        if reason.startswith("Invalid enum value"):
            reason = "a value that is not one of those allowed"
        elif reason.startswith("Object contains unknown field"):
            reason = "a field that does not belong there"
        raise ConfigurationError(f"{what}: {reason}{f' at {place}' if place else ''}") from None
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        reason = (
            str(error)
            if isinstance(error, msgspec.DecodeError)
            else "it is not UTF-8 or holds a number that is too long"
        )
        raise ConfigurationError(f"{what}: {reason}") from None
    except RecursionError:
        raise ConfigurationError(f"{what}: it is nested too deep") from None
    return value


def encode_base64(data: bytes) -> str:
    """Return bytes in base64, with padding."""
    return base64.b64encode(data).decode()


def decode_base64(text: str, what: str, name: str, size: int | None = None) -> bytes:
    """Decode canonical base64 of so many bytes, without ever repeating it."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{what}: {name} is not base64") from None
    if encode_base64(data) != text:
        raise ConfigurationError(f"{what}: {name} is not canonical base64")
    if size is not None and len(data) != size:
        raise ConfigurationError(f"{what}: {name} has {len(data)} bytes, and {size} are wanted")
    return data


def parse_moment(text: str | None, what: str, name: str) -> datetime | None:
    """Return the moment that a field names, None where it is null.

    Raises:
        ConfigurationError: it is not written as custody writes times.
    """
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise ConfigurationError(f"{what}: {name} is no time of the form YYYY-MM-DDTHH:MM:SS.ffffffZ") from None
