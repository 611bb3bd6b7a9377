"""The steps with side effects on servers. Each folder does one: plain functions, and `task.py`, which is for flows.

Only a `task.py` imports Prefect. The operator's commands and the tests call the plain functions without it.

Each process that runs them, also for Prefect, escapes what it logs: servers' answers and unsigned heads are in it.
"""

from custody.cli.terminal import escape_logs

escape_logs()
