"""Which signed times the roll believes: a host's clock that jumps ahead does not become the time by signing with it.

The history is the audits that count, in order. If one was sealed more than a day and a heartbeat after all before it,
statements between them are read. If these do not lead to it either, it is a jump, and its time is not believed. Later
times that fit are believed again. So a correct clock needs no operator, unless nothing was archived for so long.

A statement that is believed was there when the store put it: if the next one is a jump, or there is none, that time
counts too. Before the first audit all statements are read. An audit that records a confirmed clock begins the history.
What an earlier roll believed after some audits is not followed again (`tasks.roll.followed`).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from custody.archive.forms import AUDITS, statements_of
from custody.archive.reader import Tip, read_audit, read_manifest
from custody.archive.trusted import Judge
from custody.errors import FormatError, ObjectMissing
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.audit import Audit
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.store.ahead import call_ahead
from custody.store.protocol import Store
from tasks.roll.followed import Followed

AHEAD = timedelta(days=1)
"""How far a clock may be ahead of all others."""
CONFIRMED = "clock done"
"""The count, in a roll's audit, of clocks that an operator confirmed."""
_PARALLEL = 32


class History:
    """The signed times of an archive, in order.

    Attributes:
        time: the latest time that is believed; None before the first.
    """

    def __init__(self, store: Store, archive: ArchiveFile, trust: Trust, tips: Mapping[Log, Tip[Manifest]]) -> None:
        """Begin. `tips` are the ends of the logs whose statements are used."""
        self.time: datetime | None = None
        self._store, self._tips = store, tips
        self._limit = AHEAD + timedelta(seconds=archive.statement.heartbeat)
        self._judges = {log: Judge(store, log, statements_of(log), archive.id, trust) for log in tips}
        self._judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive.id, trust)
        self._next = dict.fromkeys(tips, 0)
        self._first = 0

    def resume(self, followed: Followed) -> None:
        """Go on after the audits that an earlier roll followed."""
        self._first, self.time = followed.audits, parse_time(followed.time)
        self._next = {log: followed.next.get(str(log), 0) for log in self._tips}

    def believes(self, moment: datetime) -> bool:
        """Return whether a time is no jump."""
        return self.time is not None and moment - self.time <= self._limit

    def follow(self, audits: int, newest: datetime) -> tuple[datetime | None, dict[str, int]]:
        """Follow the history up to the newest signed time.

        Args:
            audits: the number of audits.
            newest: the newest time.

        Returns:
            The time that is believed after the last audit, and how many statements of each log were followed by then.

        Raises:
            StoreError: the archive does not answer.
        """
        history = self._audits(audits)
        for number, audit in enumerate(history):
            sealed_at = parse_time(audit.sealed_at)
            if number == 0 and CONFIRMED in audit.counts:
                self.time = sealed_at
            if not self.believes(sealed_at):
                self._walk({log: self._end(log, history[number:]) for log in self._tips})
            if self.time is not None and self.believes(sealed_at):
                self.time = max(self.time, sealed_at)
                for log in self._tips:
                    self._next[log] = max(self._next[log], _head(audit, log))
        reached = self.time, {str(log): size for log, size in self._next.items()}
        if not self.believes(newest):
            self._walk({log: tip.head.size for log, tip in self._tips.items()})
        return reached

    def _audits(self, size: int) -> list[Audit]:
        """Return the audits that count and are not followed yet, from the newest one that confirms a clock on."""
        audits: list[Audit] = []
        with ThreadPoolExecutor(_PARALLEL) as threads:
            for end in range(size, self._first, -_PARALLEL):
                numbers = range(end - 1, max(end - _PARALLEL, self._first) - 1, -1)
                for audit in threads.map(self._audit, numbers):
                    if audit is not None:
                        audits.append(audit)
                        if CONFIRMED in audit.counts:
                            return audits[::-1]
        return audits[::-1]

    def _audit(self, sequence: int) -> Audit | None:
        try:
            signed = read_audit(self._store, sequence, self._judge.is_of_place)
        except (ObjectMissing, FormatError):
            return None
        return signed.statement if self._judge.verdict(signed, sequence).clean else None

    def _end(self, log: Log, audits: Sequence[Audit]) -> int:
        """Return up to where to read a log for an audit, whose own heads may be those of an earlier audit."""
        heads = (_head(audit, log) for audit in audits)
        size = self._tips[log].head.size
        return min(size, next((head for head in heads if head > self._next[log]), size))

    def _walk(self, ends: Mapping[Log, int]) -> None:
        """Read statements that were not read yet, of the log that begins first."""

        def first_of(log: Log) -> datetime | None:
            moments = (self._sealed_at(log, sequence) for sequence in range(self._next[log], ends[log]))
            return next((moment for moment in moments if moment is not None), None)

        firsts = zip(call_ahead(self._store, first_of, ends), map(str, ends), ends, strict=True)
        for first, _, log in sorted((first, name, log) for first, name, log in firsts if first is not None):
            self.time = self.time or first
            believed: int | None = None
            for sequence, moment in self._moments(log, ends[log]):
                if not self.believes(moment):
                    self._was_put(log, believed)
                    believed = None
                if self.believes(moment):
                    self.time, believed = max(self.time, moment), sequence
            self._was_put(log, believed)
            self._next[log] = max(self._next[log], ends[log])

    def _was_put(self, log: Log, sequence: int | None) -> None:
        """Take the store's time of a statement that is believed."""
        if sequence is not None and self.time is not None:
            self.time = max(self.time, self._store.status(layout.manifest_key(log, sequence)).created)

    def _moments(self, log: Log, end: int) -> Iterator[tuple[int, datetime]]:
        with ThreadPoolExecutor(_PARALLEL) as threads:
            for start in range(self._next[log], end, _PARALLEL):
                numbers = range(start, min(start + _PARALLEL, end))
                moments = threads.map(lambda sequence: self._sealed_at(log, sequence), numbers)
                for sequence, moment in zip(numbers, moments, strict=True):
                    if moment is not None:
                        yield sequence, moment

    def _sealed_at(self, log: Log, sequence: int) -> datetime | None:
        """Return when a statement was sealed; None if it does not count."""
        judge = self._judges[log]
        try:
            manifest = read_manifest(self._store, log, sequence, judge.is_of_place)
        except (ObjectMissing, FormatError):
            return None
        return parse_time(manifest.statement.sealed_at) if judge.verdict(manifest, sequence).clean else None


def _head(audit: Audit, log: Log) -> int:
    head = audit.heads.get(str(log))
    return head.size if head else 0
