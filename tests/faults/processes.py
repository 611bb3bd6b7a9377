"""Processes that tests kill: forks of one that has imported what they run.

A test process has one such server for all modules. If each module named what to preload, the last one imported would
win, and children of the others would import what they need by themselves.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

_context = multiprocessing.get_context("forkserver")


def start(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process that calls a function, and return it."""
    # Only now: commands that ran in this process may have named others.
    _context.set_forkserver_preload(["tests.faults.preloaded"])
    process = _context.Process(target=target, args=arguments)
    process.start()
    return process
