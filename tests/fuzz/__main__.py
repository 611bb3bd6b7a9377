"""The long run: `python -m tests.fuzz --inputs 1000000`, over all doors at once, on all processors.

Inputs are led by coverage (atheris, which is libFuzzer for Python) where it is installed, and else drawn by the edits
of `edits.py`, which atheris uses too. Each door is a process of its own, with bounds for memory and for the time that
an input takes. An input that fails is printed whole, in base64, with its traceback; `--replay` takes it.
"""

import argparse
import base64
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.child import MEMORY_MIB, SECONDS
from tests.fuzz.targets import targets

ROOT = Path(__file__).parents[2]
WEIGHTS = {"archive": 0.05, "chain": 0.2, "audits": 0.3, "signatures": 0.3, "batches": 0.3, "orphan": 0.5}
"""How many inputs a door gets, against 1 of those not named: those that cost more get fewer."""
WIDTH = 20


@dataclass(frozen=True)
class Done:
    """What a door's process did."""

    name: str
    inputs: int
    mib: int
    seconds: float
    failure: str | None


def run(name: str, engine: str, inputs: int, seed: int) -> Done:
    """Fuzz one door in a process of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="custody-fuzz-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.child", name, engine, str(inputs), str(seed), folder],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        said = done.stdout + done.stderr
        left = [path.read_bytes() for path in Path(folder).glob("found-*")]
    ran = max((int(number) for number in re.findall(r"number_of_executed_units: +(\d+)", said)), default=0)
    mib = max((int(number) for number in re.findall(r"peak_rss_mb: +(\d+)", said)), default=0)
    failure = None
    if done.returncode:
        shown = "".join(f"\n--replay '{name}' {base64.b64encode(data).decode()}" for data in left)
        failure = f"exit code {done.returncode}\n{said[-4000:]}{shown}"
    return Done(name, ran, mib, time.monotonic() - began, failure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=["atheris", "edits"], help="atheris where it is installed")
    parser.add_argument("--seed", type=int, help="random, and printed")
    parser.add_argument("--only", choices=list(targets()), action="append", help="one door; may be given again")
    parser.add_argument("--replay", nargs=2, metavar=("DOOR", "BASE64"), help="one input, again")
    given = parser.parse_args(arguments)
    if given.replay:
        name, data = given.replay
        targets()[name].check(base64.b64decode(data))
        print("it raises nothing that it should not")
        return 0
    engine = given.engine or ("atheris" if importlib.util.find_spec("atheris") else "edits")
    seed = given.seed if given.seed is not None else random.SystemRandom().getrandbits(31)
    names = given.only or list(targets())
    total = sum(WEIGHTS.get(name, 1) for name in names)
    shares = {name: -int(-given.inputs * WEIGHTS.get(name, 1) // total) for name in names}
    print(f"{given.inputs:,} inputs over {len(names)} doors, engine {engine}, seed {seed}", flush=True)
    print(f"an input may take {MEMORY_MIB} MiB and {SECONDS} s", flush=True)
    # The slowest first, so that none is left over for the end.
    order = sorted(names, key=lambda name: WEIGHTS.get(name, 1))
    failures = inputs = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for done in threads.map(lambda name: run(name, engine, shares[name], seed), order):
            inputs += done.inputs
            rate = done.inputs / done.seconds
            print(f"{done.name:{WIDTH}} {done.inputs:>9,} inputs {rate:>8,.0f}/s {done.mib:>5} MiB", flush=True)
            if done.failure:
                failures += 1
                print(done.failure, flush=True)
    print(f"{inputs:,} inputs, {failures} failures")
    return 1 if failures or inputs < given.inputs else 0


if __name__ == "__main__":
    sys.exit(main())
