"""Rows 5, 39 and 65 to 67: whatever an archive holds, verification's memory stays under its limit."""

import gzip
import json
import subprocess
import sys
import zlib

import pytest

from tests.helpers.archives import Builder, event, member, sha
from tests.helpers.growth import inflating
from tests.helpers.scene import Scene

LIMIT_MIB = 300

_CHILD = """
import json, resource, sys
from datetime import datetime, timezone
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.verify.run import verify
from tests.helpers.scene import KEYS
# What goes beyond it fails, rather than taking the machine's memory.
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
now = datetime(2026, 3, 2, tzinfo=timezone.utc)
report = verify(open_store(sys.argv[1]), Trust(keys=KEYS), now=now, workers=0)
print(json.dumps({
    "findings": [one.finding for one in report.findings],
    "exit_code": report.exit_code,
    # Not ru_maxrss, which remembers the parent's memory over the exec.
    "mib": next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024,
}))
"""


def bomb_member(log: Builder, bomb: bytes) -> None:
    log.append(30, edit_members=lambda members: members.__setitem__(1, bomb))


def bomb_in_place(log: Builder, bomb: bytes) -> None:
    log.segment(1).write_bytes(bomb)


def bomb_quarantine(log: Builder, bomb: bytes) -> None:
    def edit(statement: dict[str, object]) -> None:
        ref = statement["quarantine"]
        assert isinstance(ref, dict)
        (log.root / ref["key"]).unlink()
        first, last = (int(part) for part in ref["key"].split("-")[-3:-1])
        key = log.records_key("quarantine", first, last, bomb)
        log.put(key, bomb)
        ref.update(key=key, size=len(bomb), sha256=sha(bomb), inflated=512 << 20)

    log.append(6, quarantine=[1, 2, 4], edit=edit)


def bomb_unnamed(log: Builder, bomb: bytes) -> None:
    log.put(log.records_key("events", 100, 110, bomb), bomb)


def line_without_end(log: Builder, _: bytes) -> None:
    """An unnamed object that is one line of 100 MB, and claims the offsets of many."""
    data = gzip.compress(b'{"a":"' + b"x" * 100_000_000, 1, mtime=0)
    log.put(log.records_key("events", 100, 10**15, data), data)


def late_search(log: Builder, _: bytes) -> None:
    """An unnamed object of one line, whose string has no end: each of its quotes once began a search to its end."""
    data = member(b'"' + b'\\"' * 400_000 + b"[" * 99 + b"\n")
    log.put(log.records_key("events", 100, 110, data), data)


def empty_members(log: Builder, _: bytes) -> None:
    """An unnamed object of very many members that hold nothing."""
    data = member(b"") * 200_000
    log.put(log.records_key("events", 100, 10**15, data), data)


def far_beyond(log: Builder, _: bytes) -> None:
    """An unnamed object of events beyond the head, 1.3 GiB of them."""
    line = event(1) + b"\n"
    block = line * ((64 << 20) // len(line))
    data = member(block) * 21
    log.put(log.records_key("events", 10**6, 10**15, data), data)


def far_names(log: Builder, _: bytes) -> None:
    """Empty objects whose names have numbers as far away as a bitmap reaches."""
    for partition in range(60):
        log.put(f"checkpoints/x/{partition}/{(1 << 27) - 1:012}", b"")


def many_ranges(log: Builder, _: bytes) -> None:
    """A statement whose ranges claim all offsets that there are."""
    log.append(0, edit=lambda s: s.update(next_offset=2**63 - 1, skipped=[[s["first_offset"], 2**63 - 1]]))


def many_batches(log: Builder, _: bytes) -> None:
    """A statement of many batches, all of them the whole segment."""
    log.append(10, edit=lambda s: s.update(batches=s["batches"] * 20_000))


def large_manifests(log: Builder, bomb: bytes) -> None:
    """A dozen such statements: nearly as large as a statement may be."""
    for _ in range(12):
        many_batches(log, bomb)


def huge_manifest(log: Builder, _: bytes) -> None:
    log.path(3).write_bytes(b" " * 100_000_000)


def far_sequence(log: Builder, _: bytes) -> None:
    """A manifest whose sequence is as far away as a bitmap reaches."""
    log.put(f"manifests/{log.name}/{(1 << 27) - 1:012}.json", log.path(3).read_bytes())


CASES = {
    "bomb in a batch": (bomb_member, "gzip"),
    "bomb in a segment's place": (bomb_in_place, "segment-size"),
    "bomb in quarantine": (bomb_quarantine, "gzip"),
    "bomb that nothing names": (bomb_unnamed, "unlisted"),
    "line without an end": (line_without_end, "unlisted"),
    "line that is searched late": (late_search, "unlisted"),
    "empty members": (empty_members, "unlisted"),
    "events far beyond the head": (far_beyond, "unlisted"),
    "far names": (far_names, "checkpoint"),
    "all offsets skipped": (many_ranges, None),
    "many batches": (many_batches, "batch-order"),
    "a dozen of them": (large_manifests, "batch-order"),
    "100 MB of manifest": (huge_manifest, "statement"),
    "far sequence": (far_sequence, "identity"),
}


@pytest.fixture(scope="session")
def bomb() -> bytes:
    return inflating(bytes(1 << 20), 2048)


@pytest.mark.parametrize("case", CASES)
def test_memory_is_bounded(scene: Scene, bomb: bytes, case: str) -> None:
    """Verification needs no more than its limit, and says what it found."""
    apply, first = CASES[case]
    apply(scene.main, bomb)
    done = subprocess.run([sys.executable, "-c", _CHILD, str(scene.root)], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(case, found)
    assert found["mib"] < LIMIT_MIB
    assert first is None or first in found["findings"]


def test_the_bomb_is_one(bomb: bytes) -> None:
    """The bomb is a sound gzip member of 2 GiB in 2 MB."""
    assert len(bomb) < 3_000_000
    machine = zlib.decompressobj(wbits=31)
    assert machine.decompress(bomb, 100) == bytes(100)
    assert member(b"")[:4] == bomb[:4]
