"""Backfill: copies archived events of a time range to a target."""
