"""Backfill: archived events, chosen by their times, copied to where they are asked for."""
