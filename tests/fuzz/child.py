"""One door's process of the long run: `python -m tests.fuzz.child DOOR ENGINE INPUTS SEED FOLDER`."""

import random
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

MEMORY_MIB = 1024
SECONDS = 20
SIZE_LIMIT = 16_384


def by_edits(name: str, inputs: int, seed: int, folder: Path) -> int:
    """Draw edits of good bytes. The process dies of memory or time that an input takes too much of."""
    from tests.fuzz.edits import apply, draw
    from tests.fuzz.targets import targets

    target = targets()[name]
    seeds = [*target.seeds, *target.shaped(200)]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MIB << 20, MEMORY_MIB << 20))
    dice = random.Random(f"{seed} {name}")
    data = b""

    def too_long(*_: object) -> NoReturn:
        raise TimeoutError(f"an input took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    for number in range(inputs):
        data = (
            apply(dice.choice(seeds), draw(dice), seeds) if dice.getrandbits(4) else dice.randbytes(dice.randrange(99))
        )
        try:
            signal.alarm(SECONDS)
            target.check(data)
            signal.alarm(0)
        except BaseException:  # noqa: BLE001 - whatever comes out is what this looks for
            traceback.print_exc()
            (folder / f"found-{number}").write_bytes(data)
            return 1
    print(f"stat::number_of_executed_units: {inputs}")
    print(f"stat::peak_rss_mb: {_peak_mib()}")
    return 0


def _peak_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) // 1024


def by_coverage(name: str, inputs: int, seed: int, folder: Path) -> NoReturn:
    """Run atheris, which searches for bytes that reach new code, with our edits among its own."""
    import atheris

    with atheris.instrument_imports(include=["custody"]):
        from tests.fuzz.targets import targets
    from tests.fuzz.edits import apply, draw

    target = targets()[name]
    seeds = [*target.seeds, *target.shaped(200)]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, one in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(one)

    def mutate(data: bytes, size: int, chosen: int) -> bytes:
        dice = random.Random(chosen)
        if dice.getrandbits(1):
            mutated: bytes = atheris.Mutate(data, len(data))
            return mutated[:size]
        return apply(data, draw(dice), seeds)[:size]

    options = {
        "runs": inputs,
        "seed": seed % 2**31 or 1,
        "max_len": SIZE_LIMIT,
        "timeout": SECONDS,
        "rss_limit_mb": MEMORY_MIB,
        "artifact_prefix": f"{folder}/found-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    arguments: list[Any] = [sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(corpus)]
    atheris.Setup(arguments, target.check, custom_mutator=mutate)
    atheris.Fuzz()
    sys.exit(0)


if __name__ == "__main__":
    door, engine, number, chosen, where = sys.argv[1:]
    fuzz = by_coverage if engine == "atheris" else by_edits
    sys.exit(fuzz(door, int(number), int(chosen), Path(where)))
