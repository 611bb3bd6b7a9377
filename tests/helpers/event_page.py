"""Writes the tables of docs/events.md from the types in the code: `uv run python -m tests.helpers.event_page`."""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from custody.format.events import EVENT_TYPES, Event

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
BEGIN, END = "<!-- From custody/format/events.py, by `python -m tests.helpers.event_page` -->\n", "<!-- End -->\n"


def rule(annotation: Any) -> str:
    """Return what a field's value must be, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [part for part in arguments[1:] if part.ge is not None]
        return f"{rule(arguments[0])}{''.join(map(_bounds, bounds))}"
    if origin in {typing.Union, types.UnionType}:
        (inner,) = (part for part in arguments if part is not type(None))
        return f"{rule(inner)}, or null"
    if origin is typing.Literal:
        *others, last = (f"`{value}`" for value in arguments)
        return f"{', '.join(others)} or {last}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", list: "list", dict: "object"}
    return names[origin or annotation]


def _bounds(bound: msgspec.Meta) -> str:
    if bound.le is None:
        return f", at least {bound.ge}"
    return f", {'0' if bound.ge == 0 else '-2^63'} to 2^63-1"


def fields(kind: type[Event], inherited: set[str]) -> Iterator[str]:
    """Yield a table's row for each field of a type but the inherited ones."""
    yield from ("| field | value | meaning |", "|---|---|---|")
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        if name in kind.__struct_fields__ and name not in inherited:
            meanings = (getattr(part, "description", None) for part in annotation.__metadata__)
            yield f"| `{name}` | {rule(annotation)} | {next(filter(None, meanings))} |"


def tables() -> str:
    """Return the part of the page that follows from the code."""
    common = set(Event.__struct_fields__)
    rows = ["### Fields of all six types", "", *fields(Event, set())]
    for name, kind in EVENT_TYPES.items():
        rows += ["", f"### {name}", "", str(kind.__doc__), "", *fields(kind, common)]
    return "\n".join((*rows, ""))


def expected(page: str) -> str:
    """Return the page as it should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(expected(PAGE.read_text()))
