"""Lists an archive for the verifier: what is there, while what is listed already is read."""

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
    """How a listing went: whether it is whole, and what is wrong with them."""

    complete: bool = True
    findings: Findings = field(default_factory=Findings)


class Lister:
    """Lists statements, and in a thread all else: the chain needs none of that, and it may take as long."""

    def __init__(self, store: Store, listing: Listing, names: Names, *, active: bool) -> None:
        """Begin.

        Args:
            store: the archive.
            listing: takes what there is.
            names: takes the names of objects.
            active: whether anything is listed at all.
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
        """Begin to list all but statements."""
        return self._thread.submit(self._list, list_others)

    def statements(self) -> Listed:
        """List the statements."""
        return self._list(list_statements)

    def _list(self, objects: _Objects) -> Listed:
        """List, and judge nothing yet."""
        found = Listed()
        if not self._active:
            return found

        def failed(prefix: str, error: CustodyError) -> None:
            found.complete = False
            what = f"the archive cannot be listed: {error}"
            found.findings.add(finding("unreadable", what, key=prefix), row="listing")

        for info in objects(self._store, failed):
            if self._over.is_set():
                break
            if not self._listing.add(info.key, info.size, self._names):
                what, digest = "an archive has no object of such a key", loss_digest(info.key, info.size)
                found.findings.add(finding("unlisted", what, key=info.key, sha256=digest))
        return found
