"""Which of a run's calls a test breaks: a third of them, another third each day. With `TESTS_SWEEP=all`, all of them.

Each break is followed by a run that heals it and by the verifier, so all of them take many minutes.
"""

import os
from datetime import UTC, datetime

PARTS = 3
"""Days after which each call was broken once."""


def swept(calls: range) -> range:
    """Return the calls to break today, and print which."""
    if os.environ.get("TESTS_SWEEP") == "all":
        return calls
    first = datetime.now(UTC).toordinal() % PARTS
    print(f"breaks one call in {PARTS}, from number {first} on; all with TESTS_SWEEP=all")
    return calls[first::PARTS]
