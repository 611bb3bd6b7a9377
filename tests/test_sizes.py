"""What is long says why. Tests are exempt: their modules are lists of promises, read one by one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES = 500
CLASS_LINES = 300


def long_ones() -> Iterator[tuple[str, str]]:
    """Yield what is longer than it should be, and its docstring."""
    for room in ("custody", "tasks", "flows"):
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(text := path.read_text(encoding="utf-8"))
            if text.count("\n") > MODULE_LINES:
                yield str(path.relative_to(ROOT)), ast.get_docstring(tree) or ""
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= CLASS_LINES:
                    yield f"{path.relative_to(ROOT)}: {node.name}", ast.get_docstring(node) or ""


@pytest.mark.parametrize(("name", "docstring"), list(long_ones()))
def test_what_is_long_says_why(name: str, docstring: str) -> None:
    """A module over 500 lines, or a class over 300, says at its head why it is one."""
    assert "because" in docstring, f"{name} is long, and its docstring gives no reason"
