"""Verification: the rules of FORMAT.md, and what they find. Nothing here writes to an archive."""

__all__ = ["report", "run", "scope"]
