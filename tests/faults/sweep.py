"""Which of a run's calls a test breaks: a third, another one each day. With `TESTS_SWEEP=all` it is each of them.

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
    print(f"breaks each {PARTS}rd call from call {first} on; TESTS_SWEEP=all breaks each")
    return calls[first::PARTS]
