"""Decides up to which slot a copy takes a log. What nobody signed stays behind: in a locked replica it would stay.

Rules:

1. A log is copied up to its last slot that counts: by the keys at hand, or since a known head covers it. What a later
   entry passes over lies before that slot, and is copied.
2. Known heads are those of the caller, and those in the newest audit that counts: the copy must reach them.
3. If the keys at hand know no signature of a log, and no head covers it, its last well-formed entry counts. It must be
   of this archive, log and slot, and have a consistent tree. The same is true without keys. Anyone can forge that.
4. An earlier epoch has ended. If the keys at hand cannot check it, rule 3 holds, since the next epoch names its end.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from custody.archive import reader
from custody.archive.copy_plan import Planned
from custody.archive.forms import form_of
from custody.archive.trusted import Judge
from custody.errors import FormatError
from custody.findings import Severity
from custody.format import audit, layout
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog import checkpoint

_OPEN = (Severity.NOTICE, Severity.UNVERIFIABLE)
"""Of an entry that other keys may show to count."""


@dataclass(frozen=True, slots=True)
class End:
    """Where a log ends for a copy.

    Attributes:
        last: the last slot that is copied; -1 if there is none.
        worst: how bad it is that the slots after it stay behind.
    """

    last: int
    worst: Severity = Severity.NOTICE


class Ends:
    """What counts in the logs of an archive, by the keys and heads that are known."""

    def __init__(self, archive: str, trust: Trust, known: Mapping[str, int]) -> None:
        """Set up.

        Args:
            archive: its id.
            trust: the keys at hand; may be none.
            known: by log, the size of the largest known head.
        """
        self._archive, self._trust = archive, trust
        self._known = {log: head.size for log, head in trust.heads.items()}
        self._know(known)

    def _know(self, sizes: Mapping[str, int]) -> None:
        """Add sizes of known heads."""
        for log, size in sizes.items():
            self._known[log] = max(size, self._known.get(log, 0))

    def fault(self, store: Store, log: Log, sequence: int, data: bytes) -> Severity | None:
        """Return how bad the bytes of a slot are; None if they count.

        POLICY: no signature counts. UNVERIFIABLE: an unknown key signed them. NOTICE: no key at hand can check them.

        Raises:
            StoreError: the store does not answer.
        """
        form = form_of(log)
        try:
            entry = form.parse(data)
        except FormatError:
            return Severity.POLICY
        judge = Judge(store, log, form, self._archive, self._trust)
        if not judge.is_of_place(entry, sequence):
            return Severity.POLICY
        verdict = judge.verdict(entry, sequence)
        if verdict.counts:
            return Severity.POLICY if judge.newer_before(entry, sequence) else None
        if verdict.void or verdict.refused:
            return Severity.POLICY
        try:
            reader.tip_behind(form, entry, sequence)
        except FormatError:
            return Severity.POLICY
        return Severity.UNVERIFIABLE if verdict.unknown else Severity.NOTICE

    def find(
        self,
        store: Store,
        log: Log,
        slots: Iterable[Planned],
        lowest: Planned,
        read: Callable[[Planned], bytes | None],
        *,
        ended: bool,
    ) -> End:
        """Find a log's end.

        Args:
            store: the archive.
            log: the log.
            slots: its slots that hold something, the largest first.
            lowest: the smallest of them.
            read: returns the bytes of a slot; None if they cannot be had.
            ended: whether there is a later epoch.
        """
        known = self._known.get(str(log), 0)
        worst = Severity.NOTICE
        for item in slots:
            if item.number < known:
                return End(item.number, worst)
            data = read(item)
            fault = Severity.POLICY if data is None else self.fault(store, log, item.number, data)
            if fault is None:
                if data is not None and log == layout.AUDIT_LOG:
                    self._know_audit(data)
                return End(item.number, worst)
            if fault in _OPEN and (ended or not known) and self._is_open(store, log, lowest, read):
                return End(item.number, worst)
            worst = max(worst, fault)
        return End(-1, worst)

    def _is_open(self, store: Store, log: Log, item: Planned, read: Callable[[Planned], bytes | None]) -> bool:
        """Return whether the keys at hand cannot check an entry."""
        if not self._trust.keys:
            return True
        data = read(item)
        return data is not None and self.fault(store, log, item.number, data) in _OPEN

    def _know_audit(self, data: bytes) -> None:
        """Add the heads in an audit that counts."""
        self._know({log: head.size for log, head in audit.parse(data).statement.heads.items()})

    def is_checkpoint(self, log: Log, size: int, data: bytes) -> bool:
        """Return whether bytes are a checkpoint of this log and size, whoever signed it."""
        try:
            parsed = checkpoint.parse_checkpoint(checkpoint.parse_note(data).text)
        except FormatError:
            return False
        return parsed.size == size and parsed.origin == checkpoint.origin_of(self._archive, log)
