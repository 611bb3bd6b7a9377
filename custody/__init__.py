"""Archive audit events and prove that nobody changed, dropped or invented one. FORMAT.md is the specification."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from custody.query import connect

__all__ = ["connect"]


def __getattr__(name: str) -> Any:
    # DuckDB and Arrow are for those who query; an auditor's `verify` needs neither.
    if name == "connect":
        from custody.query import connect

        return connect
    raise AttributeError(f"module 'custody' has no attribute {name!r}")
