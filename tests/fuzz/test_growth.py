"""Whatever stands in the place of what the verifier reads: time grows with its size at most, and memory is bounded.

The doors are those of `targets.py`. Each has frames, into which every shape is put, and so has a door that is added.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz.targets import Frame, targets
from tests.helpers.growth import SHAPES, Shape, check_growth

MOST_MIB = 224
"""Memory beside the input itself. With the interpreter it is the verifier's limit of 300 MiB."""
SIZES = {
    "manifest": 7_600_000,
    "audit": 7_600_000,
    "signatures": 16_000,
    "note": 64_000,
    "records": 50_000,
    "rows": 50_000,
}
"""Others get 64 KiB: where a door has no limit that is reached sooner, memory is in proportion.

Besides, each door gets what inflates to more than twice the bound: a door that inflates without a limit does not pass.
"""

_CHILD = """
import functools, json, resource, sys
from pathlib import Path
from tests.fuzz.targets import targets
from tests.helpers.growth import SHAPES, bombs

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
sizes = json.loads(sys.argv[1])
shapes_of = functools.cache(lambda size: {shape: make(size) for shape, make in SHAPES.items()})
peaks = {}
for door, target in targets().items():
    for shape, made in (shapes_of(sizes.get(door, 1 << 16)) | bombs()).items():
        for number, frame in enumerate(target.frames):
            data = frame(made)
            Path("/proc/self/clear_refs").write_text("5")
            before = mib("VmHWM")
            target.check(data)
            peaks[f"{door}, {shape}, frame {number}"] = mib("VmHWM") - before
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("name", list(targets()))
def test_time_grows_with_size_at_most(name: str) -> None:
    """No shape takes a door more time than in proportion to its size."""
    target = targets()[name]
    assert target.frames
    for shape, make in SHAPES.items():
        for frame in target.frames:
            try:
                check_growth(target.check, partial(_framed, frame, make))
            except AssertionError as error:
                error.add_note(f"{name}: {shape}")
                raise


def _framed(frame: Frame, make: Shape, size: int) -> bytes:
    return frame(make(size))


def test_memory_is_bounded() -> None:
    """No shape takes a door more memory than the verifier's limit, however large the format lets it be."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(SIZES)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peaks = json.loads(done.stdout)
    assert {door for door in targets() if any(each.startswith(f"{door}, ") for each in peaks)} == set(targets())
    worst = max(peaks, key=lambda each: peaks[each])
    print(worst, peaks[worst])
    assert peaks[worst] < MOST_MIB, worst


def test_a_search_that_fails_late_is_seen() -> None:
    """What is quadratic does not pass: the measure is not blind."""

    def slow(data: bytes) -> None:
        data = data[: len(data) // 16]
        assert sum(data[at:].count(b"no") for at in range(len(data))) == 0

    with pytest.raises(AssertionError, match="grows faster"):
        check_growth(slow, SHAPES["blank"])
