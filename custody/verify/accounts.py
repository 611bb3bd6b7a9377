"""The accounts of all verified logs: one for each span, in order."""

from collections.abc import Iterator, Sequence

from custody.errors import FormatError
from custody.format import layout
from custody.tlog.head import Head
from custody.verify.accounting import LogAccount
from custody.verify.work import Work


class Accounts:
    """Accounts by log."""

    def __init__(self) -> None:
        self.by_log: dict[layout.Log, list[LogAccount]] = {}
        """In the order in which the logs were verified."""

    def __iter__(self) -> Iterator[LogAccount]:
        for accounts in self.by_log.values():
            yield from accounts

    def add(self, account: LogAccount) -> None:
        """Add the account of the log's next span."""
        self.by_log.setdefault(account.log, []).append(account)

    def of(self, log: layout.Log) -> Sequence[LogAccount]:
        """Return a log's accounts, none if it was not verified."""
        return self.by_log.get(log, ())

    def of_work(self, work: Work) -> LogAccount:
        """Return the account that a statement's objects belong to."""
        log = layout.parse_log_text(work.log)
        if log is None:
            raise FormatError(f"{work.log!r} is not the name of a log")
        return next(account for account in reversed(self.by_log[log]) if account.begin <= work.sequence)

    def earlier(self, log: layout.Log) -> list[LogAccount]:
        """Return the last accounts of the partition's earlier epochs that have statements, the newest first."""
        epochs = [
            accounts[-1]
            for other, accounts in self.by_log.items()
            if (other.topic, other.partition) == (log.topic, log.partition)
            and other.epoch < log.epoch
            and accounts[-1].totals.statements
        ]
        return sorted(epochs, key=lambda epoch: -epoch.log.epoch)

    def size(self, log: layout.Log) -> int:
        """Return how many sequences of a log were checked, from 0 on."""
        return max((account.size for account in self.of(log)), default=0)

    def heads(self) -> dict[str, Head]:
        """Return the heads to save as known heads."""
        heads = {account.name: account.head for account in self}
        return {name: head for name, head in heads.items() if head is not None}
