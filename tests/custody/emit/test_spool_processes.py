"""Real processes share a root: each orphan has one heir, and neither a kill nor a fork loses a line or keeps a lock."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from custody.emit.spool import Spool
from tests.helpers.spooling import LIMIT, drain, lines, orphan, segment

ROOT = Path(__file__).parents[3]
HEAD = f"""
import os, sys
from custody.emit.errors import AuditError
from custody.emit.spool import Spool
LIMIT = {LIMIT}
"""
WRITE = """
spool = Spool(sys.argv[1], LIMIT)
number = 0
while True:
    spool.append([b'%d' % n for n in range(number, number + 10)])
    spool.sync()
    number += 10
    print(number, flush=True)
"""
ADOPT = """
print('ready', flush=True)
sys.stdin.readline()
spool = Spool(sys.argv[1], LIMIT)
while (batch := spool.peek(3)).lines:
    print(*(line.decode() for line in batch.lines), sep='\\n')
    spool.done(batch)
print('end', flush=True)
sys.stdin.readline()
spool.close()
"""
FORK = """
spool = Spool(sys.argv[1], LIMIT)
spool.append([b'parent'])
spool.sync()
reading, writing = os.pipe()
if os.fork():
    os.read(reading, 1)
    os._exit(0)
try:
    spool.append([b'lost'])
except AuditError as error:
    print(error)
spool.close()
with Spool(sys.argv[1], LIMIT) as own:
    own.append([b'child'])
    own.sync()
    os.write(writing, b'.')
    sys.stdin.readline()
print('closed', flush=True)
"""


@contextmanager
def process(script: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a Python process, and kill it at the end."""
    command = [sys.executable, "-c", HEAD + script, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def says(started: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert started.stdout
    return started.stdout.readline().strip()


def tell(started: subprocess.Popen[str]) -> None:
    """Tell a process to go on."""
    assert started.stdin
    started.stdin.write("\n")
    started.stdin.flush()


def test_kill_9_loses_no_line_that_was_synced(tmp_path: Path) -> None:
    """A process is killed while it writes. What it said was synced is replayed, in order, by the next."""
    with process(WRITE, tmp_path / "spool") as writer:
        while int(says(writer)) < 300:
            pass
        with Spool(tmp_path / "spool", LIMIT) as spool:
            assert drain(spool) == [], "its owner lives"
        writer.send_signal(signal.SIGKILL)
        assert writer.stdout
        synced = max([300, *map(int, writer.stdout.read().split())])
    with Spool(tmp_path / "spool", LIMIT) as spool:
        replayed = drain(spool)
    assert replayed[:synced] == [b"%d" % number for number in range(synced)]
    assert len(replayed) in {synced, synced + 10}
    assert list((tmp_path / "spool").iterdir()) == []


def test_each_orphan_has_one_heir(tmp_path: Path) -> None:
    """Three processes start at once on ten orphans: each line is replayed by one of them."""
    root = tmp_path / "spool"
    for number in range(10):
        orphan(root, segment(lines(4, 4 * number)), segment(lines(3, 1000 + 3 * number)), name=f"host-{number}-7")
    with process(ADOPT, root) as first, process(ADOPT, root) as second, process(ADOPT, root) as third:
        adopters = (first, second, third)
        assert [says(adopter) for adopter in adopters] == ["ready"] * 3
        for adopter in adopters:
            tell(adopter)
        replayed: list[str] = []
        for adopter in adopters:
            while (line := says(adopter)) != "end":
                replayed.append(line)
        assert sorted(replayed) == sorted(line.decode() for line in lines(40) + lines(30, 1000))
        for adopter in adopters:
            tell(adopter)
            assert adopter.wait(30) == 0
    assert list(root.iterdir()) == []


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    """The child cannot use its parent's spool. While it lives, the dead parent's folder is adopted."""
    root = tmp_path / "spool"
    with process(FORK, root) as parent:
        assert parent.wait(30) == 0
        with Spool(root, LIMIT) as spool:
            assert drain(spool) == [b"parent"]
        tell(parent)
        assert "before a fork" in says(parent)
        assert says(parent) == "closed"
        with Spool(root, LIMIT) as spool:
            assert drain(spool) == [b"child"]
    assert list(root.iterdir()) == []
