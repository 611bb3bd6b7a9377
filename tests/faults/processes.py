"""Processes that tests kill: forks of one that has imported what they run.

A test process has one such server for all modules. If each module named what to preload, the last one imported would
win, and children of the others would import what they need by themselves.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")


def start(folder: Path, target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process that calls a function, and return it.

    Args:
        folder: where it has its temporary files: if it is killed, they stay.
        target: the function.
        arguments: what it is called with.
    """
    # Only now: commands that ran in this process may have named others.
    _context.set_forkserver_preload(["tests.faults.preloaded"])
    process = _context.Process(target=_run, args=(folder, target, arguments))
    process.start()
    return process


def _run(folder: Path, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    tempfile.tempdir = str(folder)
    target(*arguments)
