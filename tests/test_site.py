"""The site of the pages: built without a warning or network, with every page in its list."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = (ROOT / "docs" / "README.md").read_text()


def build(folder: Path) -> dict[str, bytes]:
    """Return the files of a new site, built as `make docs` does, behind a proxy that answers nobody."""
    (line,) = re.findall(r"^\tuv run --no-sync python (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    arguments = line.replace("build/doctrees", str(folder / "doctrees")).replace("build/site", str(folder / "site"))
    nobody = {"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, *arguments.split()],
        cwd=ROOT,
        env=os.environ | nobody,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    site = folder / "site"
    return {str(path.relative_to(site)): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


def test_the_site_needs_no_network(tmp_path: Path) -> None:
    """A build has no warning, needs no network, and no page loads anything from another host."""
    site = build(tmp_path)
    assert "docs/README.html" in site["index.html"].decode()
    for name, page in site.items():
        if name.endswith(".html"):
            loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"", page.decode())
            loaded += re.findall(r"<link rel=\"stylesheet\"[^>]* href=\"([^\"]+)\"", page.decode())
            assert not [address for address in loaded if "//" in address], name
    assert "lag-unknown" in site["docs/commands.html"].decode()
    assert b"commands" in site["searchindex.js"]


def test_the_list_of_pages_has_every_page_once() -> None:
    """`docs/README.md` lists every page for people once, so each is in the navigation, and says what it is."""
    listed = re.findall(r"^\| \[[^\]]+\]\(([^)]+\.md)\) \| \S.* \|$", LIST, re.MULTILINE)
    names = {
        os.path.relpath(path, ROOT / "docs")
        for folder in (".", "docs", "deployments", "custody", "tests")
        for path in (ROOT / folder).glob("*.md")
    }
    assert sorted(listed) == sorted(names - {"README.md"})
