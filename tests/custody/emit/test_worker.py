"""The thread of a writer numbers what it takes, and nothing that an application or a disk does ends it."""

import asyncio
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from custody.emit import delivery as delivery_module
from custody.emit import encode as encode_module
from custody.emit import quiet as quiet_module
from custody.emit import worker as worker_module
from custody.emit import writer as writer_module
from custody.emit.background import Background
from custody.emit.builders import AuditEvent
from custody.emit.delivery import Delivery
from custody.emit.encode import encode
from custody.emit.queue import Limits, Queue
from custody.emit.quiet import QuietLog
from custody.emit.redact import Redaction
from custody.emit.sink import SteadySink
from custody.emit.spool import Spool
from custody.emit.worker import Left, Worker
from tests.helpers.emitting import MemorySink, event, left_in, sequence, wait_until

SOURCE = "shop/web-1/1-1"
REDACTION = Redaction()


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    """Writers that tests of other files left open would run into what is patched here, and log it."""
    for writer in list(writer_module._writers):
        writer.close(0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits for little, and not for long."""
    monkeypatch.setattr(worker_module, "_BUSY_SECONDS", 0.001)
    monkeypatch.setattr(worker_module, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(delivery_module, "GROUP_SECONDS", 0.005)
    monkeypatch.setattr(delivery_module, "RETRY_SECONDS", 0.005)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


def make(sink: MemorySink, root: Path | None = None, limits: Limits | None = None) -> Worker:
    """Return a worker that is not started."""

    def open_delivery(quiet: QuietLog) -> Delivery:
        open_spool = None if root is None else lambda: Spool(root, 1 << 26)
        return Delivery(SteadySink(lambda: sink, quiet), open_spool, quiet)

    return Worker(SOURCE, REDACTION, Queue(limits or Limits()), open_delivery)


def offer(worker: Worker, *events: AuditEvent) -> None:
    for each in events:
        line = encode(each, REDACTION)
        assert worker.queue.offer(line, len(line))


def build(worker: Worker, made: Any) -> None:
    assert worker.queue.offer(made, 10)


def fails_to_start(_: threading.Thread) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def fields(sink: MemorySink) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sink.delivered]


def test_a_source_begins_with_started_and_ends_with_stopped(sink: MemorySink) -> None:
    """The first event has the number 1, the last one the highest, and says what was dropped and lost."""
    worker = make(sink)
    worker.start()
    offer(worker, event(1), event(2))
    worker.queue.drop(3)
    assert worker.close(5) == Left(0, 0)
    lines = fields(sink)
    assert [line["event_type"] for line in lines] == ["emitter_started", *["test.event"] * 2, "emitter_stopped"]
    assert {line["source"] for line in lines} == {SOURCE}
    assert [line["source_seq"] for line in lines] == [1, 2, 3, 7]
    assert (lines[-1]["dropped"], lines[-1]["lost"]) == (3, 0)
    counters = worker.counters()
    assert (counters["written"], counters["dropped"], counters["delivered"], counters["queued"]) == (2, 3, 4, 0)


def test_what_is_refused_here_leaves_a_hole(sink: MemorySink, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told that such an event is not valid, so the audit shows it. The log says why once a minute."""
    worker = make(sink)
    build(worker, lambda: [event(1), AuditEvent("test.event", {"event_type": "test.event"}), event(2)])
    build(worker, lambda: [AuditEvent("test.event", {"event_type": "test.event"})])
    worker.close(5)
    assert sequence(sink.delivered) == [1, 2, 4, 6]
    assert worker.counters()["refused"] == 2
    assert len(caplog.records) == 1


def test_the_hole_of_dropped_events_is_where_they_were_dropped(sink: MemorySink) -> None:
    """Also where more waits than is taken at once: the times beside a hole are those of the loss."""
    worker = make(sink)
    offer(worker, *[event(n) for n in range(3 * worker_module.STEP_ITEMS)])
    worker.queue.drop(7)
    offer(worker, event(-1))
    worker.close(5)
    before = 1 + 3 * worker_module.STEP_ITEMS
    assert sequence(sink.delivered) == [*range(1, before + 1), before + 8, before + 9]
    assert fields(sink)[before]["n"] == -1


def test_what_a_build_made_before_it_raised_is_written(sink: MemorySink) -> None:
    """One operation of a request that cannot be told takes none of the others with it, and leaves a hole."""

    def makes() -> Iterable[AuditEvent]:
        yield event(1)
        yield event(2)
        raise ValueError

    worker = make(sink)
    build(worker, makes)
    build(worker, lambda: [event(3), object(), event(4)])
    assert worker.close(5) == Left(0, 0)
    assert [line.get("n") for line in fields(sink)] == [None, 1, 2, 3, 4, None]
    assert sequence(sink.delivered) == [1, 2, 3, 5, 7, 8]
    assert worker.counters()["refused"] == 2


@pytest.mark.parametrize(
    "error", [ValueError("top secret"), asyncio.CancelledError("secret"), SystemExit("secret"), RecursionError(), None]
)
def test_whatever_a_build_raises_refuses_its_event_alone(
    sink: MemorySink, error: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what is no Exception, such as a cancelled task's; None stands for what is no list of events."""

    def fails() -> Iterable[AuditEvent]:
        if error is not None:
            raise error
        return 5  # type: ignore[return-value]

    worker = make(sink)
    worker.start()
    build(worker, fails)
    offer(worker, event(1))
    assert worker.close(5) == Left(0, 0)
    assert sequence(sink.delivered) == [1, 3, 4]
    assert worker.counters()["refused"] == 1
    assert "secret" not in caplog.text


def test_an_error_that_nobody_expects_does_not_end_the_thread(
    sink: MemorySink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and logged, without the error's text, and the next events go on."""
    worker = make(sink)
    step, fails = Delivery.step, True

    def sometimes(self: Delivery, seconds: float) -> None:
        if fails:
            raise ValueError("top secret")
        step(self, seconds)

    monkeypatch.setattr(Delivery, "step", sometimes)
    worker.start()
    offer(worker, event(1))
    wait_until(lambda: worker.counters()["faults"] >= 2)
    offer(worker, event(2))
    fails = False
    assert worker.close(5) == Left(0, 0)
    assert sequence(sink.delivered) == [1, 2, 3, 4]
    assert len(caplog.records) == 1
    assert "ValueError at " in caplog.text
    assert "secret" not in caplog.text


def test_an_exit_that_a_log_handler_raises_does_not_end_the_thread(
    sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a step nor in the log line about it: the application's handlers run on the writer's thread."""

    def fails(*_: object) -> None:
        raise SystemExit

    worker = make(sink)
    with monkeypatch.context() as patched:
        patched.setattr(quiet_module.logger, "log", fails)
        patched.setattr(Delivery, "step", fails)
        worker.start()
        build(worker, lambda: [AuditEvent("test.event", {"event_type": "test.event"}), event(1)])
        wait_until(lambda: worker.counters()["faults"] >= 2)
    assert worker.close(5) == Left(0, 0)
    assert sequence(sink.delivered) == [1, 3, 4]


def test_an_exit_that_a_sink_raises_does_not_end_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was on its way would never be reported. On the application's own thread it is the application's."""

    def fails(number: int) -> int:
        if number == 1:
            raise SystemExit
        return number

    background = Background(fails, 1, QuietLog())
    results: list[int | None] = []
    for number in (1, 2):
        background.start(number)
        done = background.receive(10)
        assert done is not None
        results.append(done.result)
    background.close()
    assert results == [None, 2]
    monkeypatch.setattr(threading.Thread, "start", fails_to_start)
    with pytest.raises(SystemExit):
        Background(fails, 1, QuietLog()).start(1)


def test_close_finishes_for_a_thread_that_has_ended(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended it: what it left is delivered, once."""

    def ends(*_: object) -> None:
        raise SystemExit

    worker = make(sink)
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "_step", ends)
        patched.setattr(Worker, "_caught", ends)
        patched.setattr(threading, "excepthook", lambda _: None)
        worker.start()
        assert worker._thread is not None
        worker._thread.join(10)
    offer(worker, event(1))
    assert worker.close(5) == worker.close(5) == Left(0, 0)
    assert sequence(sink.delivered) == [1, 2, 3]


def test_items_that_cannot_be_numbered_are_counted_as_lost(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers are left out, and what comes later goes on."""
    worker = make(sink)
    number = encode_module.number

    def fails(line: bytes, source: str, seq: int) -> bytes:
        if b'"n":2,' in line:
            raise MemoryError
        return number(line, source, seq)

    monkeypatch.setattr(worker_module, "number", fails)
    monkeypatch.setattr(worker_module, "STEP_ITEMS", 1)
    worker.start()
    offer(worker, event(1), event(2), event(3))
    assert worker.close(5) == Left(0, 1)
    assert sequence(sink.delivered) == [1, 2, 4, 5]
    assert fields(sink)[-1]["lost"] == 1
    assert worker.counters()["lost"] == 1


def test_an_end_that_fails_says_what_is_lost(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` never says that nothing was left, only because it does not know."""

    def fails(*_: object) -> int:
        raise RuntimeError

    monkeypatch.setattr(Delivery, "close", fails)
    sink.silent = True
    worker = make(sink)
    worker.start()
    offer(worker, event(1), event(2))
    wait_until(lambda: worker.counters()["in_flight"] == 3)
    assert worker.close(0) == Left(0, 4)
    assert worker.counters()["faults"] == 1


def test_an_end_that_cannot_count_its_queue_still_closes(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the queue, what was taken before is spooled or sent."""

    def fails(_: Queue) -> int:
        raise ValueError

    worker = make(sink)
    offer(worker, event(1))
    worker.start()
    wait_until(lambda: len(sink.delivered) == 2)
    monkeypatch.setattr(Queue, "__len__", fails)
    assert worker.close(5) == Left(0, 0)
    assert sink.closed
    assert worker.counters()["faults"] == 2


def test_a_thread_that_hangs_does_not_hold_up_close(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it still has counts as lost."""
    monkeypatch.setattr(worker_module, "STOP_SECONDS", 0.02)
    release = threading.Event()

    def hangs() -> list[AuditEvent]:
        release.wait(20)
        return []

    worker = make(sink)
    build(worker, hangs)
    worker.start()
    wait_until(lambda: worker.queue.written - len(worker.queue) == 1)
    offer(worker, event(1))
    begun = time.monotonic()
    # With the source's first event, of which no report was read.
    assert worker.close(0.01) == Left(0, 3)
    assert time.monotonic() - begun < 5
    release.set()
    assert worker._thread is not None
    worker._thread.join()


def test_close_from_the_writers_own_thread_does_not_wait_for_itself(sink: MemorySink) -> None:
    """A function that makes a request's events may close the writer, unwisely."""
    worker = make(sink)

    def closes() -> list[AuditEvent]:
        worker.close(1)
        return [event(1)]

    build(worker, closes)
    worker.start()
    assert worker._thread is not None
    worker._thread.join(10)
    assert sequence(sink.delivered) == [1, 2, 3]


def test_trap_4_where_no_thread_can_start_close_does_the_work(
    sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.12 on, none can while the interpreter ends."""
    monkeypatch.setattr(threading.Thread, "start", fails_to_start)
    worker = make(sink)
    worker.start()
    assert not worker.runs
    offer(worker, event(1))
    assert worker.close(5) == Left(0, 0)
    assert sequence(sink.delivered) == [1, 2, 3]


def test_what_cannot_be_opened_is_opened_later_and_lost_at_the_end(
    sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what should never fail ends the thread. Dropped events count as dropped, and not as lost too."""

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    worker = make(sink)
    with monkeypatch.context() as patched:
        patched.setattr(Delivery, "__init__", fails)
        worker.start()
        offer(worker, event(1), event(2))
        worker.queue.drop()
        wait_until(lambda: worker.counters()["faults"] >= 2)
    wait_until(lambda: len(sink.delivered) == 3)
    worker.close(5)
    monkeypatch.setattr(Delivery, "__init__", fails)
    worker = make(sink)
    offer(worker, event(1), event(2))
    worker.queue.drop()
    assert worker.close(0) == Left(0, 2)
    counters = worker.counters()
    assert (counters["lost"], counters["dropped"], counters["queued"], worker.unsettled()) == (2, 1, 0, 0)


def test_close_without_time_spools_what_is_in_the_queue(sink: MemorySink, tmp_path: Path) -> None:
    """Events that were taken are not lost for want of time, if there is a disk for them."""
    worker = make(sink, tmp_path)
    offer(worker, *(event(n) for n in range(2500)))
    build(worker, lambda: [event(2500)])
    left = worker.close(0)
    assert left == Left(2503, 0)
    assert sequence(left_in(tmp_path)) == [*range(1, 2504)]


def test_close_without_time_and_without_a_spool_counts_what_is_lost(sink: MemorySink) -> None:
    """The numbers of what was in the queue are left out."""
    sink.away = True
    worker = make(sink)
    offer(worker, *(event(n) for n in range(50)))
    worker.queue.drop(2)
    # With the two events of its own, of which the first was not sent, and the last one has come too late.
    assert worker.close(0) == Left(0, 52)
    counters = worker.counters()
    assert (counters["lost"], counters["queued"], worker.unsettled()) == (52, 0, 0)


def test_trap_19_no_batch_is_larger_than_two_hundred(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in one go keeps the interpreter from a request for so long."""
    checked: list[int] = []
    encode_all = encode_module.encode_all

    def counted(batch: list[AuditEvent], redaction: Redaction) -> Any:
        checked.append(len(batch))
        return encode_all(batch, redaction)

    monkeypatch.setattr(worker_module, "encode_all", counted)
    worker = make(sink)
    offer(worker, *(event(n) for n in range(1000)))
    build(worker, lambda: (event(n) for n in range(1000)))
    worker.close(20)
    assert len(sink.delivered) == 2002
    assert max(sink.sizes) <= 200
    assert max(checked) <= 200
