"""The archive's format: bytes to values and back (FORMAT.md). Nothing here reads a store, holds a key, asks a clock."""
