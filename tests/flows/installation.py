"""`custody up` in a folder of its own, with real processes. None of them is left when a test is over."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
_ASK_SECONDS = 1.0
"""Between two questions about a run. Every 0.3 seconds, answers would cost the server more than all else it does."""
UP = """
import sys
from pathlib import Path
from flows.operate.up import up
up(Path("prefect"), int(sys.argv[1]), Path(sys.argv[2]))
"""


class Installation:
    """A folder with settings, deployments and a copy of Prefect's database, in which `custody up` runs.

    The first start of all, without a database, is that of tests/test_readme.py and tests/test_page_commands.py.
    """

    def __init__(self, folder: Path, settings: str, deployments: str, database: Path) -> None:
        self.folder = folder
        (folder / "prefect").mkdir(mode=0o700)
        shutil.copy(database, folder / "prefect/prefect.db")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self._token: tuple[str, str] | None = None
        self.log = folder / "up.log"
        (folder / "custody.toml").write_text(settings)
        (folder / "deployments.yaml").write_text(deployments)

    def environment(self) -> dict[str, str]:
        """Return the variables of this process without those that are settings of custody's or Prefect's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PREFECT_"))}
        return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def up(self) -> None:
        """Start `custody up`, and return once it prints that it is up."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        self.begin()
        urls: list[str] = []

        def ready() -> bool:
            urls[:] = re.findall(r"custody is up: (http://127\.0\.0\.1:\d+)", self.log.read_text()[begin:])
            return bool(urls) or self.process is None or self.process.poll() is not None

        self.wait(ready, 400, "custody up to be up")
        assert urls, self.log.read_text()[-3000:]
        self.url = urls[0]

    def begin(self) -> None:
        """Start `custody up`."""
        # Not any port of the system's: others could take that one until the server listens, many seconds later.
        (port,) = free_ports(1)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", UP, str(port), "deployments.yaml"],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self, done: Callable[[], object], seconds: float, what: str, *, every: float = 0.3) -> None:
        """Wait, and show the output of `up` if it takes too long."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                logs = [log for log in (self.log, self.folder / "prefect/up.log") if log.exists()]
                output = "\n".join(log.read_text()[-4000:] for log in logs)
                pytest.fail(f"waited {seconds} s for {what}; what `custody up` and its children printed:\n{output}")
            time.sleep(every)

    def credentials(self) -> str:
        """Return the name and password of the API."""
        return (self.folder / "prefect/credentials").read_text()

    def request(self, path: str, data: bytes | None, method: str | None = None) -> urllib.request.Request:
        """Return a request to the API, as a browser that is logged in makes it."""
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(self.credentials().encode()).decode()}",
        }
        if data is not None:
            headers |= {"Prefect-Csrf-Client": "test", "Prefect-Csrf-Token": self._csrf_token()}
        return urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)

    def _csrf_token(self) -> str:
        """Return the token of the server that is up, which is good for an hour."""
        if self._token is None or self._token[0] != self.url:
            with urllib.request.urlopen(self.request("csrf-token?client=test", None), timeout=30) as answer:
                self._token = self.url, json.load(answer)["token"]
        return self._token[1]

    def prefect(self, path: str, **body: object) -> Any:
        """Ask Prefect's API."""
        data = json.dumps(body).encode() if body or not path.startswith("deployments/name/") else None
        answers: list[Any] = []

        def answered() -> bool:
            try:
                with urllib.request.urlopen(self.request(path, data), timeout=30) as answer:
                    answers.append(json.load(answer))
            except urllib.error.HTTPError as error:
                # SQLite is locked: what a server under load says, and what clients of Prefect's try again.
                if error.code != 503:
                    raise
            return bool(answers)

        self.wait(answered, 120, f"an answer to {path}")
        return answers[0]

    def send(self, request: urllib.request.Request) -> None:
        """Send a request whose answer does not matter, again while SQLite is locked."""

        def taken() -> bool:
            try:
                urllib.request.urlopen(request, timeout=30).close()
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                return False
            return True

        self.wait(taken, 120, "the server to take a request")

    def start(self, deployment: str, **parameters: object) -> str:
        """Run a deployment now, as its form does, and return the id of the flow run."""
        known = self.prefect(f"deployments/name/{deployment}")
        return str(self.prefect(f"deployments/{known['id']}/create_flow_run", parameters=parameters)["id"])

    def pause(self, deployment: str) -> None:
        """Pause a deployment's schedule, as its switch does."""
        known = self.prefect(f"deployments/name/{deployment}")
        request = self.request(f"deployments/{known['id']}/pause_deployment", b"", "POST")
        self.send(request)

    def finish(self, run: str) -> Any:
        """Wait until a flow run has ended, and return it."""
        runs: list[Any] = []

        def ended() -> bool:
            runs[:] = self.prefect("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
            return runs[0]["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        self.wait(ended, 300, f"the run {run} to end", every=_ASK_SECONDS)
        return runs[0]

    def finished(self, name: str) -> Any:
        """Wait until a flow run of this name has ended, and return it."""
        runs: list[Any] = []

        def begun() -> bool:
            runs[:] = self.prefect("flow_runs/filter", flow_runs={"name": {"any_": [name]}})
            return bool(runs)

        self.wait(begun, 180, f"a run called {name!r}", every=_ASK_SECONDS)
        return self.finish(runs[0]["id"])

    def lines_of(self, run: str) -> list[str]:
        """Return what a flow run logged."""
        logs = self.prefect("logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC")
        return [line["message"] for line in logs]

    def children(self) -> list[psutil.Process]:
        """Return all processes below `up`."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def running(self) -> list[psutil.Process]:
        """Return the processes of flow runs."""
        return [process for process in self.children() if "prefect.engine" in command(process)]

    def end(self) -> int:
        """End `up` as a service manager does, and return its exit code once nothing of it is left."""
        assert self.process is not None
        below = self.children()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(90)
        assert [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
        return code


def command(process: psutil.Process) -> str:
    """Return a process's command line, empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def ended(installation: Installation) -> Iterator[None]:
    """End what runs in the installation's folder when the block does, whatever became of it."""
    try:
        yield
    finally:
        left = [process for process in psutil.process_iter() if str(installation.folder) in _environment(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        if installation.process is not None:
            installation.process.wait()


def _environment(process: psutil.Process) -> str:
    try:
        return process.environ().get("PREFECT_HOME", "") + process.cwd()
    except psutil.Error:
        return ""
