"""Comparisons with Elasticsearch for who verifies: what they find, or that it cannot be asked."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from custody.errors import (
    CustodyError,
    SearchError,
    TransientStoreError,
)
from custody.findings import Finding, Severity, finding
from custody.settings import Settings
from tasks.search.client import Search


def compare_with_search(settings: Settings, look: Callable[[Search], Iterator[Finding]]) -> list[dict[str, Any]]:
    """Return what a comparison with Elasticsearch finds; that it cannot be asked says nothing against the archive."""
    found: list[dict[str, Any]] = []
    try:
        with closing(Search(settings.search)) as search:
            found += (one.to_dict() for one in look(search))
    except (SearchError, TransientStoreError) as error:
        what = f"Elasticsearch was not held against the archive: {error}"
        found.append(finding("unreadable", what, severity=Severity.NOTICE).to_dict())
    except CustodyError:
        # What is wrong with a statement or segment is a finding of its own.
        pass
    return found
