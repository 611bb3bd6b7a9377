"""No server outlives the process that owns it, however that one ends: a shell beside it sees to that."""

import subprocess
from pathlib import Path

# Ends the server's process group ($2) once its owner ($1) is gone, and its folder ($3) with it. The group is watched,
# and not who leads it: that may be a launcher, which can die before the server. Every shell takes a group behind
# `-s NAME --`; behind `-9 --` dash calls it an illegal number, and kills nothing.
_SCRIPT = """\
trap '' INT HUP TERM
while kill -0 "$1" 2>/dev/null && kill -s 0 -- "-$2" 2>/dev/null; do sleep 1; done
kill -0 "$1" 2>/dev/null || { kill -s KILL -- "-$2" 2>/dev/null; sleep 1; rm -rf "$3"; }
"""


def start_guard(owner: int, server: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Watch a server that leads a process group of its own."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "guard", str(owner), str(server), str(folder)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
