"""Every attack gives its finding first, no other than its row names, and its exit code; in a folder and in S3."""

from dataclasses import replace
from pathlib import Path

import pytest

from custody.verify.scope import EVERYTHING
from tests.attacks.catalogue import ATTACKS
from tests.attacks.registry import Attack
from tests.attacks.targets import Folder, Target, judge, names
from tests.helpers.chains import in_threads, what_it_says
from tests.helpers.scene import Scene


def test_untouched(scene: Scene, target: Target) -> None:
    """The good archive, with all that one may hold, gives no finding."""
    target.hold(scene)
    report = judge(scene, target)
    assert [str(one) for one in report.findings] == []
    assert report.exit_code == 0
    assert {(log.log, log.size) for log in report.logs} == {(name, log.head[0]) for name, log in scene.logs.items()}
    assert {bytes.fromhex(log.root or "") for log in report.logs} == {log.head[1] for log in scene.logs.values()}


@pytest.mark.parametrize(
    ("attack", "target"),
    [
        pytest.param(one, place, id=f"{one.id}-{place}")
        for one in ATTACKS
        for place in ("file", "s3")
        if place == "file" or not one.variant
    ],
    indirect=["target"],
)
def test_attack(scene: Scene, target: Target, attack: Attack, tmp_path: Path) -> None:
    """The attack gives what THREATS.md says of it, and nothing else."""
    if attack.seen:
        target.hold(scene)
        scene.options["state"] = tmp_path / "state.json"
        assert names(judge(scene, target)) == []
    attack.apply(scene)
    target.hold(scene)
    report = judge(scene, target, attack.store)
    found = [str(one) for one in report.findings]
    assert names(report) == list(attack.findings), found
    assert report.exit_code == attack.exit_code
    assert not attack.findings or attack.says in found[0]
    if isinstance(target, Folder):
        # The chains alone, where worker processes follow them: the verdict is that of one process.
        scene.options["scope"] = replace(scene.options.get("scope", EVERYTHING), contents=False)
        alone = judge(scene, target, attack.store)
        scene.options["workers"] = 2
        with in_threads():
            assert what_it_says(judge(scene, target, attack.store)) == what_it_says(alone)
