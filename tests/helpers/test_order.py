"""Tests come in the order that lets CI leave out long ones alone, and none is lost on the way."""

import itertools
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import order

ROOT = Path(__file__).resolve().parents[2]
DASK, README = order.ALWAYS


def item(nodeid: str, *fixtures: str) -> Any:
    """Return what of a test the order looks at."""
    return SimpleNamespace(nodeid=nodeid, fixturenames=fixtures)


def several(number: int, path: str, *fixtures: str) -> list[Any]:
    """Return so many tests of a file."""
    return [item(f"{path}::test_{at}", *fixtures) for at in range(number)]


ITEMS = [
    *several(20, "tests/faults/test_kills.py"),
    *several(100, "tests/custody/keys/test_keys.py"),
    *several(100, "tests/custody/tlog/test_log.py"),
    *several(3, "tests/custody/emit/test_new.py", "kafka"),
    *several(7, "tests/attacks/test_attacks.py"),
    *several(8, "tests/flows/test_logs.py", "prefect_server"),
    item(DASK, "prefect_server", "kafka"),
    *several(4, "tests/faults/test_refused_search.py", "guarded"),
    *several(2, README),
]


def shares(items: Sequence[Any]) -> list[list[str]]:
    """Return the files of what each process gets, as xdist deals the list."""
    dealt, left = [], [each.nodeid.partition("::")[0] for each in items]
    for number in range(order.PROCESSES):
        size = len(left) // (order.PROCESSES - number)
        dealt.append(left[:size])
        left = left[size:]
    return dealt


def test_each_process_has_quick_tests_and_then_long_ones() -> None:
    """Dear servers start once, files stay together but for those that are spread, and each test is there once."""
    ordered = order.in_order(ITEMS)
    assert sorted(map(id, ordered)) == sorted(map(id, ITEMS))
    kills = "tests/faults/test_kills.py"
    quick = {"tests/custody/keys/test_keys.py", "tests/custody/tlog/test_log.py"}
    dealt = shares(ordered)
    assert [
        [file for file, _ in itertools.groupby(share, lambda file: "quick" if file in quick else file)]
        for share in dealt
    ] == [
        ["tests/flows/test_dask.py", "quick", "tests/flows/test_logs.py"],
        [README, "quick", "tests/faults/test_refused_search.py", kills],
        [README, "quick", "tests/attacks/test_attacks.py", kills],
        ["quick", kills],
        ["quick", kills, "tests/custody/emit/test_new.py"],
    ]
    assert all(quick <= set(share) for share in dealt), "a large file is dealt in pieces"


@pytest.mark.parametrize(
    ("path", "fixtures", "seconds"),
    [
        (f"{DASK}[a]", ["kafka", "prefect_server"], None),
        ("tests/test_readme.py::test_a", ["kafka"], None),
        ("tests/custody/keys/test_keys.py::test_a", ["tmp_path", "seaweed", "moto", "fake_kms"], None),
        ("tests/new.py::test_a", ["kafka"], 60),
        ("tests/new.py::test_a", ["elastic", "tmp_path"], 60),
        ("tests/new.py::test_a", ["prefect_database"], 60),
        ("tests/new.py::test_a", ["prefect_server"], 60),
        ("tests/new.py::test_a", ["own"], 60),
        ("tests/faults/test_new.py::test_a", [], 90),
        ("tests/faults/test_races.py::test_a", ["kafka"], 120),
        ("tests/flows/test_schedule.py::test_a", [], 420),
    ],
)
def test_what_is_left_out(path: str, fixtures: list[str], seconds: int | None) -> None:
    """Long tests that might not end in time are; quick tests, the README's and Dask's first never are."""
    test = item(path, *fixtures)
    assert order.is_long(test) is (seconds is not None)
    assert order.is_left_out(test, limit=1000, now=1001) is (seconds is not None)
    if seconds is not None:
        assert not order.is_left_out(test, limit=1000, now=1000 - seconds)
        assert order.is_left_out(test, limit=1000, now=1001 - seconds)


@pytest.mark.parametrize(("seconds", "left_out"), [(0, True), (900, False)])
def test_a_session_says_what_it_left_out(seconds: int, left_out: bool) -> None:
    """A long test for which there is no time is skipped; with time enough, it runs. A quick one always does."""
    quick, long = f"{__file__}::test_the_list_is_true", "tests/tasks/test_task.py"
    options = ("-n1", "-rfEs", "-p", "no:cacheprovider", f"--seconds={seconds}")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, quick, long],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    skipped = [line for line in ran.stdout.splitlines() if line.startswith("SKIPPED")]
    reasons = [f"no time was left for long tests of {long}"] if left_out else []
    assert [line.rpartition(": ")[2] for line in skipped] == reasons
    assert (" 1 passed" in ran.stdout) is left_out
    assert ran.returncode == 0


def test_the_list_is_true() -> None:
    """Each place and fixture that is named is there, and there are as many processes as pytest is told to have."""
    paths = [*order.ALWAYS, *(long.path for long in order.LONG)]
    for path in paths:
        file, _, name = path.partition("::")
        assert (ROOT / file).exists(), path
        assert not name or f"def {name}(" in (ROOT / file).read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in order.SERVERS if f"\ndef {name}(" not in sources] == []
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    assert f"-n{order.PROCESSES}" in options
