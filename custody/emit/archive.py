"""Writes events straight into a signed archive, for those who have no Kafka.

Each event goes through the spool: once it is on this host's disk, no crash loses it. Events gather there, and become
one statement together. What the statements are like, and what a crash leaves, is in sealing.py.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic

from custody.emit.background import Background
from custody.emit.delivery import Gather
from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog
from custody.emit.sealing import Sealer
from custody.emit.sink import Outcome, Report, Sink
from custody.emit.writer import Options, QueuedWriter
from custody.keys.open import keyring_path
from custody.settings import Settings
from custody.store.open import open_store

__all__ = ["ArchiveWriter"]

SEAL_SECONDS = 60.0
"""How long events gather before they are sealed."""
SEAL_EVENTS = 50_000
"""Events after which they are sealed at once."""
_SPOOL_FIRST = "an ArchiveWriter keeps each event in its spool until it is sealed: set `Options.spool` to a folder"


class ArchiveWriter(QueuedWriter):
    """Writes audit events into an archive, each process into a log of its own.

    The archive must exist: `custody init` makes it. The process needs the keys that sign, so whoever takes it over can
    sign a history of their own. With Kafka between, an application has no key.
    """

    kind = "S3"

    def __init__(
        self,
        settings: Settings,
        options: Options,
        *,
        seal_seconds: float = SEAL_SECONDS,
        seal_events: int = SEAL_EVENTS,
        event_leaves: bool = False,
    ) -> None:
        """Set up. Nothing is connected before the first event.

        Args:
            settings: where the archive is, and the keys that sign: `Settings()` reads `CUSTODY_…` and `custody.toml`.
            options: how events are treated. A spool is needed.
            seal_seconds: how long events wait for a statement.
            seal_events: events after which they do not wait. A statement has at most one file of the spool, 8 MiB.
            event_leaves: commit to each event of a batch, so that evidence of one shows no other. The keyring needs a
                leaf secret for it.

        Raises:
            AuditError: there is no spool, or its folder cannot be used.
            ConfigurationError: the archive's URL or the keyring cannot be used.
        """
        if options.spool is None:
            raise AuditError("Spool", _SPOOL_FIRST)
        self._settings, self._event_leaves = settings, event_leaves
        self.gather = Gather(seal_seconds, seal_events)
        open_store(settings.archive, settings.s3).close()
        if keyring_path(settings.keys) is not None:
            settings.signers(datetime.now(UTC)).hmac()
        super().__init__(options, settings.archive)

    def open_sink(self, quiet: QuietLog) -> Sink:
        """Return the end of this process's log, which is begun with the first events."""
        return ArchiveSink(Sealer(self._settings, str(self._source), quiet, event_leaves=self._event_leaves), quiet)


_Lines = Sequence[tuple[bytes, Report]]
_FINISH: _Lines = ()
"""The last job: a checkpoint."""


class ArchiveSink:
    """Seals lines on a thread of its own, one statement after the other."""

    def __init__(self, sealer: Sealer, quiet: QuietLog) -> None:
        """Set up. Nothing is opened before the first lines."""
        self._sealer = sealer
        self._jobs: Background[_Lines, Outcome] = Background(self._seal, 1, quiet)

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        """Seal lines, all or none: none while others are being sealed."""
        if not lines or not self._jobs.is_free:
            return 0
        self._jobs.start([(line, report) for line in lines])
        return len(lines)

    def poll(self, seconds: float) -> None:
        """Report what was sealed, and begin what the log needs by itself: heartbeats and checkpoints."""
        if self._jobs.is_free and self._sealer.upkeep_at <= monotonic():
            self._jobs.start([])
        self._receive(seconds)

    def close(self, seconds: float) -> None:
        """Wait for the statement that is being written, and put a checkpoint behind it, as far as there is time."""
        deadline = monotonic() + seconds
        while not self._jobs.is_free and (left := deadline - monotonic()) > 0:
            self._receive(left)
        if self._jobs.is_free and self._sealer.has_begun:
            self._jobs.start(_FINISH)
            self._receive(deadline - monotonic())
        for lines in self._jobs.under_way:
            for line, report in lines:
                report(line, "failed")
        self._jobs.close()

    def _receive(self, seconds: float) -> None:
        done = self._jobs.receive(seconds)
        if done is not None:
            for line, report in done.job:
                report(line, done.result or "failed")

    def _seal(self, lines: _Lines) -> Outcome:
        if lines is _FINISH:
            self._sealer.finish()
            return "delivered"
        if not lines:
            self._sealer.keep_up()
            return "delivered"
        return "delivered" if self._sealer.seal([line for line, _ in lines]) else "failed"
