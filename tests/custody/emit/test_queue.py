"""A queue is bounded, loses nothing that it took, and counts what it did not take."""

import signal
import threading
import time
from collections import deque
from types import FrameType

import pytest

from custody.emit.encode import CheckedLine
from custody.emit.queue import Dropped, Item, Limits, Queue


def line(n: int) -> CheckedLine:
    return CheckedLine(b"%d" % n)


def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    """`take` returns the oldest items, at most as many as it is asked for."""
    queue = Queue(Limits())
    assert all(queue.offer(line(n), 1) for n in range(5))
    assert queue.take(3) == [b"0", b"1", b"2"]
    assert queue.take(3) == [b"3", b"4"]
    assert queue.written == 5


def test_it_is_bounded_in_items_and_in_bytes() -> None:
    """An item for which there is no room is not taken; one that is alone may have any size."""
    queue = Queue(Limits(events=3, bytes=10))
    assert queue.offer(line(0), 11)
    assert not queue.offer(line(1), 1)
    queue.take(1)
    assert queue.offer(line(2), 5)
    assert queue.offer(line(3), 5)
    assert not queue.offer(line(4), 1)
    assert queue.offer(line(5), 0)
    assert not queue.offer(line(6), 0)
    assert (len(queue), queue.bytes, queue.written) == (3, 10, 4)


def test_a_reserved_place_is_kept_for_who_reserved_it() -> None:
    """Others find the queue full, the holder does not, also where its item exceeds the limit of bytes."""
    queue = Queue(Limits(events=2, bytes=10))
    assert queue.reserve()
    assert queue.offer(line(0), 9)
    assert not queue.offer(line(1), 0)
    assert not queue.reserve()
    assert queue.offer(line(2), 9, reserved=True)
    queue.take(2)
    assert queue.offer(line(3), 1)
    assert queue.offer(line(4), 1)


def test_a_released_place_is_free_again() -> None:
    """Whoever needs no place after all gives it back."""
    queue = Queue(Limits(events=1))
    assert queue.reserve()
    assert not queue.offer(line(0), 1)
    queue.release()
    assert queue.offer(line(0), 1)


def test_a_place_that_another_process_reserved_makes_no_room_here() -> None:
    """After a fork, the child's requests give back what they reserved in the parent's queue."""
    queue = Queue(Limits(events=1))
    queue.release()
    assert queue.offer(line(0), 1, reserved=True)
    assert not queue.offer(line(1), 1)


def test_a_closed_queue_takes_nothing() -> None:
    """Neither new items, nor reserved ones, nor reservations."""
    queue = Queue(Limits())
    assert queue.reserve()
    queue.close()
    assert not queue.offer(line(0), 1)
    assert not queue.offer(line(0), 1, reserved=True)
    assert not queue.reserve()
    assert queue.written == len(queue) == 0


def test_dropped_events_are_marked_where_they_were_dropped() -> None:
    """Their numbers are left out once, behind what was in the queue and before what came later."""
    queue = Queue(Limits(events=3))
    queue.drop()
    queue.drop(4)
    assert queue.take(1) == [Dropped(5)]
    assert queue.take(1) == []
    assert all(queue.offer(line(n), 1) for n in range(3))
    queue.drop(2)
    queue.drop()
    assert queue.take(2) == [b"0", b"1"]
    assert queue.offer(line(3), 1)
    # A mark needs no place.
    assert queue.offer(line(4), 1)
    assert not queue.has_room(0)
    assert (len(queue), queue.open_items) == (3, 5)
    assert queue.take(1) == [b"2", Dropped(3)]
    assert queue.take(9) == [b"3", b"4"]
    assert queue.dropped == 8


def test_marks_are_fewer_than_items() -> None:
    """However much is dropped, no memory is taken."""
    queue = Queue(Limits())
    queue.offer(line(0), 1)
    for _ in range(10_000):
        queue.drop()
    assert len(queue._items) == 2


def test_items_count_as_open_until_they_are_passed_on() -> None:
    """Between queue and sink no item is out of sight."""
    queue = Queue(Limits())
    queue.offer(line(0), 1)
    queue.offer(line(1), 1)
    queue.take(1)
    assert (len(queue), queue.open_items) == (1, 2)
    queue.passed_on()
    assert queue.open_items == 1
    queue.take(1)
    assert queue.open_items == 1
    queue.passed_on()
    assert queue.open_items == 0


def test_who_waits_is_woken_by_an_item_and_by_the_end() -> None:
    """`wait` does not sleep through either, whichever comes first, and an old item's wake-up is not kept for later."""
    queue = Queue(Limits())
    woken = threading.Semaphore(0)

    def work() -> None:
        while not queue.closed:
            queue.wait(30)
            queue.take(10)
            woken.release()

    thread = threading.Thread(target=work)
    thread.start()
    for n in range(50):
        queue.offer(line(n), 1)
        assert woken.acquire(timeout=10)
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    begun = time.monotonic()
    Queue(Limits()).wait(0.01)
    assert time.monotonic() - begun >= 0.01


def test_an_interrupt_inside_of_a_write_leaves_the_count_right() -> None:
    """A handler may raise as soon as the item is appended: it counts as one that waits."""

    class Interrupted(deque[tuple[Item | Dropped, int]]):
        def append(self, item: tuple[Item | Dropped, int]) -> None:
            super().append(item)
            raise KeyboardInterrupt

    queue = Queue(Limits())
    queue._items = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        queue.offer(line(1), 3)
    assert (len(queue), queue.bytes, queue.written) == (1, 3, 1)
    assert queue.take(9) == [b"1"]
    assert (len(queue), queue.bytes) == (0, 0)


def test_trap_2_a_handler_that_writes_inside_of_a_write_does_not_wait_for_itself() -> None:
    """A signal's handler, or a destructor that Python calls at any allocation, may write an event too."""
    queue = Queue(Limits(events=10**9))
    inner: list[bool] = []

    def handle(_signal: int, _frame: FrameType | None) -> None:
        inner.append(queue.offer(line(-1), 1))
        queue.drop()

    before = signal.signal(signal.SIGVTALRM, handle)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0002, 0.0002)
    try:
        outer = 0
        while len(inner) < 40:
            queue._waiting = True
            assert queue.offer(line(outer), 1)
            outer += 1
            if outer % 100 == 0:
                queue.wait(0)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    taken = queue.take(10**9)
    dropped = sum(item.events for item in taken if isinstance(item, Dropped))
    assert queue.written == sum(isinstance(item, bytes) for item in taken) == outer + len(inner)
    assert dropped == queue.dropped == len(inner)
    assert queue.bytes == 0
