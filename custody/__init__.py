"""Archive audit events and prove that nobody changed, dropped or invented one. FORMAT.md is the specification.

The public API is what `__all__` names: here rooms and modules, in a room its public modules, in a module its public
names. All else is internal, and may change without notice (docs/architecture.md, The public API).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from custody.query.connect import connect

__all__ = [
    "archive",
    "connect",
    "emit",
    "errors",
    "findings",
    "format",
    "keys",
    "query",
    "settings",
    "store",
    "tlog",
    "verify",
]


def __getattr__(name: str) -> Any:
    # `custody.connect()`: DuckDB and Arrow are for those who query; to verify needs neither.
    if name == "connect":
        return import_module("custody.query.connect").connect
    raise AttributeError(f"module 'custody' has no attribute {name!r}")
