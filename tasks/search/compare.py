"""Helpers for comparisons of Elasticsearch with the archive."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from custody.archive.reader import Tip
from custody.errors import CustodyError, FormatError, SearchError, StoreError, TransientStoreError
from custody.findings import Finding, Severity, finding
from custody.format.manifest import Manifest
from tasks.search.client import Search
from tasks.settings import Settings


def compare_with_search(settings: Settings, look: Callable[[Search], Iterator[Finding]]) -> list[dict[str, Any]]:
    """Return the findings of a comparison with Elasticsearch. If it does not answer, that is only a notice."""
    findings: list[dict[str, Any]] = []
    try:
        with closing(Search(settings.search)) as search:
            findings += (difference.to_dict() for difference in look(search))
    except (SearchError, TransientStoreError) as error:
        what = f"Elasticsearch was not compared with the archive: {error}"
        findings.append(finding("unreadable", what, severity=Severity.NOTICE).to_dict())
    except CustodyError:
        # Problems with a statement or segment are reported separately.
        pass
    return findings


@contextmanager
def skip_damaged() -> Iterator[None]:
    """Skip what cannot be compared because an object of the archive is damaged or missing."""
    try:
        yield
    except (FormatError, StoreError) as error:
        # Verification reads the same object, and reports the problem.
        if isinstance(error, TransientStoreError):
            raise


def end_offset(tip: Tip[Manifest]) -> int:
    """Return the first offset that a log has not reached."""
    return tip.newest.statement.next_offset if tip.newest else 0
