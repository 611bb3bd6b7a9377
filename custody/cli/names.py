"""The names under which custody prints things, as `show` and `evidence` take them.

A log is `topic/partition` everywhere; from its second epoch on, `topic@epoch/partition`. What is in it is printed as:

| printed | it is |
|---|---|
| `audit.events/0 1234`, `audit.events/0@1234`, `audit.events/0, offset 1234`, `offset 1234 of …` | a record |
| `audit.events/0, sequence 7`, `sequence 7 of …`, `statement 7 of …`, `audit.events/0/7` | a statement |
| `audit.events-0-1234`, the `_id` of a document in Elasticsearch | a record |
| `audit.events/0 8 36a520de4ef1`, a head | its newest statement, here 7 |
| `audit 7` | a signed audit |

Where a finding names a statement and an offset, it is about the record. Where a log is wanted (`--log`, `checkpoint`,
`index`), a statement, a record, a head or an object's key stands for its whole log, and a note says so. An `_id` does
not: a topic may have such a name.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from custody.cli import common
from custody.errors import ConfigurationError, escape
from custody.format import layout

_LOG = r"(?P<log>[^\s/,;:]+/[0-9]{1,10})"
_SEQUENCE, _OFFSET = r"(?P<sequence>[0-9]{1,12})", r"(?P<offset>[0-9]{1,19})"
_NEXT = "[,:]? "
_AFTER = re.compile(
    rf"{_LOG}(?:{_NEXT}(?:sequence|statement) {_SEQUENCE}(?:-[0-9]+)?)?(?:{_NEXT}batch [0-9]+)?"
    rf"(?:{_NEXT}(?:offset )?{_OFFSET})?(?:{_NEXT}byte [0-9]+)?"
)
_BEFORE = re.compile(rf"(?:(?:sequence|statement) {_SEQUENCE}|(?:record )?(?:at )?offset {_OFFSET}) of {_LOG}")
_HEAD = re.compile(rf"(?:Head )?{_LOG} (?P<size>[0-9,]{{1,15}}) [0-9a-f]{{12,64}}")
_AUDIT = re.compile(r"audit (?P<sequence>[0-9]{1,12})")
_DOCUMENT = re.compile(r"(?P<name>[^\s/]+)-(?P<partition>[0-9]{1,10})-(?P<offset>[0-9]{1,19})")
_SHORT = re.compile(rf"{_LOG}(?:/(?P<sequence>[0-9]{{1,12}})|@(?P<offset>[0-9]{{1,19}}))")
_RECORD = re.compile(r"(?P<log>[^\s/]+) (?P<offset>[0-9]{1,19})")


def canonical(words: Sequence[str]) -> str:
    """Return a printed name as `show` takes it: LOG, LOG/SEQUENCE, LOG@OFFSET, or an object's key.

    What has no form of ours is returned as it is.
    """
    text = _joined(words)
    if audit := _AUDIT.fullmatch(text):
        return layout.audit_key(int(audit["sequence"]))
    match = _head(text) or _match(text)
    if match is None:
        return text
    log, sequence, offset = match
    if log == str(layout.AUDIT_LOG) and sequence is not None:
        return layout.audit_key(int(sequence))
    if offset is not None:
        return f"{log}@{offset}"
    return log if sequence is None else f"{log}/{sequence}"


def record(words: Sequence[str]) -> tuple[str, int]:
    """Return the log and the offset of a printed record. The log may lack its partition.

    Raises:
        ConfigurationError: the words do not name a record.
    """
    text = _joined(words)
    if only := _RECORD.fullmatch(text):
        return only["log"], int(only["offset"])
    match = _match(text)
    if match is None or match[2] is None:
        raise ConfigurationError(
            f"{text[:200]!r} names no record: give LOG/PARTITION OFFSET, as in audit.events/0 1234"
        )
    return match[0], int(match[2])


def logs(given: list[str] | None) -> list[str] | None:
    """Return the log of each printed name. A topic, and what has no form of ours, stays as it is.

    It is the callback of options and arguments that take logs. The words of one unquoted name are one log.
    """
    if not given:
        return given
    one_name = _joined(given)
    texts = [one_name] if _log_of(one_name) else [_joined([text]) for text in given]
    wanted = [_log_of(text) for text in texts]
    for text, log in zip(texts, wanted, strict=True):
        if log not in {None, text}:
            common.note(escape(f"custody: {text[:200]!r} is a part of {log}: the whole log is taken"))
    return [log or text for text, log in zip(texts, wanted, strict=True)]


def statement(name: str, sequence: int | None) -> tuple[str, int | None]:
    """Return the log and the sequence of a printed statement, or of a log and a sequence that was given beside it.

    Raises:
        ConfigurationError: the name has another sequence than the one beside it.
    """
    text = _joined([name])
    log, own, _ = _match_ours(text) or (text, None, None)
    if own is None:
        return text, sequence
    if sequence not in {None, int(own)}:
        raise ConfigurationError(f"{text[:200]!r} names sequence {int(own)}, and --sequence is {sequence}: give one")
    return log, int(own)


def _log_of(name: str) -> str | None:
    """Return the log of which this is the name, or the name of a part."""
    match = _head(name) or _match_ours(name)
    log = layout.log_of(name)
    return match[0] if match else str(log) if log else None


def _joined(words: Sequence[str]) -> str:
    """Return the words as one text, without the punctuation of the sentence from which they were copied."""
    return " ".join(" ".join(words).split()).rstrip(",;:.")


def below(root: str, name: str) -> str:
    """Return the key of an object that was named by its path in a folder; other names as they are.

    Args:
        root: URL of the archive.
        name: a name, or a path as `find` prints it.
    """
    if not root.startswith("file:"):
        return name
    try:
        key = Path(os.path.realpath(name)).relative_to(unquote(urlsplit(root).path)).as_posix()
        # In a folder of the archive, a log's name would be a path too.
        taken = Path(name).is_absolute() or Path(name).is_file()
    except (OSError, ValueError):
        return name
    ours = layout.parse_records_key(key) or layout.parse_manifest_key(key) or layout.parse_checkpoint_key(key)
    return key if ours or taken else name


def _head(text: str) -> tuple[str, str | None, str | None] | None:
    """Return log and sequence of the newest statement of a head as `verify` prints it, None if it is none."""
    head = _HEAD.fullmatch(text)
    size = int(head["size"].replace(",", "") or 0) if head else 0
    return (head["log"], str(size - 1), None) if head and size else None


def _match(text: str) -> tuple[str, str | None, str | None] | None:
    """Return log, sequence and offset of a text; None if it has none of the forms."""
    if ours := _match_ours(text):
        return ours
    match = _DOCUMENT.fullmatch(text)
    log = layout.parse_log(match["name"], int(match["partition"])) if match else None
    return (str(log), None, match["offset"]) if match and log else None


def _match_ours(text: str) -> tuple[str, str | None, str | None] | None:
    """Return them of a text in one of the forms but the `_id` of a document, which may be a topic's name, too."""
    for form in (_SHORT, _AFTER, _BEFORE):
        if match := form.fullmatch(text):
            return match["log"], match["sequence"], match["offset"]
    return None
