"""An archive for the tests of the command line."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.sample import Sample, make_archive


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write an archive that tests only read."""
    return make_archive(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def altered(sample: Sample, tmp_path: Path) -> Sample:
    """Copy the archive, for a test that changes it."""
    folder = tmp_path / "altered"
    shutil.copytree(sample.folder, folder)
    return Sample(folder, sample.keyring, sample.log, sample.tip, sample.events, sample.quarantined, sample.skipped)
