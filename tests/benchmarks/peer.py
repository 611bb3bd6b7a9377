"""What a peer of `tests.benchmarks.peers` is, and how its run is measured. Nobody's start counts."""

import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

from tests.servers.s3 import SeaweedServer

TOPIC = "audit.benchmark"
SECONDS = 900
_SAMPLE_SECONDS = 0.5


class UnavailableError(Exception):
    """This machine cannot run a peer; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of a peer took.

    Attributes:
        events: how many it drained.
        wall: seconds, without its start.
        cpu: seconds of the processor of all its processes, without its start.
        peak: bytes of memory of all its processes together, start included.
    """

    events: int
    wall: float
    cpu: float
    peak: int


@dataclass(frozen=True, slots=True)
class Site:
    """What peers drain, and where to.

    Attributes:
        bootstrap: the broker.
        s3: the server of those that write to S3.
        events: how many the topic has.
        size: their bytes.
        environment: custody's settings, without the archive.
    """

    bootstrap: str
    s3: SeaweedServer
    events: int
    size: int
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that drains a topic.

    Attributes:
        name: what the table calls it.
        proves: what its output proves.
        share: the part of the events that it gets.
        run: drains so many events into an empty folder, or into a bucket with that folder's name.
        beside: custody with one process and with a process a core, which do the same work: to a folder, or to S3.
    """

    name: str
    proves: str
    share: float
    run: Callable[[Site, Path, int], Figures]
    beside: tuple[str, str]


@contextmanager
def watched(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[list[int]]:
    """Sample the memory of a process and its children; the list has the greatest sum at its end."""
    peak, over = [0], Event()

    def watch() -> None:
        root = psutil.Process(process.pid)
        while not over.wait(_SAMPLE_SECONDS):
            total = 0
            for each in tree(root):
                try:
                    total += each.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and all below it; none once it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def own_figures(command: list[str], environment: dict[str, str], events: int, folder: Path | None = None) -> Figures:
    """Run a program that prints, as its last line, its own events, wall and processor seconds as JSON."""
    with (
        subprocess.Popen(
            command, env=os.environ | environment, cwd=folder, stdout=subprocess.PIPE, text=True
        ) as process,
        watched(process) as peak,
    ):
        out, _ = process.communicate(timeout=SECONDS)
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed with exit code {process.returncode}")
    told = json.loads(out.splitlines()[-1])
    if told["events"] < events:
        raise SystemExit(f"{command[:4]} drained {told['events']} of {events} events")
    return Figures(told["events"], told["wall"], told["cpu"], peak[0])


def used(*whose: int) -> float:
    """Return the processor seconds of this process, of its children that have ended, or of both."""
    usages = [resource.getrusage(who) for who in whose]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """Return the processor seconds of a running process."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system
