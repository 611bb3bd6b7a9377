"""Executes a notebook against an archive, and returns it as one HTML page that needs no network."""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

from custody.errors import ConfigurationError, CustodyError
from custody.keys.open import open_public
from custody.keys.trust_file import encode
from tasks.settings import Settings

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
_SECONDS = 600
_SECRET = ("CUSTODY_KEYRING_PASSPHRASE", "CUSTODY_KAFKA", "CUSTODY_SEARCH", "CUSTODY_ALERT", "PREFECT_")
"""Starts of the names of variables that may hold secrets of others than the archive's store."""


def execute(name: str, archive: str, settings: Settings | None = None) -> Any:
    """Execute a notebook of `notebooks/`, and return it with its outputs.

    Args:
        name: `integrity` or `activity`.
        archive: the value for its variable `archive`.
        settings: if their keyring has a passphrase, the notebook gets the public keys, and checks signatures by them.

    Raises:
        ConfigurationError: there is no such notebook, or it has no such variable.
        CustodyError: a cell failed, or took longer than ten minutes.
    """
    try:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ConfigurationError(f"there is no notebook {name!r} in {NOTEBOOKS}: {error.strerror}") from None
    first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if first is None or "archive =" not in first.source:
        raise ConfigurationError(f"the first code cell of the notebook {name!r} does not set `archive`")
    first.source = f"archive = {archive!r}"
    client = NotebookClient(
        notebook, timeout=_SECONDS, kernel_name="python3", resources={"metadata": {"path": Path.cwd()}}
    )
    # A notebook signs nothing and asks no server, so its kernel gets no passphrase and no credentials of servers.
    given = {name: value for name, value in os.environ.items() if not name.upper().startswith(_SECRET)}
    given["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    try:
        with tempfile.TemporaryDirectory(prefix="custody-report-") as folder:
            if settings and settings.keyring_passphrase and not settings.trust:
                public = Path(folder, "trust.json")
                keys = open_public(settings.keys, settings.passphrase(), settings.checkpoint_keys)
                public.write_bytes(encode(None, keys))
                given["CUSTODY_TRUST"] = str(public)
            # With its own event loop: nbclient starts none in a process that has one already, such as a flow's.
            asyncio.run(client.async_execute(env=given))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        raise CustodyError(f"the notebook {name!r} failed: {reason[:2000]}") from None
    return notebook


def to_html(notebook: Any) -> bytes:
    """Return an executed notebook as HTML, without code and without links to resources that a browser would fetch."""
    exporter = HTMLExporter(exclude_input=True, embed_images=True, mathjax_url="", require_js_url="", jquery_url="")  # type: ignore[no-untyped-call]
    page, _ = exporter.from_notebook_node(notebook)
    return str(page).encode()
