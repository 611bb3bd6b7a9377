"""What the demo does before and after it drains; tests/test_readme.py runs all of it."""

from pathlib import Path

from flows.operate.demo import new_topic
from tests.helpers.sample import make_archive


def test_a_run_takes_a_topic_of_its_own(tmp_path: Path) -> None:
    """No run drains into an earlier run's log, or copies over an earlier run's copy, whichever of the two is left."""
    make_archive(tmp_path)
    assert new_topic(tmp_path) == "demo-1"
    (tmp_path / "archive" / "manifests" / "demo-9" / "0").mkdir(parents=True)
    (tmp_path / "archive" / "manifests" / "demo-9" / "0" / "000000000000.json").touch()
    (tmp_path / "archive" / "manifests" / "demo-261124-035624" / "0").mkdir(parents=True)
    assert new_topic(tmp_path) == "demo-10"
    (tmp_path / "tampered-demo-12").mkdir()
    assert new_topic(tmp_path) == "demo-13"
