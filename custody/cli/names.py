"""The names under which custody prints things, as `show` and `evidence` take them.

A log is `topic/partition` everywhere; from its second epoch on, `topic@epoch/partition`. What is in it is printed as:

| printed | it is |
|---|---|
| `audit.events/0 1234`, `audit.events/0@1234`, `audit.events/0, offset 1234`, `offset 1234 of …` | a record |
| `audit.events/0, sequence 7`, `sequence 7 of …`, `statement 7 of …`, `audit.events/0/7` | a statement |
| `audit.events-0-1234`, the `_id` of a document in Elasticsearch | a record |
| `audit 7` | a signed audit |

Where a finding names a statement and an offset, it is about the record.
"""

import re
from collections.abc import Sequence

from custody.errors import ConfigurationError
from custody.format import layout

_LOG = r"(?P<log>[^\s/,;:]+/[0-9]{1,10})"
_SEQUENCE, _OFFSET = r"(?P<sequence>[0-9]{1,12})", r"(?P<offset>[0-9]{1,19})"
_NEXT = "[,:]? "
_AFTER = re.compile(
    rf"{_LOG}(?:{_NEXT}(?:sequence|statement) {_SEQUENCE}(?:-[0-9]+)?)?(?:{_NEXT}batch [0-9]+)?"
    rf"(?:{_NEXT}(?:offset )?{_OFFSET})?(?:{_NEXT}byte [0-9]+)?"
)
_BEFORE = re.compile(rf"(?:(?:sequence|statement) {_SEQUENCE}|(?:record )?(?:at )?offset {_OFFSET}) of {_LOG}")
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
    match = _match(text)
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


def _joined(words: Sequence[str]) -> str:
    """Return the words as one text, without the punctuation of the sentence from which they were copied."""
    return " ".join(" ".join(words).split()).rstrip(",;:.")


def _match(text: str) -> tuple[str, str | None, str | None] | None:
    """Return log, sequence and offset of a text; None if it has none of the forms."""
    for form in (_SHORT, _AFTER, _BEFORE):
        if match := form.fullmatch(text):
            return match["log"], match["sequence"], match["offset"]
    match = _DOCUMENT.fullmatch(text)
    log = layout.parse_log(match["name"], int(match["partition"])) if match else None
    return (str(log), None, match["offset"]) if match and log else None
