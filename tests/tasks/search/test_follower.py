"""A follower indexes beside a drain, and the drain waits for it only at its end; tested on a real Elasticsearch."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from elastic_transport import Transport

from custody.archive.reader import read_archive
from custody.format import layout
from custody.store.open import open_store
from tasks.search import follower as follower_module
from tasks.search import index as index_module
from tasks.search.client import Search
from tasks.search.follower import Follower
from tasks.search.index import AT_ONCE, Indexer, index_logs
from tasks.settings import Settings
from tests.helpers.asked import count_calls
from tests.helpers.remote import URL, pass_for_a_bucket
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, documents, now_event, search_settings
from tests.servers.ports import free_ports
from tests.servers.proxy import Fault, FaultyProxy


def test_follower(growing: Growing, given: Settings) -> None:
    """During a drain, old and new statements are indexed soon, and all of them by its end."""
    growing.append(1, now_event)
    follower = Follower(given)
    follower.opened({})
    deadline = time.monotonic() + 30
    opened = Search(given.search)
    while not opened.client.options(ignore_status=[404, 503]).count(index=given.search.prefix).body.get("count"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    opened.close()
    growing.append(2, now_event)
    follower.sealed(LOG, 3)
    (result,) = follower.end()
    assert (result.created, result.behind, result.problem) == (15, 0.0, None)
    assert len(documents(given)) == 15


@pytest.mark.parametrize("behind", [0, 1])
def test_a_log_that_ends_at_its_cursor(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """The archive is asked nothing about it. If the cursor is before the end, that is read, and nothing behind it."""
    growing.append(2, now_event)
    index_logs(given)
    growing.append(behind, now_event)
    size, asked = 2 + behind, count_calls(monkeypatch, f"manifests/{growing.log}/")
    follower = Follower(given)
    follower.opened({LOG: size})
    (result,) = follower.end()
    assert (result.created, result.sequence, result.problem) == (5 * behind, size, None)
    assert +asked == ({"read": 1} if behind else {})


def test_an_end_that_is_not_the_end_any_more(growing: Growing, given: Settings) -> None:
    """What is sealed before the follower looks at its log is indexed, although the cursor was at the end."""
    growing.append(2, now_event)
    index_logs(given)
    growing.append(1, now_event)
    follower = Follower(given)
    follower.sealed(LOG, 3)
    follower.opened({LOG: 2})
    (result,) = follower.end()
    assert (result.created, result.sequence, result.problem) == (5, 3, None)


def test_what_is_new_is_indexed_before_other_logs(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many logs there are to look through, the next one begun is that which has a new statement."""
    growing.append(1, now_event)
    others = [layout.Log("audit.other", number) for number in range(5 * AT_ONCE)]
    looked: list[layout.Log] = []
    free, seen = threading.Event(), threading.Event()

    def look(_: Indexer, log: layout.Log, *__: object) -> bool:
        looked.append(log)
        if log == LOG:
            seen.set()
        return free.wait(30) if len(looked) <= AT_ONCE else seen.wait(30)

    monkeypatch.setattr(Indexer, "index", look)
    monkeypatch.setattr(follower_module, "list_logs", lambda _: others)
    follower = Follower(given)
    follower.opened({})
    deadline = time.monotonic() + 30
    while len(looked) < AT_ONCE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    follower.sealed(LOG, 1)
    free.set()
    results = follower.end()
    assert [result.problem for result in results] == [None] * len(results)
    # What is begun after it may be noted before it.
    assert LOG in looked[AT_ONCE : 2 * AT_ONCE]
    assert sorted(looked) == sorted([*others, LOG])
    assert len(results) == len(looked)


def test_follower_of_a_server_that_is_down(growing: Growing, given: Settings) -> None:
    """A drain does not wait for an Elasticsearch that does not answer, and reports it."""
    growing.append(1, now_event)
    (port,) = free_ports(1)
    search_down = given.search.model_copy(update={"url": f"http://127.0.0.1:{port}"})
    follower = Follower(given.model_copy(update={"search": search_down}))
    follower.sealed(LOG, 1)
    begin = time.monotonic()
    results = follower.end()
    assert time.monotonic() - begin < follower_module.GRACE_SECONDS
    assert all(f"{port} does not answer" in str(one.problem) for one in results)
    assert results


@pytest.mark.parametrize("part", ["", "/_bulk"])
def test_follower_of_a_server_that_hangs(
    growing: Growing, given: Settings, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain does not wait long for an Elasticsearch that takes requests and answers none, and reports it."""
    monkeypatch.setattr(follower_module, "GRACE_SECONDS", 1)
    # Before the first request of all gives up.
    monkeypatch.setattr(follower_module, "_ENDING_SECONDS", 0.5)
    growing.append(1, now_event)
    with FaultyProxy(str(given.search.url)) as proxy:
        proxy.reset(always=Fault("timeout", effect=False), part=part)
        follower = Follower(search_settings(growing, proxy.endpoint_url, given.search.prefix))
        follower.opened({})
        follower.sealed(LOG, 1)
        deadline = time.monotonic() + 30
        while not any(part in call for call in proxy.calls):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (result,) = follower.end()
        assert "has not answered for 1 s" in str(result.problem)
    assert [one.problem for one in index_logs(given)] == [None]


def test_no_message_has_a_star_for_all_logs(growing: Growing, given: Settings) -> None:
    """A problem that is of no one log is of all logs, in these words."""
    growing.append(1, now_event)
    (port,) = free_ports(1)
    follower = Follower(search_settings(growing, f"http://127.0.0.1:{port}", given.search.prefix))
    (result,) = follower.end()
    assert result.log == "all logs"
    assert str(result.problem).startswith("the index templates: Elasticsearch at")


@pytest.mark.parametrize("call", ["prepare", "read_cursors", "read_cursor"])
def test_a_follower_that_fails_is_heard(
    growing: Growing, given: Settings, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error is in the result, and with its traceback in the log. It does not end the drain."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(index_module, call, fail)
    growing.append(1, now_event)
    follower = Follower(given)
    follower.sealed(LOG, 1)
    (result,) = follower.end()
    assert "unexpected error while indexing (ZeroDivisionError)" in str(result.problem)
    assert "Traceback" in caplog.text


def test_logs_in_a_bucket_are_indexed_together(
    growing: Growing, given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many logs with one new statement each do not wait for each other's answers."""
    logs = [growing, *(Growing(tmp_path, partition, growing.begun) for partition in range(1, 2 * AT_ONCE))]
    for one in logs:
        one.append(1, now_event)
    together = pass_for_a_bucket(monkeypatch, growing.folder, "manifests/", "events/")
    monkeypatch.setattr(follower_module, "GRACE_SECONDS", 60)
    follower = Follower(given.model_copy(update={"archive": URL}))
    follower.opened({layout.Log(LOG.topic, partition): 1 for partition in range(len(logs))})
    results = follower.end()
    assert [(one.created, one.sequence, one.problem) for one in results] == [(5, 1, None)] * len(logs)
    assert together.one_by_one == []
    assert len(documents(given)) == 5 * len(logs)


def test_one_log_is_never_indexed_twice_at_once(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sealed while its log is indexed waits, and is indexed after it; other logs do not wait."""
    growing.append(1, now_event)
    other = layout.Log("audit.other", 0)
    free = threading.Event()
    under_way: Counter[layout.Log] = Counter()
    most: Counter[layout.Log] = Counter()
    begun: list[tuple[layout.Log, int | None]] = []

    def look(_: Indexer, log: layout.Log, __: object, ___: object, end: int | None) -> bool:
        under_way[log] += 1
        most[log] = max(most[log], under_way[log])
        begun.append((log, end))
        if (log, end) == (LOG, 1):
            free.wait(30)
        under_way[log] -= 1
        return True

    monkeypatch.setattr(Indexer, "index", look)
    follower = Follower(given)
    follower.opened({LOG: 1})
    deadline = time.monotonic() + 30
    while not begun:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    follower.sealed(LOG, 2)
    follower.sealed(other, 1)
    while (other, 1) not in begun:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Time in which it would be indexed, if it did not wait.
    time.sleep(0.3)
    free.set()
    assert len(follower.end()) == 2
    assert begun == [(LOG, 1), (other, 1), (LOG, 2)]
    assert most == {LOG: 1, other: 1}


def test_cursors_are_read_together(growing: Growing, given: Settings, tmp_path: Path) -> None:
    """Of logs that are indexed, one request reads all cursors. One that is no cursor hides no other, and is named."""
    logs = [growing, *(Growing(tmp_path, partition, growing.begun) for partition in range(1, 4))]
    for one in logs:
        one.append(1, now_event)
    index_logs(given)
    with FaultyProxy(str(given.search.url)) as proxy:
        through = search_settings(growing, proxy.endpoint_url, given.search.prefix)
        results = index_logs(through)
        asked = [call for call in proxy.calls if f"{given.search.prefix}-cursors/_" in call]
        assert [(one.created, one.there, one.sequence, one.problem) for one in results] == [(0, 0, 1, None)] * len(logs)
        assert len(asked) == 1, asked
    opened = Search(given.search)
    opened.client.update(
        index=opened.cursors, id=f"{read_archive(open_store(given.archive)).id}-audit.grows-2", doc={"sequence": "many"}
    )
    opened.close()
    problems = [one.problem for one in index_logs(given)]
    assert [number for number, problem in enumerate(problems) if problem] == [2]
    assert "is not a cursor" in str(problems[2])


def test_many_logs_that_need_more_time(
    growing: Growing, given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain does not wait for them, says nothing untrue about Elasticsearch, and the next run goes on."""
    logs = [growing, *(Growing(tmp_path, partition, growing.begun) for partition in range(1, AT_ONCE))]
    for one in logs:
        one.append(1, now_event, each=200)
    slow = given.model_copy(update={"search": given.search.model_copy(update={"bulk_bytes": 1024})})
    ask, answered = Transport.perform_request, threading.Event()

    def wait(transport: Transport, method: str, target: str, **more: Any) -> Any:
        if "_bulk" not in target:
            return ask(transport, method, target, **more)
        time.sleep(0.3)
        answer = ask(transport, method, target, **more)
        answered.set()
        return answer

    monkeypatch.setattr(follower_module, "GRACE_SECONDS", 2)
    # Longer than the requests under way take on any machine, and shorter than all of them.
    monkeypatch.setattr(follower_module, "_ENDING_SECONDS", 20)
    with monkeypatch.context() as patch:
        patch.setattr(Transport, "perform_request", wait)
        follower = Follower(slow)
        for partition in range(len(logs)):
            follower.sealed(layout.Log(LOG.topic, partition), 1)
        assert answered.wait(60)
        results = follower.end()
    assert [result.problem for result in results] == [None] * len(results)
    assert 0 < sum(result.created for result in results) < 200 * len(logs)
    assert [result.behind for result in results if result.sequence == 0 and not result.behind] == []
    assert [result.sequence for result in index_logs(given)] == [1] * len(logs)
    assert len(documents(given)) == 200 * len(logs)


def test_an_error_in_our_code_blames_nobody_else(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the result of its log, and the drain does not wait."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Indexer, "index", fail)
    growing.append(1, now_event)
    follower = Follower(given)
    follower.sealed(LOG, 1)
    (result,) = follower.end()
    assert "unexpected error while indexing (ZeroDivisionError)" in str(result.problem)
