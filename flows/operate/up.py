"""`custody up`: Prefect's server, a worker and the scheduled deployments, as children of one process.

Rules:
- The settings, keys, archive and servers are checked first (`flows.operate.check`).
- A child that dies is started again within 5 seconds, and not more often.
- SIGTERM and Ctrl-C end everything: running drains finish their open segment, then the worker ends, then the server.
- If `up` itself is killed, its children keep running. The next `up` in the same folder ends them before it starts.
- The server keeps its database in the folder. The database may be lost: the archive is the state.
- Whoever may use the API runs code as the operator. So it takes only the credentials in the folder, which only the
  operator can read, and no page of another origin. Children get them by environment, never as arguments.
- The server signs nothing, so it gets none of the settings, passphrases and keys in the environment.
- Only what changed is deployed, and what people switched off on the server stays off: `deploy`.
- The output of server and worker goes to a log in the folder, whose size is bounded. So `up` itself prints little.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from custody.cli.common import note
from custody.cli.terminal import echo
from custody.errors import ConfigurationError, CustodyError
from custody.format import limits
from custody.store.durable import replace_file
from flows.operate.check import check_before_up
from flows.operate.deploy import DEPLOYMENTS, PREFECT, ROOT, Api, deploy, direct, without_secrets
from tasks.alert import NOBODY, receivers
from tasks.drain.signals import stop_on_signals, stop_requested
from tasks.settings import Settings

POOL = "custody"

WORKER_LIMIT = 4
"""Runs at the same time: enough that a hanging drain, an audit and an alert leave room for the next drain.

The worker counts them in memory, so a worker that was killed leaves no stale count."""

_START_SECONDS = 180
_FINISH_SECONDS = 60
_STOP_SECONDS = 15
_REVIVE_SECONDS = 5
_KEPT_DAYS = 7
"""How long Prefect's server keeps runs."""
_LOG = "up.log"
_LOG_BYTES = 16 * limits.MIB
"""When the log becomes `up.log.1`. So logs take twice as much at most."""


@dataclass(slots=True)
class _Installation:
    """The processes of one folder and port."""

    folder: Path
    port: int
    credentials: str = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    children: dict[str, psutil.Popen] = field(default_factory=dict)
    """Server and worker, in the order in which they were started first."""

    def start(self, name: str) -> None:
        """Start the server or the worker, and store its process id, so that the next `up` can end it."""
        options = {
            "server": f"--host 127.0.0.1 --port {self.port}",
            "worker": f"--pool {POOL} --type process --limit {WORKER_LIMIT} --name custody-up --install-policy never",
        }
        # A file and no pipe: children outlive an `up` that is killed, and then nobody would read the pipe.
        self.log.touch(0o600)
        with self.log.open("ab") as log:
            self.children[name] = psutil.Popen(
                [*PREFECT, name, "start", *options[name].split()],
                env=self.environment if name == "worker" else without_secrets(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # In its own session: Ctrl-C in the terminal reaches only `up`, which ends its children in order.
                start_new_session=True,
                # The worker keeps the operator's umask, because its runs write the archive.
                umask=-1 if name == "worker" else 0o077,
            )
        known = [[child.pid, child.create_time()] for child in self.children.values()]
        replace_file(self.folder / "children.json", json.dumps(known).encode())

    @property
    def log(self) -> Path:
        """The file with the output of server and worker."""
        return self.folder / _LOG

    def rotate_log(self) -> None:
        """Keep the log bounded. It is copied and emptied, because server and worker have it open for appending."""
        if self.log.stat().st_size > _LOG_BYTES:
            shutil.copyfile(self.log, self.folder / f"{_LOG}.1")
            os.truncate(self.log, 0)

    def wait_for(self, path: str) -> bool:
        """Return True once the API has an answer, False if `up` is to stop."""
        deadline = time.monotonic() + _START_SECONDS
        while not stop_requested.wait(0.3):
            with contextlib.suppress(OSError):
                Api.of(self.environment).ask(path)
                return True
            for name, child in self.children.items():
                if child.poll() is not None:
                    last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
                    raise CustodyError(f"Prefect's {name} ended while it was starting: see {self.log}", last)
            if time.monotonic() > deadline:
                raise CustodyError(f"Prefect's server did not answer within {_START_SECONDS} s: run 'custody up' again")
        return False

    def bring_up(self, deployments: Path) -> bool:
        """Start the server and the worker, and deploy. Return False if `up` is to stop.

        Raises:
            CustodyError: the server did not start, or the deployments were not accepted.
        """
        note("starting Prefect's server, half a minute …")
        self.start("server")
        if not self.wait_for("health"):
            return False
        note("starting the worker …")
        self.start("worker")
        # The worker creates the pool that the deployments name.
        if not self.wait_for(f"work_pools/{POOL}"):
            return False
        note("deploying …")
        deploy(deployments, self.environment)
        return not stop_requested.is_set()

    def revive(self) -> None:
        """Restart children that have died."""
        for name, child in self.children.items():
            if child.poll() is not None:
                echo(f"the {name} ended ({child.returncode}); it is started again", err=True)
                self.start(name)

    def end(self) -> None:
        """End the children in reverse order. The worker ends after its runs have finished their open segments."""
        if self.children:
            note("ending: waiting for what runs to finish its open segments, then for the worker and the server …")
        for child in reversed(self.children.values()):
            patience = _STOP_SECONDS
            with contextlib.suppress(psutil.NoSuchProcess):
                # The worker waits for its runs, but does not ask them to stop.
                for run in child.children():
                    patience = _FINISH_SECONDS
                    run.terminate()
                child.terminate()
            try:
                child.wait(patience)
            except psutil.TimeoutExpired:
                _kill_tree(child.pid)
                child.wait()
        (self.folder / "children.json").unlink(missing_ok=True)


def up(folder: Path, port: int, deployments: Path = DEPLOYMENTS) -> None:
    """Run until SIGTERM or Ctrl-C.

    Args:
        folder: where Prefect's server keeps its files.
        port: the server's port on 127.0.0.1; 0 for any free port.
        deployments: the file with the deployments and their schedules.

    Raises:
        ConfigurationError: a setting is wrong, another `up` uses the folder, or the port is taken.
        CustodyError: the check found what makes every run fail; the server did not start; or the deployments were not
            accepted.
    """
    settings = Settings()
    folder = folder.resolve()
    _make_private(folder)
    with _only_one(folder):
        _end_leftovers(folder)
        port = _free_port(port)
        check_before_up(settings, deployments)
        credentials = _credentials(folder / "credentials")
        installation = _Installation(folder, port, credentials, _environment(folder, port, credentials))
        with stop_on_signals(signal.SIGTERM, signal.SIGINT):
            try:
                if installation.bring_up(deployments):
                    echo(
                        f"custody is up: http://127.0.0.1:{port} (Ctrl-C ends it); its page asks for the text in"
                        f" {folder / 'credentials'}; log: {installation.log}"
                    )
                    told = ", ".join(receivers(settings))
                    echo(f"alerts: {told or NOBODY}")
                while not stop_requested.wait(_REVIVE_SECONDS):
                    installation.revive()
                    installation.rotate_log()
            finally:
                installation.end()


def _make_private(folder: Path) -> None:
    """Make the folder, readable by its owner alone.

    Raises:
        ConfigurationError: it cannot be made, or it holds files of others, or may.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise ConfigurationError(f"the folder {str(folder)!r} belongs to somebody else: choose another one (--dir)")
        if folder.stat().st_mode & 0o077 and not (folder / "up.lock").exists() and any(folder.iterdir()):
            raise ConfigurationError(
                f"others can look into the folder {str(folder)!r}, which will hold credentials: choose an empty or new"
                " one (--dir), or take their rights away (chmod 700)"
            )
        folder.chmod(0o700)
        for file in folder.glob("prefect.db*"):
            file.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(f"the folder {str(folder)!r} cannot be used: {error.strerror}") from None


def _credentials(path: Path) -> str:
    """Return the name and password of the API. They are made once, so that a browser stays logged in."""
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch(r"custody:[\w-]{43}", known := path.read_text(encoding="ascii")):
            path.chmod(0o600)
            return known
    made = f"custody:{secrets.token_urlsafe(32)}"
    replace_file(path, made.encode())
    return made


def server_variables(credentials: str, port: int) -> dict[str, str]:
    """Return the variables for a server of Prefect's that only its owner can use, and for its clients."""
    # Named as the settings are: these come before the older names, which the operator may have set.
    return {
        "DO_NOT_TRACK": "1",
        "PREFECT_API_AUTH_STRING": credentials,
        "PREFECT_SERVER_API_AUTH_STRING": credentials,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
    }


def _environment(folder: Path, port: int, credentials: str) -> dict[str, str]:
    """Return the children's environment: that of this process, with defaults, and the variables that `up` needs."""
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # By default leases are in memory, where runs that died with the server would hold their slots for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # A run a minute is 1,440 a day, with its logs, tables and events. The archive has what must be kept.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(_KEPT_DAYS * 86400),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P1D",
        # SQLite has one writer. Waiting for it is no error.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
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
    return {**defaults, **direct(os.environ), **ours, **server_variables(credentials, port)}


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
