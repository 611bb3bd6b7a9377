"""Every attack gives its finding first, no other than its row names, and its exit code; in a folder and in S3."""

from pathlib import Path
from shutil import copy

import pytest

from custody.verify import Scope
from tests.ahead_here import work_here
from tests.attacks import heads, objects, statements, stores
from tests.attacks.archive import Scene
from tests.attacks.registry import Attack
from tests.attacks.targets import Folder, Target, judge, names

ATTACKS = sorted([*objects.ATTACKS, *statements.ATTACKS, *heads.ATTACKS, *stores.ATTACKS], key=lambda one: one.row)


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


@pytest.mark.parametrize("attack", [one for one in ATTACKS if not one.store], ids=lambda one: one.id)
def test_attack_ahead(scene: Scene, attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that are verified ahead give the same findings in the same order."""
    scene.options |= {"scope": Scope(contents=False)}
    if attack.seen:
        scene.options["state"] = tmp_path / "state.json"
        judge(scene, Folder())
    attack.apply(scene)
    reports = []
    for piece in (0, 3, 256):
        if attack.seen:
            # What one verification remembers must not be asked of the next.
            scene.options["state"] = copy(tmp_path / "state.json", tmp_path / f"state-{piece}.json")
        with monkeypatch.context() as patch:
            if piece:
                scene.options["workers"] = 2
                work_here(patch, piece)
            reports.append(judge(scene, Folder()))
    assert reports[0] == reports[1] == reports[2]
