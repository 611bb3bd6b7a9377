"""The pages for people are true: links lead somewhere, and commands, targets and settings that they name exist."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from custody.cli.main import app
from tasks.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deployments/*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> str:
    """Return what a page shows as code: its blocks of shell commands, and what stands in backticks."""
    text = page.read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


def make(*arguments: str) -> list[str]:
    """Return the lines that `make` prints, also where a `make` with variables of its own runs this test."""
    path = {"PATH": os.environ["PATH"]}
    shown = subprocess.run(["make", *arguments], cwd=ROOT, env=path, capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


@pages
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the project, and every anchor a heading of it."""
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_every_page_says_what_kind_it_is_and_is_listed_by_it() -> None:
    """A page's first lines name its kind, and docs/README.md lists concepts and references where they belong."""
    index = (ROOT / "docs" / "README.md").read_text()
    listed = {
        page: part.partition("\n")[0]
        for part in index.split("\n## ")
        for page in re.findall(r"^\| \[[^]]+\]\(([a-z-]+\.md)\)", part, re.MULTILINE)
    }
    kinds: dict[str, str] = {}
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "README.md":
            kind = re.match(r"# .*\n\n(?:<!--.*-->\n\n)?A (tutorial|how-to|concept page|reference)\b", page.read_text())
            assert kind, f"{page.name} does not begin with its kind"
            kinds[page.name] = kind[1]
    assert listed.keys() == kinds.keys()
    for name, named in kinds.items():
        part = {"concept page": "Concepts", "reference": "Reference"}.get(named)
        assert (listed[name] == part) if part else listed[name] not in {"Concepts", "Reference"}, name


@pages
def test_named_targets_exist(page: Path) -> None:
    """Every `make TARGET` that a page names is a target."""
    assert set(re.findall(r"^make ([a-z-]+)", code(page), re.MULTILINE)) <= TARGETS


@pages
def test_named_commands_exist(page: Path) -> None:
    """Every `custody COMMAND` that a page names is a command, and every `custody keys COMMAND` one of those."""
    commands: Any = get_command(app)
    for words in re.findall(r"(?:^|\| |uv run )custody ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", code(page), re.MULTILINE):
        name, _, inner = words.partition(" ")
        command = commands.get_command(None, name)
        assert command is not None, words
        assert not inner or inner in getattr(command, "commands", {inner}), words


@pages
def test_named_settings_exist(page: Path) -> None:
    """Every setting of a section that a page names is one."""
    for name in re.findall(
        r"^(?:kafka|drain|audit|search|tiers|alert|events|health|metrics|s3)\.[a-z_]+$", code(page), re.MULTILINE
    ):
        section, _, field = name.partition(".")
        assert hasattr(getattr(Settings(), section), field), name


def test_help_lists_every_target() -> None:
    """`make` alone lists all targets, each with what it does."""
    lines = [line.split() for line in make()]
    assert {words[0] for words in lines} == TARGETS
    assert all(len(words) > 1 for words in lines)


def test_ci_runs_the_targets() -> None:
    """`.ci/run` runs targets of the Makefile alone, and its tests are README's own test command, with a time limit."""
    steps = re.findall(r"^step .* make ((?:--\S+ )*(?:[a-z-]+ ?)+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    targets = {word for step in steps for word in step.split() if not word.startswith("--")}
    assert targets == {"install", "lint", "types", "imports", "docs", "test-all"}
    (block, *_) = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    command = block.splitlines()[-1]
    assert make("-n", "test-all") == [command]
    assert make("-n", "test-all", "LIMIT=9") == [f"{command} -rfEs --seconds=9"]
    assert re.search(r"^step .* make test-all LIMIT=", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_nobody_is_told_to_install_somebody_elses_package() -> None:
    """No file says to install `custody` by its name: on PyPI that is another package."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in {".md", ".py", ".ipynb", ".toml", ".yaml"} and path.exists():
            assert not re.search(r"pip install ['\"]?custody(?!-archive(?:\[[a-z0-9,]*\])? @)", path.read_text()), name
