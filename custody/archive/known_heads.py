"""Files with known heads: the verifier's state file (`--state`), and any file that a user gives heads in.

Rules of the state file:

1. Entries are kept by the archive's URL, which the user configured, and are pinned to the first `archive.json` there.
   Nothing in the archive selects the entry.
2. Another `archive.json` at that URL is an alarm at every verification, until it is accepted; then it is pinned.
3. A head only moves forward, and only a verified head is kept.
4. The file is replaced as a whole, by renaming a synced file.

`custody keys end ID --at FILE` reads heads from one of these files, recognised by its content:

1. the output of `custody verify --json`: the heads of its logs, if they were verified;
2. the output of `custody checkpoint`: C2SP notes, one after another;
3. a state file (`--state`) or a `trust.json`: their known heads;
4. a JSON object `{"<log>/<partition>": {"size", "root"}}`.

The user vouches for such a file: no signature is checked here. If it names an archive, it must be the right one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from custody.errors import ConfigurationError, FormatError
from custody.format.archive_file import Pin
from custody.format.envelope import HeadRef, Hex, Int, Uuid
from custody.format.layout import AUDIT_LOG, parse_log_text
from custody.keys.files import decode_document, other_file
from custody.store.durable import replace_file
from custody.tlog.checkpoint import parse_checkpoint, parse_note
from custody.tlog.head import Head
from custody.tlog.signatures import NOWHERE

LIMIT = 64 * 1024 * 1024
"""The most bytes in a file of heads, or in a state file."""
_WANTED = (
    "give the output of `custody verify --json` or `custody checkpoint`, a state file, a trust.json, or"
    ' {"TOPIC/PARTITION":{"size":…,"root":"…"},…}'
)


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
    try:
        if len(data) > LIMIT:
            raise ConfigurationError(f"{source} is not a state file: it is larger than {LIMIT} bytes")
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = other_file(data, "custody/state/1") or str(error)[:200]
        raise ConfigurationError(
            f"{source} is not a state file ({reason}); restore it from a backup, because it has the known"
            " heads, or name a new file if there is no backup"
        ) from None
    for archive in file.archives.values():
        for name in archive.heads:
            if parse_log_text(name) is None:
                raise ConfigurationError(f"{source} is not a state file: {name[:300]!r} is not the name of a log")
    return {
        url: (Pin(archive.archive.id, archive.archive.sha256), to_heads(archive.heads))
        for url, archive in file.archives.items()
    }


def to_heads(heads: Mapping[str, HeadRef]) -> dict[str, Head]:
    """Return heads as values."""
    return {log: Head(head.size, bytes.fromhex(head.root)) for log, head in heads.items()}


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
                data = file.read(LIMIT + 1)
        except FileNotFoundError:
            self._known: dict[str, tuple[Pin, dict[str, Head]]] = {}
            return
        except OSError as error:
            raise ConfigurationError(f"the state file {path} cannot be read: {error.strerror}") from None
        self._known = parse_state(data, str(path))

    def pin(self, url: str) -> Pin | None:
        """Return the pin of the archive at a URL, None before its first verification."""
        return self._known[url][0] if url in self._known else None

    def heads(self, url: str) -> Mapping[str, Head]:
        """Return the known heads of the archive at a URL, by `<log>/<partition>`."""
        return self._known[url][1] if url in self._known else {}

    def remember(self, url: str, pin: Pin, heads: Mapping[str, Head]) -> None:
        """Move the known heads of the archive at a URL forward, and save the file. A new pin replaces all its heads.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        known = dict(self.heads(url)) if self.pin(url) == pin else {}
        for name, head in heads.items():
            if name not in known or known[name].size < head.size:
                known[name] = head
        self._known[url] = pin, known
        file = _File("custody/state/1", {})
        for at, (its_pin, its_heads) in self._known.items():
            refs = {log: HeadRef(head.size, head.root.hex()) for log, head in its_heads.items()}
            file.archives[at] = _Archive(_Pin(its_pin.id, its_pin.sha256), refs)
        data = msgspec.json.format(msgspec.json.encode(file, order="sorted"), indent=1) + b"\n"
        try:
            replace_file(self._path.absolute(), data)
        except OSError as error:
            raise ConfigurationError(f"the state file {self._path} cannot be written: {error.strerror}") from None


class _LogLine(msgspec.Struct):
    """The fields read from a report's line about a log, or about the log of audits."""

    log: str
    size: Int
    root: str | None
    sound: bool = True
    """A report has a line about audits only if they were verified."""
    pending: Int = 0


class _TrustHeads(msgspec.Struct):
    """The fields read from a `trust.json`."""

    archive: dict[str, str] | None = None
    heads: dict[str, HeadRef] = {}


def read_heads(data: bytes, source: str, pin: Pin | None = None, url: str | None = None) -> dict[str, Head]:
    """Return the heads that a file gives, by `<log>/<partition>`.

    Args:
        data: the file's bytes.
        source: the name of the file in errors.
        pin: of the archive whose heads are wanted, if it is known.
        url: of that archive: selects one of the archives in a state file.

    Raises:
        ConfigurationError: the file has none of the forms, is of another archive, or has a head twice or a wrong one.
    """
    if len(data) > LIMIT:
        raise ConfigurationError(f"{source} is larger than {LIMIT} bytes, so it is not a file of heads")
    heads = dict(_heads(data, source, pin, url))
    for log in heads:
        if parse_log_text(log) is None:
            raise ConfigurationError(
                f"{source}: {log[:300]!r} is not the name of a log; write TOPIC/PARTITION, TOPIC@EPOCH/PARTITION or"
                f" {AUDIT_LOG}"
            )
    return heads


def split_notes(data: bytes) -> list[bytes]:
    """Return the checkpoints of a file, separated by empty lines as `custody checkpoint` prints them.

    Does not check that each is a note. Data that cannot be split is returned as it is.
    """
    parts = data.rstrip(b"\n").split(b"\n\n")
    # The text of a checkpoint has no empty line, so text and signatures alternate.
    if len(parts) % 2:
        return [data]
    return [b"%s\n\n%s\n" % pair for pair in zip(parts[::2], parts[1::2], strict=True)]


def _heads(data: bytes, source: str, pin: Pin | None, url: str | None) -> Mapping[str, Head]:
    if data.startswith(b"custody/"):
        return _of_notes(data, source, pin)
    try:
        first: Any = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Not one JSON document, so JSON lines.
        return _of_report(data, source, pin)
    if not isinstance(first, dict):
        raise ConfigurationError(f"{source} has no heads: {_WANTED}")
    if first.get("format") == "custody/state/1":
        return _of_state(data, source, pin, url)
    if first.get("format") == "custody/trust/1":
        trust = decode_document(data, source, _TrustHeads)
        if trust.archive is not None:
            _check_archive(trust.archive.get("id"), source, pin)
        return to_heads(trust.heads)
    if "kind" in first:
        return _of_report(data, source, pin)
    return to_heads(decode_document(data, source, dict[str, HeadRef]))


def _of_state(data: bytes, source: str, pin: Pin | None, url: str | None) -> Mapping[str, Head]:
    archives = parse_state(data, source)
    chosen = {at: heads for at, (of, heads) in archives.items() if pin is None or of == pin}
    if url in chosen:
        return chosen[url]
    if len(chosen) != 1:
        why = f"{len(chosen)} of its {len(archives)} archives match the wanted one"
        raise ConfigurationError(f"{source}: {why}; name the archive's URL in the setting `archive`")
    return next(iter(chosen.values()))


def _of_report(data: bytes, source: str, pin: Pin | None) -> Mapping[str, Head]:
    heads: dict[str, Head] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            fields: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            if fields.get("kind") == "verdict":
                _check_archive(fields.get("archive"), source, pin)
                return heads
            if fields.get("kind") not in {"log", "audits"}:
                continue
            log = msgspec.convert(fields, _LogLine)
            root = bytes.fromhex(log.root) if log.root is not None else b""
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ConfigurationError(f"{source} has no heads (line {number}): {_WANTED}") from None
        if not log.size:
            heads[log.log] = NOWHERE
            continue
        if log.pending:
            raise ConfigurationError(
                f"{source}: {log.pending} statements of {log.log} wait for a checkpoint, so its head is not verified;"
                " use a report by somebody with the HMAC secret, or the output of `custody checkpoint`"
            )
        if not log.sound or len(root) != 32:
            raise ConfigurationError(
                f"{source}: the head of {log.log} was not verified, see its findings; give heads that you know to be"
                " right, from a state file or from checkpoints that others keep"
            )
        heads[log.log] = Head(log.size, root)
    raise ConfigurationError(
        f"{source} has no verdict, so it is incomplete; give the complete output of `custody verify --json`"
    )


def _of_notes(data: bytes, source: str, pin: Pin | None) -> Mapping[str, Head]:
    heads: dict[str, Head] = {}
    for note in split_notes(data):
        try:
            checkpoint = parse_checkpoint(parse_note(note).text)
        except FormatError as error:
            raise ConfigurationError(f"{source} has no heads: {error}") from None
        program, _, rest = checkpoint.origin.partition("/")
        archive, _, log = rest.partition("/")
        if program != "custody":
            raise ConfigurationError(f"{source}: {checkpoint.origin[:300]!r} is not the origin of a custody log")
        _check_archive(archive, source, pin)
        before = heads.setdefault(log, checkpoint.head)
        if before != checkpoint.head:
            raise ConfigurationError(
                f"{source} has two heads of {log}, of sizes {before.size} and {checkpoint.size};"
                " keep the one that is right"
            )
    return heads


def _check_archive(archive: object, source: str, pin: Pin | None) -> None:
    if pin is not None and archive != pin.id:
        raise ConfigurationError(f"{source} is of the archive {str(archive)[:100]}, but trust.json is for {pin.id}")
