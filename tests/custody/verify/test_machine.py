"""The verifier's own machine may lack something: the verdict comes even so, with worker processes too.

Each case is a process of its own. A limit of the kernel is the fault where there is one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sample import make_archive

_CHILD = """
import resource, sys, tempfile
from custody.cli.main import main
from custody.verify import listing

if __name__ == "__main__":
    # So that a small archive has too many names for memory.
    listing._BUCKET_BYTES = 8
    exec(sys.argv.pop(1))
    sys.exit(main())
"""

_FAULTS = {
    "nothing is lacking": "",
    # No file can grow: a full disk, and no shared memory for the workers' queues.
    "no room in any file": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "no temporary folder": "tempfile.tempdir = '/nowhere'",
    "64 open files": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "12 open files": "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))",
    "no time zones, no extra": (
        "import zoneinfo; zoneinfo.reset_tzpath(())\n"
        "sys.modules.update(dict.fromkeys(('tzdata', 'boto3', 'duckdb', 'pyarrow')))"
    ),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", _FAULTS)
def test_the_verdict_comes(tmp_path: Path, fault: str, workers: int) -> None:
    """A good archive is verified, and a bad one is not, whatever this machine lacks."""
    sample = make_archive(tmp_path)
    script = tmp_path / "child.py"
    script.write_text(_CHILD)

    def judge() -> tuple[int, int]:
        options = ["--keys", f"file:{sample.keyring}", "--workers", str(workers), "--json"]
        command = [sys.executable, str(script), _FAULTS[fault], "verify", str(sample.folder), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
        assert not done.stderr
        lines = list(map(json.loads, done.stdout.splitlines()))
        return done.returncode, sum(line["events"] for line in lines if line["kind"] == "log")

    code, events = judge()
    assert (code, events > 0) == (0, True)
    segment = next(sample.folder.glob("events/**/*.gz"))
    segment.write_bytes(segment.read_bytes()[:-1])
    assert judge()[0] == 13
