"""Secrets and trust: signers and their keyring, key files, keys in KMS, and trust.json."""

__all__ = ["keyring", "open", "signers", "trust"]
