"""What tests of indexing share: an archive that grows, and settings that index it on the real Elasticsearch."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import Settings
from tests.helpers.sample import Growing
from tests.helpers.search import delete_indices, search_settings
from tests.servers.elasticsearch import ElasticsearchServer


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """Give an archive without a statement."""
    return Growing(tmp_path)


@pytest.fixture
def given(growing: Growing, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """Give settings that index it under a prefix of its own, and delete the indices afterwards."""
    made = search_settings(growing, elastic.url, elastic.unused_prefix())
    yield made
    delete_indices(made)
