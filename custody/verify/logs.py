"""Reads single statements of the archive's logs again, with the same policy as in the first reading."""

from functools import cache

from custody.archive.forms import form_of
from custody.archive.reader import Holds, read_manifest
from custody.archive.trusted import Judge
from custody.errors import CustodyError
from custody.format import layout
from custody.format.manifest import Manifest, Statement
from custody.keys.trust import Trust
from custody.store.protocol import Store


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
