"""Secrets, and who is trusted: signers and their keyring, key files, keys in KMS, and trust.json."""
