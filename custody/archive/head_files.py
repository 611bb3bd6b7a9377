"""Heads of an archive's logs, read from a file that the user has: `custody keys end ID --at FILE`. Pure.

The file is one of these, recognised by its content:

1. the output of `custody verify --json`: the heads of its logs, if they were verified;
2. the output of `custody checkpoint`: C2SP notes, one after another;
3. a state file (`--state`) or a `trust.json`: their known heads;
4. a JSON object `{"<log>/<partition>": {"size", "root"}}`.

The user vouches for the file: no signature is checked here. If the file names an archive, it must be the right one.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from custody.archive.known_heads import parse_state
from custody.errors import ConfigurationError, FormatError
from custody.format.archive_file import Pin
from custody.format.envelope import HeadRef, Int
from custody.format.layout import AUDIT_LOG, parse_log_text
from custody.keys.files import decode_document
from custody.tlog.checkpoint import parse_checkpoint, parse_note
from custody.tlog.head import Head
from custody.tlog.signatures import NOWHERE

LIMIT = 64 * 1024 * 1024
"""The most bytes in a file of heads."""
_WANTED = (
    "give the output of `custody verify --json` or `custody checkpoint`, a state file, a trust.json, or"
    ' {"TOPIC/PARTITION":{"size":…,"root":"…"},…}'
)


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
    match first.get("format"):
        case "custody/state/1":
            return _of_state(data, source, pin, url)
        case "custody/trust/1":
            trust = decode_document(data, source, _TrustHeads)
            if trust.archive is not None:
                _check_archive(trust.archive.get("id"), source, pin)
            return _plain(trust.heads)
    if "kind" in first:
        return _of_report(data, source, pin)
    return _plain(decode_document(data, source, dict[str, HeadRef]))


def _plain(heads: Mapping[str, HeadRef]) -> dict[str, Head]:
    return {log: Head(head.size, bytes.fromhex(head.root)) for log, head in heads.items()}


def _of_state(data: bytes, source: str, pin: Pin | None, url: str | None) -> Mapping[str, Head]:
    seen = parse_state(data, source)
    chosen = {where: heads for where, (of, heads) in seen.items() if pin is None or of == pin}
    if url in chosen:
        return chosen[url]
    if len(chosen) != 1:
        why = f"{len(chosen)} of its {len(seen)} archives match the wanted one"
        raise ConfigurationError(f"{source}: {why}; name the archive's URL in the setting `archive`")
    return next(iter(chosen.values()))


def _of_report(data: bytes, source: str, pin: Pin | None) -> Mapping[str, Head]:
    heads: dict[str, Head] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            if found.get("kind") == "verdict":
                _check_archive(found.get("archive"), source, pin)
                return heads
            if found.get("kind") not in {"log", "audits"}:
                continue
            log = msgspec.convert(found, _LogLine)
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
            found = parse_checkpoint(parse_note(note).text)
        except FormatError as error:
            raise ConfigurationError(f"{source} has no heads: {error}") from None
        program, _, rest = found.origin.partition("/")
        archive, _, log = rest.partition("/")
        if program != "custody":
            raise ConfigurationError(f"{source}: {found.origin[:300]!r} is not the origin of a custody log")
        _check_archive(archive, source, pin)
        head = Head(found.size, found.root)
        before = heads.setdefault(log, head)
        if before != head:
            raise ConfigurationError(
                f"{source} has two heads of {log}, of sizes {before.size} and {head.size}; keep the one that is right"
            )
    return heads


def _check_archive(archive: object, source: str, pin: Pin | None) -> None:
    if pin is not None and archive != pin.id:
        raise ConfigurationError(f"{source} is of the archive {str(archive)[:100]}, but trust.json is for {pin.id}")
