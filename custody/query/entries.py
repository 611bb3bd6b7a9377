"""Reads the entries of a log that count, slot by slot, and warns of slots that have none."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from custody.archive import reader, search
from custody.archive.covered import Coverage
from custody.archive.slots import sequence_of, slots_after
from custody.archive.trusted import Judge, beyond_end, empty_slots, known_heads, unverified
from custody.errors import FormatError, ObjectMissing
from custody.format import limits
from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.keys.trust import Trust
from custody.query.warned import Warnings
from custody.store.ahead import ReadAhead
from custody.store.protocol import Store
from custody.tlog.head import Head
from custody.tlog.log import Entry, Form

E = TypeVar("E", bound=Entry)

_HIDDEN = 5
_NOT_COVERED = ", and no trusted checkpoint covers these statements"


@dataclass(slots=True)
class Entries:
    """Reads entries of logs.

    Attributes:
        store: the archive.
        archive: its id; None if nothing shows which archive it is.
        trust: the keys at hand.
        warnings: what is missing is added to them.
        heads: sizes of logs in audits that count, and which audit it is.
        signed: by log, its head in the newest audit that a trusted key signed.
        unchecked: by log, how many entries no key and no trusted checkpoint covers.
    """

    store: Store
    archive: str | None
    trust: Trust
    warnings: Warnings
    heads: Mapping[str, Sequence[tuple[int, str]]] = field(default_factory=dict)
    signed: Mapping[str, Head] = field(default_factory=dict)
    unchecked: Counter[Log] = field(default_factory=Counter)
    _counted: set[tuple[Log, tuple[tuple[int, int], ...]]] = field(default_factory=set)

    def judge(self, log: Log, form: Form[Any], store: Store | None = None) -> tuple[Judge, reader.Holds[Any]]:
        """Return the judge of a log, and whether an entry is valid in its slot. It reads from `store`, if given."""
        judge = Judge(store or self.store, log, form, self.archive, self.trust)
        # A verifier with public keys alone knows no key of statements: then none counts as unknown.
        known = any(key.algorithm in form.wanted for key in self.trust.keys.values())
        return judge, partial(judge.may_stand, by_known_keys=known)

    def near(self, log: Log) -> int:
        """Return the size of a log in the newest audit that counts; 0 if none names it."""
        return max((size for size, _ in self.heads.get(str(log), ())), default=0)

    def read(self, log: Log, form: Form[E], ranges: Iterable[tuple[int, int | None]]) -> Iterator[tuple[int, E]]:
        """Yield the valid entries in ranges of slots, and count those that are unverified.

        Without an end, a range goes to the end of the log, which is compared with the heads that are known.
        """
        coverage = yield from self._covered(log, form, ranges)
        self._count(log, coverage.uncovered)

    def audited(self, log: Log, form: Form[E], ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, E]]:
        """Yield the valid entries in ranges of slots that an audit covers, and count those that are unverified.

        They may have been replaced since that audit. So they count only as far as they lead to the head that it signed.
        """
        coverage = yield from self._covered(log, form, ranges, self.signed.get(str(log)))
        # The same statements are read once for each table that is replaced.
        if (read := (log, tuple(ranges))) not in self._counted:
            self._counted.add(read)
            self._count(log, coverage.uncovered)

    def _covered(
        self, log: Log, form: Form[E], ranges: Iterable[tuple[int, int | None]], signed: Head | None = None
    ) -> Generator[tuple[int, E], None, Coverage]:
        """Yield the valid entries in ranges of slots, and return how they are covered; by a signed head, if given."""
        with ReadAhead(self.store, limits.FILE_BYTES) as store:
            # It may look at what follows an entry: that was read too.
            judge, holds = self.judge(log, form, cast("Store", store))
            coverage = Coverage(self.store, log, form, judge, self.trust, signed, self.near(log))
            for first, end in ranges:
                for sequence, entry in self._range(log, form, judge, holds, store, first, end):
                    coverage.add(sequence, entry)
                    yield sequence, entry
            coverage.end()
        return coverage

    def _count(self, log: Log, uncovered: int) -> None:
        self.unchecked[log] += uncovered
        self.warnings.set_unverified(unverified(self.trust, self.unchecked, _NOT_COVERED))

    def _range(
        self,
        log: Log,
        form: Form[E],
        judge: Judge,
        holds: reader.Holds[E],
        store: ReadAhead,
        first: int,
        end: int | None,
    ) -> Iterator[tuple[int, E]]:
        slots = list(slots_after(self.store, form, first - 1)) if end is None else range(first, end)
        missing: list[tuple[int, int]] = []
        hidden: list[str] = []
        size, reached = first, 0
        store.expect(map(form.key, slots))
        for sequence in slots:
            try:
                entry = reader.read_valid(cast("Store", store), form, sequence, holds)
            except (ObjectMissing, FormatError):
                continue
            begin = sequence - len(entry.statement.passed_over)
            if size < begin:
                missing.append((size, begin))
            if isinstance(entry.statement, Statement):
                if size < begin and reached < entry.statement.first_offset:
                    start = f"at offsets {reached} to" if size > first else "up to offset"
                    hidden.append(f"{start} {entry.statement.first_offset - 1}")
                reached = entry.statement.next_offset
            size = sequence + 1
            yield sequence, entry
        last = (slots[-1] + 1 if slots else size) if end is None else end
        if size < last and end is not None:
            # In a range of its own, the entry behind it is not read.
            last = self._passed_over_from(log, judge, holds, last)
        if size < last:
            missing.append((size, last))
        if missing:
            self.warn_missing(log, form, missing, hidden)
        if end is None:
            if first and size == first and not self.store.exists(form.key(first - 1)):
                # The log has been cut off before the range.
                size = max(self.slots(form, 0), default=-1) + 1
            self.check_end(log, form, judge, size)

    def _passed_over_from(self, log: Log, judge: Judge, holds: reader.Holds[Any], end: int) -> int:
        """Return the first of the slots right before an end that an entry behind it passes over; the end if none."""
        if not judge.proofs.is_passed_over(end - 1):
            return end
        try:
            number, entry = search.at_or_behind(self.store, log, end - 1, end + limits.PASSED_OVER, holds)
        except (ObjectMissing, FormatError):
            return end
        return min(end, number - len(entry.statement.passed_over))

    def slots(self, form: Form[Any], first: int, end: int | None = None) -> list[int]:
        """Return the slots from a first one on, and before an end, that have an object."""
        infos = self.store.list(form.prefix, after=form.key(first - 1) if first else form.prefix)
        slots = {slot for info in infos if (slot := sequence_of(info.key)) is not None}
        # Folders list in any order.
        return sorted(slot for slot in slots if end is None or slot < end)

    def warn_missing(
        self, log: Log, form: Form[Any], missing: Sequence[tuple[int, int]], hidden: Sequence[str]
    ) -> None:
        """Warn of ranges of slots that have no valid entry, and of the offsets that are not shown for that."""
        records = f". Records {', '.join(hidden[:_HIDDEN])} are not shown" if hidden else ""
        self.warnings.add("damaged", log, f"{empty_slots(form, missing)}{records}")

    def check_end(self, log: Log, form: Form[Any], judge: Judge, size: int) -> None:
        """Warn if a known head, or a signed checkpoint, is beyond a log's end."""
        heads = [
            *self.heads.get(str(log), ()),
            *((head.size, origin) for origin, head in known_heads(self.trust, log)),
        ]
        if (message := beyond_end(self.store, log, form, judge, size, heads)) is not None:
            self.warnings.add("damaged", log, message)
