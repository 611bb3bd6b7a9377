"""Brings numbered lines to a sink, and through the spool while the sink is slow or away.

A line is in one place at a time: held, on its way, in the spool, or settled (delivered or refused). While anything is
in the spool, new lines go behind it, and the spool is replayed in its order. A line that failed goes to the spool.
Without a spool it is held and sent again, and nothing more is taken meanwhile.

A line that is refused is not sent again. It is kept in the spool's folder `bad/`.

What may be sent twice: lines whose delivery was not confirmed when the process ended. They are the same bytes, with the
same `event_id` and `source_seq`.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from custody.emit.quiet import QuietLog
from custody.emit.sink import Outcome, SteadySink, explain
from custody.emit.spool import Batch, Spool

SLOW_SECONDS = 2.0
"""Without any delivery for so long, new lines go to the spool."""
GROUP_SECONDS, GROUP_LINES = 0.05, 1_000
"""Lines for the spool are written together: when there are so many, or the first has waited for so long."""
REPLAY_LINES = 5_000
"""Lines of the spool that are on their way at once."""
RETRY_SECONDS = 1.0
"""How long what failed waits before it is sent again."""
ADOPT_SECONDS = 60.0
"""How often spools that dead processes left are looked for."""
REOPEN_SECONDS = 5.0
"""How long after it failed the spool is opened again."""
COUNTED = (
    "in_flight",
    "spool_events",
    "spool_bytes",
    "bad_segments",
    "lost_segments",
    "delivered",
    "spooled",
    "replayed",
    "failed",
    "refused",
    "lost",
)
"""Names of the counters."""
_SEND_LINES = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gather:
    """How long lines wait in the spool, to be sent together.

    Attributes:
        seconds: since the first of them.
        lines: or until there are so many. It is also the most that is sent at once.
    """

    seconds: float
    lines: int


class Delivery:
    """Sink and spool of one writer. One thread uses it; others may read its numbers.

    Attributes:
        urgent: whether lines that gather are sent now. Another thread may set it; it ends when nothing is unsettled.
    """

    def __init__(
        self,
        sink: SteadySink,
        open_spool: Callable[[], Spool] | None,
        quiet: QuietLog,
        *,
        gather: Gather | None = None,
    ) -> None:
        """Set up.

        Args:
            sink: where lines go.
            open_spool: opens where they wait; None if there is no disk for it. While it raises, they wait in memory.
            quiet: for what goes wrong.
            gather: every line goes through the spool, also while the sink is well, and waits there for so long. Lines
                that other processes left do not wait.
        """
        self._sink, self._open_spool, self._quiet, self._gather = sink, open_spool, quiet, gather
        self._gathers_since: float | None = None
        self._owed = 0
        """Lines that have gathered, and of which no batch is done yet."""
        self.urgent = False
        self._spool: Spool | None = None
        self._reopen_at = 0.0
        self._unspooled = 0
        """Lines that were taken, and are neither in the spool nor settled: held, failed, or on their way."""
        self._held: deque[bytes] = deque()
        self._failed: list[bytes] = []
        self._last: list[bytes] = []
        self._refused_lines: list[bytes] = []
        self._sent = 0
        self._batch: Batch | None = None
        self._batch_left: deque[bytes] = deque()
        self._batch_failed: list[bytes] = []
        self._batch_sent = 0
        self._progress = time.monotonic()
        self._retry_at = 0.0
        self._held_since = 0.0
        self._adopted = 0.0
        self._spooling = False
        self._delivered = self._replayed = self._refused = self._failures = self._spooled = self.lost = 0
        self._reopen_spool()

    @property
    def takes(self) -> bool:
        """Whether more lines may be given."""
        return len(self._held) < (GROUP_LINES if self._spooling else 1)

    @property
    def unsettled(self) -> int:
        """Lines that are held, on their way, or in the spool. Another thread never reads too few."""
        # A line is in the spool's number before it leaves the first one: read in this order, it is in one at least.
        return self._unspooled + (self._spool.waiting if self._spool else 0)

    def counters(self) -> dict[str, int]:
        """Return the numbers that `COUNTED` names."""
        spool = self._spool.counters() if self._spool else {}
        return {
            "in_flight": self._sent + self._batch_sent,
            "spool_events": spool.get("waiting", 0),
            "spool_bytes": spool.get("bytes", 0),
            "bad_segments": spool.get("bad_segments", 0),
            "lost_segments": spool.get("lost_segments", 0),
            "delivered": self._delivered,
            "spooled": self._spooled,
            "replayed": self._replayed,
            "failed": self._failures,
            "refused": self._refused,
            "lost": self.lost,
        }

    def deliver(self, lines: Sequence[bytes]) -> None:
        """Take lines, and pass on what can be. They are held before anything can fail."""
        if not self._held:
            self._held_since = time.monotonic()
        self._unspooled += len(lines)
        self._held.extend(lines)
        self._push()

    def step(self, seconds: float) -> None:
        """Learn what became of lines, spool what failed, and replay. Waits no longer than this for the first report."""
        before = self._delivered + self._refused
        self._sink.poll(seconds)
        now = time.monotonic()
        if self._delivered + self._refused != before or not (self._sent or self._batch_sent):
            self._progress = now
        self._reopen_spool()
        if self._failed:
            self._retry_at = now + RETRY_SECONDS
            self._spooling = self._spool is not None
            self._take_back()
        self._push()
        self._guarded(self._replay)
        self._keep_refused()
        self.urgent = self.urgent and self.unsettled > 0

    def spool_only(self) -> bool:
        """Send nothing more but what is in the spool, and return whether there is one."""
        self._spooling = self._spool is not None
        return self._spooling

    def put_last(self, line: bytes) -> None:
        """Take the line that goes behind all others at `close`, also behind those that the sink gives back."""
        self._last.append(line)
        self._unspooled += 1

    def close(self, seconds: float) -> int:
        """Settle what can be settled in this time, leave the rest in the spool, and return how many lines are there.

        Lines that the spool does not take are lost, and counted.
        """
        deadline = time.monotonic() + seconds
        while self.unsettled and (left := deadline - time.monotonic()) > 0:
            if not self._sent or not (self._spooling or self._slow()):
                self._hold_last()
                self._push()
            self.urgent = True
            self.step(min(left, GROUP_SECONDS))
        self._sink.close(max(0.0, deadline - time.monotonic()))
        self._guarded(self._end_batch)
        self._take_back()
        self._hold_last()
        self._to_spool()
        self._keep_refused()
        # With those, if any, of which the sink did not report what became of them.
        self.lost += self._unspooled
        self._unspooled = self._sent = 0
        self._held.clear()
        waiting = self._spool.waiting if self._spool else 0
        self._guarded(Spool.close)
        return waiting

    def _reopen_spool(self) -> None:
        """Open the spool, if that is due: the disk may have been full when the process started."""
        if self._spool is not None or self._open_spool is None or time.monotonic() < self._reopen_at:
            return
        try:
            self._spool = self._open_spool()
        except Exception as error:  # noqa: BLE001 - events go on without it
            self._reopen_at = time.monotonic() + REOPEN_SECONDS
            self._quiet.warn("spool", f"audit events wait in memory alone, for want of a spool: {explain(error)}")
        else:
            self._adopted = time.monotonic()
            # What it adopted comes first.
            self._spooling = True

    def _push(self) -> None:
        """Pass held lines on: to the sink, or to the spool while anything is in it."""
        if self._spool is not None and self._slow():
            self._spooling = True
        if not self._spooling:
            self._to_sink()
        late = time.monotonic() - self._held_since >= GROUP_SECONDS
        if self._spooling and (len(self._held) >= GROUP_LINES or late):
            self._to_spool()

    def _take_back(self) -> None:
        """Put what failed in front of what is held, since it came earlier."""
        self._held.extendleft(reversed(self._failed))
        self._failed.clear()

    def _hold_last(self) -> None:
        self._held.extend(self._last)
        self._last.clear()

    def _slow(self) -> bool:
        return self._sent > 0 and time.monotonic() - self._progress > SLOW_SECONDS

    def _to_sink(self) -> None:
        while self._held and self._retry_at <= time.monotonic():
            lines = list(islice(self._held, _SEND_LINES))
            taken = self._sink.send(lines, self._report)
            self._sent += taken
            _drop_first(self._held, taken)
            if taken < len(lines):
                self._spooling = self._spool is not None
                return

    def _to_spool(self) -> None:
        """Write held lines to the disk, as many as there is room for. They are held until they are there."""
        lines = list(self._held)
        taken = self._guarded(lambda spool: _written(spool, lines)) or 0
        self._spooled += taken
        self._unspooled -= taken
        _drop_first(self._held, taken)
        self._held_since = time.monotonic()

    def _report(self, line: bytes, outcome: Outcome) -> None:
        self._sent -= 1
        if outcome == "failed":
            self._failures += 1
            self._failed.append(line)
        else:
            self._settle(line, outcome)
            self._unspooled -= 1

    def _settle(self, line: bytes, outcome: Outcome) -> None:
        if outcome == "delivered":
            self._delivered += 1
        else:
            self._refused += 1
            self._refused_lines.append(line)

    def _keep_refused(self) -> None:
        """Put aside what was refused, and say so. They are counted already, so that nobody waits for them."""
        if not self._refused_lines:
            return
        lines, self._refused_lines = self._refused_lines, []
        kept = self._guarded(lambda spool: spool.keep_refused(lines))
        refused = f"{len(lines):,} audit events were refused by where they were sent, and are not sent again"
        if self._spool is None:
            self._quiet.warn("refused", f"{refused}; no spool keeps them")
            return
        room = ""
        if kept is not None and kept < len(lines):
            room = ", and no room: it gets a quarter of the spool's limit at most; look at what is there, and delete it"
        self._quiet.warn("refused", f"{refused}; the spool's folder `bad` has {kept or 0:,} of them{room}")

    def _replay(self, spool: Spool) -> None:
        """Send what is in the spool, a batch at a time, and adopt what dead processes left."""
        now = time.monotonic()
        if now - self._adopted >= ADOPT_SECONDS:
            self._adopted = now
            self._spooling = spool.adopt() > 0 or self._spooling
        if not self._spooling or now < self._retry_at:
            return
        if self._batch is None:
            if not self._has_gathered(spool, now):
                return
            batch = spool.peek(self._gather.lines if self._gather else REPLAY_LINES)
            if not batch.lines:
                self._spooling = self._gather is not None or self._slow()
                self._owed = 0
                return
            self._batch = batch
            self._batch_left.extend(batch.lines)
        # What failed goes before what was not sent yet.
        self._batch_left.extendleft(reversed(self._batch_failed))
        self._batch_failed.clear()
        taken = self._sink.send(list(self._batch_left), self._report_replayed)
        self._batch_sent += taken
        _drop_first(self._batch_left, taken)
        self._end_batch(spool)

    def _end_batch(self, spool: Spool) -> None:
        """Take the batch out of the spool, once all of its lines are settled."""
        if self._batch is None or self._batch_left or self._batch_failed or self._batch_sent:
            return
        done, self._batch = self._batch, None
        waiting = spool.waiting
        spool.done(done)
        self._owed -= waiting - spool.waiting

    def _has_gathered(self, spool: Spool, now: float) -> bool:
        """Return whether the next lines of the spool may be sent."""
        if self._gather is None or self.urgent or self._owed > 0 or spool.has_orphans:
            return True
        waiting = spool.waiting
        if not waiting:
            return False
        if self._gathers_since is None:
            self._gathers_since = now
        if waiting < self._gather.lines and now - self._gathers_since < self._gather.seconds:
            return False
        # What comes meanwhile waits for the next time: else each statement would be followed by a small one.
        self._owed, self._gathers_since = waiting, None
        return True

    def _report_replayed(self, line: bytes, outcome: Outcome) -> None:
        self._batch_sent -= 1
        if outcome == "failed":
            self._failures += 1
            self._batch_failed.append(line)
            self._retry_at = time.monotonic() + RETRY_SECONDS
        else:
            self._replayed += outcome == "delivered"
            self._settle(line, outcome)

    def _guarded(self, use: Callable[[Spool], T]) -> T | None:
        """Use the spool; where the disk fails, warn and return None. What it did not take is still held."""
        if self._spool is None:
            return None
        try:
            return use(self._spool)
        except Exception as error:  # noqa: BLE001 - whatever a file system may raise
            self._quiet.warn("spool", explain(error))
            return None


def _written(spool: Spool, lines: Sequence[bytes]) -> int:
    """Return how many lines are in the spool now, and on the disk."""
    taken = spool.append(lines)
    spool.sync()
    return taken


def _drop_first(lines: deque[bytes], number: int) -> None:
    for _ in range(number):
        lines.popleft()
