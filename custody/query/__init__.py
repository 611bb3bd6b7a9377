"""SQL over an archive: DuckDB and Arrow, which nothing else in the wheel knows."""

__all__ = ["connect"]
