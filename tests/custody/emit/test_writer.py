"""A writer's queue is full, forgotten, closed, awaited: what `write` does then, and what the counters say."""

import asyncio
import contextlib
import json
import logging
import multiprocessing.process
import multiprocessing.util
import os
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from custody.emit import builders
from custody.emit import delivery as delivery_module
from custody.emit import worker as worker_module
from custody.emit import writer as writer_module
from custody.emit.async_writer import AsyncWriter
from custody.emit.builders import AuditEvent
from custody.emit.encode import CheckedLine
from custody.emit.errors import AuditError
from custody.emit.queue import Limits
from custody.emit.worker import Left
from custody.emit.writer import COUNTERS, OnFull, Options
from custody.errors import ConfigurationError
from custody.format.limits import EVENT_BYTES
from tests.helpers.emitting import MemoryWriter, event, left_in, sequence, wait_until

SECRET = "sk_live_51HqLyjWDarjtT1zdp7dc"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread waits for little, and not for long."""
    monkeypatch.setattr(worker_module, "_BUSY_SECONDS", 0.001)
    monkeypatch.setattr(worker_module, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(delivery_module, "GROUP_SECONDS", 0.005)
    monkeypatch.setattr(writer_module, "_WAIT_STEP", 0.001)
    yield
    # What a failed test left must not run in the next one.
    for writer in list(writer_module._writers):
        writer.close(0)


def options(**more: object) -> Options:
    return Options(service="shop", instance="web-1", **more)  # type: ignore[arg-type]


def full(on_full: OnFull, wait_seconds: float = 0.02) -> MemoryWriter:
    """Return a writer of which sink and queue take no more."""
    writer = MemoryWriter(options(queue=Limits(events=10), on_full=on_full, wait_seconds=wait_seconds))
    writer.sink.away = True
    writer.write(event(0))
    worker = writer._worker
    assert worker is not None
    # The source's own event is held, so nothing is taken out of the queue.
    wait_until(lambda: worker._delivery and not worker._delivery.takes)
    while writer.offer(CheckedLine(b'{"n":1}'), 7):
        pass
    return writer


def accepted(writer: MemoryWriter) -> int:
    return writer.counters()["written"]


@pytest.mark.parametrize("on_full", ["wait", "fail"])
def test_a_full_queue_raises_and_counts_each(on_full: OnFull) -> None:
    """The caller knows: the event is neither written nor dropped, and leaves no hole. A counter shows it."""
    # Who fails at once does not wait even for long.
    writer = full(on_full, wait_seconds=0.02 if on_full == "wait" else 5)
    before = writer.counters()
    begun = time.monotonic()
    with pytest.raises(AuditError, match="the queue is full") as caught:
        writer.write(event(1))
    assert caught.value.kind == "Kafka"
    elapsed = time.monotonic() - begun
    assert elapsed >= 0.02 if on_full == "wait" else elapsed < 5
    with pytest.raises(AuditError, match="the queue is full"):
        writer.submit(lambda: [event(2)], 100)
    assert writer.counters() == {**before, "turned_away": before["turned_away"] + 2}
    assert not writer.reserve()
    assert not writer.has_room(1)
    writer.sink.away = False
    written = accepted(writer)
    assert writer.close(5) == Left(0, 0)
    assert sequence(writer.sink.delivered) == [*range(1, written + 3)]


@pytest.mark.parametrize("way", ["write", "submit"])
def test_a_full_queue_never_holds_up_an_event_loop(way: str) -> None:
    """With `wait`, a coroutine that calls the writer gets the error at once; other threads wait, and find room."""
    writer = full("wait", wait_seconds=30)
    times: list[float] = []

    def give() -> None:
        if way == "write":
            writer.write(event(1))
        else:
            writer.submit(lambda: [event(1)], 100)

    async def request() -> None:
        begun = time.monotonic()
        with pytest.raises(AuditError, match="the queue is full"):
            give()
        times.append(time.monotonic() - begun)
        thread = asyncio.to_thread(give)
        waiting = asyncio.ensure_future(thread)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        writer.sink.away = False
        await waiting

    asyncio.run(request())
    # Far less than `wait_seconds`, on a slow machine too.
    assert times[0] < 15
    assert writer.close(5) == Left(0, 0)


def test_a_full_queue_that_drops_counts_each_and_leaves_a_hole_for_each() -> None:
    """`source_seq` shows how many are missing, and the source's last event says it too."""
    writer = full("drop")
    written = accepted(writer)
    for n in range(7):
        writer.write(event(n))
    writer.submit(lambda: [event(9)], 100)
    assert (accepted(writer), writer.counters()["dropped"]) == (written, 8)
    writer.sink.away = False
    assert writer.close(5) == Left(0, 0)
    numbers = sequence(writer.sink.delivered)
    assert len({*range(1, numbers[-1] + 1)} - {*numbers}) == 8
    assert json.loads(writer.sink.delivered[-1])["dropped"] == 8


def test_a_full_queue_that_has_room_again_in_time_takes_the_event() -> None:
    """`wait` waits no longer than it must."""
    writer = full("wait", wait_seconds=20)
    begun = time.monotonic()
    threading.Timer(0.02, lambda: setattr(writer.sink, "away", False)).start()
    writer.write(event(1))
    assert 0.01 < time.monotonic() - begun < 10
    assert writer.close(5) == Left(0, 0)


def test_a_place_is_reserved_before_and_taken_or_given_back_later() -> None:
    """A request that has begun finds room for its event at its end."""
    writer = MemoryWriter(options(queue=Limits(events=2), on_full="fail"))
    writer.sink.away = True
    assert writer.reserve()
    assert writer.reserve()
    with pytest.raises(AuditError, match="the queue is full"):
        writer.write(event(1))
    writer.submit(lambda: [event(2)], 10, reserved=True)
    writer.release()
    writer.sink.away = False
    assert writer.close(5) == Left(0, 0)
    assert sequence(writer.sink.delivered) == [1, 2, 3]


def test_a_closed_writer_refuses_and_says_so() -> None:
    """Nothing is taken that nobody would send. A second `close` returns what the first one did."""
    writer = MemoryWriter(options())
    writer.write(event(1))
    assert writer.close() == Left(0, 0)
    assert writer.close() == Left(0, 0)
    calls: list[Callable[[], None]] = [
        lambda: writer.write(event(2)),
        lambda: writer.submit(list, 0),
        lambda: writer.submit(list, 0, reserved=True),
    ]
    for refused in calls:
        with pytest.raises(AuditError, match="the writer is closed"):
            refused()
    assert not writer.reserve()
    unused = MemoryWriter(options(on_full="drop"))
    unused.close()
    with pytest.raises(AuditError, match="the writer is closed"):
        unused.write(event(1))
    assert unused.counters()["dropped"] == 0


def test_who_closes_waits_for_a_close_that_another_thread_has_begun() -> None:
    """Also the interpreter's exit: the first one may be a daemon thread's, which ends with the process."""
    writer = MemoryWriter(options())
    writer.sink.away = True
    writer.write(event(1))
    results: list[Left] = []
    first = threading.Thread(target=lambda: results.append(writer.close(20)))
    first.start()
    wait_until(lambda: writer._closed)
    second = threading.Thread(target=writer_module._close_at_exit)
    second.start()
    assert writer in writer_module._writers
    second.join(0.1)
    try:
        assert second.is_alive()
        writer.sink.away = False
        first.join(20)
        second.join(20)
    finally:
        writer_module._exiting = False
    assert results == [writer.close()] == [Left(0, 0)]
    assert writer not in writer_module._writers
    assert sequence(writer.sink.delivered) == [1, 2, 3]


def test_a_second_close_says_what_the_first_one_left(tmp_path: Path) -> None:
    """Whoever asks gets the truth."""
    writer = MemoryWriter(options(spool=tmp_path / "spool"))
    writer.sink.away = True
    writer.write(event(1))
    assert writer.close(0.01) == writer.close() == Left(3, 0)


def test_a_writer_that_wrote_nothing_starts_nothing() -> None:
    """Neither reading its counters, nor flushing, nor closing it opens a connection or emits `emitter_started`."""
    with MemoryWriter(options()) as writer:
        counters = writer.counters()
        assert set(COUNTERS) == counters.keys()
        assert not any(counters.values())
        assert writer.flush(5) == 0
    assert writer.sink.sizes == []
    assert writer._worker is None


def test_a_writer_that_was_closed_unused_starts_nothing_later() -> None:
    """Whatever comes after the first close: a second one opens nothing, and emits nothing."""
    writer = MemoryWriter(options())
    writer.close()
    with pytest.raises(AuditError, match="the writer is closed"):
        writer.write(event(1))
    assert not writer.reserve()
    writer.drop()
    assert writer.source
    assert writer.close() == Left(0, 0)
    assert (writer.sink.sizes, writer.sink.closed) == ([], False)


def test_a_thread_that_could_not_start_is_started_by_the_next_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has too many threads for a moment does not lose its audit events for ever."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = MemoryWriter(options())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        writer.write(event(1))
    assert writer.flush(0) == 1
    writer.write(event(2))
    assert writer.flush(10) == 0
    writer.close()
    assert sequence(writer.sink.delivered) == [1, 2, 3, 4]


def test_multiprocessing_is_asked_once_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again at each event while no thread can start; a child that is forked then asks for itself."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asked: list[object] = []
    monkeypatch.setattr(writer_module, "_with_multiprocessing", [])
    monkeypatch.setattr(multiprocessing.process, "parent_process", object)
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda *_, **__: asked.append(None))
    writer = MemoryWriter(options())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for n in range(3):
            writer.write(event(n))
    assert len(asked) == 1
    child = os.fork()
    if child == 0:
        os._exit(len(writer_module._with_multiprocessing))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.close()


def test_flush_waits_for_delivery_and_says_how_many_are_left(tmp_path: Path) -> None:
    """Also for what is in the spool; it gives up in time."""
    writer = MemoryWriter(options(spool=tmp_path / "spool"))
    writer.write(event(1))
    assert writer.flush(10) == 0
    assert len(writer.sink.delivered) == 2
    writer.sink.away = True
    for n in range(5):
        writer.write(event(n))
    assert writer.flush(0.01) >= 5
    wait_until(lambda: writer.counters()["spool_events"] == 5)
    wait_until(lambda: writer.flush(0) == 5)
    writer.sink.away = False
    assert writer.flush(10) == 0
    writer.close()


def test_close_without_a_sink_leaves_all_in_the_spool(tmp_path: Path) -> None:
    """`close` returns how many, and the next process finds them."""
    writer = MemoryWriter(options(spool=tmp_path / "spool"))
    writer.sink.away = True
    for n in range(5):
        writer.write(event(n))
    assert writer.close(0.01) == Left(7, 0)
    assert sequence(left_in(tmp_path / "spool")) == [1, 2, 3, 4, 5, 6, 7]


def test_a_writer_sends_what_was_left_for_its_own_destination_alone(tmp_path: Path) -> None:
    """Services that share a folder do not send each other's events to another topic."""
    folder = options(spool=tmp_path / "spool", close_seconds=0.01)
    shop = MemoryWriter(folder, destination="topic-a")
    shop.sink.away = True
    shop.write(event(1))
    assert shop.close() == Left(3, 0)
    billing = MemoryWriter(folder, destination="topic-b")
    billing.write(event(2))
    assert billing.close(5) == Left(0, 0)
    assert {json.loads(line)["source"] for line in billing.sink.delivered} == {billing.source}
    heir = MemoryWriter(folder, destination="topic-a")
    heir.write(event(3))
    assert heir.close(5) == Left(0, 0)
    assert [json.loads(line).get("n") for line in heir.sink.delivered] == [None, 1, None, None, 3, None]


def test_each_kind_and_destination_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Two writers of one kind and one destination share theirs, and nobody else does."""

    class Other(MemoryWriter):
        kind = "Elasticsearch"  # type: ignore[assignment]

    folder = options(spool=tmp_path / "spool")
    spools = [
        MemoryWriter(folder, destination="a").spool,
        MemoryWriter(folder, destination="b/../a").spool,
        Other(folder, destination="a").spool,
    ]
    assert len({*spools}) == 3
    assert MemoryWriter(folder, destination="a").spool == spools[0]
    assert {spool.parent for spool in spools if spool} == {tmp_path / "spool"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_full": "block"},
        {"wait_seconds": -1},
        {"wait_seconds": float("nan")},
        {"close_seconds": float("nan")},
        {"close_seconds": float("inf")},
        {"spool_bytes": -1},
        {"spool_bytes": 0},
    ],
)
def test_an_option_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    """The application learns it when it starts, not when the broker is away."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        options(**wrong)


@pytest.mark.parametrize("wrong", [{"events": -1}, {"bytes": -1}])
def test_a_limit_below_zero_is_refused(wrong: dict[str, int]) -> None:
    """A queue without any room is one that always refuses, and is allowed."""
    with pytest.raises(ConfigurationError, match="0 or more"):
        Limits(**wrong)


def test_a_spools_path_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon changes to another folder between the writer and its first event."""
    monkeypatch.chdir(tmp_path)
    writer = MemoryWriter(options(spool=Path("spool")))
    writer.sink.away = True
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    writer.write(event(1))
    assert writer.close(0.01) == Left(3, 0)
    assert sequence(left_in(tmp_path / "spool")) == [1, 2, 3]


def test_the_example_of_the_module_runs() -> None:
    """Whoever copies it gets an event."""
    code = textwrap.dedent("\n".join(writer_module.__doc__.splitlines()[2:4]))
    made: list[MemoryWriter] = []

    def writer(_topic: str, _client: dict[str, str], options: Options) -> MemoryWriter:
        made.append(MemoryWriter(options))
        return made[0]

    exec(code, {"KafkaWriter": writer, "Options": Options, "own": builders.own})  # noqa: S102 - our own text
    assert len(made[0].sink.delivered) == 3


def test_a_line_that_is_too_large_is_refused_by_write() -> None:
    """In the spool it would hold up all that is behind it."""
    writer = MemoryWriter(options())
    with pytest.raises(AuditError) as caught:
        writer.write(CheckedLine(b"x" * EVENT_BYTES))
    assert caught.value.kind == "Serialization"
    assert (writer.counters()["written"], writer.counters()["refused"]) == (0, 1)


@pytest.mark.parametrize("invalid", [{"n": float("nan")}, {"timestamp": 5}])
def test_what_write_refuses_is_counted(invalid: dict[str, Any]) -> None:
    """Also by a writer that has written nothing, which starts no thread for it; and anew after a fork."""
    writer = MemoryWriter(options())
    wrong = AuditEvent("test.event", {"event_type": "test.event", **invalid})
    with pytest.raises(AuditError):
        writer.write(wrong)
    with pytest.raises(AuditError):
        asyncio.run(AsyncWriter(writer).write(wrong))
    assert writer.counters()["refused"] == 2
    assert writer._worker is None
    writer.after_fork()
    assert writer.counters()["refused"] == 0


def test_trap_15_no_error_and_no_log_line_has_an_events_values(caplog: pytest.LogCaptureFixture) -> None:
    """Neither what `write` raises, nor what the thread logs of a refused event, nor their tracebacks."""
    caplog.set_level(logging.DEBUG)
    writer = full("fail")
    wrong = AuditEvent("test.event", {"event_type": "test.event", "timestamp": SECRET})
    for refused in (wrong, AuditEvent("x", {SECRET: float("nan")})):
        with pytest.raises(AuditError) as caught:
            writer.write(refused)
        assert SECRET not in f"{caught.value!r} {caught.value} {caught.getrepr(chain=True)}".replace(repr(refused), "")
    with pytest.raises(AuditError, match="the queue is full") as caught:
        writer.write(builders.own("test.event", note=SECRET))
    assert SECRET not in f"{caught.value!r} {caught.value}"
    writer.sink.away = False
    assert writer.flush(10) == 0

    def fails() -> list[AuditEvent]:
        raise ValueError(SECRET)

    writer.submit(lambda: [wrong], 10)
    writer.submit(fails, 10)
    writer.close(5)
    assert writer.counters()["refused"] == 4
    assert SECRET not in caplog.text
    assert SECRET not in repr(writer)


def test_trap_16_ids_and_numbers_rise_also_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that was written later has the greater id and the greater number, whatever the time is."""
    now = time.time_ns()
    clock = iter([now + step * 1_000_000_000 for step in (10, 9, 0, -3600, -3600, 11, 5)])
    monkeypatch.setattr(time, "time_ns", lambda: next(clock, now))
    writer = MemoryWriter(options())
    for n in range(20):
        writer.write(event(n))
    writer.close(5)
    lines = [json.loads(line) for line in writer.sink.delivered]
    written = [line for line in lines if line["event_type"] == "test.event"]
    assert [line["n"] for line in written] == [*range(20)]
    assert [line["event_id"] for line in written] == sorted({line["event_id"] for line in written})
    assert [line["source_seq"] for line in lines] == [*range(1, 23)]


def test_trap_5_writers_that_end_together_take_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit with the broker down is bounded, however many writers there are."""
    writers = [MemoryWriter(options(close_seconds=1)) for _ in range(5)]
    monkeypatch.setattr(writer_module, "_writers", {*writers})
    monkeypatch.setattr(writer_module, "_exiting", False)
    for writer in writers:
        writer.sink.away = True
        writer.write(event(1))
    begun = time.monotonic()
    writer_module._close_at_exit()
    assert 1 <= time.monotonic() - begun < 4
    with pytest.raises(AuditError, match="the writer is closed"):
        MemoryWriter(options()).write(event(1))


def test_an_exit_says_what_is_left_also_where_closing_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second Ctrl-C ends the wait for that writer, and the others have their turn."""
    first, second = MemoryWriter(options(close_seconds=0)), MemoryWriter(options(close_seconds=0))
    monkeypatch.setattr(writer_module, "_exiting", False)

    def interrupted(_seconds: float) -> Left:
        raise KeyboardInterrupt

    for writer in (first, second):
        writer.sink.away = True
        writer.write(event(1))
    monkeypatch.setattr(first._worker, "close", interrupted)
    monkeypatch.setattr(writer_module, "_writers", {first})
    writer_module._close_at_exit()
    assert "KeyboardInterrupt came before all were sent" in capsys.readouterr().err
    monkeypatch.setattr(writer_module, "_writers", {second})
    writer_module._close_at_exit()
    assert "3 are lost: Kafka did not take them in time" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr", None)
    writer_module._say("nobody reads this")


@pytest.mark.parametrize("on_full", get_args(OnFull))
def test_the_event_loop_goes_on_while_an_async_write_waits(on_full: OnFull) -> None:
    """Where the writer would wait, other tasks run: also at the end of the wait."""
    writer = full(on_full, wait_seconds=0.06)
    expected = writer.counters()["dropped"] + (on_full == "drop")

    async def run() -> None:
        refused = contextlib.nullcontext() if on_full == "drop" else pytest.raises(AuditError, match="queue is full")
        with refused:
            await AsyncWriter(writer).write(event(1))

    longest = 0.0
    sleep = time.sleep

    def watched(seconds: Any) -> None:
        nonlocal longest
        if threading.current_thread() is threading.main_thread():
            longest = max(longest, seconds)
        sleep(seconds)

    time.sleep = watched
    try:
        asyncio.run(run())
    finally:
        time.sleep = sleep
    assert longest == 0.0, "the event loop was blocked"
    assert writer.counters()["dropped"] == expected
    writer.sink.away = False
    writer.close(5)


def test_an_async_writer_writes_flushes_and_closes() -> None:
    """As the writer below it, which it closes."""
    writer = MemoryWriter(options(queue=Limits(events=5), wait_seconds=10))

    async def run() -> Left:
        async with AsyncWriter(writer) as audit:
            await asyncio.gather(*(audit.write(event(n)) for n in range(50)))
            assert await audit.flush(10) == 0
            return await audit.close()

    assert asyncio.run(run()) == Left(0, 0)
    assert sequence(writer.sink.delivered) == [*range(1, 53)]


def test_many_threads_write_and_no_event_is_lost_or_numbered_twice() -> None:
    """Each thread's events keep their order."""
    writer = MemoryWriter(options(queue=Limits(events=50), wait_seconds=20))

    def work(first: int) -> None:
        for n in range(first, first + 100):
            writer.write(event(n))

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(10) == Left(0, 0)
    lines = [json.loads(line) for line in writer.sink.delivered]
    assert [line["source_seq"] for line in lines] == [*range(1, 403)]
    numbers = [line["n"] for line in lines[1:-1]]
    for index in range(4):
        assert [n for n in numbers if n // 1000 == index] == [*range(1000 * index, 1000 * index + 100)]
