"""Build programs of Go's, for tests that hold our files and bytes against other people's implementations."""

import shutil
import subprocess
from pathlib import Path

from tests.servers.kafka import CACHE
from tests.servers.require import unavailable
from tests.servers.shared import locked


def build(module: Path, name: str, seconds: float, package: str = ".") -> Path:
    """Return a program that a Go module of the tests has or requires, built in the versions of its go.sum.

    It is built once for all test processes, and stays for the next session.

    Args:
        module: the folder with go.mod and go.sum.
        name: the program's.
        seconds: how long it may take. Only the first time is long.
        package: the import path of the program.
    """
    if shutil.which("go") is None:
        unavailable(f"Go is not installed: {name} cannot be built")
    CACHE.mkdir(exist_ok=True)
    program = CACHE / f"go-{name}"
    try:
        with locked(CACHE / f"go-{name}.lock"):
            built = subprocess.run(
                ["go", "build", "-mod=readonly", "-o", str(program), package],
                cwd=module,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired:
        unavailable(f"the Go program {name} was not built within {seconds:.0f} s")
    if built.returncode:
        unavailable(f"the Go program {name} could not be built: {built.stderr[-500:]}")
    return program


def prometheus() -> Path:
    """Return a program that checks a configuration, rules or a query with Prometheus' own parsers; see its source."""
    return build(Path(__file__).parents[1] / "interop" / "prometheus", "prometheus", 500)
