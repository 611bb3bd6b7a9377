"""Checks that the files of metrics can be written. Nothing is written, made or sent."""

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.check.model import Line, Reporter
from tasks.settings import Settings

_report = Reporter("metrics")


def check(settings: Settings) -> Iterator[Line]:
    """Yield whether each file that an export writes can be written."""
    metrics = settings.metrics
    if not metrics.is_on:
        yield _report.ok("metrics", "none are exported: no way out of them is set")
        return
    if metrics.file is not None:
        yield _line("metrics.file", metrics.file, _replaced(metrics.file))
    if metrics.emf not in {None, "stdout"}:
        lines = Path(str(metrics.emf))
        appended = _refusal(lines, os.W_OK) if lines.is_file() else _replaced(lines)
        yield _line("metrics.emf", lines, appended)
    # Its folders are made.
    state = metrics.state.absolute()
    there = next(folder for folder in state.parents if folder.exists())
    yield _line("metrics.state", state, _replaced(state) if there == state.parent else _folder(there))


def _line(subject: str, path: Path, problem: str | None) -> Line:
    if problem is None:
        return _report.ok(subject, f"{path} can be written")
    remedy = "correct the setting, or make the folder and give this user the right to write there"
    return _report.failed(subject, f"{path} cannot be written: {problem}", remedy)


def _replaced(path: Path) -> str | None:
    """Return why a file cannot be made or replaced."""
    return f"{path} is a folder" if path.is_dir() else _folder(path.absolute().parent)


def _folder(folder: Path) -> str | None:
    """Return why no file can be made in a folder."""
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    return _refusal(folder, os.W_OK | os.X_OK)


def _refusal(path: Path, rights: int) -> str | None:
    return None if os.access(path, rights) else f"this user may not write to {path}"
