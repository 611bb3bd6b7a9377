"""Kinds of reasons why records are quarantined: a few words for any number of sentences.

A reason is a sentence for people, and may quote what an application sent. Metrics, alerts and `custody status` need few
different ones, without anybody's values. Both are made here from the sentence alone, so older archives have them too.

Rules:
- `custody.format.events` and `custody.format.lines` make the sentences. A test compares each of them with this list.
- Any other sentence is `other`: whoever may write an archive chooses its text, and makes no new kind by it.
- An example is one sentence of its kind, with `…` instead of quoted values. Names of fields stay.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from custody.errors import FormatError, legible
from custody.format.events import EVENT_TYPES

OTHER = "other"
"""The kind of a sentence that is not in the list."""
NOT_KNOWN = "not known"
"""The kind of records whose reasons cannot be read: their object has expired, or is not the one that was signed."""

_OF_TYPE = rf"(?:{'|'.join(EVENT_TYPES)}): "
_KINDS: dict[str, re.Pattern[str]] = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "no value": r"the record has no value|the value is empty",
        "too large": r"the value has [0-9]+ bytes",
        "too deep": r"nested deeper than",
        "not UTF-8": r"not UTF-8: ",
        "not JSON": r"not JSON: |starts with a byte order mark",
        "not an object": r"a JSON \w+, not an object",
        "event_type missing": r"event_type is missing",
        "unknown type": r"event_type ['\"].* is not one of ",
        "timestamp": r"timestamp (?:['\"]|is |stands )",
        "field missing": _OF_TYPE + r"Object missing required field",
        "field invalid": _OF_TYPE + r"|client_ip ['\"]|event_type (?:is not|stands|holds|has) ",
    }.items()
}
"""The first pattern that a sentence begins with decides."""
KINDS = (*_KINDS, OTHER, NOT_KNOWN)
"""Every kind of reason."""
_QUOTED = re.compile(r"(['\"])(?:.*\1|.*)", re.DOTALL)
"""From the first quote to the last one: a value may itself have quotes in it, and may be cut off."""
_EXAMPLE_CHARACTERS = 160


class _Line(msgspec.Struct):
    error: str


_decoder = msgspec.json.Decoder(_Line)


def kind_of(reason: str) -> str:
    """Return the kind of a reason."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(reason)), OTHER)


def example_of(reason: str) -> str:
    """Return a reason as others may see it: short, on one line, and without quoted values."""
    text = legible(_QUOTED.sub(r"\1…\1", reason))
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 1] + "…"


@dataclass(slots=True)
class Reasons:
    """Why records are in quarantine.

    Attributes:
        counts: records by kind of reason.
        examples: the first reason of each kind.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def count(self, lines: Iterable[bytes]) -> None:
        """Count the lines of a quarantine object.

        Raises:
            FormatError: a line has no reason. Those before it are counted.
        """
        for line in lines:
            try:
                reason = _decoder.decode(line).error
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise FormatError("a line of a quarantine object has no reason") from None
            kind = kind_of(reason)
            self.note(kind, 1)
            if kind not in self.examples:
                self.examples[kind] = example_of(reason)

    def note(self, kind: str, records: int) -> None:
        """Add records of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + records

    def add(self, other: "Reasons") -> None:
        """Add the records of others."""
        for kind, records in other.counts.items():
            self.note(kind, records)
        self.examples = other.examples | self.examples

    @property
    def records(self) -> int:
        """How many records they are."""
        return sum(self.counts.values())

    def commonest(self) -> str | None:
        """Return the commonest kind, how many records it has, and an example; None without any records."""
        if not self.counts:
            return None
        kind, number = min(self.counts.items(), key=lambda item: (-item[1], item[0]))
        example = self.examples.get(kind)
        return f"{kind} ({number:,})" + (f", for example: {example}" if example else "")
