"""The verifier's state file (`--state`): which archive was at a URL, and the known head of each log.

Rules:

1. Entries are kept by the archive's URL, which the user configured, and are pinned to the first `archive.json` there.
   Nothing in the archive selects the entry.
2. Another `archive.json` at that URL is an alarm at every verification, until it is accepted; then it is pinned.
3. A head only moves forward, and only a verified head is kept.
4. The file is replaced as a whole, by renaming a synced file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from custody.errors import ConfigurationError
from custody.format.archive_file import Pin
from custody.format.envelope import HeadRef, Hex, Uuid
from custody.format.layout import parse_log_text
from custody.store.durable import replace_file
from custody.tlog.head import Head

_SIZE_LIMIT = 64 * 1_048_576


class _Pin(msgspec.Struct, forbid_unknown_fields=True):
    id: Uuid
    sha256: Hex


class _Archive(msgspec.Struct, forbid_unknown_fields=True):
    archive: _Pin
    heads: dict[str, HeadRef]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/state/1"]
    archives: dict[str, _Archive]
    """By URL."""


def parse_state(data: bytes, source: str) -> dict[str, tuple[Pin, dict[str, Head]]]:
    """Return the content of a state file: by URL, the archive's pin and its known heads.

    Raises:
        ConfigurationError: it is not a state file; the message begins with `source`.
    """
    return {
        url: (Pin(seen.archive.id, seen.archive.sha256), _heads(seen))
        for url, seen in _decode(data, source).archives.items()
    }


class State:
    """The known heads."""

    def __init__(self, path: Path) -> None:
        """Open a state file. A missing file is empty.

        Raises:
            ConfigurationError: the file cannot be read, or is not a state file.
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
        self._file = _decode(data, str(path))

    def pin(self, url: str) -> Pin | None:
        """Return the pin of the archive at a URL, None before its first verification."""
        known = self._file.archives.get(url)
        return Pin(known.archive.id, known.archive.sha256) if known else None

    def heads(self, url: str) -> Mapping[str, Head]:
        """Return the known heads of the archive at a URL, by `<log>/<partition>`."""
        known = self._file.archives.get(url)
        return _heads(known) if known else {}

    def remember(self, url: str, pin: Pin, heads: Mapping[str, Head]) -> None:
        """Move the known heads of the archive at a URL forward, and save the file. A new pin replaces all its heads.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        known = self._file.archives.get(url)
        if known is None or self.pin(url) != pin:
            known = self._file.archives[url] = _Archive(_Pin(pin.id, pin.sha256), {})
        for name, head in heads.items():
            before = known.heads.get(name)
            if before is None or before.size < head.size:
                known.heads[name] = HeadRef(head.size, head.root.hex())
        try:
            data = msgspec.json.format(msgspec.json.encode(self._file, order="sorted"), indent=1) + b"\n"
            replace_file(self._path.absolute(), data)
        except OSError as error:
            raise ConfigurationError(f"the state file {self._path} cannot be written: {error.strerror}") from None


def _decode(data: bytes, source: str) -> _File:
    try:
        if len(data) > _SIZE_LIMIT:
            raise ConfigurationError(f"{source} is not a state file: it is larger than {_SIZE_LIMIT} bytes")
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{source} is not a state file ({error}); restore it from a backup, because it has the known heads,"
            " or name a new file if there is no backup"
        ) from None
    for archive in file.archives.values():
        for name in archive.heads:
            if parse_log_text(name) is None:
                raise ConfigurationError(f"{source} is not a state file: {name[:300]!r} is not the name of a log")
    return file


def _heads(archive: _Archive) -> dict[str, Head]:
    return {name: Head(head.size, bytes.fromhex(head.root)) for name, head in archive.heads.items()}
