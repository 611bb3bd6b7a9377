"""`custody up`: Prefect's server, a worker and the scheduled deployments, as children of one process.

Rules:
- A child that dies is started again, after a longer and longer wait if it keeps dying at once.
- SIGTERM and Ctrl-C end everything: running drains finish their open segment, then the worker ends, then the server.
- If `up` itself is killed, its children keep running. The next `up` in the same folder ends them before it starts.
- The server keeps its database in the folder. The database may be lost: the archive is the state.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil
import typer

from custody.errors import ConfigurationError, CustodyError
from custody.store.durable import replace_file
from tasks.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"
FOLDER = Path("custody-data") / "prefect"
POOL = "custody"
PORT = 4200

WORKER_LIMIT = 4
"""Runs at the same time: enough that a hanging drain, an audit and an alert leave room for the next drain.

The worker counts them in memory, so a worker that was killed leaves no stale count."""

_PREFECT = [sys.executable, "-m", "prefect"]

_START_SECONDS = 180
_DEPLOY_SECONDS = 120
_FINISH_SECONDS = 60
_STOP_SECONDS = 15
_STEADY_SECONDS = 60
_LONGEST_WAIT = 30.0


@dataclass(slots=True)
class _Child:
    """A process that is kept running."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait: float = 1.0
    due: float = 0.0

    def start(self, environment: Mapping[str, str]) -> None:
        # In its own session, so that Ctrl-C in the terminal reaches only `up`, which ends its children in order.
        self.process = subprocess.Popen(
            self.command, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.started = time.monotonic()


@dataclass(slots=True)
class _House:
    """The processes of one folder and port."""

    folder: Path
    port: int
    deployments: Path
    environment: dict[str, str]
    stop: threading.Event = field(default_factory=threading.Event)
    children: list[_Child] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"


def up(folder: Path = FOLDER, port: int = PORT, deployments: Path = DEPLOYMENTS) -> None:
    """Run until SIGTERM or Ctrl-C.

    Args:
        folder: where Prefect's server keeps its files.
        port: the server's port on 127.0.0.1; 0 for any free port.
        deployments: the file with the deployments and their schedules.

    Raises:
        ConfigurationError: a setting is wrong, another `up` uses the folder, or the port is taken.
        CustodyError: the server did not start, or the deployments were not accepted.
    """
    Settings()
    folder = folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the folder {str(folder)!r} cannot be created: {error.strerror}") from None
    with _only_one(folder):
        _end_leftovers(folder)
        chosen = _free_port(port)
        house = _House(folder, chosen, deployments, _environment(folder, chosen))
        with _stopping(house.stop):
            try:
                _start(house)
                if not house.stop.is_set():
                    typer.echo(f"custody is up: http://127.0.0.1:{chosen} (Ctrl-C ends it)")
                while not house.stop.wait(0.5):
                    _revive(house)
            finally:
                _end(house)


def _environment(folder: Path, port: int) -> dict[str, str]:
    """Return the children's environment: that of this process, with defaults, and the variables that `up` needs."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # By default leases are in memory, where runs that died with the server would hold their slots for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # A run a minute is 1,440 a day.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(14 * 86400),
        # Few, because all runs that were scheduled ahead still run after an outage.
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT3M",
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours = {
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PYTHONPATH": path,
        # Otherwise a package `flows` in the current folder would be imported instead of ours.
        "PYTHONSAFEPATH": "1",
        # Deployments run in the folder in which `up` was started.
        "PWD": str(Path.cwd()),
    }
    return {**defaults, **os.environ, **ours}


def _start(house: _House) -> None:
    server = _Child("server", [*_PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(house.port)])
    pool = ["--pool", POOL, "--type", "process", "--limit", str(WORKER_LIMIT), "--name", "custody-up"]
    worker = _Child("worker", [*_PREFECT, "worker", "start", *pool, "--install-policy", "never"])
    _add(house, server)
    if not _wait_for(house, "health"):
        return
    # The worker creates the pool that the deployments name.
    _add(house, worker)
    if not _wait_for(house, f"work_pools/{POOL}"):
        return
    _deploy(house)


def _add(house: _House, child: _Child) -> None:
    child.start(house.environment)
    house.children.append(child)
    _remember(house)


def _deploy(house: _House) -> None:
    """Create the deployments and their automations on the server."""
    try:
        done = subprocess.run(
            [*_PREFECT, "--no-prompt", "deploy", "--prefect-file", str(house.deployments), "--all"],
            env=house.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_DEPLOY_SECONDS,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise CustodyError(
            f"the deployments in {house.deployments} were not created in {_DEPLOY_SECONDS} s: run 'custody up' again"
        ) from None
    if done.returncode:
        raise CustodyError(f"the deployments in {house.deployments} were not accepted:\n{done.stdout[-2000:]}")


def _wait_for(house: _House, path: str) -> bool:
    """Return True once the API has an answer, False if `up` is to stop."""
    deadline = time.monotonic() + _START_SECONDS
    while not house.stop.wait(0.3):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{house.api}/{path}", timeout=5).close()  # noqa: S310 - it is http on loopback
            return True
        for child in house.children:
            if child.process is not None and child.process.poll() is not None:
                raise CustodyError(f"Prefect's {child.name} ended while it was starting: see its output above")
        if time.monotonic() > deadline:
            raise CustodyError(f"Prefect's server did not answer within {_START_SECONDS} s: run 'custody up' again")
    return False


def _revive(house: _House) -> None:
    """Restart children that have died."""
    now = time.monotonic()
    for child in house.children:
        if child.process is not None and child.process.poll() is not None:
            if now - child.started > _STEADY_SECONDS:
                child.wait = 1.0
            typer.echo(f"the {child.name} ended ({child.process.returncode}); restart in {child.wait:.0f} s", err=True)
            child.process, child.due = None, now + child.wait
            child.wait = min(child.wait * 2, _LONGEST_WAIT)
        elif child.process is None and now >= child.due:
            child.start(house.environment)
            _remember(house)


def _end(house: _House) -> None:
    """End the children in reverse order. The worker ends after its runs have finished their open segments."""
    for child in reversed(house.children):
        if child.process is None or child.process.poll() is not None:
            continue
        patience = _STOP_SECONDS
        with contextlib.suppress(psutil.NoSuchProcess):
            # The worker waits for its runs, but does not ask them to stop.
            for run in psutil.Process(child.process.pid).children():
                patience = _FINISH_SECONDS
                run.terminate()
        child.process.terminate()
        try:
            child.process.wait(patience)
        except subprocess.TimeoutExpired:
            _kill_tree(child.process.pid)
            child.process.wait()
    (house.folder / "children.json").unlink(missing_ok=True)


def _remember(house: _House) -> None:
    """Store the children's process ids, so that the next `up` can end them if this one is killed."""
    known = []
    for child in house.children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.process is not None:
                known.append([child.process.pid, psutil.Process(child.process.pid).create_time()])
    replace_file(house.folder / "children.json", json.dumps(known).encode())


def _end_leftovers(folder: Path) -> None:
    """Kill the children of an `up` that was killed. Nothing is lost: an interrupted run leaves the archive valid."""
    try:
        known = json.loads((folder / "children.json").read_text())
        for pid, created in known:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).create_time() == created:
                    _kill_tree(pid)
    except (OSError, ValueError, TypeError):
        return


def _kill_tree(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        for member in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(tree, timeout=_STOP_SECONDS)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ConfigurationError(
                f"custody up already runs in {str(folder)!r} (process {lock.read().strip() or 'unknown'}):"
                " end that process, or choose another folder and port"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigurationError(
                f"port {port} on 127.0.0.1 is in use: choose another port, or 0 for any free port"
            ) from None
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Set the event on SIGTERM and Ctrl-C."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
