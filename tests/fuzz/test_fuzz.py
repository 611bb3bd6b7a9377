"""Whatever stands in the place of what the verifier reads: only the documented errors and findings come out.

Examples are the same in each run (the profile `fixed` is derandomized); a failing one is printed whole. The long run is
`python -m tests.fuzz`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.edits import KINDS, Edit, apply
from tests.fuzz.targets import targets

EXAMPLES = 300
SLOW = {"archive": 100, "chain": 150, "audits": 150, "signatures": 150}

_word = st.integers(0, 65_535)
_edits = st.lists(st.builds(Edit, st.integers(0, KINDS - 1), _word, _word, _word), min_size=1, max_size=6)


@pytest.mark.parametrize("name", list(targets()))
def test_fuzz(name: str) -> None:
    """Bad bytes, near to good ones or not, are a documented error or a finding, and never unnoticed."""
    target = targets()[name]
    seeds = list(target.seeds)

    @settings(max_examples=SLOW.get(name, EXAMPLES), suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=200), st.builds(apply, st.sampled_from(seeds), _edits, st.just(seeds))))
    def hold(data: bytes) -> None:
        target.check(data)

    hold()


@pytest.mark.parametrize("name", list(targets()))
def test_good_bytes_are_good(name: str) -> None:
    """The bytes that fuzzing begins from are themselves taken."""
    for seed in targets()[name].seeds:
        targets()[name].check(seed)


@pytest.mark.parametrize("name", list(targets()))
def test_shapes(name: str) -> None:
    """The shapes that parsers take long for are a documented error or a finding too, at any size."""
    for data in targets()[name].shaped(20, 500, 5_000):
        targets()[name].check(data)


def test_long_run_in_little() -> None:
    """The command of the long run works, within its bounds of memory and time, and says what it did."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", "600", "--engine", "edits", "--seed", "7"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 7" in done.stdout
    assert "0 failures" in done.stdout
