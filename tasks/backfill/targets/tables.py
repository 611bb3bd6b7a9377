"""The archive's own tables as a target."""

from collections.abc import Iterator

from custody.format.envelope import Signer
from custody.store.protocol import Store
from custody.verify.work import work_of
from tasks.audit.tables import TableWriter
from tasks.backfill.targets.target import Content, Part, Target
from tasks.search.bulk import Sent


class TablesTarget(Target):
    """The archive's own tables, for statements that have none. Each is of whole statements, as its name says."""

    def __init__(self, store: Store, archive: str, signers: tuple[Signer, Signer]) -> None:
        """Prepare; no request is made yet.

        Args:
            store: the archive.
            archive: its id.
            signers: the HMAC-SHA256 and the Ed25519 key, which sign the list of the tables' files.
        """
        self._store, self._archive, self._signers = store, archive, signers

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Make the tables of a range of statements, and put them after the whole range was read."""
        with TableWriter(
            self._store, part.log, part.first, part.end, archive=self._archive, signers=self._signers
        ) as writer:
            for content in contents:
                writer.add(work_of(content.statement, str(part.log)), content.batch, content.payload)
            sent.created += writer.finish()
