"""Ids rise and are unique, whatever the clock does; a source is one process."""

import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count
from types import SimpleNamespace

import pytest

from custody.emit import identity
from custody.emit.identity import SOURCE_BYTES, Source, new_request_id, uuid7
from custody.errors import ConfigurationError

FORM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
FORKED = """
import os, sys, threading
from custody.emit import identity
from custody.emit.identity import Source, uuid7

source = Source("orders", "host-1")
before = [uuid7() for _ in range(100)]
parent = str(source)
held, let_go = threading.Event(), threading.Event()

def hold():
    with identity._ids._lock:
        held.set()
        let_go.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    # The lock was held at the fork, by a thread that is not here.
    made = [uuid7() for _ in range(500)]
    os.write(writer, "\\n".join([str(source), str(Source("orders", "host-1")), *made]).encode())
    os._exit(0)
os.close(writer)
let_go.set()
thread.join()
after = [uuid7() for _ in range(500)]
with open(reader) as answers:
    in_child, fresh_in_child, *made = answers.read().split("\\n")
os.waitpid(child, 0)
assert len({in_child, fresh_in_child, parent}) == 3 and parent == str(source)
assert in_child.startswith(f"orders/host-1/{child}-"), in_child
assert len({*before, *made, *after}) == 1100
# The random part too: a child does not use what its parent has drawn.
assert len({each[19:] for each in (*before, *made, *after)}) == 1100
assert sorted(made) == made and made[0] > before[-1]
print("done")
"""


FORKED_REQUESTS = """
import os
from custody.emit.identity import new_request_id

before = [new_request_id() for _ in range(10)]
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, "\\n".join(new_request_id() for _ in range(500)).encode())
    os._exit(0)
os.close(writer)
after = [new_request_id() for _ in range(500)]
with open(reader) as answers:
    made = answers.read().split("\\n")
os.wait()
assert len({*before, *after, *made}) == 1010
print("done")
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock for ids alone, that the test moves; ids begin anew."""
    moved = SimpleNamespace(now=1_764_000_000_000)
    monkeypatch.setattr(identity, "time", SimpleNamespace(time_ns=lambda: moved.now * 1_000_000))
    monkeypatch.setattr(identity, "_ids", identity._Ids())
    return moved


def test_an_id_is_a_uuid_of_version_7() -> None:
    """It has version, variant and the time of RFC 9562."""
    made = uuid7()
    assert FORM.fullmatch(made)
    assert uuid.UUID(made).variant == uuid.RFC_4122
    assert uuid.UUID(made).version == 7


def test_an_id_has_the_time_in_it(clock: SimpleNamespace) -> None:
    """Its first 48 bits are milliseconds since 1970."""
    assert int(uuid7().replace("-", "")[:12], 16) == clock.now


@pytest.mark.parametrize("moves", [(0,), (1, 0, 0), (-1,), (-3_600_000, 1, 0, 0, 0), (5, -7)])
def test_ids_rise_whatever_the_clock_does(clock: SimpleNamespace, moves: tuple[int, ...]) -> None:
    """Also when it stands still for more ids than its counter has, and when it steps back."""
    made = []
    for at in range(10_000):
        made.append(uuid7())
        clock.now += moves[at % len(moves)]
    assert all(FORM.fullmatch(each) for each in made[::100])
    assert sorted(set(made)) == made


def test_ids_of_requests_are_unique_and_random() -> None:
    """More than are drawn at once, in threads that ask at the same time. Each bit is set about as often as not."""
    made: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(len(made))

    def ask(mine: list[str]) -> None:
        start.wait()
        mine += [new_request_id() for _ in range(3_000)]

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [each for mine in made for each in mine]
    assert len(set(ids)) == 12_000
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    numbers = [int(each, 16) for each in ids]
    # Of 12,000 throws of a coin, 6,000 are heads, with a deviation of 55: ten of those never happen.
    assert all(5_450 < sum(number >> bit & 1 for number in numbers) < 6_550 for bit in range(128))


def test_ids_of_requests_after_a_fork() -> None:
    """A child does not use what its parent has drawn."""
    run = subprocess.run([sys.executable, "-c", FORKED_REQUESTS], capture_output=True, text=True, check=False)
    assert run.stdout == "done\n", run.stderr


def test_ids_in_threads_are_unique_and_rise_in_each() -> None:
    """Threads that ask at once get no id twice."""
    made: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(len(made))

    def ask(mine: list[str]) -> None:
        start.wait()
        mine += [uuid7() for _ in range(2_000)]

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sorted(mine) == mine for mine in made)
    assert len(set(chain.from_iterable(made))) == 16_000


def test_an_id_that_is_made_inside_of_another_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler, or a destructor that Python calls, may make an event too."""
    ids = identity._Ids()
    # Else a failure would hang.
    assert ids._lock.acquire(blocking=False)
    assert ids._lock.acquire(blocking=False), "a handler that makes an id waits for itself"
    inner: list[tuple[int, int]] = []
    urandom = os.urandom

    def interrupted(size: int) -> bytes:
        monkeypatch.setattr(os, "urandom", urandom)
        inner.append(ids.next())
        return urandom(size)

    monkeypatch.setattr(os, "urandom", interrupted)
    assert ids.next() > inner[0]
    ids._begin_child()
    assert ids._lock.acquire(blocking=False)
    assert ids._lock.acquire(blocking=False)


def test_a_forked_process_has_ids_and_a_source_of_its_own() -> None:
    """Also when another thread made an id while the process forked: the child waits for nobody."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("done", 0), done.stderr


def test_a_source_names_the_process() -> None:
    """It is `service/instance/pid-start`, and never too long for an event."""
    source = Source("orders-api", "host-1")
    text = str(source)
    assert re.fullmatch(r"orders-api/host-1/[0-9]+-[0-9]{16}", text)
    assert str(source) == text
    assert repr(source) == f"Source({text!r})"
    assert re.fullmatch(r"orders-api/[A-Za-z0-9][A-Za-z0-9._-]*/[0-9]+-[0-9]+", str(Source("orders-api")))
    assert len(str(Source("s" * 100, "i" * 100))) <= SOURCE_BYTES


def test_two_sources_of_a_process_differ() -> None:
    """Each numbers its own events: with one name, the numbers of two writers would be repeats."""
    sources = [Source("orders-api", "host-1") for _ in range(100)]
    assert len({str(source) for source in sources}) == 100
    assert len({str(source) for source in sources}) == 100


def test_a_source_is_the_same_in_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if several ask for it first at the same time."""
    both = threading.Barrier(2)

    class Slow:
        """Starts, each given when two threads wait for one."""

        def __init__(self) -> None:
            self.count = count(1)

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            both.wait(10)
            return next(self.count)

    monkeypatch.setattr(identity, "_this_process", replace(identity._this_process, starts=Slow()))
    source = Source("a", "b")
    seen: list[list[str]] = [[], []]
    threads = [
        threading.Thread(target=lambda mine: mine.extend((str(source), str(source))), args=(each,)) for each in seen
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*seen[0], *seen[1]}) == 1


def test_a_start_that_comes_later_is_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that gets the pid of an earlier one is told from it by its start; a source that exists follows."""
    source = Source("a", "b")
    first = str(source)
    monkeypatch.setattr(identity, "_this_process", replace(identity._this_process, starts=count(1_764_000_000_000_000)))
    assert first != str(source)
    assert str(source).endswith("-1764000000000000")


@pytest.mark.parametrize("name", ["", "a/b", 'a"b', "a b", "ä", "a" * 101, "-a", "a\n"])
def test_a_name_that_would_break_a_source_is_refused(name: str) -> None:
    """The error says what a name may be, and does not repeat it."""
    for names in ((name,), ("a", name)):
        with pytest.raises(ConfigurationError, match="letters, digits"):
            Source(*names)
