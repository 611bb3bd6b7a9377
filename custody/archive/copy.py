"""Copies an archive to another store. At any moment the copy is a valid archive that is only shorter.

Rules:

1. Nothing in the target is overwritten or deleted. Each object is created by the target store's one conditional put,
   with the target's own Object Lock. An object that exists there with other bytes is reported, and stays.
2. An object is put after those that it refers to: `archive.json`, records, statements, checkpoints, audits, their
   checkpoints, and the rest (`copy_plan.Rank`). A log's statements are put in order, and a topic's earlier epochs
   before later ones. Records that expired in the source are missing until the statement that says so is there.
3. The source may grow meanwhile. What refers to others is listed first, so that each object it refers to is listed
   too. What is written after its listing is left for the next run.
4. Everything but rule 6 is copied byte for byte, garbage too: the copy gives the same findings. Left out is what a
   store of ours cannot hold: a key with `..`, an object beyond `MOST_BYTES`. Versions beneath the present are not read.
5. Nothing of a log is copied onto another history: the newest statement that both have must be the same. Its tree
   covers all before it. Other objects that both have are compared by size. Verification compares their bytes.
6. A log's entries are copied up to the last one that counts (`copy_ends.py`). What follows is left for the next run,
   and named: whoever puts a byte into the next slot would otherwise stop the copy for good, where TO is locked.
7. A second run copies what the target lacks by the listings (`copy_plan.py`). Memory stays bounded for any number of
   objects, and for any size of them.
8. A log's entries wait only for each other's puts: the next ones were read before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from custody.archive.copy_ends import Ends
from custody.archive.copy_plan import CHAINED, SIGNED, Plan, Planned, Rank, room_on_disk
from custody.archive.copy_start import prepare
from custody.archive.forms import form_of
from custody.errors import (
    CustodyError,
    FormatError,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    TerminalStoreError,
    counted,
)
from custody.findings import VERIFIED, Severity
from custody.format import layout, limits
from custody.keys.trust import Trust
from custody.store.ahead import in_order
from custody.store.protocol import Store
from custody.tlog.head import KnownHead

__all__ = ["Copied", "Progress", "Refusal", "copy_archive"]

MOST_BYTES = limits.SEGMENT_BYTES
"""The largest object that is copied. No object of an archive is larger."""
_WORKERS = 16
"""Objects that are put at a time. As many are read ahead."""
_BYTES_AHEAD = MOST_BYTES
"""Bytes of the objects that are being put; one object may always be. Some small ones are read ahead."""
_SMALL = 1_048_576
"""Bytes up to which an entry is read ahead."""
_KEPT = 1_000
"""Refusals of each kind that are kept. Further ones are counted, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object, or a log, that was not copied.

    Attributes:
        reason: one of `differs`, `fork`, `ahead`, `archived`, `unreadable`, `missing`, `changed`, `large`, `name`,
            `unwritten`, `unsigned`.
        key: of the object. For `fork` and `ahead` it is of the log's statement where the two differ. For `unsigned` it
            is the first one that no signature covers.
        severity: how bad it is, as a finding of verification.
        message: what happened, and what to do.
    """

    reason: str
    key: str
    severity: Severity
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "reason": self.reason,
            "severity": self.severity.name.lower(),
            "key": self.key,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a copy.

    Attributes:
        listed: objects listed so far, in both archives.
        objects: copied so far.
        stored: their bytes.
        total: bytes to copy; None while objects are still being listed.
    """

    listed: int
    objects: int = 0
    stored: int = 0
    total: int | None = None


@dataclass(slots=True)
class Copied:
    """What a copy did.

    Attributes:
        objects: copied.
        stored: bytes of these.
        present: objects that were in the target already.
        only_in_target: objects without a signature that only the target has, such as expired segments.
        refused: what was not copied, at most 1,000 of each reason.
        counts: how many of each reason.
    """

    objects: int = 0
    stored: int = 0
    present: int = 0
    only_in_target: int = 0
    refused: list[Refusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _worst: int = VERIFIED

    @property
    def exit_code(self) -> int:
        """The worst severity, 0 if all was copied."""
        return self._worst

    def refuse(self, refusal: Refusal) -> None:
        """Add what was not copied."""
        self.counts[refusal.reason] += 1
        self._worst = max(self._worst, refusal.severity)
        if self.counts[refusal.reason] <= _KEPT:
            self.refused.append(refusal)


def copy_archive(
    source: Store,
    target: Store,
    *,
    trust: Trust | None = None,
    known: Iterable[tuple[str, KnownHead]] = (),
    elsewhere: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Copied:
    """Copy what the target lacks of an archive. If it is killed or fails, run it again.

    Args:
        source: the archive. A writer may be at work.
        target: an empty store, or an earlier copy.
        trust: keys that decide what is signed. Without them every well-formed entry counts, also a forged one.
        known: heads of the source, by log. The copy must reach them.
        elsewhere: whether the target has another endpoint of S3, where the same URL may mean other objects.
        progress: called now and then.

    Raises:
        ConfigurationError: the source is no archive, or the target is another one, the same, or one within the other.
        StoreError: a store does not answer, or the target cannot be written. What was copied stays.
    """
    archive, begun = prepare(source, target, elsewhere=elsewhere)
    sizes: Counter[str] = Counter()
    for log, head in known:
        sizes[log] = max(sizes[log], head.size)
    ends = Ends(archive, trust or Trust(), sizes)
    pool, patient = ThreadPoolExecutor(2 * _WORKERS), False
    try:
        with room_on_disk(), closing(Plan()) as plan:
            done = _Copy(source, target, ends, plan, pool, progress).run()
        patient = True
    except CustodyError:
        patient = True
        raise
    finally:
        # Whoever ends the process does not wait for a server: each put is done or did not happen.
        pool.shutdown(wait=patient, cancel_futures=True)
    done.objects += begun
    done.present -= begun
    return done


class _Copy:
    """One run of a copy."""

    def __init__(
        self,
        source: Store,
        target: Store,
        ends: Ends,
        plan: Plan,
        pool: ThreadPoolExecutor,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._source, self._target = source, target
        self._ends, self._plan, self._pool, self._progress = ends, plan, pool, progress
        self._done = Copied()
        self._listed = 0
        self._total: int | None = None
        self._forked: set[str] = set()
        """Logs whose histories differ: nothing more of them is put."""
        self._busy: dict[Future[Refusal | None], Planned] = {}

    def run(self) -> Copied:
        # The target first: what a run beside this one puts meanwhile is in the source already.
        self._plan.list_target(self._target, self._note_listed)
        self._plan.list_source(self._source, self._note_listed)
        self._leave_tails()
        self._done.present, self._total = self._plan.sums()
        self._compare()
        for (_, rank), objects in groupby(self._plan.lacking(), key=lambda item: (item.epoch, item.rank)):
            # Others are read and put many at once.
            for item, data in self._read_ahead(objects) if rank in CHAINED else ((item, None) for item in objects):
                self._put(item, data)
            while self._busy:
                self._finish_some()
        return self._done

    def _note_listed(self) -> None:
        self._listed += 1
        if self._listed % 1000 == 0:
            self._report()

    def _report(self) -> None:
        if self._progress:
            self._progress(Progress(self._listed, self._done.objects, self._done.stored, self._total))

    def _leave_tails(self) -> None:
        """Leave what follows the last entry of each log that counts."""
        for name, ended in self._plan.growing():
            log = layout.parse_log_text(name)
            if log is None:
                continue
            prefix = form_of(log).prefix
            with (
                closing(self._plan.slots(prefix, lowest_first=True)) as first,
                closing(self._plan.slots(prefix)) as all_,
            ):
                end = self._ends.find(self._source, log, all_, next(first), self._entry, ended=ended)
            if (left := self._plan.leave(prefix, end.last)) is not None:
                self._done.refuse(self._left(name, *left, end.worst))

    def _entry(self, item: Planned) -> bytes | None:
        """Return the bytes of an entry of the source, None if it cannot be read or is none."""
        if item.size > limits.FILE_BYTES:
            return None
        data = self._read(item)
        if isinstance(data, Refusal):
            self._done.refuse(data)
            return None
        return data

    def _left(self, log: str, first: str, count: int, severity: Severity) -> Refusal:
        message = (
            f"{counted(count, f'object of {log} stays', f'objects of {log} from here on stay')} behind:"
            f" {self._source.url} has nothing later that a trusted key signed. "
        )
        if severity == Severity.NOTICE:
            message += "No key at hand can check them: the run after the next checkpoint copies them"
        else:
            message += "Verify the first; give the missing key, or find out who put them there"
        return Refusal("unsigned", first, severity, message)

    def _compare(self) -> None:
        """Report where the two archives differ, and keep the logs with two histories from being copied."""
        junctions = self._plan.junctions()
        for (item, _), refusal in zip(junctions, self._pool.map(self._check_junction, junctions), strict=True):
            if refusal is not None:
                self._forked.add(item.log)
                self._done.refuse(refusal)
        for item in self._plan.differing():
            if item.log not in self._forked:
                self._done.refuse(self._differs(item))
        for item in self._plan.nameless():
            message = "no archive can hold an object with this key; find out who put it there"
            self._done.refuse(Refusal("name", item.key, Severity.POLICY, message))
        ahead: Counter[str] = Counter()
        first: dict[str, str] = {}
        signed: set[str] = set()
        for item in self._plan.only_in_target():
            if item.rank in SIGNED and item.log not in self._forked:
                ahead[item.log] += 1
                first.setdefault(item.log, item.key)
                if item.log not in signed and self._counts_in_target(item):
                    signed.add(item.log)
            elif item.rank not in SIGNED:
                self._done.only_in_target += 1
        for log, count in ahead.items():
            if log in signed:
                self._done.refuse(self._ahead(log, count, first[log]))
            else:
                self._done.refuse(
                    self._tail(log, first[log], f"{self._source.url} has nothing there", Severity.INCOMPLETE)
                )

    def _counts_in_target(self, item: Planned) -> bool:
        """Return whether an object of a log in the target is signed, as far as that can be told."""
        if item.size > limits.FILE_BYTES:
            return False
        try:
            data = self._target.read(item.key, limit=limits.FILE_BYTES, restored=True)
        except (ObjectArchived, ObjectMissing, FormatError, TerminalStoreError):
            return True
        return self._counts(item, data)

    def _counts(self, item: Planned, data: bytes) -> bool:
        """Return whether the target's bytes are signed, or may be by a key that is not at hand."""
        log = layout.parse_log_text(item.log)
        if log is None:
            return False
        if item.rank not in CHAINED:
            return self._ends.is_checkpoint(log, item.number, data)
        return self._ends.fault(self._target, log, item.number, data) is not Severity.POLICY

    def _tail(self, log: str, key: str, result: str, severity: Severity) -> Refusal:
        message = (
            f"{self._target.url} has an object of {log} here that nobody signed; {result}. Find out who put it there,"
            " and remove it. While it is locked, copy to another location"
        )
        return Refusal("unsigned", key, severity, message)

    def _check_junction(self, junction: tuple[Planned, int]) -> Refusal | None:
        item, size = junction
        result = f"so nothing more of {item.log} was copied"
        if size > limits.FILE_BYTES:
            return self._tail(item.log, item.key, result, Severity.TAMPERED)
        try:
            theirs = self._target.read(item.key, limit=size)
            if item.size == size and self._source.read(item.key, limit=size) == theirs:
                return None
        except (ObjectArchived, ObjectMissing, FormatError, TerminalStoreError) as error:
            return Refusal("unreadable", item.key, Severity.UNVERIFIABLE, f"{error}; {result}")
        if not self._counts(item, theirs):
            return self._tail(item.log, item.key, result, Severity.TAMPERED)
        message = (
            f"{item.log} has two histories: {self._source.url} and {self._target.url} have other bytes here. Nothing"
            " of this log was copied; find out which writers wrote them, and verify both"
        )
        return Refusal("fork", item.key, Severity.TAMPERED, message)

    def _differs(self, item: Planned) -> Refusal:
        severity = Severity.POLICY if item.rank == Rank.REST else Severity.TAMPERED
        message = (
            f"{self._target.url} has other bytes here than {self._source.url}, and nothing is overwritten; verify both,"
            " and find out which one was changed"
        )
        return Refusal("differs", item.key, severity, message)

    def _ahead(self, log: str, count: int, key: str) -> Refusal:
        message = (
            f"{self._target.url} has {count:,} signed objects of {log} that {self._source.url} lacks: they were deleted"
            " there, a writer appends to the copy, or the two were exchanged; verify both"
        )
        return Refusal("ahead", key, Severity.INCOMPLETE, message)

    def _read_ahead(self, objects: Iterable[Planned]) -> Iterator[tuple[Planned, bytes | Refusal | None]]:
        """Yield each entry with what reading it gave, None if it was not read."""

        def read(item: Planned) -> tuple[Planned, bytes | Refusal | None]:
            return item, self._read(item) if item.size <= _SMALL and item.log not in self._forked else None

        return in_order(self._pool, read, objects, _WORKERS)

    def _put(self, item: Planned, data: bytes | Refusal | None) -> None:
        """Start copying an object, as soon as there is room and the one before it in its log is there."""
        while self._busy and self._must_wait(item):
            self._finish_some()
        if item.log in self._forked:
            return
        if item.size > MOST_BYTES:
            message = f"the object is larger than {MOST_BYTES >> 20} MiB, as none of an archive is: it was not copied"
            severity = Severity.POLICY if item.rank == Rank.REST else Severity.UNVERIFIABLE
            self._done.refuse(Refusal("large", item.key, severity, message))
            return
        self._busy[self._pool.submit(self._copy_object, item, data)] = item

    def _must_wait(self, item: Planned) -> bool:
        busy = self._busy.values()
        return (
            len(busy) >= _WORKERS
            or item.size + sum(other.size for other in busy) > _BYTES_AHEAD
            or (item.rank in CHAINED and any(other.log == item.log for other in busy))
        )

    def _finish_some(self) -> None:
        for future in wait(self._busy, return_when=FIRST_COMPLETED).done:
            item = self._busy.pop(future)
            refusal = future.result()
            if refusal is None:
                self._done.objects += 1
                self._done.stored += item.size
            else:
                self._done.refuse(refusal)
                if refusal.reason == "differs" and item.rank in CHAINED:
                    self._forked.add(item.log)
        self._report()

    def _read(self, item: Planned) -> bytes | Refusal:
        """Read an object of the source. Return its bytes, or why it cannot be copied.

        Raises:
            StoreError: the store does not answer.
        """
        evidence = item.rank != Rank.REST
        unread = Severity.UNVERIFIABLE if evidence else Severity.POLICY
        try:
            data = self._source.read(item.key, limit=item.size, restored=True)
        except ObjectArchived as error:
            message = (
                f"{error}. Restore it, by `custody backfill` over its time or by the store's own tools, and copy again"
            )
            return Refusal("archived", item.key, Severity.UNVERIFIABLE, message)
        except ObjectMissing as error:
            # The roll deletes records that have expired.
            gone = Severity.INCOMPLETE if item.rank in SIGNED else Severity.NOTICE
            return Refusal("missing", item.key, gone, f"{error}, though it was listed; copy again")
        except FormatError:
            data = b""
        except TerminalStoreError as error:
            return Refusal("unreadable", item.key, unread, str(error))
        if len(data) != item.size:
            message = f"the object changed while it was copied: it was listed with {item.size:,} bytes; copy again"
            return Refusal("changed", item.key, unread, message)
        return data

    def _copy_object(self, item: Planned, data: bytes | Refusal | None) -> Refusal | None:
        """Copy one object. Return why it was not copied, None if it was.

        Args:
            item: the object.
            data: its bytes, or why it cannot be copied, if it was read before.

        Raises:
            StoreError: a store does not answer, or the target takes no objects.
        """
        evidence = item.rank != Rank.REST
        data = self._read(item) if data is None else data
        if isinstance(data, Refusal):
            return data
        if item.rank in (Rank.CHECKPOINTS, Rank.AUDIT_CHECKPOINTS) and not self._counts(item, data):
            message = f"the object is no checkpoint of {item.log}, and stays behind; find out who put it there"
            return Refusal("unsigned", item.key, Severity.POLICY, message)
        try:
            self._target.create(item.key, data)
        except ObjectExists:
            return self._differs(item)
        except (FormatError, TerminalStoreError) as error:
            if evidence:
                raise
            return Refusal("unwritten", item.key, Severity.POLICY, str(error))
        return None
