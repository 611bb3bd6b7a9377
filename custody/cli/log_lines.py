"""The log as lines of JSON, for machines that collect it: `CUSTODY_LOG_FORMAT=json`.

Rules:
- Each line has the same fields. What is not known is null.
- A line has what a record says, and of its other attributes only `log` and `sequence`: no secret gets in by accident.
- It is a variable and no setting, because it must count before any file is read.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from custody.errors import ConfigurationError

VARIABLE = "CUSTODY_LOG_FORMAT"

Origin = Callable[[], tuple[str | None, str | None]]
"""Returns the id of the current run and the name of its flow."""


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON, in ASCII."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A traceback is part of the message."""
        run, flow = self._origin()
        log, sequence = getattr(record, "log", None), getattr(record, "sequence", None)
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            # As logging's own formatter has it: with the traceback below.
            "message": super().format(record),
            "run": run,
            "flow": flow,
            "log": None if log is None else str(log),
            "sequence": sequence if isinstance(sequence, int) else None,
        }
        return json.dumps(fields)


def use_format(origin: Origin) -> None:
    """Log as the variable says: as lines of JSON on stderr, or as it is.

    Args:
        origin: which run a line is of.

    Raises:
        ConfigurationError: the variable is neither `text` nor `json`.
    """
    wanted = os.environ.get(VARIABLE, "text")
    if wanted not in {"text", "json"}:
        raise ConfigurationError(f"{VARIABLE} is {wanted[:100]!r}; it must be text or json")
    if wanted == "text":
        return
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines(origin))
    root = logging.getLogger()
    for logger in (root, *map(logging.getLogger, list(root.manager.loggerDict))):
        # Only what prints: others send a run's log to Prefect's server, or keep it for a test.
        for handler in [handler for handler in logger.handlers if _prints(handler)]:
            logger.removeHandler(handler)
            if logger is not root:
                logger.addHandler(lines)
    root.addHandler(lines)


def _prints(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in {sys.stdout, sys.stderr, sys.__stderr__}
