"""The verifier's own memory: which head it saw last of each log of each archive, kept in one file beside the archive.

Rules:

1. A head only moves forward, and only one that verified is kept.
2. The file is replaced whole, by one rename of a synced file.
3. An archive is known by its id. Its URL is kept too, so that another archive put in its place is noticed.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from custody.errors import ConfigurationError
from custody.layout import parse_log_text
from custody.manifest import Hex, Int, Uuid
from custody.trust import Head

_SIZE_LIMIT = 64 * 1_048_576


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    size: Int
    root: Hex


class _Archive(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    heads: dict[str, _Head]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/state/1"]
    archives: dict[Uuid, _Archive]


class State:
    """The heads seen last."""

    def __init__(self, path: Path) -> None:
        """Open a state file; one that is not there yet is empty.

        Raises:
            ConfigurationError: the file cannot be read, or is no state file.
        """
        self._path = path
        try:
            with path.open("rb") as file:
                data = file.read(_SIZE_LIMIT + 1)
        except FileNotFoundError:
            self._file = _File("custody/state/1", {})
            return
        except OSError as error:
            raise ConfigurationError(f"the state file {path} cannot be read: {error.strerror}") from None
        try:
            if len(data) > _SIZE_LIMIT:
                raise ConfigurationError(f"the state file {path} has more than {_SIZE_LIMIT} bytes: it is none")
            self._file = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{path} is no state file ({error}); restore it from a backup, for it remembers where the logs were,"
                " or name a new file if there is none"
            ) from None
        for archive in self._file.archives.values():
            for name in archive.heads:
                if parse_log_text(name) is None:
                    raise ConfigurationError(f"{path} is no state file: {name[:300]!r} is no log")

    def archive_at(self, url: str) -> str | None:
        """Return the id of the archive that was seen at a URL last."""
        return next((id_ for id_, archive in self._file.archives.items() if archive.url == url), None)

    def heads(self, archive: str) -> Mapping[str, Head]:
        """Return the heads of an archive, by `<log>/<partition>`."""
        known = self._file.archives.get(archive)
        return {name: Head(head.size, bytes.fromhex(head.root)) for name, head in known.heads.items()} if known else {}

    def remember(self, archive: str, url: str, heads: Mapping[str, Head]) -> None:
        """Move heads of an archive forward and save, durably.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        known = self._file.archives.setdefault(archive, _Archive(url, {}))
        known.url = url
        for name, head in heads.items():
            before = known.heads.get(name)
            if before is None or before.size < head.size:
                known.heads[name] = _Head(head.size, head.root.hex())
        try:
            self._save(msgspec.json.format(msgspec.json.encode(self._file, order="sorted"), indent=1) + b"\n")
        except OSError as error:
            raise ConfigurationError(f"the state file {self._path} cannot be written: {error.strerror}") from None

    def _save(self, data: bytes) -> None:
        folder = self._path.absolute().parent
        descriptor, staged = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(staged).replace(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(staged).unlink()
            raise
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
