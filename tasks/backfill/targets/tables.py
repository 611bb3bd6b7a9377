"""The archive's own tables as a target."""

from collections.abc import Iterator

from custody.format.envelope import Signer
from custody.store.protocol import Store
from custody.verify.work import work_of
from tasks.audit.tables import TableWriter
from tasks.backfill.targets.target import Content, Part, Target
from tasks.search.bulk import Sent


class TablesTarget(Target):
    """The archive's own tables, of statements that have none: whole statements, for a table says which it holds."""

    def __init__(self, store: Store, archive: str, signers: tuple[Signer, Signer]) -> None:
        """Prepare; nothing is asked.

        Args:
            store: the archive.
            archive: its id.
            signers: the HMAC-SHA256 and the Ed25519 key, which sign which files are the tables.
        """
        self._store, self._archive, self._signers = store, archive, signers

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Make the tables of a range of statements; they are put once all of it was read."""
        with TableWriter(
            self._store, part.log, part.first, part.end, archive=self._archive, signers=self._signers
        ) as writer:
            for one in contents:
                writer.add(work_of(one.statement, str(part.log)), one.batch, one.payload)
            sent.created += writer.finish()
