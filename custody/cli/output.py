"""Writes a command's result to a file, in full or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from custody.errors import ConfigurationError, CustodyError
from custody.store.durable import sync_folder


@dataclass(frozen=True, slots=True)
class _Staged:
    target: Path
    path: Path
    mode: int
    file: BinaryIO


def _stage(path: Path) -> _Staged:
    """Make a new file beside the one that a path names.

    Raises:
        ConfigurationError: it cannot be made there.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise ConfigurationError(f"{path} cannot be written: it is not a file")
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        staged = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}")
        opened = os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a possible file name"
        raise ConfigurationError(f"{path} cannot be written: {reason}") from None
    return _Staged(target, staged, mode, opened)


def check_output(path: Path) -> None:
    """Check that a file can be written, before the work is done for it.

    Raises:
        ConfigurationError: it cannot be made there.
    """
    staged = _stage(path)
    staged.file.close()
    staged.path.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file for writing that takes the place of `path` at the end. After an error, `path` is as before.

    A file that is replaced keeps its mode. A new one is its owner's alone: audit records are in it.

    Raises:
        ConfigurationError: it cannot be made there.
        CustodyError: it could not be written in full.
    """
    staged = _stage(path)
    try:
        with staged.file as opened:
            yield opened
            opened.flush()
            os.fchmod(opened.fileno(), staged.mode)
            os.fsync(opened.fileno())
        staged.path.replace(staged.target)
        sync_folder(str(staged.target.parent))
    except OSError as error:
        raise CustodyError(f"{path} could not be written: {error.strerror}") from None
    finally:
        # After the renaming there is none.
        with suppress(OSError):
            staged.path.unlink()
