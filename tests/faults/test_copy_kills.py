"""A copy that is killed with -9, or whose disk fails, leaves at any step what the next one completes."""

import errno
import itertools
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from tests.faults.child import Plan, finish
from tests.faults.copy_child import run
from tests.faults.processes import start
from tests.helpers.reading import read_folder
from tests.helpers.sample import Growing

SECONDS = 60
SHARES = 2
_numbers = itertools.count()


@dataclass
class Copies:
    """An archive, and copies of it that are made by processes of their own."""

    folder: Path
    growing: Growing

    def copy(self, target: Path, plan: Plan | None = None) -> tuple[int | None, dict[str, Any]]:
        report = self.folder / f"report-{next(_numbers)}.json"
        process = start(self.folder, run, self.growing.folder, target, plan or Plan(), report)
        return finish(process, report, SECONDS, "the copy")

    def judge(self, target: Path, *, refused: bool = False) -> None:
        """Check that a copy has only what the first has, and is an archive that is at most shorter.

        Where the copy said that it could not read an object, that one is missing.
        """
        allowed = {"orphan", "empty"} | ({"sequence-gap", "segment-missing"} if refused else set())
        made, first = read_folder(target), read_folder(self.growing.folder)
        assert set(made.items()) <= set(first.items())
        if made:
            trust = open_trust([f"file:{self.growing.keyring}"])
            report = verify(open_store(str(target)), trust, now=datetime.now(UTC), workers=0)
            assert {finding.finding for finding in report.findings} <= allowed, list(report.findings)

    def complete(self, target: Path) -> None:
        """Copy again, and check that the copy is the first, byte for byte."""
        code, report = self.copy(target)
        assert (code, report["code"], report["error"]) == (0, 0, None)
        assert read_folder(target) == read_folder(self.growing.folder)


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    growing = Growing(tmp_path / "first")
    # As a drain does, the first statement has an empty range.
    growing.heartbeat(growing.begun)
    growing.append(1)
    return Copies(tmp_path, growing)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_every_call(copies: Copies, tmp_path: Path, share: int) -> None:
    """Killed before any call, which is after the one before it, and run again: the copy is the first."""
    code, report = copies.copy(tmp_path / "whole", Plan())
    assert (code, report["code"]) == (0, 0)
    calls = report["calls"]
    assert {"store.create", "store.read", "store.list", "os.link", "os.fsync", "os.write"} <= set(calls)
    for at in range(share, len(calls), SHARES):
        target = tmp_path / f"copy-{at}"
        code, _ = copies.copy(target, Plan(at, "kill-before"))
        assert code == -signal.SIGKILL, (at, calls[at])
        copies.judge(target)
        copies.complete(target)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_steps_of_a_put_fail(copies: Copies, tmp_path: Path, number: int) -> None:
    """A disk that is full or broken at some step is no success, and the next copy completes what it left."""
    _, report = copies.copy(tmp_path / "whole", Plan(steps=True))
    failed = 0
    for at in range(0, len(report["calls"]), 7 if number == errno.EIO else 11):
        target = tmp_path / f"copy-{at}"
        code, report = copies.copy(target, Plan(at, "fail", number, steps=True))
        assert code == 0
        failed += report["error"] is not None or report["code"] != 0
        copies.judge(target, refused=bool(report["code"]))
        copies.complete(target)
    assert failed
