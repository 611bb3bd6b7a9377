"""The limit is for an answer: a slow storage is read to its end, a silent one is left, and nothing goes on behind."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.errors import ObjectMissing, TransientStoreError
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.health.deadline import Deadline
from tasks.health.read import read_health
from tasks.settings import Settings
from tests.helpers.audit import audit
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing

SLOW = 0.2
"""How long each answer takes, in seconds; many times less than the limit."""


class SlowStore:
    """A store, each answer of which takes a while."""

    def __init__(self, store: Store) -> None:
        self._store, self.answers = store, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in {"read", "exists", "level", "list", "status"}:
            return value

        def answer(*given: Any, **more: Any) -> Any:
            time.sleep(SLOW)
            self.answers += 1
            return value(*given, **more)

        return answer


def asks(store: Store) -> dict[str, Callable[[], object]]:
    """Return a request of each kind, by its name."""
    return {
        "read": lambda: store.read("a", limit=9),
        "exists": lambda: store.exists("a"),
        "level": lambda: store.level(""),
        "list": lambda: list(store.list()),
        "status": lambda: store.status("a"),
    }


def health_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "health"]


def test_a_slow_storage_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the archive is read, though every step takes longer than the limit for an answer."""
    growing = Growing(tmp_path)
    growing.append(20)
    settings = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    audit(settings)
    fast = read_health(settings, datetime.now(UTC))
    slow = SlowStore(open_store(settings.archive))
    monkeypatch.setattr("tasks.health.read.open_store", lambda *_: slow)
    health = read_health(settings, datetime.now(UTC), Deadline(7 * SLOW))
    # More answers than fit into the limit of the three steps and the log.
    assert slow.answers > 4 * 7
    assert [(log.log, log.size, log.level) for log in health.logs] == [
        (log.log, log.size, log.level) for log in fast.logs
    ]
    assert health.audit is not None
    assert not [problem for problem in health.problems if "did not answer" in problem.message]


@pytest.mark.parametrize("kind", list(asks(MemoryStore({}))))
def test_each_answer_begins_the_wait_anew(kind: str) -> None:
    """A step of many requests is waited for as long as each is answered."""
    deadline = Deadline(8 * SLOW)
    ask = asks(deadline.watch(SlowStore(MemoryStore({"a": b"1"}))))[kind]
    assert deadline.call(lambda: [ask() for _ in range(12)])


def test_a_refusal_is_an_answer() -> None:
    """A storage that says each time that there is no object answers."""
    deadline = Deadline(8 * SLOW)
    missing = deadline.watch(SlowStore(MemoryStore({})))

    def refused() -> int:
        for _ in range(12):
            with pytest.raises(ObjectMissing):
                missing.read("a", limit=9)
        return 12

    assert deadline.call(refused) == 12


def test_after_a_late_answer_none_is_asked_for() -> None:
    """A request that hangs ends the wait. The store is not asked again, by whatever still runs."""
    release, asked = threading.Event(), list[str]()

    class Silent(MemoryStore):
        def exists(self, key: str) -> bool:
            asked.append(key)
            return release.wait(60)

    deadline = Deadline(0.2)
    store = deadline.watch(Silent({}))
    errors = list[TransientStoreError]()

    def step() -> None:
        store.exists("first")
        try:
            store.exists("second")
        except TransientStoreError as error:
            errors.append(error)

    with pytest.raises(TransientStoreError, match=r"did not answer within 0\.2 s"):
        deadline.call(step)
    release.set()
    for thread in health_threads():
        thread.join(60)
    assert (asked, len(errors)) == (["first"], 1)
    with pytest.raises(TransientStoreError, match=r"did not answer within 0\.2 s"):
        deadline.call(lambda: None)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


def test_an_error_stops_the_other_threads(gate: threading.Event) -> None:
    """Once a step failed, no thread begins another item, and a closed store is asked nothing more."""
    begun, answers = list[int](), list[str]()
    store = Deadline().watch(MemoryStore({"a": b"1"}))

    def step(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("broken")
        gate.wait(60)
        try:
            store.exists("a")
        except TransientStoreError as error:
            answers.append(str(error))

    with pytest.raises(ValueError, match="broken"):
        list(Deadline().each(step, range(100)))
    store.close()
    gate.set()
    for thread in health_threads():
        thread.join(60)
    # Eight threads begin; the one that failed may have taken another item before it was stopped.
    assert len(begun) <= 9
    assert answers == ["the archive's storage is closed"] * (len(begun) - 1)
