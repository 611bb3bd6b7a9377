"""The notebooks run unchanged against any archive, and show what it has, in a form that everyone can read."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from msgspec import structs
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from tasks.audit.conclude import conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings
from tests.helpers.corpus import TIME
from tests.helpers.environment import clear_settings
from tests.helpers.own import SHAPES, own_event
from tests.helpers.sample import Growing, Sample, event, make_archive
from tests.servers.shared import locked, shared_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def execute(given: Any, archive: Path | None, folder: Path = NOTEBOOKS, *, run_on: bool = False) -> Any:
    """Execute a notebook in a folder, as Jupyter does. With an archive, its variable `archive` names that.

    Args:
        given: a notebook, or its name.
        archive: of which it is.
        folder: where it lies.
        run_on: whether the cells after one that fails are executed too.
    """
    notebook = given
    if isinstance(given, str):
        notebook = nbformat.read(folder / f"{given}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    if archive is not None:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert "archive =" in first.source
        first.source = f"archive = {str(archive)!r}"
    where = {"metadata": {"path": folder}}
    # Ports would be chosen long before the kernel listens there, and others could take them. The path is a short one,
    # because a socket's may have about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="custody-kernel-") as sockets:
        # A slow kernel may send the end of a line later than the line: one output, as a reader sees it.
        client = NotebookClient(
            notebook,
            timeout=120,
            iopub_timeout=120,
            raise_on_iopub_timeout=True,
            kernel_name="python3",
            resources=where,
            allow_errors=run_on,
            coalesce_streams=True,
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/socket"}),
        )
        client.execute()
    return notebook


def outputs(executed: Any) -> list[Any]:
    return [output for cell in executed.cells for output in cell.get("outputs", ())]


def texts(executed: Any) -> str:
    """Return all that an executed notebook printed or showed: text, sentences, and tables without their tags."""
    parts = []
    for output in outputs(executed):
        data = output.get("data", {})
        table = re.sub(r"<[^>]*>", " ", data.get("text/html", ""))
        parts += [output.get("text", ""), " ".join(table.split()), data.get("text/markdown", "")]
    return "\n".join(parts)


def charts(executed: Any) -> list[Any]:
    return [output for output in outputs(executed) if "image/png" in output.get("data", {})]


def audited(sample: Sample, **counts: int) -> None:
    """Audit, as if it had counted these as well."""
    given = Settings(archive=str(sample.folder), keys=f"file:{sample.keyring}", audit=AuditSettings())
    plan = plan_audit(given, Request(), datetime.now(UTC))
    results = [structs.replace(one, counts=one.counts | counts) for one in verify_pieces(given, plan, plan.pieces)]
    conclude(given, plan, results)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_settings(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _fonts(request: pytest.FixtureRequest) -> None:
    """Make Matplotlib's cache of fonts. Else the first kernel on a machine may say on stderr that it does so."""
    with locked(shared_folder(request.config) / "fonts.lock"):
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], timeout=280, check=True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write an archive and audit it. Elasticsearch is said to have refused two of its events."""
    made = make_archive(tmp_path_factory.mktemp("sample"))
    with pytest.MonkeyPatch.context() as patched:
        clear_settings(patched)
        audited(made, rejected=2)
    return made


@pytest.fixture(scope="module")
def executed_once(sample: Sample) -> Callable[[str], Any]:
    """Execute each notebook once with that archive, for tests that only look at it."""

    def run(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            clear_settings(patched)
            return execute(name, sample.folder)

    return functools.cache(run)


def test_integrity(sample: Sample, executed_once: Callable[[str], Any]) -> None:
    """It shows the verdict, what each log holds, what was quarantined and what Elasticsearch has refused."""
    executed = executed_once("integrity")
    shown = texts(executed)
    assert "Verdict: VERIFIED" in shown
    assert "Elasticsearch rejected 2 of the events that audit 0 read" in shown
    assert re.search(r"audit\.events/0 4 148 1 1 0", shown), shown
    assert "not JSON" in shown
    assert f"{sample.log} {sample.quarantined:,}" in shown
    assert len(charts(executed)) == 4


@pytest.mark.parametrize("name", ["integrity", "activity"])
def test_outputs_can_be_read(executed_once: Callable[[str], Any], name: str) -> None:
    """No warning, no missing value, no count as a float, and each chart has a text for those who cannot see it."""
    executed = executed_once(name)
    assert not [output for output in outputs(executed) if output.get("name") == "stderr"]
    assert not [output for output in outputs(executed) if output.output_type == "execute_result"]
    shown = texts(executed)
    assert not re.search(r"NaN|NaT|<NA>|\bNone\b(?!\.)|Warning|\d\d:\d\d:\d\d\.\d", shown), shown
    for output in charts(executed):
        assert len(output.metadata["image/png"]["alt"]) > 15


def test_rows_lead_to_evidence(executed_once: Callable[[str], Any]) -> None:
    """Each table of events has a log and an offset."""
    executed = executed_once("activity")
    tables = [output["data"]["text/html"] for output in outputs(executed) if "text/html" in output.get("data", {})]
    assert len(tables) >= 6
    for table in tables:
        assert {"log", "offset"} <= set(re.findall(r"<th [^>]*>([^<]*)</th>", table)), table


def test_colours_are_distinct() -> None:
    """The six types have six colours of Okabe and Ito's, in both notebooks."""
    known = {"#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442"}
    for name in ("integrity", "activity"):
        source = (NOTEBOOKS / f"{name}.ipynb").read_text()
        assert set(re.findall(r"#[0-9A-F]{6}", source)) == known | {"#999999"}


def test_names_that_look_like_formulas(tmp_path: Path) -> None:
    """An event's words are drawn as they are, in each chart, also those of other scripts."""
    growing = Growing(tmp_path)
    names = ("$_$", r"$\frac{$", "<b>", "登录", "x" * 90)

    def content(offset: int) -> bytes:
        # The second of the six types.
        return json.dumps({**json.loads(event(1)), "failure_reason": names[offset % 5]}).encode()

    growing.append(2, content)
    for name in ("integrity", "activity"):
        executed = execute(name, growing.folder)
        assert not [output for output in outputs(executed) if output.get("name") == "stderr"]
        for output in outputs(executed):
            assert "<b>" not in output.get("data", {}).get("text/html", "")
    assert "<b>" in charts(executed)[1].metadata["image/png"]["alt"]


def test_integrity_of_damage(tmp_path: Path) -> None:
    """It shows what an audit found, with the object and what to do, uncut."""
    sample = make_archive(tmp_path)
    path = next((sample.folder / "events").rglob("*.gz"))
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    audited(sample)
    shown = texts(execute("integrity", sample.folder))
    assert "Verdict: TAMPERED" in shown
    assert "segment-hash" in shown
    assert str(path.relative_to(sample.folder)) in shown
    assert "restore it from a replica or backup (its SHA-256 must be the one stated)" in shown


def test_integrity_of_a_forgery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged audit gives no verdict where keys are at hand. Where none are, it says `unverified`."""
    sample = make_archive(tmp_path)
    audited(sample)
    first = sample.folder / "audits" / f"{0:012}.json"
    forged = first.read_bytes().replace(b'"sequence":0', b'"sequence":1').replace(b'"verified"', b'"tampered"')
    first.with_name(f"{1:012}.json").write_bytes(forged)
    manifest = min((sample.folder / "manifests").rglob("*.json"))
    manifest.unlink()
    shown = texts(execute("integrity", sample.folder))
    assert "unverified: no keys are at hand" in shown
    assert "Verdict: TAMPERED, by audits whose signatures were not checked: unverified" in shown
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    shown = texts(execute("integrity", sample.folder))
    assert "unverified" not in shown
    assert "Verdict: VERIFIED\n" in shown
    assert "damaged: audits/0: no valid audit in the slots 1 to 1" in shown
    assert "damaged: audit.events/0: no valid statement in the slots 0 to 0" in shown


def test_integrity_without_an_audit(tmp_path: Path) -> None:
    """Before the first audit it says so."""
    growing = Growing(tmp_path)
    growing.append(2)
    assert "NOT AUDITED YET" in texts(execute("integrity", growing.folder))


@pytest.mark.parametrize("name", ["integrity", "activity"])
@pytest.mark.parametrize("there", [False, True], ids=["no archive", "an empty archive"])
def test_without_anything_to_show(tmp_path: Path, name: str, there: bool) -> None:
    """Opened before the demo, or before the first drain, one sentence says what to do: no traceback, in any cell."""
    if there:
        growing = Growing(tmp_path)
        growing.append(0)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    execute(notebook, tmp_path / "archive", run_on=True)
    (shown,) = [output for output in outputs(notebook) if output.output_type == "error"]
    (said,) = shown.traceback
    assert "\n" not in said
    assert ("run `custody drain`" if there else "run `uv run custody demo`") in said
    # Whoever runs on reads the same sentence again, where something is lacking.
    rest = [output for output in outputs(notebook) if output is not shown]
    again = [output.text.strip() for output in rest if output.get("text", "").strip() == said]
    assert there or len(again) == len(rest) >= 5


@pytest.mark.parametrize("name", ["integrity", "activity"])
def test_in_a_kernel_that_lacks_a_library(name: str) -> None:
    """One sentence has the command that opens the notebook with all that it needs: the tutorial's own."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source += "\nimport sys\nsys.modules['matplotlib'] = None"
    with pytest.raises(CellExecutionError):
        execute(notebook, None)
    (shown,) = [output for output in outputs(notebook) if output.output_type == "error"]
    (said,) = shown.traceback
    (command,) = re.findall("`(.*)`", said)
    tutorial = (NOTEBOOKS.parent / "docs" / "demo.md").read_text()
    assert f"```sh\n{command}\n```" in tutorial
    extras = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra (\S+)", command)) <= extras.keys()


def test_activity(executed_once: Callable[[str], Any]) -> None:
    """It shows who did what."""
    executed = executed_once("activity")
    shown = texts(executed)
    for kind in ("query_executed", "auth_attempt", "config_change"):
        assert kind in shown
    assert len(charts(executed)) == 3


@pytest.mark.parametrize("types", [0, 5, 300])
def test_own_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: int) -> None:
    """An archive of own types alone, with any number of them, and one without events, have a whole report."""
    growing = Growing(tmp_path)

    def content(offset: int) -> bytes:
        if types == len(SHAPES):
            return own_event(offset)
        return json.dumps({"event_type": f"type {offset:0200}", "timestamp": TIME}).encode()

    if types:
        growing.append(2, content, each=types)
    else:
        growing.heartbeat(datetime.now(UTC))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    # Without events, `activity` stops with a sentence: there is nothing to explore.
    for name, number in (("activity", 3), ("integrity", 5)) if types else (("integrity", 5),):
        executed = execute(name, growing.folder)
        assert len(charts(executed)) <= number
        assert "Glyph" not in texts(executed)
    assert f"{2 * types}" in texts(executed)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with unchanged copies of the notebooks, in which `custody demo` was run."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PREFECT_"))}
    command = [sys.executable, "-c", "from custody.cli.main import main; main()", "demo", "--events", "1200"]
    done = subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("name", "shows", "drawn"), [("integrity", "demo-", 4), ("activity", "query_executed", 3)])
def test_as_they_are_after_the_demo(checkout: Path, name: str, shows: str, drawn: int) -> None:
    """Run in their own folder with no cell changed, they show the archive of `custody demo`."""
    executed = execute(name, None, checkout / "notebooks")
    assert shows in texts(executed)
    assert len(charts(executed)) == drawn


@pytest.mark.parametrize("name", ["integrity", "activity"])
def test_kept_without_outputs(name: str) -> None:
    """Notebooks are committed without outputs, because outputs belong to an archive."""
    kept = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert not [cell for cell in kept["cells"] if cell.get("outputs") or cell.get("execution_count")]
