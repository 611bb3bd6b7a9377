"""Reads a log's entries in order for its account. From a remote store, it reads several ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self, TypeVar

from custody.archive.reader import stored_digest
from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.format import layout, limits, manifest
from custody.format.audit import Audit
from custody.format.manifest import Manifest, Statement
from custody.store.ahead import AHEAD, in_order
from custody.store.protocol import Store, is_local
from custody.tlog.log import Fault, SignedLog
from custody.verify.accounting import LogAccount
from custody.verify.audits import AuditLog
from custody.verify.listing import Sequences
from custody.verify.names import Names
from custody.verify.pool import Pool
from custody.verify.protection import Locks
from custody.verify.scope import WHOLE, Part, Span

T = TypeVar("T")

_GROUP = 64
"""Manifests of a folder that are read, then parsed, before the first of them is checked. Turn by turn, these steps push
each other's code and data out of the processor's caches, and take longer. From a remote store each is checked at once:
no request begins while a group is checked."""
_GROUP_BYTES = 1_048_576
"""A group ends with the manifest that makes it larger than this."""
_LOGS = 8
"""Logs of a remote store whose first objects are begun to be read: the present one, and the next."""
_FIRST = 4
"""How many checkpoints of such a log, and how many manifests of each span, are its first objects."""
_SMALL_BYTES = 256 * 1024
"""Larger objects are read in their turn."""


class Reader:
    """Reads a log's manifests in order. From a remote store, it reads several ahead."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._threads = ThreadPoolExecutor(AHEAD)
        self._begun: dict[str, Future[bytes | CustodyError]] = {}
        """Reads that were begun before the turn of the present log, and whose answers nobody has asked for yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def logs(self, logs: Iterable[layout.Log], keys_of: Callable[[layout.Log], Iterable[str]]) -> Iterator[layout.Log]:
        """Yield logs in order. From a remote store, it reads the first objects of the next logs before their turn.

        Args:
            logs: the logs.
            keys_of: returns the keys of these objects.
        """
        if is_local(self.store):
            yield from logs
            return
        left = iter(logs)
        ahead: deque[tuple[layout.Log, dict[str, Future[bytes | CustodyError]]]] = deque()
        while True:
            for log in islice(left, _LOGS - len(ahead)):
                keys = dict.fromkeys(keys_of(log))
                ahead.append((log, {key: self._threads.submit(self._read, key, _SMALL_BYTES) for key in keys}))
            if not ahead:
                return
            log, self._begun = ahead.popleft()
            yield log

    def manifests(
        self, log: layout.Log, listed: Sequences | None, first: int, end: int | None, *, onward: bool
    ) -> Iterator[tuple[int, bytes | CustodyError]]:
        """Yield each existing sequence of `[first, end)`, with its bytes or the error from reading it.

        The first sequence of each hole in the listing is tried too: it may be newer than the listing. `onward`
        continues after the last one listed, for a writer at work, or if there is no listing.
        """
        wanted = iter(range(first, end or 0)) if listed is None else _wanted(listed, first, end)
        tried = first - 1
        for sequence, answer in self._ahead(wanted, lambda number: self.manifest(log, number)):
            tried = sequence
            if not isinstance(answer, ObjectMissing):
                yield sequence, answer
        if onward:
            yield from self._onward(log, tried + 1)

    def _onward(self, log: layout.Log, first: int) -> Iterator[tuple[int, bytes | CustodyError]]:
        """Yield the sequences from one on, up to the first that does not exist, or fails: a store might always fail.

        Of a remote store's, as many are asked for at a time as there were before. So who has read a log to its end has
        asked for twice as many at most, and where there is nothing new for one.
        """
        several = 1
        while True:
            for sequence, answer in self._ahead(
                iter(range(first, first + several)), lambda number: self.manifest(log, number)
            ):
                if isinstance(answer, ObjectMissing):
                    return
                yield sequence, answer
                if isinstance(answer, CustodyError):
                    return
            first += several
            several = 1 if is_local(self.store) else min(2 * several, AHEAD)

    def manifest(self, log: layout.Log, sequence: int) -> bytes | CustodyError:
        """Return a manifest's bytes, or the error from reading it."""
        return self.read(layout.manifest_key(log, sequence))

    def read(self, key: str, limit: int = limits.FILE_BYTES) -> bytes | CustodyError:
        """Return an object's bytes, or the error from reading it."""
        begun = self._begun.pop(key, None)
        if begun is not None:
            answer = begun.result()
            too_large = len(answer) > limit if isinstance(answer, bytes) else isinstance(answer, FormatError)
            if not too_large:
                return answer
        return self._read(key, limit)

    def _read(self, key: str, limit: int) -> bytes | CustodyError:
        try:
            return self.store.read(key, limit=limit)
        except CustodyError as error:
            return error

    def following(self, key: Callable[[int], str], listed: Sequences | None, first: int) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of a log from a sequence on, to look ahead: the listed ones, or all without a listing."""
        number = first
        while True:
            following = listed.next(number) if listed is not None else number
            if following is None:
                return
            answer = self.read(key(following))
            if isinstance(answer, bytes):
                yield following, answer
            elif listed is None:
                return
            number = following + 1

    def objects(
        self, key: Callable[[int], str], numbers: Iterator[int], limit: int
    ) -> Iterator[tuple[int, bytes | CustodyError]]:
        """Yield each number with the bytes of the object that `key` returns for it, or with the error."""
        for number, answer in self._ahead(numbers, lambda number: self.read(key(number), limit)):
            if not isinstance(answer, ObjectMissing):
                yield number, answer

    def _ahead(
        self, wanted: Iterator[int], read: Callable[[int], bytes | CustodyError]
    ) -> Iterator[tuple[int, bytes | CustodyError]]:
        if is_local(self.store):
            yield from ((number, read(number)) for number in wanted)
        else:
            yield from in_order(self._threads, lambda number: (number, read(number)), wanted)


def _wanted(listed: Sequences, first: int, end: int | None) -> Iterator[int]:
    """Yield the listed sequences, and the first sequence of each hole."""
    sequence = first
    while (following := listed.next(sequence)) is not None and (end is None or following < end):
        if following != sequence:
            yield sequence
        yield following
        sequence = following + 1


def first_keys(
    log: layout.Log, sizes: Iterable[int], spans: Iterable[Span], listed: Sequences, *, onward: bool
) -> Iterator[str]:
    """Yield the keys of what is read first of a log.

    Args:
        log: the log.
        sizes: of its checkpoints.
        spans: which manifests are read.
        listed: those that were listed.
        onward: whether more are looked for behind them.
    """
    for size in islice(sizes, _FIRST):
        yield layout.checkpoint_key(log, size)
    for span in spans:
        sequences = list(islice(_wanted(listed, span.first, span.end), _FIRST))
        # What is behind the last one is looked at, too.
        if span.end is not None:
            sequences.append(span.end)
        elif onward and len(sequences) < _FIRST:
            sequences.append(sequences[-1] + 1 if sequences else span.first)
        for sequence in sequences:
            yield layout.manifest_key(log, sequence)


@dataclass(frozen=True, slots=True)
class Hands:
    """What reads statements, and what gets the objects that they name.

    Attributes:
        reader: reads manifests.
        pool: checks objects; None if no object is read.
        names: gets the names in statements.
        locks: checks locks.
        part: decides which statements' objects are read.
    """

    reader: Reader
    pool: Pool | None
    names: Names
    locks: Locks
    part: Part = WHOLE


def follow(account: LogAccount, span: Span, listed: Sequences | None, hands: Hands, *, onward: bool) -> None:
    """Read a span of a log's manifests in order, and check them and what they name.

    Args:
        account: checks the manifests.
        span: which manifests.
        listed: those that were listed; None without a listing.
        hands: reads the manifests, and gets what they name.
        onward: whether to continue after the last one listed.
    """
    _step(account, span, listed, hands, onward=onward)
    if span.end is not None:
        if account.size < span.end:
            account.gap(account.size, span.end)
        behind = hands.reader.manifest(account.log, span.end)
        if isinstance(behind, bytes):
            account.signed.seam(behind)
    elif listed is not None:
        for sequence in listed.strays:
            message = f"there is a manifest with sequence {sequence}, far beyond the others"
            key = layout.manifest_key(account.log, sequence)
            account.signed.report("sequence-gap", message, group="stray", sequence=sequence, key=key)
    account.end(whole=span.end is None)


def _step(account: LogAccount, span: Span, listed: Sequences | None, hands: Hands, *, onward: bool) -> None:
    read = hands.reader.manifests(account.log, listed, span.first, span.end, onward=onward)
    in_groups = _in_groups(read, _GROUP if is_local(hands.reader.store) else 1)
    for (sequence, answer, parsed), behind in _with_next(_parsed(in_groups)):
        if sequence > account.size:
            # The entry that passes over the empty slots is this one, or a later one.
            account.signed.peek = (sequence, answer) if isinstance(answer, bytes) else None
            account.gap(account.size, sequence)
        account.signed.peek = (behind[0], behind[1]) if behind and isinstance(behind[1], bytes) else None
        if isinstance(answer, CustodyError):
            _take_error(account.signed, hands.reader.store, sequence, answer)
        else:
            if hands.locks.active:
                hands.locks.put(layout.manifest_key(account.log, sequence), log=account.name)
            if statement := account.step(sequence, answer, parsed):
                _hand_on(statement, account, hands)


def _parsed(
    groups: Iterator[Sequence[tuple[int, bytes | CustodyError]]],
) -> Iterator[tuple[int, bytes | CustodyError, Manifest | None]]:
    """Yield each sequence, its answer, and its parsed manifest: none of a group in which one is malformed."""
    for group in groups:
        try:
            manifests = manifest.parse_each([answer for _, answer in group if isinstance(answer, bytes)])
        except FormatError:
            manifests = []
        parsed = iter(manifests)
        for sequence, answer in group:
            yield sequence, answer, next(parsed, None) if isinstance(answer, bytes) else None


def _in_groups(
    read: Iterator[tuple[int, bytes | CustodyError]], most: int
) -> Iterator[Sequence[tuple[int, bytes | CustodyError]]]:
    group: list[tuple[int, bytes | CustodyError]] = []
    size = 0
    for sequence, answer in read:
        group.append((sequence, answer))
        size += len(answer) if isinstance(answer, bytes) else 0
        if len(group) >= most or size > _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _hand_on(statement: Statement, account: LogAccount, hands: Hands) -> None:
    for ref in (statement.segment, statement.quarantine):
        if ref is not None:
            hands.names.name(ref.key)
            hands.locks.put(ref.key, log=account.name, sequence=statement.sequence)
    if hands.pool is not None and hands.part.reads(statement.sealed_at):
        hands.pool.put(account.work(statement))


def follow_audits(
    audits: AuditLog, listed: Sequences, reader: Reader, locks: Locks, take: Callable[[Audit], None]
) -> None:
    """Read the log of audits in order.

    Args:
        audits: checks the audits.
        listed: those that were listed.
        reader: reads them.
        locks: checks the lock of each.
        take: gets each audit that a trusted key signed.
    """
    for sequence, answer in reader.objects(layout.audit_key, listed.all(), limits.FILE_BYTES):
        if sequence > audits.signed.size:
            audits.gap(audits.signed.size, sequence)
        if isinstance(answer, CustodyError):
            _take_error(audits.signed, reader.store, sequence, answer)
        else:
            locks.put(layout.audit_key(sequence))
            before = audits.newest
            audits.step(sequence, answer)
            if audits.newest is not None and audits.newest is not before:
                take(audits.newest.statement)
    audits.signed.end()


def _take_error(log: SignedLog[Any], store: Store, sequence: int, error: CustodyError) -> None:
    """Report an entry that cannot be read. If it is larger than an entry may be, compute only its digest, if at all."""
    key = log.form.key(sequence)
    if isinstance(error, FormatError):
        try:
            log.malformed(sequence, str(error), stored_digest(store, key))
        except FormatError as failure:
            # No writer passes over so large an object.
            log.doubt(Fault("statement", str(failure), {"key": key}), sequence)
            log.unreadable(sequence)
            return
        except CustodyError as failure:
            error = failure
        else:
            return
    log.doubt(Fault("unreadable", f"the object cannot be read: {error}", {"key": key}), sequence)
    log.unreadable(sequence)


def _with_next(items: Iterator[T]) -> Iterator[tuple[T, T | None]]:
    """Yield each item with the next one, None after the last."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item, following
        item = following
