"""The steps with side effects on servers. Each folder does one: plain functions, and `task.py`, which is for flows.

Only a `task.py` imports Prefect. The operator's commands and the tests call the plain functions without it.
"""
