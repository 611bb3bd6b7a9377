"""What comparisons of Elasticsearch with the archive share, and how the audit makes them."""

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


@contextmanager
def skip_damaged() -> Iterator[None]:
    """Skip what cannot be compared because an object of the archive is damaged or missing."""
    try:
        yield
    except (FormatError, StoreError) as error:
        # Verification reads the same object, and says what it is.
        if isinstance(error, TransientStoreError):
            raise


def end_offset(tip: Tip[Manifest]) -> int:
    """Return the first offset that a log has not reached."""
    return tip.newest.statement.next_offset if tip.newest else 0
