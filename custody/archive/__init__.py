"""An archive: read it, append to it, prove from it."""
