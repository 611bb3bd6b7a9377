"""What is known of all verified logs: their accounts, one for each span, and statements that are read again."""

from collections.abc import Iterator, Sequence
from functools import cache

from custody.archive.forms import form_of
from custody.archive.reader import Holds, read_manifest
from custody.archive.trusted import Judge
from custody.errors import CustodyError
from custody.format import layout
from custody.format.manifest import Manifest, Range, Statement
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import Head
from custody.verify.accounting import LogAccount
from custody.verify.work import Work


class Accounts:
    """Accounts by log."""

    def __init__(self) -> None:
        self.by_log: dict[str, list[LogAccount]] = {}
        """In the order in which the logs were verified."""

    def __iter__(self) -> Iterator[LogAccount]:
        for accounts in self.by_log.values():
            yield from accounts

    def add(self, account: LogAccount) -> None:
        """Add the account of the log's next span."""
        self.by_log.setdefault(account.name, []).append(account)

    def of(self, log: layout.Log | str) -> Sequence[LogAccount]:
        """Return a log's accounts, none if it was not verified."""
        return self.by_log.get(str(log), ())

    def granted(self, log: layout.Log) -> list[Range]:
        """Return the ranges of a log's sequences whose objects may have been deleted."""
        return [granted for account in self.of(log) for granted in account.granted]

    def of_work(self, work: Work) -> LogAccount:
        """Return the account that a statement's objects belong to."""
        return next(account for account in reversed(self.by_log[work.log]) if account.begin <= work.sequence)

    def earlier(self, log: layout.Log) -> list[LogAccount]:
        """Return the last accounts of the partition's earlier epochs that have statements, the newest first."""
        epochs = [
            last
            for *_, last in self.by_log.values()
            if (last.log.topic, last.log.partition) == (log.topic, log.partition)
            and last.log.epoch < log.epoch
            and last.totals.statements
        ]
        return sorted(epochs, key=lambda account: -account.log.epoch)

    def heads(self) -> dict[str, Head]:
        """Return the heads to save as known heads."""
        heads = {account.name: account.head for account in self}
        return {name: head for name, head in heads.items() if head is not None}


class Logs:
    """Reads single statements of any log, and makes proofs.

    Attributes:
        store: the archive.
        judge: returns, for a log, what decides which of its entries count.
    """

    def __init__(self, store: Store, trust: Trust, archive: str | None) -> None:
        """Begin.

        Args:
            store: the archive.
            trust: the keys.
            archive: its id, None where it is not known.
        """
        self.store = store
        self._trust = trust
        self._archive = archive
        self.judge = cache(self._judge_of)

    def holds(self, log: layout.Log) -> Holds[Manifest]:
        """Return a check whether a manifest, read again, is one that was verified and not passed over."""
        return self.judge(log).may_stand

    def statement(self, log: layout.Log, sequence: int) -> Statement | None:
        """Return a statement, None if there is no valid one."""
        try:
            return read_manifest(self.store, log, sequence, self.holds(log)).statement
        except CustodyError:
            # Already reported.
            return None

    def _judge_of(self, log: layout.Log) -> Judge:
        return Judge(self.store, log, form_of(log), self._archive, self._trust)
