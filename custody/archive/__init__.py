"""An archive: read it, append to it, prove from it, copy it."""

__all__ = ["copy", "evidence", "prove", "reader", "witness", "writer"]
