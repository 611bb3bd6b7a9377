"""The house's arrows: who may import whom, read from the source and not from what happens to be loaded."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("custody", "tasks", "flows")
FORBIDDEN = {"custody": {"tasks", "flows", "tests"}, "tasks": {"flows", "tests"}, "flows": {"tests"}}
HEAVY = {"prefect", "confluent_kafka", "elasticsearch", "duckdb", "pyarrow"}
QUERYING = {"custody.query.connect", "custody.cli.query", "custody.query.tables"}
"""What asks archives in SQL, with the extra `query`; nothing else in the wheel knows DuckDB or Arrow."""

READING = {f"custody.archive.{name}" for name in ("forms", "known_heads", "reader", "trusted")}
"""What writers and the verifier share of an archive; all else in that package writes, proves or shows."""

EMITTING = {"custody.format.events", "custody.emit"}
"""What applications use. The verifier reads events by code of its own."""


def modules(room: str) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and file of each module of a package."""
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path, name: str) -> set[str]:
    """Return every dotted name that a file imports, at its head or inside a function."""
    found: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def closure(start: str) -> set[str]:
    """Return the modules of the house that importing one leads to, lazy imports included."""
    files = {name: path for room in ROOMS for name, path in modules(room)}
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in files and name not in seen:
            seen.add(name)
            waiting += imports(files[name], name)
    return seen


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room: str) -> None:
    """Flows import tasks, tasks import custody, never the other way, and nothing imports a test."""
    for name, path in modules(room):
        wrong = {found for found in imports(path, name) if found.split(".")[0] in FORBIDDEN[room]}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_custody_needs_nothing_heavy() -> None:
    """What an auditor or an application installs imports no Prefect, Kafka or Elasticsearch, not even lazily."""
    for name, path in modules("custody"):
        if name.startswith("custody.emit"):
            continue
        allowed = {"duckdb", "pyarrow"} if name in QUERYING else set()
        wrong = {found for found in imports(path, name) if found.split(".")[0] in HEAVY - allowed}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_prefect_stays_out_of_the_import_of_the_command_line() -> None:
    """The operator's command line imports flows inside its commands: Prefect takes two seconds. Settings are light."""
    tree = ast.parse((ROOT / "flows" / "operate" / "cli.py").read_text(encoding="utf-8"))
    heads = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    heads |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name for name in heads if name.split(".")[0] in {"prefect", "flows", "tasks"}} == {"tasks.settings"}
    files = {name: path for room in ROOMS for name, path in modules(room)}
    for name in closure("tasks.settings"):
        assert not {found.split(".")[0] for found in imports(files[name], name)} & (HEAVY | {"flows"}), name


def test_prefect_stands_in_flows_and_in_what_wraps_tasks_for_them() -> None:
    """A step is a plain function that commands and tests call without Prefect; `task.py` alone makes it a task."""
    wrappers = {name for name, _ in modules("tasks") if name.endswith(".task")}
    assert {"tasks.drain.task", "tasks.audit.task", "tasks.roll.task", "tasks.backfill.task"} <= wrappers
    for name, path in modules("tasks"):
        found = imports(path, name)
        assert name in wrappers or not {one for one in found if one.split(".")[0] == "prefect"}, name
        assert not found & wrappers, f"{name} imports {sorted(found & wrappers)}"
    for name, path in modules("flows"):
        assert not imports(path, name) & {"prefect.task", "prefect.tasks", "prefect.cache_policies"}, name


def test_a_flow_is_a_module_that_has_its_name() -> None:
    """`flows/` has one flow a module, the task runners, and nothing else; what is no flow is in `flows/operate/`."""
    for path in sorted((ROOT / "flows").glob("*.py")):
        if path.stem not in {"__init__", "runners"}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert path.stem in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, path


def test_verifier_shares_no_writing_code() -> None:
    """Nothing that verification imports, however far, writes archives."""
    reached = closure("custody.verify.run")
    assert "custody.tlog.merkle" in reached
    assert {name for name in reached if name.startswith("custody.archive.")} <= READING
    assert not reached & EMITTING
    assert not {name for name in reached if name.split(".")[0] in {"tasks", "flows"}}


def test_a_signed_log_knows_nothing_of_kafka() -> None:
    """What a signed log is stands on the two-line form, and on no kind of statement, key or rule of an archive."""
    allowed = {"envelope", "errors", "layout", "limits", "store", "times", "tlog"}
    for name, path in modules("custody"):
        if name.startswith("custody.tlog"):
            inside = [
                one.removeprefix("custody.").removeprefix("format.")
                for one in imports(path, name)
                if one.startswith("custody.") and one != "custody.format"
            ]
            found = {one.split(".")[0] for one in inside}
            assert found <= allowed, f"{name} imports {sorted(found - allowed)}"


@pytest.mark.parametrize("command", [["--version"], ["verify", "--help"], ["verify", "nowhere"], ["config"]])
def test_auditors_commands_load_nothing_of_the_operator(command: list[str], tmp_path: Path) -> None:
    """`custody verify` and the like load neither Prefect nor Kafka, nor the operator's commands."""
    script = (
        "import sys\nfrom custody.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY | {'flows', 'boto3'}} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUSTODY_")}
    run = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stderr.splitlines()[-1] == "[]"
