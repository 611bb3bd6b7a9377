"""Tests of custody, its tasks and flows. Each folder mirrors one of the house; `servers` starts real ones."""
