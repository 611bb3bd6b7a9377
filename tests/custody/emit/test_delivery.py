"""A line is in one place at a time, and always in one: held, on its way, in the spool, or settled."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from custody.emit import delivery as delivery_module
from custody.emit import sink as sink_module
from custody.emit.delivery import Delivery
from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog
from custody.emit.sink import SteadySink
from custody.emit.spool import Spool
from custody.emit.spool_segment import HEAD_BYTES
from tests.helpers.emitting import MemorySink, left_in, numbered, put_aside, wait_until
from tests.helpers.spooling import ORPHAN, lines, orphan, segment

LIMIT = 1 << 26


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits: neither a group for the spool, nor a second try."""
    for name in ("GROUP_SECONDS", "RETRY_SECONDS", "REOPEN_SECONDS"):
        monkeypatch.setattr(delivery_module, name, 0.0)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


def make(sink: MemorySink, root: Path | None, quiet: QuietLog | None = None, limit: int = LIMIT) -> Delivery:
    """Return a delivery to a sink, with a spool unless there is no root."""
    quiet = quiet or QuietLog()
    open_spool = None if root is None else lambda: Spool(root, limit)
    return Delivery(SteadySink(lambda: sink, quiet), open_spool, quiet)


def settle(delivery: Delivery) -> None:
    """Take steps until nothing is left to do."""
    for _ in range(1000):
        delivery.step(0)
        if not delivery.unsettled:
            return
    raise AssertionError(f"{delivery.unsettled} are left: {delivery.counters()}")


@pytest.mark.parametrize("with_spool", [False, True])
def test_lines_reach_the_sink_in_their_order(sink: MemorySink, tmp_path: Path, *, with_spool: bool) -> None:
    """While the sink is well, nothing waits, and nothing stays in the spool."""
    delivery = make(sink, tmp_path if with_spool else None)
    settle(delivery)
    for group in (numbered(300), numbered(5, 301)):
        delivery.deliver(group)
        settle(delivery)
    assert sink.delivered == numbered(305)
    assert max(sink.sizes) <= 200
    assert delivery.close(0) == 0
    assert delivery.counters()["delivered"] == 305
    assert list(tmp_path.iterdir()) == []


def test_while_the_sink_is_away_lines_go_to_the_spool_and_come_back_in_order(sink: MemorySink, tmp_path: Path) -> None:
    """New lines stay behind those in the spool, so their order is kept."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.away = True
    delivery.deliver(numbered(50))
    delivery.step(0)
    assert delivery.counters()["spool_events"] == 50
    assert delivery.takes
    sink.away = False
    delivery.deliver(numbered(10, 51))
    settle(delivery)
    assert sink.delivered == numbered(60)
    counters = delivery.counters()
    assert (counters["spooled"], counters["replayed"], counters["delivered"]) == (60, 60, 60)
    assert delivery.close(0) == 0


def test_a_sink_without_any_progress_is_slow_and_new_lines_go_to_the_spool(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on its way stays there, and what comes later is safe on disk."""
    monkeypatch.setattr(delivery_module, "SLOW_SECONDS", 0.01)
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.silent = True
    delivery.deliver(numbered(3))
    delivery.step(0)
    assert delivery.counters()["in_flight"] == 3
    time.sleep(0.02)
    delivery.deliver(numbered(4, 4))
    delivery.step(0)
    assert delivery.counters()["spool_events"] == 4
    sink.silent = False
    settle(delivery)
    assert sink.delivered == numbered(7)


def test_trap_7_a_line_that_is_given_back_goes_to_the_spool_once(sink: MemorySink, tmp_path: Path) -> None:
    """Time-outs and purges carry the line. It is in the spool once, and is delivered once."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.outcome = lambda _: "failed"
    delivery.deliver(numbered(20))
    delivery.step(0)
    counters = delivery.counters()
    assert (counters["failed"], counters["spooled"], counters["spool_events"]) == (20, 20, 20)
    sink.outcome = lambda _: "delivered"
    settle(delivery)
    assert sink.delivered == numbered(20)
    delivery.close(0)


def test_what_fails_in_a_replay_is_replayed_again(sink: MemorySink, tmp_path: Path) -> None:
    """A batch is done when each of its lines is settled, however often that takes."""
    delivery = make(sink, tmp_path)
    tries: dict[bytes, int] = {}

    def outcome(line: bytes) -> Any:
        tries[line] = tries.get(line, 0) + 1
        return "delivered" if tries[line] > 2 else "failed"

    sink.outcome = outcome
    delivery.deliver(numbered(20))
    settle(delivery)
    assert sorted(sink.delivered) == sorted(numbered(20))
    assert delivery.close(0) == 0
    assert left_in(tmp_path) == []


def test_what_fails_in_a_replay_goes_before_what_was_not_sent_yet(sink: MemorySink, tmp_path: Path) -> None:
    """A sink that takes part of a batch and gives it back gets the batch in its order."""
    send, tries = sink.send, dict.fromkeys(numbered(10), 0)

    def outcome(line: bytes) -> Any:
        tries[line] = tries.get(line, 1) + 1
        return "delivered" if tries[line] > 1 else "failed"

    sink.outcome = outcome
    sink.away = True
    delivery = make(sink, tmp_path)
    delivery.deliver(numbered(20))
    delivery.step(0)
    sink.away = False
    sink.send = lambda lines, report: send(lines[:10], report)  # type: ignore[method-assign]
    settle(delivery)
    assert delivery.counters()["failed"] == 10
    assert sink.delivered == numbered(20)
    delivery.close(0)


def test_the_last_line_goes_behind_what_the_sink_gives_back(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source's last event is the last that the next process sends, also where older lines come back at the end."""
    monkeypatch.setattr(delivery_module, "SLOW_SECONDS", 0.01)
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.silent = True
    delivery.deliver(numbered(3))
    delivery.step(0)
    time.sleep(0.02)
    delivery.put_last(*numbered(1, 4))
    assert delivery.close(0.1) == 4
    assert left_in(tmp_path) == numbered(4)


def test_without_a_spool_what_failed_is_held_and_nothing_more_is_taken(sink: MemorySink) -> None:
    """Memory does not grow: the queue before it fills, and says so."""
    delivery = make(sink, None)
    sink.outcome = lambda _: "failed"
    delivery.deliver(numbered(20))
    for _ in range(3):
        delivery.step(0)
    assert delivery.unsettled == 20
    sink.away = True
    delivery.step(0)
    assert not delivery.takes
    assert not delivery.spool_only()
    sink.away, sink.outcome = False, lambda _: "delivered"
    settle(delivery)
    assert sink.delivered == numbered(20)


@pytest.mark.parametrize("spooled", [False, True])
def test_a_refused_line_is_kept_aside_and_not_sent_again(sink: MemorySink, tmp_path: Path, *, spooled: bool) -> None:
    """It is counted, lies in `bad/`, and does not hold up what is behind it."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    third = numbered(1, 3)[0]
    sink.outcome = lambda line: "refused" if line == third else "delivered"
    sink.away = spooled
    delivery.deliver(numbered(5))
    delivery.step(0)
    sink.away = False
    settle(delivery)
    assert sink.delivered == numbered(2) + numbered(2, 4)
    assert put_aside(tmp_path) == [third]
    assert delivery.counters()["refused"] == 1
    assert delivery.counters()["spool_bytes"] > len(third)
    assert delivery.close(0) == 0
    assert left_in(tmp_path) == []


def test_refused_lines_leave_most_of_the_spool_to_the_others(
    sink: MemorySink, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody deletes `bad/`, so it gets a quarter of the limit; what is there counts after a restart too."""
    for _ in range(3):
        delivery = make(sink, tmp_path, limit=2000)
        sink.outcome = lambda _: "refused"
        delivery.deliver(numbered(20))
        settle(delivery)
        assert delivery.counters()["refused"] == 20
        kept = put_aside(tmp_path)
        assert 0 < len(kept) < 20
        assert kept == numbered(len(kept))
        assert sum(path.stat().st_size for path in (tmp_path / "bad").iterdir()) <= 500 + 16
        sink.away = True
        delivery.deliver(numbered(20))
        delivery.step(0)
        assert delivery.counters()["spooled"] >= 20
        sink.away = False
        assert delivery.close(5) == 0
    assert "it gets a quarter of the spool's limit at most" in caplog.text


def test_without_a_spool_no_folder_is_said_to_keep_what_is_refused(
    sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    """Else somebody would look for it."""
    delivery = make(sink, None)
    sink.outcome = lambda _: "refused"
    delivery.deliver(numbered(3))
    settle(delivery)
    assert "no spool keeps them" in caplog.text
    assert "bad" not in caplog.text


def test_trap_11_a_full_disk_loses_nothing_that_the_sink_takes_later(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines are held in memory, one line of log a minute says why, and no counter has them twice."""
    delivery = make(sink, tmp_path)
    settle(delivery)

    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink.away = True
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fails)
        for n in range(5):
            delivery.deliver(numbered(300, 1 + 300 * n))
            delivery.step(0)
        assert not delivery.takes
        assert (delivery.unsettled, delivery.counters()["spooled"]) == (1500, 0)
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "cannot write to it: No space left on device; free some space, or lower the spool's limit in bytes"
    ]
    sink.away = False
    settle(delivery)
    assert sink.delivered == numbered(1500)


def test_trap_11_the_bound_of_the_spool_takes_what_fits(sink: MemorySink, tmp_path: Path) -> None:
    """The rest is held, and follows in order when there is room."""
    delivery = make(sink, tmp_path, limit=4000)
    settle(delivery)
    sink.away = True
    delivery.deliver(numbered(500))
    delivery.step(0)
    counters = delivery.counters()
    assert 0 < counters["spool_events"] < 500
    assert counters["spool_events"] == counters["spooled"]
    assert counters["spool_bytes"] <= 4000 + HEAD_BYTES
    assert delivery.unsettled == 500
    sink.away = False
    settle(delivery)
    assert sink.delivered == numbered(500)


def test_without_a_spool_that_opens_events_go_on_and_it_is_opened_later(
    sink: MemorySink, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full when the process starts does not stop events for a sink that is well."""
    tries = 0

    def open_spool() -> Spool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise AuditError("Spool", "the disk is full")
        return Spool(tmp_path, LIMIT)

    orphan(tmp_path, segment(lines(3)))
    quiet = QuietLog()
    delivery = Delivery(SteadySink(lambda: sink, quiet), open_spool, quiet)
    delivery.deliver(numbered(1))
    delivery.step(0)
    assert sink.delivered == numbered(1)
    settle(delivery)
    for _ in range(3):
        delivery.step(0)
    assert tries == 3
    assert sink.delivered == numbered(1) + lines(3), "the orphan waits for no other process"
    assert "for want of a spool: the disk is full" in caplog.text
    delivery.close(0)


def test_a_sink_that_opens_late_gets_what_was_spooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it cannot be opened, lines are safe in the spool and not in memory. It is tried now and then."""
    monkeypatch.setattr(sink_module, "OPEN_SECONDS", 0.05)
    sink, quiet, fail = MemorySink(), QuietLog(), True

    def open_sink() -> MemorySink:
        if fail:
            raise AuditError("Kafka", "no thread for librdkafka")
        return sink

    steady = SteadySink(open_sink, quiet)
    delivery = Delivery(steady, lambda: Spool(tmp_path, LIMIT), quiet)
    delivery.deliver(numbered(10))
    delivery.step(0)
    assert delivery.counters()["spool_events"] == 10
    assert "no thread for librdkafka" in caplog.text
    fail, next_try = False, steady._open_at
    delivery.step(0)
    assert steady._open_at == next_try, "steps meanwhile put it off"
    wait_until(lambda: time.monotonic() >= next_try)
    settle(delivery)
    assert sink.delivered == numbered(10)


def test_a_sink_that_raises_has_taken_nothing(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a client library raises, lines stay where they are. Its text may be an event's, and is not logged."""
    delivery = make(sink, tmp_path)

    def fails(*_: object) -> int:
        raise ValueError("top secret")

    with monkeypatch.context() as patched:
        patched.setattr(sink, "send", fails)
        patched.setattr(sink, "poll", fails)
        delivery.deliver(numbered(10))
        for _ in range(3):
            delivery.step(0)
        assert delivery.unsettled == 10
    settle(delivery)
    assert sink.delivered == numbered(10)
    monkeypatch.setattr(sink, "close", fails)
    delivery.deliver(numbered(2, 11))
    assert delivery.close(0) == 2
    assert left_in(tmp_path) == numbered(2, 11)
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_a_segment_that_cannot_be_deleted_is_not_replayed_again_by_this_process(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process sends it once more: a repeat, byte for byte."""
    delivery = make(sink, tmp_path)
    sink.away = True
    delivery.deliver(numbered(5))
    delivery.step(0)
    sink.away = False

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fails)
        settle(delivery)
        delivery.deliver(numbered(2, 6))
        settle(delivery)
    for _ in range(3):
        delivery.step(0)
    assert sink.delivered == numbered(7)
    assert delivery.close(0) == 0
    assert left_in(tmp_path) == numbered(7)


def test_trap_9_a_segment_that_cannot_be_read_holds_up_no_other(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`peek` raises for one segment, and the next step goes on behind it."""
    orphan(tmp_path, segment([]), segment(lines(4)))
    delivery = make(sink, tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fails)
        delivery.step(0)
    delivery.deliver(numbered(2))
    settle(delivery)
    assert sink.delivered == lines(4) + numbered(2)
    assert f"{ORPHAN}/000000000001.segment" in caplog.text


def test_close_spools_what_is_held_and_what_comes_back(sink: MemorySink, tmp_path: Path) -> None:
    """The next process finds all of it, and the number that `close` returns."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.silent = True
    delivery.deliver(numbered(10))
    delivery.step(0)
    sink.away = True
    delivery.deliver(numbered(5, 11))
    assert delivery.close(0) == 15
    assert sink.closed
    assert (delivery.lost, delivery.unsettled) == (0, 15)
    assert sorted(left_in(tmp_path)) == sorted(numbered(15))


def test_what_the_sink_delivers_while_it_closes_is_not_sent_again(sink: MemorySink, tmp_path: Path) -> None:
    """A batch of the spool whose last lines are acknowledged that late is done too."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.away = True
    delivery.deliver(numbered(10))
    delivery.step(0)
    sink.away, sink.silent = False, True
    delivery.step(0)
    assert len(sink.on_the_way) == 10

    def close(_: float) -> None:
        sink.silent = False
        sink.poll(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink, "close", close)
        assert delivery.close(0) == 0
    assert sink.delivered == numbered(10)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("mute", [False, True])
def test_close_counts_as_lost_what_has_no_spool(sink: MemorySink, *, mute: bool) -> None:
    """Also what the sink took and never said a word about."""
    delivery = make(sink, None)
    sink.silent, sink.mute = True, mute
    delivery.deliver(numbered(10))
    assert delivery.unsettled == 10
    assert delivery.close(0) == 0
    assert (delivery.lost, delivery.counters()["lost"], delivery.unsettled) == (10, 10, 0)


@contextlib.contextmanager
def _each_line(watch: Any) -> Iterator[None]:
    """Call something at each line of the emitter's code that runs, as another thread may come in between."""

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:
        if "/custody/emit/" not in frame.f_code.co_filename:
            return None
        watch()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_another_thread_never_reads_that_nothing_is_left_while_something_is(sink: MemorySink, tmp_path: Path) -> None:
    """`unsettled` is two numbers, read one after the other: wherever the other thread is at each, none is missed."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    spool = delivery._spool
    assert spool is not None
    first: list[int] = []
    second: list[int] = []

    def watch() -> None:
        first.append(delivery._unspooled)
        second.append(spool.waiting)

    # Fails once, is spooled, fails once more, and is delivered by the third try, after the last look.
    tries = iter(["failed", "failed"])
    sink.outcome = lambda _: next(tries)  # type: ignore[arg-type]
    with _each_line(watch):
        delivery.deliver(numbered(1))
        delivery.step(0)
        delivery.step(0)
    # Before `deliver` has noted it, the line counts in the queue.
    start = first.index(1)
    assert {*first[start:]} == {0, 1}
    assert len(first) > 200
    smallest = sys.maxsize
    for unspooled, waiting in zip(reversed(first[start:]), reversed(second[start:]), strict=True):
        smallest = min(smallest, waiting)
        assert unspooled + smallest >= 1


@pytest.mark.parametrize("first", [False, True])
def test_a_line_that_goes_to_the_spool_meanwhile_is_not_missed(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    """The thread moves it just before, or just after, another one reads how many are in the spool."""
    delivery = make(sink, tmp_path)
    settle(delivery)
    sink.away = True
    monkeypatch.setattr(delivery_module, "GROUP_SECONDS", 1000.0)
    delivery.deliver(numbered(1))
    monkeypatch.setattr(delivery_module, "GROUP_SECONDS", 0.0)
    moved = False

    def read(spool: Spool) -> int:
        nonlocal moved
        before = spool._waiting
        if not moved:
            moved = True
            delivery.step(0)
        return spool._waiting if first else before

    monkeypatch.setattr(Spool, "waiting", property(read))
    assert delivery.unsettled >= 1
    assert moved
    assert delivery.counters()["spooled"] == 1
