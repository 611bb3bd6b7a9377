"""The log of one process in an archive, for events that were never in Kafka (FORMAT.md: `cluster` is `direct`).

Rules:

1. A process begins its own log: `<service>.<instance>.<pid>-<start>`, partition 0, offsets from 0. Nobody else writes
   there, and nobody goes on with it when the process has ended. If somebody has written there, a new log is begun.
2. Events are reported as delivered when their statement is in the archive. A put of which the outcome is not known is
   looked up before anything else is written, so no event is in the log twice.
3. A process that was killed leaves its events in the spool. The next one writes them into its own log. Events of a
   statement whose put had succeeded are then in both: with the same bytes, so with the same `event_id` and number.
   A segment without its statement stays as an orphan.
4. The log gets a heartbeat when it is idle, a checkpoint after its first events and then as `archive.json` asks, and a
   last one at its end. The next process of the same instance puts what a killed one still owes.
5. Store and keys are opened anew every five minutes, so that a key that was rotated does not sign on.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from custody.archive.assemble import TIME_CREATE, Assembler
from custody.archive.checkpoints import put_checkpoint, write_checkpoint
from custody.archive.guesses import claimed_sizes
from custody.archive.reader import read_archive
from custody.archive.trusted import require_trusted
from custody.archive.writer import Entry, LogWriter, writer_name
from custody.emit.identity import Source
from custody.emit.quiet import QuietLog
from custody.errors import CustodyError, Fenced, HeadRollback
from custody.format import layout, limits
from custody.format.archive_file import ArchiveFile
from custody.format.layout import Log
from custody.format.leaves import LeafMaker
from custody.format.manifest import DIRECT, LogId
from custody.keys.signers import Signers
from custody.keys.trust import Trust
from custody.settings import Settings
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import Head, KnownHead

NAME_BYTES = 170
"""The longest name of a log: its objects' names get 82 bytes more, and may have 255."""
RENEW_SECONDS = 300.0
"""How long a store and keys stay open."""
BATCH_EVENTS, LEVEL = 1_000, 1
"""As in a drain. Batches are dense: a process that emits has nothing to catch up with."""
ENDED_LOGS = 20
"""Logs of ended processes that are looked at: older ones were looked at by other processes."""
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Record:
    """An event as a record."""

    at: int
    content: bytes
    sent_ms: int

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes:
        return self.content

    def key(self) -> None:
        return None

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return TIME_CREATE, self.sent_ms

    def leader_epoch(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Opened:
    """The archive, its keys, and the log, opened to append."""

    store: Store
    archive: ArchiveFile
    signers: Signers
    trust: Trust
    writer: LogWriter
    until: float


class Sealer:
    """Appends to this process's log. One thread at a time uses it.

    Attributes:
        upkeep_at: when `keep_up` is to be called, by `time.monotonic`. Another thread may read it.
        has_begun: whether the log is in the archive.
    """

    def __init__(self, settings: Settings, source: str, quiet: QuietLog, *, event_leaves: bool = False) -> None:
        """Set up. Nothing is opened.

        Args:
            settings: the archive and the keys.
            source: this process, as its events name it.
            quiet: for what goes wrong.
            event_leaves: commit to each event of a batch, where the keys have a secret for it.
        """
        self._settings, self._source, self._quiet, self._event_leaves = settings, source, quiet, event_leaves
        self._writer_name = writer_name()
        self._opened: _Opened | None = None
        self._name = log_name(source)
        self._head: Head | None = None
        self._doubtful: tuple[int, Sequence[bytes]] | None = None
        """Where lines were to be archived of which the outcome is not known, and the lines."""
        self._archived: Counter[bytes] = Counter()
        """Lines that are in the archive, and were reported as failed."""
        self._sealed = 0.0
        self._covered: Head | None = None
        self._covered_at = float("-inf")
        self._ended_covered = False
        self.upkeep_at = float("inf")
        self.has_begun = False

    def seal(self, lines: Sequence[bytes]) -> bool:
        """Archive lines, in their order, and return whether all are in the archive."""
        return self._attempt(lambda: self._seal(lines))

    def keep_up(self) -> None:
        """Write a heartbeat or a checkpoint if it is due, and the checkpoints that ended processes owe."""
        kept_up = False
        try:
            kept_up = self._attempt(self._keep_up)
        finally:
            if not kept_up:
                self.upkeep_at = time.monotonic() + _RETRY_SECONDS

    def finish(self) -> None:
        """Write a checkpoint of the log's end if it has none, and those that ended processes owe."""
        self._attempt(self._finish)
        self._close()

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Do something with the log; where it fails, log why and return False."""
        try:
            step()
        except CustodyError as error:
            self._close()
            if isinstance(error, Fenced | HeadRollback):
                self._begin_another()
            kind = type(error).__name__
            self._quiet.warn(f"archive {kind}", f"events wait in the spool, because they cannot be archived: {error}")
            return False
        except BaseException:
            # The next one opens the log again, and so looks up what this one has archived.
            self._close()
            raise
        return True

    def _seal(self, lines: Sequence[bytes]) -> None:
        opened = self._open()
        left = self._archived.copy()
        fresh = []
        for line in lines:
            if left[line]:
                left[line] -= 1
            else:
                fresh.append(line)
        position = opened.writer.next_offset or 0
        self._doubtful = position, fresh
        self._append(opened, position, fresh)
        self._note(opened)
        # What it covers is archived already, whether the checkpoint can be put or not.
        if self._covers_now(opened):
            with suppress(CustodyError):
                self._cover(opened)
        self._plan(opened)
        # Only now: whatever was raised above, the lines are looked up.
        self._doubtful = None
        self._archived.clear()

    def _append(self, opened: _Opened, position: int, lines: Sequence[bytes]) -> None:
        now = time.time_ns() // 1_000_000
        writer, secret = opened.writer, opened.signers.leaves
        assembler = Assembler(
            position,
            batch_events=BATCH_EVENTS,
            segment_bytes=limits.SEGMENT_BYTES,
            level=LEVEL,
            dense=True,
            number=writer.next_batch,
            leaves=LeafMaker(secret, opened.archive.id, str(writer.log)) if self._event_leaves and secret else None,
            own_types=self._settings.events.own_types,
        )
        records = [_Record(position + index, line, now) for index, line in enumerate(lines)]
        while records:
            # Fewer than all, if a statement cannot name as many types.
            records = records[assembler.add(records) :]
            writer.append(assembler.cut())

    def _keep_up(self) -> None:
        opened = self._open()
        heartbeat = opened.archive.statement.heartbeat
        if time.monotonic() - self._sealed >= heartbeat:
            position = opened.writer.next_offset or 0
            opened.writer.append(Entry(first_offset=position, next_offset=position))
            self._note(opened)
        if self._covers_now(opened):
            self._cover(opened)
        self._cover_ended(opened)
        self._plan(opened)

    def _finish(self) -> None:
        opened = self._open()
        self._cover(opened)
        self._cover_ended(opened)

    def _note(self, opened: _Opened) -> None:
        """Remember where the log ends."""
        self._head, self._sealed = opened.writer.tip.head, time.monotonic()

    def _plan(self, opened: _Opened) -> None:
        """Set when the log needs something by itself."""
        due = self._sealed + opened.archive.statement.heartbeat
        if self._covered != self._head:
            due = min(due, self._covered_at + opened.archive.statement.checkpoint)
        self.upkeep_at = due if self._ended_covered else time.monotonic()

    def _covers_now(self, opened: _Opened) -> bool:
        """Return whether a checkpoint is due."""
        waited = time.monotonic() - self._covered_at
        return self._covered != self._head and waited >= opened.archive.statement.checkpoint

    def _cover(self, opened: _Opened) -> None:
        """Put a checkpoint of the log's end, unless it has one."""
        head = opened.writer.tip.head
        if self._covered == head:
            return
        signer, writer = opened.signers.ed25519(), opened.writer
        put_checkpoint(opened.store, opened.archive.id, writer.log, head, signer, writer.judge)
        self._covered, self._covered_at = head, time.monotonic()

    def _cover_ended(self, opened: _Opened) -> None:
        """Put checkpoints of the logs that ended processes of this instance left, once. A live one is not harmed."""
        if self._ended_covered:
            return
        self._ended_covered = True
        instance = self._name.rpartition(".")[0] + "."
        names = [name for name in opened.store.level(layout.MANIFESTS)[0] if name.startswith(instance)]
        # By the time in the name, the newest last.
        others = sorted((name for name in names if name != self._name), key=lambda name: name.rpartition("-")[2])
        sizes = claimed_sizes(opened.store) if others else {}
        for name in others[-ENDED_LOGS:]:
            log = Log(name, 0)
            try:
                signer = opened.signers.ed25519()
                write_checkpoint(opened.store, log, opened.archive.id, opened.trust, signer, sizes.get(str(log), 0))
            except CustodyError as error:
                self._quiet.warn(f"checkpoint of {name}", f"no checkpoint of {name}/0: {error}")

    def _open(self) -> _Opened:
        """Return the log, opened to append, at an end that is known.

        Raises:
            CustodyError: it cannot be opened now, or somebody else has written there.
        """
        if self._opened is not None and time.monotonic() < self._opened.until:
            return self._opened
        self._close()
        settings = self._settings
        store = open_store(settings.archive, settings.s3)
        try:
            archive, trust = read_archive(store), settings.own_trust()
            signers = settings.signers(datetime.now(UTC))
            require_trusted(store, archive, trust)
            writer = LogWriter(
                store,
                archive.id,
                LogId(DIRECT, self._name, None, 0, 1),
                signer=signers.hmac(),
                trust=trust,
                writer=self._writer_name,
            )
            known = [KnownHead(self._head.size, self._head.root, "this process")] if self._head else []
            self._begin(writer, known)
        except BaseException:
            store.close()
            raise
        self.has_begun = True
        self._look_up(writer.next_offset or 0)
        self._opened = _Opened(store, archive, signers, trust, writer, time.monotonic() + RENEW_SECONDS)
        if self._head != writer.tip.head:
            self._note(self._opened)
        return self._opened

    def _begin(self, writer: LogWriter, known: Sequence[KnownHead]) -> None:
        """Find the log's end, and write its first statement if it has none."""
        newest = writer.open(known).newest
        if newest is None:
            writer.append(Entry(first_offset=0, next_offset=0))
        elif newest.statement.writer != self._writer_name:
            raise Fenced(f"{writer.log} is another process's log, so this process begins another one")

    def _look_up(self, next_offset: int) -> None:
        """Find out which of the doubtful lines are in the archive."""
        if self._doubtful is not None:
            first, lines = self._doubtful
            self._archived.update(lines[: next_offset - first])
            self._doubtful = None

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.store.close()

    def _begin_another(self) -> None:
        """Give this log up, and begin another one next time."""
        service, instance, _ = self._source.split("/")
        self._name = log_name(str(Source(service, instance)))
        self._head, self._covered, self._doubtful, self.has_begun = None, None, None, False
        self._covered_at, self.upkeep_at = float("-inf"), float("inf")


def log_name(source: str) -> str:
    """Return the name of a process's log, which a topic could have.

    Args:
        source: `service/instance/pid-start`.
    """
    *names, process = source.split("/")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", ".".join(names))
    room = NAME_BYTES - len(process) - 1
    if len(name) > room:
        digest = sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: room - len(digest) - 1]}-{digest}"
    return f"{name}.{process}"
