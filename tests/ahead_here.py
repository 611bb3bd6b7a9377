"""Worker processes of `custody.ahead` that are none: what a worker does is done at once, in this process."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from custody import ahead


class Here:
    """An executor that runs what it is given at once."""

    def __init__(self, workers: int, *, initializer: Callable[..., None], initargs: tuple[Any, ...], **_: Any) -> None:
        assert workers
        initializer(*initargs)

    def submit(self, run: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(run(*arguments))
        return future

    def shutdown(self, **_: Any) -> None:
        """There is nothing to end."""


def work_here(monkeypatch: pytest.MonkeyPatch, piece: int) -> list[int]:
    """Have statements verified ahead in pieces of so many; the list gets the size of the log where each is joined."""
    joined: list[int] = []
    join = ahead.Ahead.join

    def counted(*arguments: Any) -> ahead.Piece | None:
        found = join(*arguments)
        if found is not None:
            joined.append(arguments[1].size)
        return found

    monkeypatch.setattr(ahead, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(ahead, "_PIECE", piece)
    monkeypatch.setattr(ahead.Ahead, "join", counted)
    return joined


def die(_: object) -> None:
    """End the process that this is called in."""
    os._exit(9)
