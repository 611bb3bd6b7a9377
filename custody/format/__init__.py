"""The archive's format: bytes to values and back (FORMAT.md). Nothing here reads a store, holds a key, asks a clock."""

__all__ = ["archive_file", "audit", "layout", "manifest"]
