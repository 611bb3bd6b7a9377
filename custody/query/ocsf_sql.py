"""Objects of a schema as SQL: a tree of what each attribute is made of, as DuckDB columns, and as JSON without nulls.

Imports no DuckDB, because the help uses it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

ANY = ""
"""Stands for the event type in a tree that is made for one."""
_TIMES = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value.

    Attributes:
        type: in DuckDB.
        made: the SQL that makes it, by event type. A type that is not there has NULL.
        is_json: whether it is the text of a JSON value.
    """

    type: str
    made: Mapping[str, str]
    is_json: bool = False

    def column(self, kinds: Iterable[str]) -> str:
        """Return the SQL of the value."""
        by_sql: dict[str, list[str]] = {}
        absent = False
        for kind in kinds:
            if kind in self.made:
                by_sql.setdefault(self.made[kind], []).append(kind)
            else:
                absent = True
        if len(by_sql) == 1 and not absent:
            return f"CAST({next(iter(by_sql))} AS {self.type})"
        cases = " ".join(f"WHEN event_type IN ({_texts(several)}) THEN {sql}" for sql, several in by_sql.items())
        return f"CAST(CASE {cases} END AS {self.type})" if cases else f"CAST(NULL AS {self.type})"

    def json(self, at: str) -> str:
        """Return the SQL of the JSON text of a value that is at a name; NULL for NULL."""
        if self.is_json:
            return at
        if self.type == "TIMESTAMP":
            return f"'\"' || strftime({at}, '{_TIMES}') || '\"'"
        return f"CAST(to_json({at}) AS VARCHAR)"

    def present(self, kinds: Iterable[str]) -> Iterator[str]:
        """Yield the conditions of which one is true where there is a value."""
        yield f"{self.column(kinds)} IS NOT NULL"

    def paths(self, before: str) -> Iterator[tuple[str, "Leaf"]]:
        """Yield the value with its path."""
        yield before, self


@dataclass(frozen=True, slots=True)
class Object:
    """An object. It is NULL where all of its attributes are.

    Attributes:
        fields: its attributes by name.
        is_text: whether its column is the text of its JSON: no schema names its attributes.
        many: whether it is the only item of a list.
    """

    fields: dict[str, "Node"] = field(default_factory=dict)
    is_text: bool = False
    many: bool = False

    @property
    def type(self) -> str:
        """The type in DuckDB."""
        if self.is_text:
            return "VARCHAR"
        made = f"STRUCT({', '.join(f'{_name(name)} {node.type}' for name, node in self.fields.items())})"
        return f"{made}[]" if self.many else made

    def column(self, kinds: Iterable[str]) -> str:
        """Return the SQL of the object."""
        kinds = list(kinds)
        if self.is_text:
            return _braced(_member(name, node.json(node.column(kinds))) for name, node in self.fields.items())
        members = ", ".join(f"{_name(name)}: {node.column(kinds)}" for name, node in self.fields.items())
        made = f"[{{{members}}}]" if self.many else f"{{{members}}}"
        return f"CASE WHEN {' OR '.join(dict.fromkeys(self.present(kinds)))} THEN {made} END"

    def json(self, at: str = "") -> str:
        """Return the SQL of the JSON text of an object that is at a name, else of columns; NULL where it is NULL."""
        if self.is_text:
            return at
        item = f"{at}[1]." if self.many else f"{at}." if at else ""
        made = _braced(_member(name, node.json(f'{item}"{name}"')) for name, node in self.fields.items())
        return f"'[' || {made} || ']'" if self.many else made

    def present(self, kinds: Iterable[str]) -> Iterator[str]:
        """Yield the conditions of which one is true where there is an object."""
        kinds = list(kinds)
        for node in self.fields.values():
            yield from node.present(kinds)

    def paths(self, before: str = "") -> Iterator[tuple[str, Leaf]]:
        """Yield all values with their paths."""
        marked = f"{before}[]" if self.many else before
        for name, node in self.fields.items():
            yield from node.paths(f"{marked}.{name}" if marked else name)


Node = Leaf | Object


def joined(by_kind: Mapping[str, Object]) -> Object:
    """Return the trees of several event types as one. An attribute comes where the first tree that has it puts it."""
    first = next(iter(by_kind.values()))
    made = Object({}, is_text=first.is_text, many=first.many)
    for name in dict.fromkeys(name for tree in by_kind.values() for name in tree.fields):
        parts = {kind: tree.fields[name] for kind, tree in by_kind.items() if name in tree.fields}
        leaves = {kind: node for kind, node in parts.items() if isinstance(node, Leaf)}
        if leaves:
            a_leaf = next(iter(leaves.values()))
            sqls = {kind: leaf.made[ANY] for kind, leaf in leaves.items()}
            made.fields[name] = Leaf(a_leaf.type, sqls, a_leaf.is_json)
        else:
            made.fields[name] = joined({kind: node for kind, node in parts.items() if isinstance(node, Object)})
    return made


def _member(name: str, sql: str) -> str:
    return f"'\"{name}\":' || {sql}"


def _braced(members: Iterable[str]) -> str:
    """Return the SQL of a JSON object's text: of members that are NULL if they are not there."""
    return f"nullif('{{' || concat_ws(',', {', '.join(members)}) || '}}', '{{}}')"


def _name(name: str) -> str:
    """Return an attribute's name as DuckDB writes it in a type."""
    return f'"{name}"' if name in _QUOTED else name


_QUOTED = frozenset({"data", "name", "sequence", "type", "types", "user", "value", "version"})
"""Attributes whose names are words of DuckDB's SQL."""


def _texts(kinds: Iterable[str]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)
