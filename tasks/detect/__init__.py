"""Detect: rules over what was archived, and alerts that are told once."""
