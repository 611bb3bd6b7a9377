"""Starters of the real servers that tests run against."""
