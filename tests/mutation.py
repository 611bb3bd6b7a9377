"""What of the verifier can be removed with no test failing: `uv run python -m tests.mutation [MODULE ...]`.

Each module is mutated (mutmut) in a copy of the checkout, and each mutant is held against the tests that are about that
module. What survives them is held against all tests that verify archives, for a check is often best tested by the
attack that it is there for. Prints a table, and each mutant that survives both, which `tests/mutants.md` explains.

A mutant of a module in `verify` costs seconds, so that all of them take more than an hour on two cores. `--every N` is
a sample. Runs without S3, where one would cost as many minutes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
VERIFYING: Sequence[str] = (
    "tests/custody/verify/test_verify.py",
    "tests/custody/verify/test_scope.py",
    "tests/attacks/test_attacks.py",
    "tests/attacks/test_archive_file.py",
    "tests/attacks/test_public.py",
    "tests/attacks/test_meanwhile.py",
)
NEAR: Mapping[str, Sequence[str]] = {
    "tlog/merkle": ["tests/custody/tlog/test_merkle.py", "tests/custody/tlog/test_proofs.py"],
    "tlog/checkpoint": ["tests/custody/tlog"],
    "tlog/signatures": ["tests/custody/tlog"],
    "tlog/log": ["tests/custody/tlog"],
    "tlog/proofs": ["tests/custody/tlog"],
    "format/members": ["tests/custody/format/test_members.py", "tests/custody/format/test_golden.py"],
    "format/leaves": ["tests/custody/format/test_leaves.py"],
    "format/envelope": ["tests/custody/format/test_manifest.py", "tests/custody/format/test_archive_file.py"],
    "format/manifest": ["tests/custody/format/test_manifest.py", "tests/custody/format/test_golden.py"],
    "format/archive_file": ["tests/custody/format/test_archive_file.py"],
    "format/quarantine": ["tests/custody/format/test_quarantine.py", "tests/custody/archive/test_assemble.py"],
    "format/offsets": ["tests/custody/format/test_offsets.py"],
    "verify/run": VERIFYING,
    "verify/reading": VERIFYING,
    "verify/orphans": VERIFYING,
    "verify/expiry": VERIFYING,
    "verify/checkpoints": ["tests/attacks/test_public.py", *VERIFYING],
    "verify/archive_file": ["tests/attacks/test_archive_file.py", "tests/custody/verify/test_verify.py"],
    "verify/accounting": VERIFYING[:3],
    "verify/statement": VERIFYING[:3],
    "verify/clock": VERIFYING[:3],
    "verify/segments": ["tests/custody/format/test_leaves.py", *VERIFYING[:3]],
    "verify/contents": ["tests/custody/format/test_quarantine.py", *VERIFYING[:3]],
}
"""The tests that are about each module."""
WIDE = (
    "tests/custody/format/test_offsets.py",
    "tests/custody/format/test_quarantine.py",
    "tests/custody/tlog",
    "tests/custody/format/test_members.py",
    "tests/custody/format/test_leaves.py",
    "tests/custody/format/test_manifest.py",
    "tests/custody/format/test_archive_file.py",
    "tests/custody/archive/test_archive.py",
    "tests/custody/format/test_golden.py",
    "tests/custody/verify/test_verify.py",
    "tests/custody/verify/test_scope.py",
    "tests/custody/archive/test_evidence.py",
    "tests/custody/verify/test_accept.py",
    "tests/attacks/test_attacks.py",
    "tests/attacks/test_archive_file.py",
    "tests/attacks/test_meanwhile.py",
    "tests/attacks/test_public.py",
    "tests/tasks/audit/test_audit.py",
)
"""All that verifies."""
COPIED = ("custody", "deployments", "flows", "notebooks", "tasks", "tests", "README.md", "LICENSE")
# What a message says is not what is checked.
UNTOUCHED = (r'raise \w+\(f?"', r"raise \w+\($")
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
"""Where tests put their archives, if there is such a place: they sync all that they write, some thousand times each."""
_NUMBERS = 1000
"""No function has so many mutants."""
_SURVIVED = frozenset({0, 33})
"""Exit codes: no test failed, or none ran the mutant."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a module's mutants.

    Attributes:
        mutants: how many there are.
        near: how many survive the tests that are about the module.
        survivors: names of those that survive all.
    """

    mutants: int
    near: int
    survivors: Sequence[str]


def copy_checkout(folder: Path, modules: Iterable[str], tests: Iterable[str]) -> None:
    """Copy what git knows of the checkout, with mutmut's settings for some modules and tests."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    settings = {
        "source_paths": ["custody"],
        "only_mutate": [f"custody/{module}.py" for module in modules],
        "also_copy": list(COPIED),
        "pytest_add_cli_args": [
            "-n0",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "-k",
            "not s3 and not nothing_else_verifies",
        ],
        "pytest_add_cli_args_test_selection": list(tests),
        "do_not_mutate_patterns": list(UNTOUCHED),
    }
    # JSON's lists of strings are TOML's.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\n" + "\n".join(lines) + "\n")


def run_mutmut(folder: Path, mutants: Sequence[str] = ()) -> None:
    """Run mutants, all of them where none is named, on all processors."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count() or 1), *mutants]
    (folder / "temporary").mkdir(exist_ok=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "temporary")},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        shown = re.sub(r"\s*\r\s*", "\n", done.stdout)[-3000:]
        raise SystemExit(f"mutmut ended with exit code {done.returncode}: {shown}")


def exit_codes(folder: Path, module: str) -> dict[str, int | None]:
    """Return by mutant what its tests ended with; None for those that did not run."""
    found: dict[str, int | None] = json.loads((folder / f"mutants/custody/{module}.py.meta").read_text())[
        "exit_code_by_key"
    ]
    return found


def run_near(module: str, folder: Path, every: int, console: Console) -> tuple[int, list[str]]:
    """Run the tests about a module on its mutants. Return how many mutants ran, and the survivors."""
    copy_checkout(folder, [module], NEAR[module])
    # mutmut numbers them function by function, so that each function has its share.
    sample = [f"custody.{module.replace('/', '.')}.*__mutmut_{number}" for number in range(1, _NUMBERS, every)]
    run_mutmut(folder, sample if every > 1 else ())
    codes = {name: code for name, code in exit_codes(folder, module).items() if code is not None}
    survivors = [name for name, code in codes.items() if code in _SURVIVED]
    console.print(f"{module}: {len(survivors)} of {len(codes)} mutants survive {' '.join(NEAR[module])}")
    return len(codes), survivors


def run_wide(survivors: Mapping[str, Sequence[str]], folder: Path) -> dict[str, list[str]]:
    """Run all tests on the survivors. Return those that survive these too, by module."""
    copy_checkout(folder, survivors, WIDE)
    run_mutmut(folder, [name for names in survivors.values() for name in names])
    return {
        module: [name for name, code in exit_codes(folder, module).items() if name in names and code in _SURVIVED]
        for module, names in survivors.items()
    }


def show(folder: Path, mutant: str) -> str:
    """Return the lines that a mutant changes."""
    command = [sys.executable, "-m", "mutmut", "show", mutant]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in text.splitlines() if re.match(r"[-+](?![-+]{2} )", line))


def main() -> None:
    """Mutate, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", choices=list(NEAR), default=list(NEAR), help="of custody; by default all")
    parser.add_argument("--every", type=int, default=1, help="run only every so many-th mutant of each function")
    options = parser.parse_args()
    modules = options.modules
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="custody-mutants-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        root = Path(name)
        near = {module: run_near(module, root / module, options.every, console) for module in modules}
        left = {module: survivors for module, (_, survivors) in near.items() if survivors}
        wide = run_wide(left, root / "wide") if left else {}
        results = {
            module: Result(mutants, len(survivors), wide.get(module, []))
            for module, (mutants, survivors) in near.items()
        }
        for result in results.values():
            for mutant in result.survivors:
                console.print(f"\n{mutant}\n{show(root / 'wide', mutant)}")
    table = Table("module", "mutants", "survive its own tests", "survive all", "killed")
    for column in table.columns[1:]:
        column.justify = "right"
    for module, result in results.items():
        table.add_row(
            f"custody/{module}.py",
            str(result.mutants),
            str(result.near),
            str(len(result.survivors)),
            f"{1 - len(result.survivors) / result.mutants:.1%}",
        )
    total = sum(result.mutants for result in results.values())
    survived = sum(len(result.survivors) for result in results.values())
    table.add_row("together", str(total), "", str(survived), f"{1 - survived / total:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
