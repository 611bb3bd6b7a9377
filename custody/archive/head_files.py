"""Heads of an archive's logs, read from what people have at hand: `custody keys end ID --at FILE`. Pure.

The file is one of these, told by its content:

1. what `custody verify --json` printed: the heads of its logs, if verification vouches for them;
2. what `custody checkpoint` printed: C2SP notes, one after another;
3. a state file (`--state`) or a `trust.json`: the heads remembered there;
4. a JSON object `{"<log>/<partition>": {"size", "root"}}`.

Whoever gives the file answers for it: no signature is checked here. What names its archive must name the right one.
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
"""Bytes of a file of heads."""
_WANTED = (
    "give what `custody verify --json` or `custody checkpoint` printed, a state file, a trust.json, or"
    ' {"TOPIC/PARTITION":{"size":…,"root":"…"},…}'
)


class _LogLine(msgspec.Struct):
    """What is wanted of a report's line about a log, or about the log of audits."""

    log: str
    size: Int
    root: str | None
    sound: bool = True
    """A report has the line about audits only if they are."""
    pending: Int = 0


class _TrustHeads(msgspec.Struct):
    """What is wanted of a `trust.json`."""

    archive: dict[str, str] | None = None
    heads: dict[str, HeadRef] = {}


def read_heads(data: bytes, what: str, pin: Pin | None = None, url: str | None = None) -> dict[str, Head]:
    """Return the heads that a file gives, by `<log>/<partition>`.

    Args:
        data: the file's bytes.
        what: how errors call it.
        pin: of the archive whose heads are wanted, if it is known.
        url: where that archive lies: chooses among those of a state file.

    Raises:
        ConfigurationError: the file is none of the forms, is of another archive, or gives a head twice or wrongly.
    """
    if len(data) > LIMIT:
        raise ConfigurationError(f"{what} has more than {LIMIT} bytes: it is no file of heads")
    heads = dict(_heads(data, what, pin, url))
    for log in heads:
        if parse_log_text(log) is None:
            raise ConfigurationError(
                f"{what}: {log[:300]!r} names no log; write TOPIC/PARTITION, TOPIC@EPOCH/PARTITION or {AUDIT_LOG}"
            )
    return heads


def split_notes(data: bytes) -> list[bytes]:
    """Return the checkpoints of a file, one after another with an empty line between, as `custody checkpoint` prints.

    Whether each is a note is said by who parses it. What cannot be split is returned whole.
    """
    parts = data.rstrip(b"\n").split(b"\n\n")
    # The text of a checkpoint has no empty line: text and signatures take turns.
    if len(parts) % 2:
        return [data]
    return [b"%s\n\n%s\n" % pair for pair in zip(parts[::2], parts[1::2], strict=True)]


def _heads(data: bytes, what: str, pin: Pin | None, url: str | None) -> Mapping[str, Head]:
    if data.startswith(b"custody/"):
        return _of_notes(data, what, pin)
    try:
        first: Any = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Not one document: lines.
        return _of_report(data, what, pin)
    if not isinstance(first, dict):
        raise ConfigurationError(f"{what} gives no heads: {_WANTED}")
    match first.get("format"):
        case "custody/state/1":
            return _of_state(data, what, pin, url)
        case "custody/trust/1":
            trust = decode_document(data, what, _TrustHeads)
            if trust.archive is not None:
                _check_archive(trust.archive.get("id"), what, pin)
            return _plain(trust.heads)
    if "kind" in first:
        return _of_report(data, what, pin)
    return _plain(decode_document(data, what, dict[str, HeadRef]))


def _plain(heads: Mapping[str, HeadRef]) -> dict[str, Head]:
    return {log: Head(head.size, bytes.fromhex(head.root)) for log, head in heads.items()}


def _of_state(data: bytes, what: str, pin: Pin | None, url: str | None) -> Mapping[str, Head]:
    seen = parse_state(data, what)
    chosen = {where: heads for where, (of, heads) in seen.items() if pin is None or of == pin}
    if url in chosen:
        return chosen[url]
    if len(chosen) != 1:
        why = f"{len(chosen)} of the {len(seen)} archives that it remembers are the one asked for"
        raise ConfigurationError(f"{what}: {why}; name the archive's URL in the setting `archive`")
    return next(iter(chosen.values()))


def _of_report(data: bytes, what: str, pin: Pin | None) -> Mapping[str, Head]:
    heads: dict[str, Head] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            if found.get("kind") == "verdict":
                _check_archive(found.get("archive"), what, pin)
                return heads
            if found.get("kind") not in {"log", "audits"}:
                continue
            log = msgspec.convert(found, _LogLine)
            root = bytes.fromhex(log.root) if log.root is not None else b""
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ConfigurationError(f"{what} gives no heads (line {number}): {_WANTED}") from None
        if not log.size:
            heads[log.log] = NOWHERE
            continue
        if log.pending:
            raise ConfigurationError(
                f"{what}: {log.pending} statements of {log.log} wait for a checkpoint, so its head is not verified;"
                " take the report of somebody who has the HMAC secret, or what `custody checkpoint` prints"
            )
        if not log.sound or len(root) != 32:
            raise ConfigurationError(
                f"{what}: verification does not vouch for the head of {log.log}, and says why; give heads that you know"
                " to be right, from a state file or checkpoints that others hold"
            )
        heads[log.log] = Head(log.size, root)
    raise ConfigurationError(f"{what} has no verdict: it was cut off; give what `custody verify --json` prints, whole")


def _of_notes(data: bytes, what: str, pin: Pin | None) -> Mapping[str, Head]:
    heads: dict[str, Head] = {}
    for note in split_notes(data):
        try:
            found = parse_checkpoint(parse_note(note).text)
        except FormatError as error:
            raise ConfigurationError(f"{what} gives no heads: {error}") from None
        program, _, rest = found.origin.partition("/")
        archive, _, log = rest.partition("/")
        if program != "custody":
            raise ConfigurationError(f"{what}: {found.origin[:300]!r} is no log of custody")
        _check_archive(archive, what, pin)
        head = Head(found.size, found.root)
        before = heads.setdefault(log, head)
        if before != head:
            raise ConfigurationError(
                f"{what} gives two heads of {log}, of sizes {before.size} and {head.size}; keep the one that is right"
            )
    return heads


def _check_archive(archive: object, what: str, pin: Pin | None) -> None:
    if pin is not None and archive != pin.id:
        raise ConfigurationError(f"{what} is of the archive {str(archive)[:100]}, and trust.json is for {pin.id}")
