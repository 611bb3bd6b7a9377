"""An archive: read it, append to it, prove from it."""

__all__ = ["evidence", "prove", "reader", "witness", "writer"]
