"""The guard beside each server: whatever becomes of the owner, and of what launched the server, nothing is left."""

import subprocess
import time
from pathlib import Path

import psutil

from tests.servers.guard import start_guard

_LAUNCHER = 'sleep 300 & echo $! > "$0"; exec sleep 300'


def test_nothing_outlives_its_owner(tmp_path: Path) -> None:
    """A server whose launcher has died is watched on, and ends with the owner; so does its folder."""
    folder = tmp_path / "server"
    folder.mkdir()
    with subprocess.Popen(["sleep", "300"]) as owner:
        launcher = subprocess.Popen(["/bin/sh", "-c", _LAUNCHER, str(folder / "pid")], start_new_session=True)
        guard = start_guard(owner.pid, launcher.pid, folder)
        deadline = time.monotonic() + 30
        while not (folder / "pid").exists() or not (folder / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server = psutil.Process(int((folder / "pid").read_text()))
        launcher.kill()
        launcher.wait()
        time.sleep(1.5)
        assert guard.poll() is None
        owner.kill()
    assert psutil.wait_procs([server], timeout=30)[1] == []
    assert guard.wait(30) == 0
    assert not folder.exists()
