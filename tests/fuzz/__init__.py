"""Bytes that nobody wrote on purpose, in the place of everything that the verifier reads."""
