"""A drain that is killed with -9 at any call to the outside leaves nothing that the next one does not put right."""

import errno
import signal
from pathlib import Path

import pytest

from tests.faults.child import Plan
from tests.faults.sweep import swept
from tests.faults.world import World, make_world
from tests.servers.kafka import KafkaServer

SHARES = 4
"""The calls of a run are dealt to so many tests, so that test processes share them."""
RECORDS = 16
"""To each partition before each drain: two segments, and what is quarantined with them."""


@pytest.fixture
def world(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An archive in a folder that a first drain has begun."""
    monkeypatch.chdir(tmp_path)
    return begun(make_world(kafka, tmp_path))


@pytest.fixture
def narrow(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The same of one partition: the steps of a put are the same for each."""
    monkeypatch.chdir(tmp_path)
    return begun(make_world(kafka, tmp_path, partitions=1))


def begun(world: World) -> World:
    """Return a world after its first drain."""
    world.produce(RECORDS)
    code, _ = world.drain()
    assert code == 0
    return world


def calls(world: World, *, steps: bool = False) -> list[str]:
    """Run a drain with records to archive, nothing broken, and return its calls in order."""
    world.produce(RECORDS)
    code, report = world.drain(Plan(steps=steps))
    assert code == 0
    found: list[str] = report["calls"]
    world.judge()
    return found


def test_every_kind_of_call_is_counted(world: World) -> None:
    """The harness sees each door to the outside that a drain uses: what it does not see it cannot break."""
    names = calls(world)
    assert {"store.create", "store.exists", "store.read", "store.list"} <= set(names)
    assert {"os.open", "os.write", "os.fsync", "os.link", "os.unlink"} <= set(names)
    assert {"kafka.read", "kafka.commit", "kafka.topic_id", "kafka.all_bounds", "kafka.remembered"} <= set(names)
    assert names.count("store.create") >= 12


@pytest.mark.timeout(400)
@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_every_call(world: World, share: int) -> None:
    """Killed before any call, which is after the one before it, and run again: all is well, at each of them.

    Records are produced before each drain that is to die, so that it has everything to do.
    """
    plans = swept(range(share, len(calls(world)), SHARES))
    killed = 0
    for at in plans:
        world.produce(RECORDS)
        code, report = world.drain(Plan(at, "kill-before"))
        # A fast broker hands over in fewer reads, so a run may end before its call comes: only then may it live.
        assert code == -signal.SIGKILL or len(report["calls"]) <= at, (at, code, report)
        killed += code == -signal.SIGKILL
        healed, _ = world.drain()
        assert healed == 0, f"the drain after a kill at call {at}"
        world.judge()
    assert killed > 0.8 * len(plans), f"only {killed} of {len(plans)} drains were killed"


@pytest.mark.timeout(400)
def test_killed_again_and_again(world: World) -> None:
    """Killed at one call after the other with no clean run between, and run once more: all is well."""
    number = len(calls(world))
    for at in range(0, number, 7):
        world.produce(3)
        world.drain(Plan(at, "kill-after"))
    assert world.drain()[0] == 0
    world.judge()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_every_step_of_a_put_fails(narrow: World, number: int) -> None:
    """A disk that is full, broken or closed at any step costs no record: the drain ends, and the next one heals."""
    total = len(calls(narrow, steps=True))
    for at in range(0, total, 6) if number != errno.EIO else swept(range(total)):
        narrow.produce(5)
        code, report = narrow.drain(Plan(at, "fail", number, steps=True))
        assert code == 0, f"a {errno.errorcode[number]} at step {at} ended the process"
        assert report["error"] or all(
            result["outcome"] == "drained" or result["problem"] for result in report["results"]
        ), report
        assert narrow.drain()[0] == 0
        narrow.judge()
