"""What tests share has one place: no test module is imported by another."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
IMPORT = re.compile(r"^\s*(?:from|import) (tests\.(?:\w+\.)*test_\w+)", re.MULTILINE)


def test_no_test_module_is_imported() -> None:
    """Helpers lie in `tests/helpers` and `tests/servers`, or in a module of their folder that holds no tests."""
    imported = {
        path.relative_to(TESTS).as_posix(): IMPORT.findall(path.read_text(encoding="utf-8"))
        for path in TESTS.rglob("*.py")
    }
    assert len(imported) > 100
    assert {path: names for path, names in imported.items() if names} == {}
