"""Benchmarks: they report, and judge nothing."""
