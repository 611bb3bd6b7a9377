"""What a command loads, and what is a flow. Which room may import which, import-linter checks (pyproject.toml)."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import Flow

import flows

ROOT = Path(__file__).parent.parent
HEAVY = {"prefect", "confluent_kafka", "elasticsearch", "duckdb", "pyarrow"}


def test_a_flow_is_a_module_that_has_its_name() -> None:
    """`flows/` has one flow a module, and what flows share; what is no flow is in `flows/operate/`."""
    for module in pkgutil.iter_modules(flows.__path__):
        if module.name not in {"cluster", "operate", "parameters", "publish", "runners", "summaries"}:
            assert isinstance(getattr(importlib.import_module(f"flows.{module.name}"), module.name), Flow)


def test_the_operators_command_line_is_light() -> None:
    """The operator's commands load Prefect, Kafka and Elasticsearch when they run: Prefect takes two seconds."""
    script = f"import sys, flows.operate.cli; print(sorted({HEAVY | {'flows.drain'}} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


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
