"""A process that emits into an archive and is killed at any call, or whose disk fails, loses nothing spooled."""

import errno
import itertools
import json
import multiprocessing
import signal
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.archive.writer import create_archive
from custody.keys.keyring import new_keyring
from custody.keys.trust import Trust, open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from tests.faults.child import Plan, finish
from tests.faults.emit_child import EVENTS, ROUNDS, run
from tests.helpers.reading import read_archive_records

SECONDS = 90
SHARES = 2
"""The calls of a run are dealt to so many tests, so that test processes share them."""
STRIDE = 21
"""Of the steps of the file store, one in so many fails in a test."""
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.faults.emit_child"])
_numbers = itertools.count()


@dataclass
class Emitters:
    """An archive, and processes that emit into it, one after the other."""

    folder: Path
    environment: dict[str, str]
    emitted: int = 0
    events: list[bytes] = field(default_factory=list)

    def emit(self, plan: Plan | None = None) -> tuple[int | None, dict[str, Any]]:
        """Emit in a child process, to the end or to where the plan ends it."""
        report = self.folder / f"report-{next(_numbers)}.json"
        arguments = (self.environment, self.folder / "spool", plan or Plan(), report, self.folder / "promised")
        process = _processes.Process(target=run, args=arguments)
        process.start()
        return finish(process, report, SECONDS, "the emitter")

    def heal(self) -> None:
        """Emit once more, nothing broken: what others left is archived with it."""
        code, report = self.emit()
        assert (code, report["left"]) == (0, [0, 0])

    def judge(self, *, orphans: bool = False) -> Counter[str]:
        """Check that all is verified and all that was promised is there; return how often each event is.

        Args:
            orphans: segments may be there whose statement is not: their process was killed in between.
        """
        trust = open_trust([self.environment["keys"]])
        for reader in (trust, without_secret(trust)):
            report = verify(open_store(self.environment["archive"]), reader, now=datetime.now(UTC), workers=0)
            unchecked = {"unchecked-signature"} if reader is not trust else set()
            allowed = unchecked | ({"orphan"} if orphans else set())
            found = list(report.findings)
            assert {finding.finding for finding in found} <= allowed, found
            assert report.exit_code == (3 if found else 0)
        lines = [
            line for log in read_archive_records(Path(self.environment["archive"])).values() for _, line in log.events
        ]
        ids = Counter(json.loads(line)["event_id"] for line in lines)
        assert len(set(lines)) == len(ids), "what is there twice is the same bytes"
        promised = set((self.folder / "promised").read_text().split())
        assert promised <= set(ids)
        return ids


def without_secret(trust: Trust) -> Trust:
    """Return what a stranger trusts: statements count as far as a checkpoint covers them."""
    keys = {
        key.id: replace(key, material=None) if key.algorithm == "HMAC-SHA256" else key for key in trust.keys.values()
    }
    return replace(trust, keys=keys)


@pytest.fixture
def emitters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Emitters:
    monkeypatch.chdir(tmp_path)
    keyring, where = tmp_path / "keyring.json", str(tmp_path / "archive")
    ring = new_keyring(keyring, datetime.now(UTC))
    create_archive(open_store(where), ring.signers(datetime.now(UTC)).both)
    return Emitters(tmp_path, {"archive": where, "keys": f"file:{keyring}"})


def test_what_is_emitted_is_archived_once_and_verified(emitters: Emitters) -> None:
    """Processes that end well leave an archive without a finding, also for who has no secret."""
    for _ in range(2):
        emitters.heal()
    ids = emitters.judge()
    assert len(ids) == 2 * (ROUNDS * EVENTS + 2)
    assert set(ids.values()) == {1}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_every_call(emitters: Emitters, share: int) -> None:
    """Killed before any call to the store, which is after the one before it: the next process puts all right."""
    # The second one also looks at the log that the first one has ended.
    _, (code, report) = emitters.emit(Plan()), emitters.emit(Plan())
    assert code == 0
    calls = report["calls"]
    assert {"store.create", "store.read", "store.list", "store.level"} <= set(calls)
    assert calls.count("store.create") >= 2 * ROUNDS + 3
    killed = 0
    for at in range(share, len(calls), SHARES):
        code, report = emitters.emit(Plan(at, "kill-before"))
        assert code == -signal.SIGKILL or len(report["calls"]) <= at, (at, code, report)
        killed += code == -signal.SIGKILL
        emitters.heal()
    emitters.judge(orphans=True)
    assert killed > 0.8 * len(range(share, len(calls), SHARES))


def test_killed_again_and_again(emitters: Emitters) -> None:
    """Killed at one call after the other with no clean run between, and run once more: all is there."""
    _, report = emitters.emit(Plan())
    for at in range(len(report["calls"])):
        emitters.emit(Plan(at, "kill-after"))
    emitters.heal()
    emitters.judge(orphans=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_every_step_of_a_put_fails(emitters: Emitters, number: int) -> None:
    """A disk that fails at some step costs nothing: the same process tries again, and archives no event twice."""
    code, report = emitters.emit(Plan(steps=True))
    assert code == 0
    failed = 0
    # A run that meets a failure waits for a second before it tries again.
    for at in range(number % 5, len(report["calls"]), STRIDE):
        code, broken = emitters.emit(Plan(at, "fail", number, steps=True))
        assert (code, broken["left"]) == (0, [0, 0]), (at, broken)
        failed += broken["counters"]["failed"] > 0
    assert failed
    assert set(emitters.judge(orphans=True).values()) == {1}
