"""Signed logs: Merkle trees (RFC 6962), notes and checkpoints (C2SP), and what makes a signature and a head count."""

__all__ = ["checkpoint", "head", "merkle"]
