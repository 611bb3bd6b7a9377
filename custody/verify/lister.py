"""Lists an archive for the verifier, while objects listed before are read."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from custody.errors import CustodyError
from custody.findings import Findings, finding, loss_digest
from custody.store.protocol import ObjectInfo, Store
from custody.verify.listing import Listing, Names, list_others, list_statements

_Objects = Callable[[Store, Callable[[str, CustodyError], None]], Iterator[ObjectInfo]]


@dataclass(slots=True)
class Listed:
    """The result of a listing: whether it is complete, and findings."""

    complete: bool = True
    findings: Findings = field(default_factory=Findings)


class Lister:
    """Lists statements, and all else in a thread: the chain does not need that, and listing it can take long."""

    def __init__(self, store: Store, listing: Listing, names: Names, *, active: bool) -> None:
        """Begin.

        Args:
            store: the archive.
            listing: gets the listed objects.
            names: gets their names.
            active: whether to list anything.
        """
        self._store = store
        self._listing = listing
        self._names = names
        self._active = active
        self._over = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.shutdown()

    def others(self) -> Future[Listed]:
        """Start listing all objects except statements."""
        return self._thread.submit(self._list, list_others)

    def statements(self) -> Listed:
        """List the statements."""
        return self._list(list_statements)

    def _list(self, objects: _Objects) -> Listed:
        """List the objects. Findings are kept in the result, not reported yet."""
        found = Listed()
        if not self._active:
            return found

        def failed(prefix: str, error: CustodyError) -> None:
            found.complete = False
            message = f"the archive cannot be listed: {error}"
            found.findings.add(finding("unreadable", message, key=prefix), row="listing")

        for info in objects(self._store, failed):
            if self._over.is_set():
                break
            if not self._listing.add(info.key, info.size, self._names):
                message, digest = "no object of an archive has such a key", loss_digest(info.key, info.size)
                found.findings.add(finding("unlisted", message, key=info.key, sha256=digest))
        return found
