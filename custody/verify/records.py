"""Rule 10 of FORMAT.md, Verification, for a part of the records: what is under `events/` and `quarantine/`.

A nightly audit looks at a part of the keys, and at all of them in `audit.reread_days`. A part is a `Stretch` between
two positions. A position is a key without its first folder, such as `2026/11/28/12/00/05-…`. Positions compare folder
by folder, as a list of names. So each key has one position, whatever its form, and stretches that meet leave none out.

Most objects of a part are named by statements that the audit reads anyway. For each other one, the statement is found
that accounts for its first offset: that one names it, or none does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from custody.errors import CustodyError
from custody.findings import Findings
from custody.format import layout
from custody.format.manifest import Statement
from custody.store.protocol import ObjectInfo, Store
from custody.verify.accounts import Logs
from custody.verify.expiry import report_history
from custody.verify.listing import NO_NAMES, Failed, Listed, list_parts
from custody.verify.names import Names
from custody.verify.orphans import Accounting, Extent, check_unnamed
from custody.verify.protection import UNPROTECTED, look_beneath
from custody.verify.scope import KeyRange

NAME_BYTES = 12
"""A name is a SHA-256 cut to this: to find a key with the name of another takes 2^96 tries, divided by their number."""
_HOUR = 4
"""How many folders below `events/` a part ends that is listed at once: YYYY/MM/DD/HH."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The keys from a position on and before another.

    Attributes:
        since: the first position; '' for all from the beginning.
        until: the position behind the last one; None for all to the end.
    """

    since: str = ""
    until: str | None = None

    def holds(self, position: Sequence[str]) -> bool:
        """Return whether a position is in it."""
        return names_of(self.since) <= tuple(position) and (
            self.until is None or tuple(position) < names_of(self.until)
        )


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where a log ends.

    Attributes:
        size: how many slots it has.
        next_offset: the offset that its next statement begins with.
        expired: the sequence before which objects may have been deleted.
    """

    size: int
    next_offset: int
    expired: int = 0


def names_of(position: str) -> tuple[str, ...]:
    """Return a position as names, which compare."""
    return tuple(position.split("/")) if position else ()


def position_of(key: str) -> tuple[str, ...]:
    """Return the position of a key."""
    return tuple(key.split("/")[1:])


def name_of(key: str) -> bytes:
    """Return the name by which a key is told from others."""
    return sha256(key.encode(errors="surrogatepass")).digest()[:NAME_BYTES]


def named_objects(statement: Statement) -> Iterator[str]:
    """Yield the keys of the records' objects that a statement names."""
    return (ref.key for ref in (statement.segment, statement.quarantine) if ref)


def check_records(
    logs: Logs,
    ends: Mapping[layout.Log, LogEnd],
    stretches: Sequence[Stretch],
    named: Iterable[bytes],
    findings: Findings,
) -> bool:
    """Check the objects, versions and delete markers of some stretches. Return whether all could be listed.

    Args:
        logs: reads statements again.
        ends: where each log ends that has a statement.
        stretches: which keys.
        named: names of objects that statements name which were read already, one after another.
        findings: gets the findings.
    """
    listed = Listed()
    with Names() as names:
        for several in named:
            for start in range(0, len(several), NAME_BYTES):
                names.name(several[start : start + NAME_BYTES].hex())
        for info in _list(logs.store, stretches, listed.failed):
            if layout.parse_records_key(info.key) is None:
                listed.foreign(info)
            else:
                names.list(name_of(info.key).hex())
        if unnamed := names.unnamed():
            search = _Search(logs, ends, findings)
            for info in _list(logs.store, stretches, listed.failed):
                if names.digest(name_of(info.key).hex()) in unnamed:
                    search.check(info.key)
    listed.report(findings)
    beneath = look_beneath(logs.store, UNPROTECTED, findings, _ranges(stretches))
    granted = {log: [(0, end.expired)] for log, end in ends.items() if end.expired}
    report_history(beneath.history, lambda log: granted.get(log, []), logs, findings, lambda _: False)
    return listed.complete and beneath.complete


class _Search:
    """Looks for the statements of objects, and reports those that none names."""

    def __init__(self, logs: Logs, ends: Mapping[layout.Log, LogEnd], findings: Findings) -> None:
        self._logs, self._ends, self._findings = logs, ends, findings
        self._searches: dict[layout.Log, tuple[Extent, Accounting]] = {}

    def check(self, key: str) -> None:
        """Report an object if its log has no statement, or if the statement of its first offset does not name it."""
        parsed = layout.parse_records_key(key)
        if parsed is None:
            return
        extent = None
        if end := self._ends.get(parsed.log):
            if parsed.log not in self._searches:
                extent = Extent(parsed.log, end.size, end.next_offset)
                search = Accounting(self._logs.store, extent, self._logs.holds(parsed.log))
                self._searches[parsed.log] = extent, search
            extent, search = self._searches[parsed.log]
            try:
                statement = search.statement(parsed.first)
            except CustodyError as error:
                message = f"it is not known whether a statement names the object: {error}"
                self._findings.report("unreadable", message, group=f"names {parsed.log}", log=str(parsed.log), key=key)
                return
            if statement is not None:
                # What a missing statement named is not reported: the statement is, when it is its turn. None is missing
                # before the first one.
                in_gap = statement.first_offset > parsed.first and statement.sequence > 0
                if in_gap or key in named_objects(statement):
                    return
        elif self._logs.statement(parsed.log, 0) is not None:
            # The log began since the others were read.
            return
        if unnamed := check_unnamed(self._logs.store, extent, key, self._logs.holds, live=True):
            self._findings.add(unnamed)


def _list(store: Store, stretches: Sequence[Stretch], failed: Failed) -> Iterator[ObjectInfo]:
    for stretch in stretches:
        for folder in layout.RECORDS:
            yield from list_stretch(store, folder, stretch, failed)


def list_stretch(store: Store, folder: str, stretch: Stretch, failed: Failed) -> Iterator[ObjectInfo]:
    """Yield the objects of a stretch in a folder of the root. What cannot be listed is left to `failed`."""
    high = names_of(stretch.until) if stretch.until is not None else None
    parts = _walk(store, folder, names_of(stretch.since), high, failed)
    return (info for info in list_parts(store, parts, failed) if stretch.holds(position_of(info.key)))


def _walk(
    store: Store, folder: str, low: tuple[str, ...], high: tuple[str, ...] | None, failed: Failed
) -> Iterator[str | Sequence[ObjectInfo]]:
    """Yield folders with keys from `low` on and before `high`, below a folder, and the objects above them."""
    if high == ():
        return
    if (not low and high is None) or folder.count("/") > _HOUR:
        yield folder
        return
    try:
        folders, objects = store.level(folder)
    except CustodyError as error:
        failed(folder, error)
        return
    if not NO_NAMES.isdisjoint(folders):
        # No prefix selects only such a folder.
        yield folder
        return
    yield objects
    for name in folders:
        if (not low or name >= low[0]) and (high is None or name <= high[0]):
            inside = low[1:] if low and name == low[0] else ()
            end = high[1:] if high is not None and name == high[0] else None
            yield from _walk(store, f"{folder}{name}/", inside, end, failed)


def _ranges(stretches: Sequence[Stretch]) -> Iterator[KeyRange]:
    """Yield the keys of stretches, rounded to hours. A bucket lists versions by keys, also those that are hidden."""
    for stretch in stretches:
        for folder in layout.RECORDS:
            after = f"{folder}{'/'.join(names_of(stretch.since)[:_HOUR])}" if stretch.since else ""
            # Behind the last key of its hour: '0' comes after '/'.
            through = f"{folder}{'/'.join(names_of(stretch.until)[:_HOUR])}0" if stretch.until is not None else ""
            yield KeyRange(folder, after, through)
