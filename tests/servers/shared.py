"""One server for all processes of a test session: the first that needs it starts it, and the others find it."""

import contextlib
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import pytest

from tests.servers.require import ServerUnavailableError, unavailable

SHARED: pytest.StashKey[Path] = pytest.StashKey()
"""The folder that all processes of a test session share, where the controlling process keeps it."""
_END_SECONDS = 10


class Server:
    """A server in a child process that leads a process group, with its files in one folder.

    Another process gets it by pickle, to use but not to stop.
    """

    folder: Path
    _process: "subprocess.Popen[bytes] | None" = None
    _guard: "subprocess.Popen[bytes] | None" = None

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the processes, which are this process's own."""
        return {**self.__dict__, "_process": None, "_guard": None}

    def start(self, owner: int | None = None) -> None:
        """Start it and return when it answers. It ends with the process `owner` at the latest: this one if None."""
        raise NotImplementedError

    def kill(self) -> None:
        """End its processes as kill -9 does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
        self._process = self._guard = None


S = TypeVar("S", bound=Server)


class _Saved(NamedTuple):
    server: Server
    pid: int
    created: float


_started: list[Server] = []
"""What this process started for others too: it must not collect the processes while they run."""


def shared_folder(config: pytest.Config) -> Path:
    """Return the folder that all processes of the session share, by the configuration of one of them."""
    workerinput: Mapping[str, str] | None = getattr(config, "workerinput", None)
    return config.stash[SHARED] if workerinput is None else Path(workerinput["shared_folder"])


def one_for_all(config: pytest.Config, name: str, make: Callable[[Path], S]) -> Iterator[S]:
    """Yield a running server, for a fixture of a session. Without it the test is skipped or fails (`unavailable`).

    Args:
        config: of this test process.
        name: the server's, in the session.
        make: returns it, not started yet, given a folder that it may use.
    """
    folder = shared_folder(config)
    owner = os.getppid() if hasattr(config, "workerinput") else os.getpid()
    saved = folder / f"{name}.pickle"
    with locked(folder / f"{name}.lock"):
        if saved.exists():
            server: S = pickle.loads(saved.read_bytes()).server  # noqa: S301 - this session wrote it
        else:
            server = make(folder / name)
            try:
                server.start(owner)
            except ServerUnavailableError as error:
                shutil.rmtree(server.folder, ignore_errors=True)
                unavailable(str(error))
            assert server._process is not None
            created = psutil.Process(server._process.pid).create_time()
            saved.write_bytes(pickle.dumps(_Saved(server, server._process.pid, created)))
            _started.append(server)
    yield server


def end_shared(folder: Path) -> None:
    """End the servers that a test session shared, if any were started, and remove their folders and the session's."""
    for path in folder.glob("*.pickle"):
        saved: _Saved = pickle.loads(path.read_bytes())  # noqa: S301 - this session wrote it
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process = psutil.Process(saved.pid)
            if process.create_time() == saved.created:
                os.killpg(saved.pid, signal.SIGKILL)
                _wait(process)
        shutil.rmtree(saved.server.folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _wait(process: psutil.Process) -> None:
    """Wait until a process has ended. Who started it may be gone, and then nobody may collect it."""
    deadline = time.monotonic() + _END_SECONDS
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file against other processes. If this process dies, the lock is released."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
