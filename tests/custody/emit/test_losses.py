"""Whichever call to sink or spool fails, or is the process's last: each number is delivered, in a spool, or counted.

The judge looks at what is left alone: what the sink got, what the next process finds on disk, and the counters.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit import delivery as delivery_module
from custody.emit import sink as sink_module
from custody.emit import worker as worker_module
from custody.emit.delivery import Delivery
from custody.emit.encode import encode
from custody.emit.errors import AuditError
from custody.emit.queue import Dropped, Item, Limits, Queue
from custody.emit.quiet import QuietLog
from custody.emit.redact import Redaction
from custody.emit.sink import Outcome, Report, SteadySink
from custody.emit.spool import Batch, Spool
from custody.emit.worker import Worker
from tests.helpers.emitting import contents, event, left_in, put_aside, sequence

Kind = Literal["audit error", "any error", "end before", "end after"]
KINDS: tuple[Kind, ...] = ("audit error", "any error", "end before", "end after")
REDACTION = Redaction()
EVENTS = [encode(event(n), REDACTION) for n in range(100)]
REFUSED_EVERY = 13
"""The sink refuses each number that this divides, always."""


class End(BaseException):
    """The process ended."""


@dataclass
class Fault:
    """What goes wrong with the n-th call to sink or spool, from 1 on."""

    at: int
    kind: Kind
    calls: list[str] = field(default_factory=list)
    ended: bool = False
    hit: str = ""

    @contextlib.contextmanager
    def around(self, name: str) -> Iterator[None]:
        if self.ended:
            raise End
        self.calls.append(name)
        hits = len(self.calls) == self.at
        if hits:
            self.hit = name
            self.ended = self.kind.startswith("end")
            match self.kind:
                case "audit error":
                    raise AuditError("Spool", "no")
                case "any error":
                    raise RuntimeError
                case "end before":
                    raise End
        yield
        if hits:
            raise End


class Sink:
    """Takes and reports at random, and never reports a line twice."""

    def __init__(self, fault: Fault, draw: random.Random) -> None:
        self._fault, self._draw = fault, draw
        self._on_the_way: list[tuple[bytes, Report]] = []
        self.delivered: list[bytes] = []
        self.refused: set[int] = set()
        self.unacknowledged: set[int] = set()

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        with self._fault.around("send"):
            taken = self._draw.choice((0, len(lines), self._draw.randint(0, len(lines))))
            self._on_the_way += [(line, report) for line in lines[:taken]]
            return taken

    def poll(self, _seconds: float) -> None:
        with self._fault.around("poll"):
            self._report(self._draw.randint(0, len(self._on_the_way)))

    def close(self, _seconds: float) -> None:
        with self._fault.around("close of the sink"):
            self._report(self._draw.randint(0, len(self._on_the_way)))
            for line, report in self._on_the_way:
                report(line, "failed")

    def _report(self, count: int) -> None:
        reported, self._on_the_way = self._on_the_way[:count], self._on_the_way[count:]
        for line, report in reported:
            report(line, self._outcome(line))

    def _outcome(self, line: bytes) -> Outcome:
        (number,) = sequence([line])
        if number % REFUSED_EVERY == 0:
            self.refused.add(number)
            return "refused"
        if self._draw.random() < 0.2:
            # Its acknowledgement may have been what was lost.
            if self._draw.random() < 0.5:
                self.delivered.append(line)
                self.unacknowledged.add(number)
            return "failed"
        self.delivered.append(line)
        return "delivered"


class FaultySpool(Spool):
    """A spool of which each call may fail."""

    def __init__(self, root: Path, limit: int, fault: Fault) -> None:
        self._fault = fault
        self.appended: list[bytes] = []
        self.safe: list[bytes] = []
        with fault.around("open"):
            super().__init__(root, limit)

    def append(self, lines: Sequence[bytes]) -> int:
        with self._fault.around("append"):
            taken = super().append(lines)
            self.appended = list(lines[:taken])
            return taken

    def sync(self) -> None:
        with self._fault.around("sync"):
            super().sync()
            self.safe += self.appended
            self.appended = []

    def peek(self, limit: int) -> Batch:
        with self._fault.around("peek"):
            return super().peek(min(limit, 40))

    def done(self, batch: Batch, count: int | None = None) -> None:
        with self._fault.around("done"):
            super().done(batch, count)

    def keep_refused(self, lines: Sequence[bytes]) -> int:
        with self._fault.around("keep"):
            return super().keep_refused(lines)

    def adopt(self) -> int:
        with self._fault.around("adopt"):
            return super().adopt()

    def close(self) -> None:
        with self._fault.around("close of the spool"):
            super().close()


class Script(Queue):
    """A queue into which an application writes whenever something is taken, and which it closes at last."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(Limits())
        self._draw, self._groups = draw, 12
        self.stop: Callable[[], None] = self.close

    def take(self, most: int) -> list[Item | Dropped]:
        if not self.closed:
            for line in self._draw.sample(EVENTS, self._draw.randint(0, 30)):
                self.offer(line, len(line))
            if self._draw.random() < 0.2:
                self.drop(self._draw.randint(1, 3))
            self._groups -= 1
            if not self._groups:
                self.stop()
        return super().take(most)

    def wait(self, seconds: float) -> None:
        pass


@dataclass
class Life:
    """One process, and what it leaves."""

    root: Path | None
    fault: Fault
    draw: random.Random
    limit: int
    close_seconds: float
    spools: list[FaultySpool] = field(default_factory=list)
    ended: bool = False

    def run(self) -> None:
        self.sink = Sink(self.fault, self.draw)
        script = Script(self.draw)
        self.worker = Worker("shop/web-1/1-1", REDACTION, script, self._open_delivery)
        script.stop = lambda: self.worker.stop(self.close_seconds)
        try:
            self.worker._run()
        except End:
            self.ended = True
            for spool in self.spools:
                spool.abandon()

    def _open_delivery(self, quiet: QuietLog) -> Delivery:
        return Delivery(
            SteadySink(lambda: self.sink, quiet), None if self.root is None else lambda: self._open_spool(), quiet
        )

    def _open_spool(self) -> Spool:
        assert self.root is not None
        spool = FaultySpool.__new__(FaultySpool)
        self.spools.append(spool)
        spool._open = False
        FaultySpool.__init__(spool, self.root, self.limit, self.fault)
        return spool

    def judge(self) -> None:
        """Check that nothing is missing but what the counters say, or what the process had in its memory."""
        spooled = left_in(self.root) if self.root else []
        aside = put_aside(self.root) if self.root else []
        known = contents([*self.sink.delivered, *spooled, *aside])
        safe = contents(line for spool in self.spools for line in spool.safe)
        assert not safe.keys() - known.keys() - self.sink.refused, "what was synced is gone"
        missing = {*range(1, self.worker._numbered + 1)} - known.keys() - self.sink.refused
        assert known.keys() <= {*range(1, self.worker._numbered + 1)}
        counters = self.worker.counters()
        counted = counters["dropped"] + counters["lost"]
        if self.ended:
            assert len(missing) <= counted + counters["queued"] + self._in_memory()
            return
        left = self.worker._left
        assert left is not None
        assert left.lost == counters["lost"]
        # After a close that failed, or an end of the time, nobody knows what the sink has of what is on its way.
        assert len(missing) <= counted
        if not self.fault.hit:
            # Segments that were replayed in part are still whole.
            assert left.spooled <= len(spooled)
            assert counters["faults"] == 0
            # Of what it counts as lost, the sink may have some: what was lost is the acknowledgement.
            assert counted - len(missing) <= len(self.sink.unacknowledged)

    def _in_memory(self) -> int:
        return self.worker._delivery._unspooled if self.worker._delivery else 0


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Nothing waits, and nothing is synced to a real disk."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("GROUP_SECONDS", "RETRY_SECONDS", "REOPEN_SECONDS", "ADOPT_SECONDS"):
            patched.setattr(delivery_module, name, 0.0)
        for name in ("_BUSY_SECONDS", "GATHER_SECONDS"):
            patched.setattr(worker_module, name, 0.0)
        patched.setattr(sink_module, "OPEN_SECONDS", 0.0)
        for name in ("fsync", "fdatasync"):
            patched.setattr(os, name, lambda _: None)
        yield


def live(root: Path | None, fault: Fault, seed: int, monkeypatch: pytest.MonkeyPatch) -> Life:
    """Run a process's life, and judge what is left."""
    draw = random.Random(seed)
    # Slow at once, or never; a spool that is large, or soon full; an end with time, or without.
    monkeypatch.setattr(delivery_module, "SLOW_SECONDS", draw.choice((0.0, 1000.0)))
    life = Life(root, fault, draw, limit=draw.choice((1 << 26, 3000)), close_seconds=draw.choice((0.0, 0.01)))
    life.run()
    life.judge()
    return life


SEEDS: Any = st.integers(0, 10_000)


@given(seed=SEEDS, with_spool=st.booleans())
def test_every_number_is_somewhere_or_counted(seed: int, with_spool: bool) -> None:
    """Without a fault, but with a sink that gives back, refuses and takes what it likes."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        live(Path(folder) if with_spool else None, Fault(0, "any error"), seed, patched)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, at=st.integers(1, 150), with_spool=st.booleans())
def test_every_number_is_somewhere_or_counted_whatever_fails(kind: Kind, seed: int, at: int, with_spool: bool) -> None:
    """Any one call fails, or ends the process before or after its effect. Then what memory had is missing, no more."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        life = live(Path(folder) if with_spool else None, Fault(at, kind), seed, patched)
        assert life.ended == (bool(life.fault.hit) and kind.startswith("end"))
