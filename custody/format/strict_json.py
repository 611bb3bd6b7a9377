"""Strict JSON: no name stands twice in an object, and nesting has a limit. The format and our own files ask for it."""

import re
from collections import Counter
from typing import Any

from custody.errors import FormatError
from custody.format.patterns import possessive

# A string without its end is one token too. Otherwise each quote in it would begin a search to the end of the text.
_IN_STRING = possessive(r'[^"\\]++|\\.').encode()
_TOKEN = re.compile(b'"' + _IN_STRING + rb'"?|[\[{]|[\]}]', re.DOTALL)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields: the `object_pairs_hook` of `json.loads` where none may stand twice.

    Raises:
        FormatError: one does. The message holds its name, and no value.
    """
    fields = dict(pairs)
    if len(fields) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise FormatError(f"the field {twice[:100]!r} stands twice")
    return fields


def check_depth(text: bytes, limit: int) -> None:
    """Check how many objects and arrays are open at once in a text, which need not be JSON.

    Raises:
        FormatError: they are more than the limit.
    """
    if text.count(b"{") + text.count(b"[") <= limit:
        return
    depth = 0
    for match in _TOKEN.finditer(text):
        if match[0] in {b"{", b"["}:
            depth += 1
            if depth > limit:
                raise FormatError(f"nested deeper than {limit}")
        elif match[0] in {b"}", b"]"}:
            depth -= 1
