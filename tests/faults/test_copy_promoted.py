"""A replica takes the place of an archive that is lost: drains go on where it ends, and Kafka fills the gap."""

from pathlib import Path

import pytest

from custody.archive.copy import copy_archive
from custody.store.open import open_store
from tasks.drain.run import drain_logs
from tests.faults.world import make_world
from tests.servers.kafka import KafkaServer


def test_a_replica_is_promoted(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the group of the lost archive, the drain refuses to sign a second history; with a new one it goes on."""
    monkeypatch.chdir(tmp_path)
    world = make_world(kafka, tmp_path)
    world.produce(16)
    assert world.drain()[0] == 0
    replica = tmp_path / "replica"
    assert copy_archive(open_store(world.archive), open_store(str(replica))).exit_code == 0
    world.produce(16)
    assert world.drain()[0] == 0

    # The first is lost, with what was archived since the copy.
    world.archive = str(replica)
    world.fetch = lambda: replica
    settings = world.settings()
    for refused in drain_logs(settings, once=True):
        assert "the offset that the group committed" in (refused.problem or ""), refused
    group = settings.kafka.model_copy(update={"group": f"{settings.kafka.group}-2"})
    world.produce(5)
    for drained in drain_logs(settings.model_copy(update={"kafka": group}), once=True):
        assert drained.problem is None
    world.judge()
