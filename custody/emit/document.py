"""What a parsed GraphQL document says of one of its operations. This module alone imports graphql-core.

The signature is Apollo's: unused definitions are dropped, literals become `0`, `""`, `[]` and `{}`, aliases go, all is
sorted and squeezed. It is the text that `@apollo/utils.usagereporting` 3.1.0 makes with graphql-js 16, byte for byte.
So the same query with other values has the same signature, and no value of a user is in it.

The nodes are only read. So any graphql-core from 3.2 on will do, whose nodes are mutable, and frozen from 3.3 on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Final, TypeVar

from graphql import (
    ArgumentNode,
    BooleanValueNode,
    DirectiveNode,
    EnumValueNode,
    FieldNode,
    FloatValueNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    IntValueNode,
    ListTypeNode,
    ListValueNode,
    NamedTypeNode,
    NonNullTypeNode,
    NullValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    TypeNode,
    ValueNode,
    VariableDefinitionNode,
    VariableNode,
    parse,
)

from custody.format.limits import INT_MAX

PAGE: Final = 10
"""How many rows a field with an argument of `PAGED` is taken to give."""
PAGED: Final = frozenset({"first", "last", "limit"})
_LINE = 80
"""Characters of a field with its arguments beyond which graphql-js prints one argument a line, without commas."""
_Named = TypeVar("_Named", FieldNode, FragmentSpreadNode, ArgumentNode, DirectiveNode)
_INTROSPECTION = frozenset({"__schema", "__type"})


class ParseFailure(Exception):
    """The document is not GraphQL."""


class ValidationFailure(Exception):
    """The document is invalid under any schema: double names, fragments in a circle or missing, no executable one."""


class UnknownOperation(Exception):
    """The document has no operation of that name; or several, and none was named."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What an operation asks for, its fragments put in at each spread. Numbers end at 2^63-1.

    Attributes:
        aliases: fields that have an alias.
        depth: fields inside each other.
        complexity: fields; those below a field with an argument of `PAGED` count as `PAGE` each.
    """

    aliases: int = 0
    depth: int = 0
    complexity: int = 0


@dataclass(frozen=True, slots=True)
class Described:
    """An operation of a document.

    Attributes:
        signature: Apollo's operation signature.
        kind: query, mutation or subscription.
        name: its name in the document, if it has one.
        root_fields: how many different keys its result has: what it executes.
        introspection: whether it asks for the schema.
        measure: its aliases, depth and complexity.
    """

    signature: str
    kind: str
    name: str | None
    root_fields: int
    introspection: bool
    measure: Measure


def describe(document: str, operation_name: str | None, *, runs_first: bool = False) -> Described:
    """Return what a document says of an operation.

    Args:
        document: its text. The caller has limited its size, and how deep it nests.
        operation_name: which operation; None if the document has one only.
        runs_first: whether the first of several is meant where none is named.

    Raises:
        ParseFailure: it is not GraphQL.
        ValidationFailure: it is invalid under any schema.
        UnknownOperation: it has no such operation.
    """
    operations, fragments = _definitions(document)
    order = _order(fragments, operations)
    operation = _choose(operations, operation_name, runs_first)
    measures: dict[str, Measure] = {}
    for name in order:
        measures[name] = _measure(fragments[name].selection_set, measures)
    root = _root_fields(operation.selection_set, fragments)
    return Described(
        signature=_signature(operation, [fragments[name] for name in sorted(_used(operation, fragments))]),
        kind=operation.operation.value,
        name=operation.name.value if operation.name else None,
        root_fields=len({key for key, _ in root}),
        introspection=any(name in _INTROSPECTION for _, name in root),
        measure=_measure(operation.selection_set, measures),
    )


def _definitions(document: str) -> tuple[list[OperationDefinitionNode], dict[str, FragmentDefinitionNode]]:
    try:
        definitions = parse(document, no_location=True).definitions
    except GraphQLError as error:
        raise ParseFailure from error
    operations = [node for node in definitions if isinstance(node, OperationDefinitionNode)]
    fragments = {node.name.value: node for node in definitions if isinstance(node, FragmentDefinitionNode)}
    names = {node.name.value if node.name else None for node in operations}
    if len(operations) + len(fragments) != len(definitions) or len(names) != len(operations):
        raise ValidationFailure
    if None in names and len(names) > 1:
        raise ValidationFailure
    return operations, fragments


def _choose(
    operations: Sequence[OperationDefinitionNode], name: str | None, runs_first: bool
) -> OperationDefinitionNode:
    if not name and operations and (runs_first or len(operations) == 1):
        return operations[0]
    for operation in operations:
        if name and operation.name and operation.name.value == name:
            return operation
    raise UnknownOperation


def _order(fragments: Mapping[str, FragmentDefinitionNode], operations: Iterable[OperationDefinitionNode]) -> list[str]:
    """Return the names of the fragments, each behind those that it spreads."""
    spreads = {name: set(_spreads(fragment.selection_set)) for name, fragment in fragments.items()}
    for operation in operations:
        if not fragments.keys() >= set(_spreads(operation.selection_set)):
            raise ValidationFailure
    try:
        order = list(TopologicalSorter(spreads).static_order())
    except CycleError as error:
        raise ValidationFailure from error
    if len(order) != len(fragments):
        raise ValidationFailure
    return order


def _nodes(selections: SelectionSetNode) -> Iterator[SelectionNode]:
    """Yield all fields, spreads and inline fragments of a selection, however deep."""
    waiting = list(selections.selections)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, FieldNode | InlineFragmentNode) and node.selection_set:
            waiting.extend(node.selection_set.selections)


def _spreads(selections: SelectionSetNode) -> Iterator[str]:
    return (node.name.value for node in _nodes(selections) if isinstance(node, FragmentSpreadNode))


def _used(operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode]) -> set[str]:
    """Return the names of the fragments that an operation spreads, and of those that these spread."""
    used: set[str] = set()
    waiting = list(_spreads(operation.selection_set))
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting.extend(_spreads(fragments[name].selection_set))
    return used


def _root_fields(selections: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode]) -> set[tuple[str, str]]:
    """Return the root fields of an operation: their keys in its result, and their names."""
    fields: set[tuple[str, str]] = set()
    visited: set[str] = set()
    waiting = list(selections.selections)
    while waiting:
        node = waiting.pop()
        if isinstance(node, FieldNode):
            fields.add((node.alias.value if node.alias else node.name.value, node.name.value))
        elif isinstance(node, InlineFragmentNode):
            waiting.extend(node.selection_set.selections)
        elif isinstance(node, FragmentSpreadNode) and node.name.value not in visited:
            visited.add(node.name.value)
            waiting.extend(fragments[node.name.value].selection_set.selections)
    return fields


def _measure(selections: SelectionSetNode | None, fragments: Mapping[str, Measure]) -> Measure:
    """Return what a selection asks for. A fragment is measured once, however often it is spread."""
    aliases = depth = complexity = 0
    for node in selections.selections if selections else ():
        if isinstance(node, FieldNode):
            below = _measure(node.selection_set, fragments)
            page = PAGE if any(argument.name.value in PAGED for argument in node.arguments or ()) else 1
            part = Measure(below.aliases + (node.alias is not None), below.depth + 1, 1 + page * below.complexity)
        elif isinstance(node, FragmentSpreadNode):
            part = fragments[node.name.value]
        else:
            part = _measure(node.selection_set if isinstance(node, InlineFragmentNode) else None, fragments)
        aliases = min(aliases + part.aliases, INT_MAX)
        depth = max(depth, part.depth)
        complexity = min(complexity + part.complexity, INT_MAX)
    return Measure(aliases, depth, complexity)


def _signature(operation: OperationDefinitionNode, fragments: Iterable[FragmentDefinitionNode]) -> str:
    """Return the signature of an operation with the fragments that it uses, which are in order."""
    text = " ".join([*map(_fragment, fragments), _operation(operation)])
    # Apollo's own replacements, one after the other, over its own way to print.
    text = re.sub(r"([^_a-zA-Z0-9]) ", r"\1", text)
    return re.sub(r" ([^_a-zA-Z0-9])", r"\1", text)


def _operation(node: OperationDefinitionNode) -> str:
    name = node.name.value if node.name else ""
    parts = (node.operation.value, f"{name}{_variables(node.variable_definitions)}", _directives(node.directives))
    head = " ".join(filter(None, parts))
    return _block(node.selection_set) if head == "query" else f"{head} {_block(node.selection_set)}"


def _fragment(node: FragmentDefinitionNode) -> str:
    head = f"fragment {node.name.value}{_variables(node.variable_definitions)} on {node.type_condition.name.value}"
    return f"{head} {_directives(_by_name(node.directives))} {_block(node.selection_set)}".replace("  ", " ")


def _variables(nodes: Iterable[VariableDefinitionNode] | None) -> str:
    """Return the variables of an operation, by name."""
    texts = [
        f"${node.variable.name.value}: {_type(node.type)}"
        + (f" = {_value(node.default_value)}" if node.default_value else "")
        + (f" {_directives(node.directives)}" if node.directives else "")
        for node in sorted(nodes or (), key=lambda node: node.variable.name.value)
    ]
    return f"({', '.join(texts)})" if texts else ""


def _block(node: SelectionSetNode) -> str:
    """Return a selection: fields, then spreads, each by name, then inline fragments as they stand."""
    fields = [node for node in node.selections if isinstance(node, FieldNode)]
    spreads = [node for node in node.selections if isinstance(node, FragmentSpreadNode)]
    inline = [node for node in node.selections if isinstance(node, InlineFragmentNode)]
    texts = [*map(_field, _by_name(fields)), *map(_spread, _by_name(spreads)), *map(_inline, inline)]
    return f"{{ {' '.join(texts)} }}"


def _field(node: FieldNode) -> str:
    arguments = [_argument(argument) for argument in _by_name(node.arguments)]
    text = f"{node.name.value}({', '.join(arguments)})" if arguments else node.name.value
    if len(text) > _LINE and arguments:
        text = f"{node.name.value}( {' '.join(arguments)} )"
    parts = (text, _directives(node.directives), _block(node.selection_set) if node.selection_set else "")
    return " ".join(filter(None, parts))


def _spread(node: FragmentSpreadNode) -> str:
    return f"...{node.name.value} {_directives(_by_name(node.directives))}".rstrip()


def _inline(node: InlineFragmentNode) -> str:
    condition = f"on {node.type_condition.name.value}" if node.type_condition else ""
    parts = ("...", condition, _directives(_by_name(node.directives)), _block(node.selection_set))
    return " ".join(filter(None, parts))


def _directives(nodes: Iterable[DirectiveNode] | None) -> str:
    texts = []
    for node in nodes or ():
        arguments = ", ".join(map(_argument, _by_name(node.arguments)))
        texts.append(f"@{node.name.value}({arguments})" if arguments else f"@{node.name.value}")
    return " ".join(texts)


def _argument(node: ArgumentNode) -> str:
    return f"{node.name.value}: {_value(node.value)}"


def _value(node: ValueNode) -> str:
    """Return a value without its literal: numbers are 0, texts, lists and objects are empty."""
    match node:
        case VariableNode():
            return f"${node.name.value}"
        case IntValueNode() | FloatValueNode():
            return "0"
        case BooleanValueNode():
            return "true" if node.value else "false"
        case EnumValueNode():
            return node.value
        case NullValueNode():
            return "null"
        case ListValueNode():
            return "[]"
        case ObjectValueNode():
            return "{}"
        case _:
            return '""'


def _type(node: TypeNode) -> str:
    if isinstance(node, NonNullTypeNode):
        return f"{_type(node.type)}!"
    if isinstance(node, ListTypeNode):
        return f"[{_type(node.type)}]"
    return node.name.value if isinstance(node, NamedTypeNode) else ""


def _by_name(nodes: Iterable[_Named] | None) -> list[_Named]:
    return sorted(nodes or (), key=lambda node: node.name.value)
