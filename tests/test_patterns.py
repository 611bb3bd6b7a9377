"""Regular expressions mean the same with each Python that pyproject.toml allows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_POSSESSIVE = re.compile(r"\)(?:[*+?]|\{[0-9]*,?[0-9]*\})\+")


@pytest.mark.parametrize("room", ["custody", "tasks", "flows"])
def test_no_group_is_repeated_possessively(room: str) -> None:
    """Before Python 3.11.5 `(?:…)*+` may match more than it should: `custody.format.patterns` knows what to write."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str | bytes)
        and _POSSESSIVE.search(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
    ]
    assert not found


def test_the_forbidden_form_is_recognised() -> None:
    """The check knows each kind of repeat, and lets those of single characters be."""
    assert all(map(_POSSESSIVE.search, ["(?:a|b)*+", "(a)++", "(?:a)?+", "(?:a){1,3}+", "(?:a){2}+"]))
    assert not any(map(_POSSESSIVE.search, ["[a-b]*+", r"\w{1,3}+", "(?>(?:a|b)*)", "(?:a)+"]))
