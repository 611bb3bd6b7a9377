"""Chains that worker processes follow: the verdict is that of one process, and no secret leaves it."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.tlog import log
from custody.verify import accounting, chains, run
from custody.verify.names import Names
from custody.verify.report import Report
from custody.verify.scope import WHOLE, Scope
from tests.helpers.archives import (
    KEY_ID,
    NOTE_NAME,
    NOTE_PUBLIC,
    SECRET,
    Builder,
    event,
    signature,
    with_signatures,
)
from tests.helpers.chains import in_threads, what_it_says
from tests.helpers.scene import MAIN, NEWER_SECRET, Scene, build


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A good archive of four logs."""
    return build(tmp_path_factory.mktemp("good"))


def judge(scene: Scene, workers: int, trust: Trust | None = None) -> Report:
    """Verify the chains alone."""
    store = open_store(str(scene.root))
    report = run.verify(store, trust or scene.trust, now=scene.now, workers=workers, scope=Scope(contents=False))
    return what_it_says(report)


@pytest.fixture
def followed() -> Iterator[list[str]]:
    """The logs whose chain the verifier followed itself."""
    names: list[str] = []
    read = run._Run.read_log

    def watched(self: Any, log: Any, *arguments: Any, **more: Any) -> None:
        names.append(str(log))
        read(self, log, *arguments, **more)

    with patch.object(run._Run, "read_log", watched):
        yield names


def test_processes(scene: Scene, followed: list[str]) -> None:
    """Real processes follow all logs of a good archive, and the report is that of one process."""
    alone = judge(scene, 0)
    assert followed == sorted(scene.logs)
    with patch.object(run, "LEAST_MANIFESTS", 0):
        assert judge(scene, 2) == alone
    assert followed == sorted(scene.logs)


def test_few_manifests(scene: Scene, followed: list[str]) -> None:
    """For few manifests no process is started, and none for a single log."""
    with patch.object(chains.Chains, "_start", side_effect=AssertionError):
        judge(scene, 2)
        with patch.object(run, "LEAST_MANIFESTS", 0):
            judge(scene, 1)
    assert len(followed) == 2 * len(scene.logs)


def test_killed(scene: Scene, followed: list[str]) -> None:
    """What killed workers leave is verified by the verifier itself."""
    start = chains.Chains._start

    def killed(self: chains.Chains) -> Connection | None:
        connection = start(self)
        assert connection is not None
        pid = self._workers[connection].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return connection

    alone = judge(scene, 0)
    with patch.object(run, "LEAST_MANIFESTS", 0), patch.object(chains.Chains, "_start", killed):
        assert judge(scene, 2) == alone
    assert followed == 2 * sorted(scene.logs)


def test_no_process(scene: Scene, followed: list[str]) -> None:
    """A machine that cannot have a process has a verdict too."""
    alone = judge(scene, 0)
    with patch.object(run, "LEAST_MANIFESTS", 0), patch.object(chains.Chains, "_start", lambda _: None):
        assert judge(scene, 2) == alone
    assert followed == 2 * sorted(scene.logs)


def test_a_wrong_signature(scene: Scene, tmp_path: Path, followed: list[str]) -> None:
    """A log with a signature that the worker could not check, and that is wrong, is verified again; the others not."""
    copy = scene.copy(tmp_path / "archive")
    path = copy.main.path(1)
    line, second = path.read_bytes().splitlines(keepends=True)
    value = second.index(b'"value":"') + len(b'"value":"')
    path.write_bytes(
        line + second[:value] + (b"B" if second[value : value + 1] == b"A" else b"A") + second[value + 1 :]
    )
    with in_threads():
        report = judge(copy, 2)
    assert [finding.finding for finding in report.findings] == ["signature"]
    assert followed == [MAIN]


def test_a_forged_statement_names_nothing(tmp_path: Path) -> None:
    """A slot that a later statement passes over may hold a forgery, whose signature a worker cannot check.

    What it names is not named: the segment that somebody planted beside it is unlisted, as in one process.
    """
    root = tmp_path / "archive"
    main = Builder(root).init()
    main.append()
    main.append(10)
    forger = main.copy(tmp_path / "forger")
    segment = forger.append(10, events=lambda offset: event(offset).replace(b"request-", b"planted-"))["segment"]["key"]
    forged = forger.path(len(main.entries)).read_bytes().split(b"\n")[0]
    main.put(segment, (forger.root / segment).read_bytes())
    main.pass_over(with_signatures(forged, [signature(KEY_ID, "HMAC-SHA256", bytes(32))]))
    main.append(10)
    main.checkpoint()
    other = Builder(root, topic="other")
    other.append()
    other.checkpoint()
    trust = Trust(
        keys={
            KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
            NOTE_NAME: TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC),
        }
    )

    def names_of_findings(workers: int) -> list[str]:
        store, scope = open_store(str(root)), Scope(contents=False)
        report = run.verify(store, trust, now=main.clock + timedelta(minutes=1), workers=workers, scope=scope)
        return [finding.finding for finding in report.findings]

    alone = names_of_findings(0)
    assert "unlisted" in alone
    with in_threads():
        assert names_of_findings(2) == alone


def test_an_interrupt_does_not_wait_for_a_long_log(scene: Scene) -> None:
    """A worker that has nothing to send for long is ended."""
    given = chains.Chains(open_store(str(scene.root)), scene.trust, "id", scene.now, WHOLE, Names())
    with patch.object(chains, "_run", _deaf), given:
        assert given._start() is not None
        (process,) = given._workers.values()
    assert process.exitcode == -signal.SIGTERM


def _deaf(*_: object) -> None:
    time.sleep(60)


def test_each_field_is_sent_or_left_out() -> None:
    """What a worker does not send back is named, and nothing else."""
    for kind, left_out in (
        (accounting.LogAccount, accounting._GIVEN),
        (log.SignedLog, log._GIVEN | log._IN_HAND),
    ):
        assert left_out < {each.name for each in fields(kind)}


def test_ended_keys(scene: Scene, followed: list[str]) -> None:
    """Keys that have ended need proofs from other manifests: no worker gets such logs."""
    keys = {id_: replace(key, until=scene.heads) for id_, key in scene.trust.keys.items()}
    with in_threads():
        judge(scene, 2, replace(scene.trust, keys=keys))
    assert followed == sorted(scene.logs)


def test_no_secret_is_sent(scene: Scene) -> None:
    """Neither what a worker gets at its start nor what it is sent later has a secret."""
    given = chains.Chains(open_store(str(scene.root)), scene.trust, "id", scene.now, WHOLE, Names())._given
    sent = pickle.dumps(given)
    assert given.secret == {id_ for id_, key in scene.trust.keys.items() if key.algorithm == "HMAC-SHA256"}
    assert SECRET not in sent
    assert NEWER_SECRET not in sent
    assert all(key.public is not None for id_, key in given.keys.items() if id_ not in given.secret)
