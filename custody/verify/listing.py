"""Lists an archive: which sequences exist, and which objects.

Memory stays bounded for any size of archive: a log's sequences are a bitmap, and names of objects are digests
(`custody.verify.names`).
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Self

from custody.archive.forms import statements_of
from custody.archive.slots import slots_after
from custody.errors import CustodyError, ObjectMissing
from custody.findings import FOREIGN_LIMIT, Findings, finding, loss_digest
from custody.format import layout
from custody.store.protocol import ObjectInfo, Store, is_local
from custody.verify.names import Names
from custody.verify.scope import KeyRange, Scope, Span

_PAGE = 512
"""Sequences in a page of the bitmap."""
_FULL_PAGE = (1 << _PAGE) - 1
_HOLE_PAGES = 200
"""Where a listing is not complete, a hole of more pages is not read through: a foreign object made it."""
_PAGES_BEYOND = 4
"""Pages that are tried beyond the heads that are known. Anyone can put objects there, each with a hole before it."""
_SEQUENCE_LIMIT = 1 << 27
_SPARSE_LIMIT = 10_000
_LISTERS = 8
# How many levels of folders each part has that are listed one by one: events/YYYY/MM, manifests/<log>/<partition>.
_DEPTHS = {"events": 3, "quarantine": 3, "manifests": 3, "checkpoints": 3}
_FRAME = frozenset({*layout.RECORDS, layout.MANIFESTS, layout.CHECKPOINTS, layout.AUDITS, *layout.REBUILDABLE})
_STATEMENTS = (layout.MANIFESTS, layout.CHECKPOINTS, layout.AUDITS)
NO_NAMES = frozenset({"", ".", ".."})

Failed = Callable[[str, CustodyError], None]
"""Called for each folder that cannot be listed, with the error. The others are still listed."""


class Sequences:
    """Which sequences of a log were listed: a bitmap in pages. They come in any order, and may repeat.

    Memory grows with the objects that were listed, not with the numbers in their names.
    """

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}
        self._order: list[int] = []
        self._strays: set[int] = set()

    def add(self, sequence: int) -> None:
        """Add a sequence."""
        if sequence >= _SEQUENCE_LIMIT:
            if len(self._strays) < _SPARSE_LIMIT:
                self._strays.add(sequence)
            return
        page, bit = divmod(sequence, _PAGE)
        self._pages[page] = self._pages.get(page, 0) | 1 << bit

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(page.bit_count() for page in self._pages.values()) + len(self._strays)

    @property
    def strays(self) -> list[int]:
        """Sequences that no writer can have reached."""
        return sorted(self._strays)

    def filled(self, known: int) -> "Sequences":
        """Return the listed sequences, and those that a listing may have left out.

        Args:
            known: the largest known head. Below it all are returned, without those of very long holes. Beyond it few
                are, so that what somebody put there costs little.
        """
        made = Sequences()
        made._strays = self._strays
        made._pages.update(self._pages)
        before, beyond = -1, _PAGES_BEYOND
        for page in sorted(self._pages):
            short = min(page, known // _PAGE) - before <= _HOLE_PAGES
            for tried in range(before + 1 if short else page, page + 1):
                if tried * _PAGE >= known:
                    if not beyond:
                        return made
                    beyond -= 1
                made._pages[tried] = _FULL_PAGE
            before = page
        # Nothing may have been listed up to the known head. It would look as if the log had gone back.
        last = (known - 1) // _PAGE
        if last - before <= _HOLE_PAGES:
            for tried in range(before + 1, last + 1):
                made._pages[tried] = _FULL_PAGE if tried < last else (1 << known - last * _PAGE) - 1
        return made

    def all(self) -> Iterator[int]:
        """Yield all, in order, strays last."""
        sequence = -1
        while (following := self.next(sequence + 1)) is not None:
            sequence = following
            yield sequence
        yield from self.strays

    def next(self, sequence: int) -> int | None:
        """Return the first listed sequence from `sequence` on, None if there is none."""
        page, bit = divmod(sequence, _PAGE)
        if rest := self._pages.get(page, 0) >> bit:
            return sequence + (rest & -rest).bit_length() - 1
        if len(self._order) != len(self._pages):
            self._order = sorted(self._pages)
        if (index := bisect_right(self._order, page)) == len(self._order):
            return None
        page = self._order[index]
        value = self._pages[page]
        return page * _PAGE + (value & -value).bit_length() - 1


@dataclass(slots=True)
class Listing:
    """A compact form of a listing."""

    manifests: dict[layout.Log, Sequences] = field(default_factory=dict)
    checkpoints: dict[layout.Log, Sequences] = field(default_factory=dict)
    """Sizes that have a checkpoint."""
    audits: Sequences = field(default_factory=Sequences)
    weighed: bool = True
    """Whether the sizes of segments and quarantine objects are wanted. A folder looks at each of them for that."""
    records: int = 0
    """How many segments and quarantine objects there are."""
    stored: int = 0
    """Their bytes."""

    def add(self, info: ObjectInfo, names: Names) -> bool:
        """Add an object. Return False if no object of an archive can have this key."""
        key = info.key
        if key.startswith(layout.RECORDS):
            if not layout.names_records(key):
                return False
            names.list(key)
            self.records += 1
            if self.weighed:
                self.stored += info.size
        elif manifest := layout.parse_manifest_key(key):
            if (listed := self.manifests.get(manifest[0])) is None:
                listed = self.manifests[manifest[0]] = Sequences()
            listed.add(manifest[1])
        elif checkpoint := layout.parse_checkpoint_key(key):
            self.checkpoints.setdefault(checkpoint[0], Sequences()).add(checkpoint[1])
        elif (audit := layout.parse_audit_key(key)) is not None:
            self.audits.add(audit)
        elif layout.parse_audit_object_key(key):
            names.list(key)
        else:
            return key == layout.ARCHIVE or key.startswith(layout.REBUILDABLE)
        return True

    @property
    def nowhere(self) -> bool:
        """Whether nothing of an archive was listed: no statement, no segment and no quarantine object."""
        return not (self.manifests or self.checkpoints or self.audits.count or self.records)

    def with_checkpoints(self) -> Iterator[layout.Log]:
        """Return the logs that have checkpoints."""
        return (log for log, sizes in self.checkpoints.items() if sizes.next(0) is not None)


def _list_statements(store: Store, failed: Failed) -> Iterator[ObjectInfo]:
    """Yield the objects of an archive that are statements: manifests, checkpoints and audits."""
    if is_local(store):
        for folder in _STATEMENTS:
            yield from _list_folder(store, folder, failed)
    else:
        yield from list_parts(store, (part for folder in _STATEMENTS for part in _parts(store, folder, failed)), failed)


def _list_others(store: Store, failed: Failed) -> Iterator[ObjectInfo]:
    """Yield all other objects of an archive, above all segments."""
    if is_local(store):
        yield from _list_folder(store, "", failed, without=_STATEMENTS)
    else:
        yield from list_parts(store, _parts(store, "", failed), failed)


def _list_folder(store: Store, folder: str, failed: Failed, without: Collection[str] = ()) -> Iterator[ObjectInfo]:
    try:
        yield from store.list(folder, without=without)
    except CustodyError as error:
        failed(folder, error)


def _list_nothing(store: Store, failed: Failed) -> Iterator[ObjectInfo]:
    del store, failed
    return iter(())


def _list_frame(store: Store, failed: Failed) -> Iterator[ObjectInfo]:
    """Yield the objects above the folders of records, logs and audits, and all objects of folders beside them."""
    for folder, inside in (("", _FRAME), (layout.MANIFESTS, None), (layout.CHECKPOINTS, None)):
        yield from _list_beside(store, folder, inside, failed)


def _list_beside(store: Store, folder: str, inside: Collection[str] | None, failed: Failed) -> Iterator[ObjectInfo]:
    """Yield the objects in a folder, but for those of some folders in it: by default, of those of logs."""
    try:
        folders, objects = store.level(folder)
        yield from objects
        for name in folders:
            if name in NO_NAMES:
                # No prefix selects only what is in such a folder.
                odd = (info for info in store.list(folder) if not NO_NAMES.isdisjoint(info.key.split("/")))
                yield from odd
            elif inside is not None:
                if f"{name}/" not in inside:
                    yield from store.list(f"{folder}{name}/")
            else:
                partitions, objects = store.level(f"{folder}{name}/")
                yield from objects
                for partition in partitions:
                    if layout.parse_log_text(f"{name}/{partition}") is None:
                        yield from store.list(f"{folder}{name}/{partition}/")
    except CustodyError as error:
        failed(folder, error)


def list_parts(
    store: Store, parts: Iterator[str | KeyRange | Sequence[ObjectInfo]], failed: Failed
) -> Iterator[ObjectInfo]:
    """Yield the objects of several parts, listed in parallel: of prefixes, of ranges, and those that are listed."""

    def listed(keys: KeyRange) -> list[ObjectInfo]:
        return list(store.list(keys.prefix, after=keys.after, through=keys.through))

    with ThreadPoolExecutor(_LISTERS) as threads:
        ahead: deque[tuple[str, Future[list[ObjectInfo]]]] = deque()
        while True:
            while len(ahead) < _LISTERS and (part := next(parts, None)) is not None:
                if isinstance(part, str | KeyRange):
                    keys = KeyRange(part) if isinstance(part, str) else part
                    ahead.append((keys.prefix, threads.submit(listed, keys)))
                else:
                    yield from part
            if not ahead:
                return
            prefix, future = ahead.popleft()
            try:
                yield from future.result()
            except CustodyError as error:
                failed(prefix, error)


def _parts(store: Store, folder: str, failed: Failed) -> Iterator[str | Sequence[ObjectInfo]]:
    """Yield folders of at most a month or a log, and the objects directly in the folders above these.

    The parts with statements are left out.
    """
    if folder and folder.count("/") >= _DEPTHS.get(folder.partition("/")[0], 0):
        yield folder
        return
    try:
        folders, objects = store.level(folder)
    except CustodyError as error:
        failed(folder, error)
        return
    if not NO_NAMES.isdisjoint(folders):
        # A bucket can have keys that our stores cannot read, and no prefix selects only these.
        yield folder
        return
    yield objects
    for inner in folders:
        if folder or f"{inner}/" not in _STATEMENTS:
            yield from _parts(store, f"{folder}{inner}/", failed)


def _infos(store: Store, keys: Iterator[str]) -> Iterator[ObjectInfo]:
    """Yield those of some keys that have an object."""
    for key in keys:
        with suppress(ObjectMissing):
            yield ObjectInfo(key, store.status(key).size)


def _from_slot(
    infos: Iterator[ObjectInfo], parse: Callable[[str], tuple[layout.Log, int] | None], least: int
) -> Iterator[ObjectInfo]:
    """Yield objects without those whose key has a smaller number."""
    return (info for info in infos if (parsed := parse(info.key)) is None or parsed[1] >= least)


@dataclass(slots=True)
class Listed:
    """The result of a listing: whether it is complete, and findings."""

    complete: bool = True
    findings: Findings = field(default_factory=Findings)

    def failed(self, prefix: str, error: CustodyError) -> None:
        """Note that a folder cannot be listed."""
        self.complete = False
        message = f"the archive cannot be listed: {error}"
        self.findings.add(finding("unreadable", message, key=prefix), group="listing")

    def foreign(self, info: ObjectInfo) -> None:
        """Note an object whose key no object of an archive can have."""
        message, digest = "no object of an archive has such a key", loss_digest(info.key, info.size)
        group = "more" if len(self.findings.kept) >= FOREIGN_LIMIT else None
        self.findings.add(finding("foreign", message, key=info.key, sha256=digest), group=group)

    def report(self, findings: Findings) -> None:
        """Report the findings."""
        for kept in self.findings.kept:
            # Folders that cannot be listed are one finding.
            findings.add(kept, group="listing" if kept.finding == "unreadable" else None)
        findings.dropped.update(self.findings.dropped)


class Lister:
    """Lists statements, and all else in a thread: the chain does not need that, and listing it can take long."""

    def __init__(self, store: Store, listing: Listing, names: Names, scope: Scope) -> None:
        """Begin.

        Args:
            store: the archive.
            listing: gets the listed objects.
            names: gets their names.
            scope: what is listed.
        """
        self._store = store
        self._listing = listing
        self._names = names
        self._scope = scope
        self._over = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.shutdown()

    def both(self) -> tuple[Listed, Future[Listed]]:
        """List the statements. Return their listing, and that of all other objects, which may still go on."""
        if is_local(self._store) and not self._scope.contents:
            # Statements first: workers follow the chains while a thread lists the rest. Both listings at once would
            # take turns on one processor.
            statements = self._statements()
            return statements, self._others()
        others = self._others()
        if self._scope.contents:
            # Objects are listed before the statements that name them. Their size decides how many workers read them.
            wait([others])
        return self._statements(), others

    def _others(self) -> Future[Listed]:
        """Start listing all objects except statements."""
        within = self._scope.within
        if within is None:
            return self._thread.submit(self._list, _list_others)
        return self._thread.submit(self._list, _list_frame if within.frame else _list_nothing)

    def _statements(self) -> Listed:
        """List the statements."""
        return self._list(_list_statements if self._scope.within is None else self._ranges)

    def _ranges(self, store: Store, failed: Failed) -> Iterator[ObjectInfo]:
        if not is_local(store):
            return list_parts(store, self._scope.ranges(), failed)
        of_logs = (self._in_folder(store, log, spans, failed) for log, spans in (self._scope.spans or {}).items())
        return chain(chain.from_iterable(of_logs), list_parts(store, self._scope.of_audits(), failed))

    def _in_folder(self, store: Store, log: layout.Log, spans: Sequence[Span], failed: Failed) -> Iterator[ObjectInfo]:
        """Yield the manifests and checkpoints of a log's spans; all keys of the log, if they are to be listed."""
        try:
            if self._scope.within and log in self._scope.within.folders:
                first = min(span.first for span in spans)
                yield from _from_slot(store.list(layout.log_prefix(log)), layout.parse_manifest_key, first)
                least = first + 1 if first else 0
                yield from _from_slot(store.list(layout.checkpoint_prefix(log)), layout.parse_checkpoint_key, least)
                return
            for span in spans:
                if span.end is None:
                    slots = slots_after(store, statements_of(log), span.first - 1)
                    yield from _infos(store, (layout.manifest_key(log, slot) for slot in slots))
                    after = layout.checkpoint_key(log, span.first) if span.first else ""
                    yield from store.list(layout.checkpoint_prefix(log), after=after)
                    continue
                yield from _infos(store, (layout.manifest_key(log, slot) for slot in range(span.first, span.end)))
                sizes = range(span.first + 1 if span.first else 0, span.end + 1)
                yield from _infos(store, (layout.checkpoint_key(log, size) for size in sizes))
        except CustodyError as error:
            failed(layout.log_prefix(log), error)

    def _list(self, objects: Callable[[Store, Failed], Iterator[ObjectInfo]]) -> Listed:
        """List the objects. Findings are kept in the result, not reported yet."""
        listed = Listed()
        if not self._scope.listing:
            return listed

        for info in objects(self._store, listed.failed):
            if self._over.is_set():
                break
            try:
                if not self._listing.add(info, self._names):
                    listed.foreign(info)
            except CustodyError as error:
                # Its size cannot be looked up.
                listed.failed(info.key, error)
        return listed
