"""Chains that worker processes follow: the verdict is that of one process, and no secret leaves it."""

import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.verify import chains, run
from custody.verify.listing import Names
from custody.verify.report import Report
from custody.verify.scope import WHOLE, Scope
from tests.helpers.archives import SECRET
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
