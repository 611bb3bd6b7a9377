"""The notebooks run unchanged against any archive, and show what it has."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from msgspec import structs
from nbclient import NotebookClient

from custody.errors import ConfigurationError, CustodyError
from custody.keys.open import open_public
from custody.keys.trust_file import encode
from tasks.audit import report as notebooks
from tasks.audit.conclude import conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings
from tests.helpers.corpus import TIME
from tests.helpers.environment import clear_settings
from tests.helpers.own import SHAPES, own_event
from tests.helpers.sample import Growing, Sample, make_archive

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def texts(executed: Any) -> str:
    """Return all that an executed notebook printed or showed as text."""
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    return "\n".join(one.get("text", "") + str(one.get("data", {}).get("text/plain", "")) for one in outputs)


def charts(executed: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", ()))


def audited(sample: Sample, **counts: int) -> None:
    """Audit, as if it had counted these as well."""
    given = Settings(archive=str(sample.folder), keys=f"file:{sample.keyring}", audit=AuditSettings())
    plan = plan_audit(given, Request(), datetime.now(UTC))
    results = [structs.replace(one, counts=one.counts | counts) for one in verify_pieces(given, plan, plan.pieces)]
    conclude(given, plan, results)


def test_integrity(tmp_path: Path) -> None:
    """The report shows the verdict, what each log holds, what was quarantined and what Elasticsearch has refused.

    It has charts, and is a page of its own.
    """
    sample = make_archive(tmp_path)
    audited(sample, rejected=2)
    executed = notebooks.execute("integrity", str(sample.folder))
    shown = texts(executed)
    assert "Verdict: VERIFIED" in shown
    assert "Elasticsearch rejected 2 of the events that audit 0 read" in shown
    assert re.search(r"audit\.events/0 +4 +148\.0 +1\.0", shown), shown
    assert "not JSON" in shown
    assert charts(executed) == 5
    page = notebooks.to_html(executed).decode()
    assert "Verdict: VERIFIED" in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)


def test_names_that_look_like_formulas(tmp_path: Path) -> None:
    """An event's words are drawn as they are, in each chart, and put no traceback into a report."""
    sample = make_archive(tmp_path)
    for name in ("integrity", "activity"):
        notebook = nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
        setup = next(cell.source for cell in notebook.cells if cell.cell_type == "code" and "rcParams" in cell.source)
        script = (
            f"archive = {str(sample.folder)!r}\n{setup}\nchart = axes('$_$', '$\\\\frac{{$')\n"
            "chart.barh(['$_$', '$^$'], [1, 2], label='$_$')\nchart.legend()\n"
            "chart.yaxis.set_major_formatter(ticker.FixedFormatter(['$_$', '$^$']))\nchart.figure.savefig('out.png')"
        )
        environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(notebooks.NOTEBOOKS.parent)}
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120)


def test_the_kernel_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook signs nothing, so the passphrase and the servers' credentials are not in its kernel's environment."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("archive = ''", "import os\nprint(dict(os.environ))")]  # type: ignore[no-untyped-call]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "integrity.ipynb")  # type: ignore[no-untyped-call]
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    for name in ("KEYRING_PASSPHRASE", "KAFKA__CLIENT__SASL_PASSWORD", "SEARCH__API_KEY", "ALERT__URLS"):
        monkeypatch.setenv(f"CUSTODY_{name}", "canary")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "canary")
    monkeypatch.setenv("CUSTODY_S3__REGION", "kept")
    given = ast.literal_eval(notebooks.execute("integrity", str(tmp_path)).cells[1].outputs[0].text)
    assert "canary" not in str(given)
    assert given["CUSTODY_S3__REGION"] == "kept"


@pytest.mark.parametrize("published", [False, True], ids=["no trust.json", "trust.json"])
def test_integrity_with_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool) -> None:
    """With an encrypted keyring, the report of an audit is checked by the public keys, and so is not `unverified`."""
    clear_settings(monkeypatch)
    sample = make_archive(tmp_path, "correct horse")
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    monkeypatch.setenv("CUSTODY_KEYRING_PASSPHRASE", "correct horse")
    if published:
        keys = open_public(f"file:{sample.keyring}", "correct horse")
        (tmp_path / "trust.json").write_bytes(encode(None, keys))
        monkeypatch.setenv("CUSTODY_TRUST", str(tmp_path / "trust.json"))
    settings = Settings(archive=str(sample.folder))
    plan = plan_audit(settings, Request(), datetime.now(UTC))
    conclude(settings, plan, list(verify_pieces(settings, plan, plan.pieces)))
    shown = texts(notebooks.execute("integrity", str(sample.folder), settings))
    assert "no keys are at hand" not in shown, shown
    # HMACs of statements need the secret; the audit's Ed25519 signature does not.
    assert "unverified: audit.events/0: 4 signatures could not be checked with the keys at hand" in shown
    assert "Verdict: VERIFIED\n" in shown


def test_integrity_of_damage(tmp_path: Path) -> None:
    """The report shows what an audit found, and what to do."""
    sample = make_archive(tmp_path)
    path = next((sample.folder / "events").rglob("*.gz"))
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    audited(sample)
    shown = texts(notebooks.execute("integrity", str(sample.folder)))
    assert "Verdict: TAMPERED" in shown
    assert "has refused" not in shown
    assert "segment-hash" in shown


def test_integrity_of_a_forgery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged audit gives no verdict where keys are at hand. Where none are, the report says `unverified`."""
    sample = make_archive(tmp_path)
    audited(sample)
    first = sample.folder / "audits" / f"{0:012}.json"
    forged = first.read_bytes().replace(b'"sequence":0', b'"sequence":1').replace(b'"verified"', b'"tampered"')
    first.with_name(f"{1:012}.json").write_bytes(forged)
    manifest = min((sample.folder / "manifests").rglob("*.json"))
    manifest.unlink()
    shown = texts(notebooks.execute("integrity", str(sample.folder)))
    assert "unverified: no keys are at hand" in shown
    assert "Verdict: TAMPERED, by audits whose signatures were not checked: unverified" in shown
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    shown = texts(notebooks.execute("integrity", str(sample.folder)))
    assert "unverified" not in shown
    assert "Verdict: VERIFIED\n" in shown
    assert "damaged: audits/0: no valid audit in the slots 1 to 1" in shown
    assert "damaged: audit.events/0: no valid statement in the slots 0 to 0" in shown


def test_integrity_without_an_audit(tmp_path: Path) -> None:
    """Before the first audit, and before the first event, the report says so."""
    growing = Growing(tmp_path)
    growing.append(0)
    assert "NOT AUDITED YET" in texts(notebooks.execute("integrity", str(growing.folder)))


def test_activity(tmp_path: Path) -> None:
    """The notebook shows who did what, with log and offset."""
    sample = make_archive(tmp_path)
    executed = notebooks.execute("activity", str(sample.folder))
    shown = texts(executed)
    for kind in ("query_executed", "auth_attempt", "config_change"):
        assert kind in shown
    assert charts(executed) == 3


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
    for name, number in (("activity", 3), ("integrity", 5)):
        executed = notebooks.execute(name, str(growing.folder))
        assert charts(executed) <= number
        assert "Glyph" not in texts(executed)
    assert f"{2 * types}" in texts(executed)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with unchanged copies of the notebooks, in which `custody demo` was run."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(notebooks.NOTEBOOKS, root / "notebooks")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PREFECT_"))}
    command = [sys.executable, "-c", "from custody.cli.main import main; main()", "demo", "--events", "1200"]
    done = subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "shows", "drawn"), [("integrity", "NOT AUDITED YET", 5), ("activity", "query_executed", 3)]
)
def test_as_they_are_after_the_demo(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str, shows: str, drawn: int
) -> None:
    """Run in their own folder with no cell changed, they show the archive of `custody demo`."""
    clear_settings(monkeypatch)
    folder = checkout / "notebooks"
    # nbformat has types, and this function has none.
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    # As Jupyter does: the kernel starts in the notebook's folder.
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
    shown = texts(notebook)
    assert shows in shown
    assert "demo-" in shown
    assert charts(notebook) == drawn


@pytest.mark.parametrize("name", ["integrity", "activity"])
def test_kept_without_outputs(name: str) -> None:
    """Notebooks are committed without outputs, because outputs belong to an archive."""
    kept = json.loads((notebooks.NOTEBOOKS / f"{name}.ipynb").read_text())
    assert not [cell for cell in kept["cells"] if cell.get("outputs") or cell.get("execution_count")]


def test_failures_are_clear(tmp_path: Path) -> None:
    """A missing notebook, and a missing archive, give one clear error."""
    with pytest.raises(ConfigurationError, match="no notebook 'nothing'"):
        notebooks.execute("nothing", str(tmp_path))
    with pytest.raises(CustodyError, match=r"'activity' failed[\s\S]*there is no archive"):
        notebooks.execute("activity", str(tmp_path))
