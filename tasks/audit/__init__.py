"""Audit: verify what is new and a share of what is old, sign the result, and make the tables that people read."""
