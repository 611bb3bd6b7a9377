"""Thin Prefect flows: parameters, order, concurrency and artifacts. What they do is in `tasks`."""
