"""JSON objects in which no name stands twice, as the format and our own files ask for."""

from typing import Any

from custody.errors import FormatError


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields: the `object_pairs_hook` of `json.loads` where none may stand twice.

    Raises:
        FormatError: one does. The message holds its name, and no value.
    """
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"the field {twice[:100]!r} stands twice")
    return fields
