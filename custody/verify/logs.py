"""The archive's logs, read a second time: what was found valid once is asked for again by the same policy."""

from functools import cache

from custody.archive.forms import form_of
from custody.archive.reader import Holds, read_manifest
from custody.archive.trusted import Judge
from custody.errors import CustodyError
from custody.format import layout
from custody.format.manifest import Manifest, Statement
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.proofs import Proofs


class Logs:
    """Reads single statements of any log, and makes proofs.

    Attributes:
        store: the archive.
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
        self._judge = cache(self._judge_of)

    def proofs(self, log: layout.Log) -> Proofs:
        """Return what makes proofs of a log, by entries that are valid as far as that is known."""
        return self._judge(log).proofs

    def holds(self, log: layout.Log) -> Holds[Manifest]:
        """Return what tells whether a manifest that is read again is one that was verified, and not passed over."""
        return self._judge(log).may_stand

    def statement(self, log: layout.Log, sequence: int) -> Statement | None:
        """Return a statement, None where there is none that holds."""
        try:
            return read_manifest(self.store, log, sequence, self.holds(log)).statement
        except CustodyError:
            # A finding says so already.
            return None

    def _judge_of(self, log: layout.Log) -> Judge:
        return Judge(self.store, log, form_of(log), self._archive, self._trust)
