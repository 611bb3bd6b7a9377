"""Another `archive.json` in the place of the one that is pinned is tampering, and stays so however often one looks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from custody.keys.trust import Trust
from tests.attacks.heads import OTHER_ARCHIVES, another_log
from tests.attacks.targets import Folder, judge, names
from tests.helpers.archives import KEY_ID
from tests.helpers.scene import KEYS, PUBLIC_ID, Scene, pin

LOOKS = 3


@pytest.fixture(params=["trust.json", "state", "both"])
def pinned(scene: Scene, tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    """The good archive, which was seen before, or is pinned in `trust.json`."""
    if request.param != "trust.json":
        scene.options["state"] = tmp_path / "state.json"
        assert names(judge(scene, Folder())) == []
    scene.trust = replace(scene.trust, archive=pin(scene.root) if request.param != "state" else None)
    return scene


@pytest.mark.parametrize("name", OTHER_ARCHIVES)
def test_another_archive_file(pinned: Scene, name: str) -> None:
    """It is found at each look, and the rest is verified as before."""
    OTHER_ARCHIVES[name](pinned)
    for _ in range(LOOKS):
        report = judge(pinned, Folder())
        assert report.findings[0].finding == "archive"
        assert set(names(report)) == {"archive"}, [str(one) for one in report.findings]
        assert report.exit_code == 13


def test_another_archive(pinned: Scene) -> None:
    """Everything deleted, and another archive begun: the second look says so too (security, 7)."""
    another_log(pinned)
    for _ in range(LOOKS):
        report = judge(pinned, Folder())
        assert report.findings[0].finding == "archive"
        assert report.exit_code == 13
        assert "empty" not in names(report) or "state" not in pinned.options


def test_put_back(pinned: Scene) -> None:
    """Once the right file is back, nothing is left of the alarm."""
    before = pinned.read("archive.json")
    OTHER_ARCHIVES["of another id"](pinned)
    assert judge(pinned, Folder()).exit_code == 13
    pinned.put("archive.json", before)
    assert names(judge(pinned, Folder())) == []


@pytest.mark.parametrize("bend", [lambda line: line, lambda line: line.replace(b":2160000", b":2160001")])
def test_first_look(scene: Scene, tmp_path: Path, bend: Callable[[bytes], bytes]) -> None:
    """Before the first look an `archive.json` counts that a trusted key signed, and no other is remembered."""
    line, _, second = scene.read("archive.json").partition(b"\n")
    scene.put("archive.json", bend(line) + b"\n" + second)
    scene.trust = replace(scene.trust, archive=None)
    scene.options["state"] = tmp_path / "state.json"
    changed = bend(line) != line
    report = judge(scene, Folder())
    assert report.exit_code == (13 if changed else 0)
    # What did not count is not what the state file pins.
    assert judge(scene, Folder()).exit_code == report.exit_code
    scene.put("archive.json", line + b"\n" + second)
    assert names(judge(scene, Folder())) == []


def test_first_look_without_keys(scene: Scene) -> None:
    """Whoever knows no key learns nothing from `archive.json`, and is told."""
    scene.trust = Trust()
    assert judge(scene, Folder()).exit_code == 12


@pytest.mark.parametrize(
    ("ended", "expected"), [((KEY_ID,), []), ((PUBLIC_ID,), []), ((KEY_ID, PUBLIC_ID), ["archive"])]
)
def test_keys_that_have_ended(scene: Scene, ended: tuple[str, ...], expected: list[str]) -> None:
    """Nothing shows when `archive.json` was signed: an ended key speaks for it only where it is pinned (row 61)."""
    pinned = scene.trust.archive
    keys = {name: replace(key, until=scene.heads) if name in ended else key for name, key in KEYS.items()}
    scene.trust = replace(scene.trust, archive=None, keys=keys)
    report = judge(scene, Folder())
    assert sorted(set(names(report)) & {"archive"}) == expected
    assert report.exit_code == (12 if expected else 0)
    scene.trust = replace(scene.trust, archive=pinned)
    assert names(judge(scene, Folder())) == []


def test_keys_that_ended_after_the_first_look(scene: Scene, tmp_path: Path) -> None:
    """What the state file pins is known to be this one, whatever became of its keys since."""
    scene.trust = replace(scene.trust, archive=None)
    scene.options["state"] = tmp_path / "state.json"
    assert names(judge(scene, Folder())) == []
    scene.trust = replace(scene.trust, keys={name: replace(key, until=scene.heads) for name, key in KEYS.items()})
    assert names(judge(scene, Folder())) == []


def test_rewritten_by_a_thief(scene: Scene) -> None:
    """Who has a key that ended, and none that counts, promises nothing in its name."""
    scene.trust = replace(
        scene.trust,
        archive=None,
        retention_days=None,
        keys={KEY_ID: replace(KEYS[KEY_ID], material=None), PUBLIC_ID: replace(KEYS[PUBLIC_ID], until=scene.heads)},
    )
    scene.main.secret = b"any secret"
    scene.main.init(retention_days=1, heartbeat=31_622_400)
    report = judge(scene, Folder())
    assert "archive" in names(report)
    assert "retention" in names(report), "nobody knows what was promised, so nothing may expire"
    assert report.exit_code == 12
