"""Two drains at once do no harm: one wins each sequence, the other ends quietly, and the archive is one writer's."""

from pathlib import Path

import pytest

from tests.faults.world import make_world
from tests.servers.kafka import KafkaServer

ROUNDS = 50


@pytest.mark.timeout(300)
def test_two_drains_at_once(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started 50 times at the same moment: every record is archived once, by statements that join, and none fails."""
    monkeypatch.chdir(tmp_path)
    world = make_world(kafka, tmp_path)
    outcomes = []
    for _ in range(ROUNDS):
        world.produce(12)
        both = [world.start(), world.start()]
        for started in both:
            code, report = world.finish(started)
            assert code == 0
            outcomes += [result["outcome"] for result in report["results"]]
        world.judge()
    print(f"outcomes of {2 * ROUNDS} drains: { ({name: outcomes.count(name) for name in sorted(set(outcomes))}) }")
    assert set(outcomes) == {"drained", "fenced"}, "no drain failed, and some met each other"
