"""Threads of a process that are the first to read a kind of file, all at once.

A run of the drain and its indexer open the keys at the same time. With msgspec before 0.23 the one could meet what the
other had prepared only half, and the process ended by SIGSEGV.
"""

import subprocess
import sys

_READ_BY_THREADS = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec

from custody.keys.files import decode_document

THREADS, KINDS = 4, 100

sys.setswitchinterval(1e-6)
together = threading.Barrier(THREADS)


def read(kind):
    together.wait()
    return decode_document(b'{"keys": {"a": [1]}}', "a file", kind).keys["a"]


with ThreadPoolExecutor(THREADS) as threads:
    for number in range(KINDS):
        # A new kind each time: what a process has once decoded is prepared for good.
        entry = msgspec.defstruct(f"Entry{number}", [(f"field_{at}", "int | None", None) for at in range(30)])
        kind = msgspec.defstruct(f"File{number}", [("entry", entry | None, None), ("keys", "dict[str, list[int]]", {})])
        assert list(threads.map(read, [kind] * THREADS)) == [[1]] * THREADS
print("all were read")
"""


def test_the_first_to_read_a_kind_of_file() -> None:
    """Each of the threads has what is in the file, and their process goes on."""
    ran = subprocess.run(
        [sys.executable, "-c", _READ_BY_THREADS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "all were read\n", "")
