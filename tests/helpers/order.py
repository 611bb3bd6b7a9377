"""In which order a session runs its tests, and which of them it leaves out when time runs out: the long ones.

Most tests take less than a second, and need no broker, no Elasticsearch and no Prefect. Each process has them before
long ones. With `--seconds`, as in CI, a long test that might not end in time is skipped. On a quiet machine there is
time for all or nearly all; on one three times as slow, for some.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest

PROCESSES = 5
"""Test processes, as `-n` has it in pyproject.toml: long tests wait for others most of their time."""
ALWAYS = ("tests/flows/test_dask.py::test_the_same_archive_as_with_threads", "tests/test_readme.py")
"""Tests that come first, and are never left out."""
DEAR = ("prefect_server", "guarded", "breakable", "own")
"""Fixtures with servers of their own, which each process that needs them starts again. The first is one for all
modules, the others are a module's."""
SERVERS = {"kafka", "elastic", "prefect_database", *DEAR}
"""Fixtures with a broker, Elasticsearch or Prefect. A test that has one is long."""
_CHUNK = 20
"""Quick tests of a file that stay together."""


class Long(NamedTuple):
    """Tests that are long, by the beginning of their names.

    Attributes:
        path: that beginning.
        seconds: what one of them takes at most on a slow machine.
        spread: each process gets some of them, since what they share in their module is cheap. Others stay together
            by file.
    """

    path: str
    seconds: int
    spread: bool = False


LONG = (
    Long("tests/custody/store/", 60),
    Long("tests/tasks/drain/", 120, spread=True),
    Long("tests/attacks/", 60),
    Long("tests/tasks/", 60),
    Long("tests/tasks/detect/test_fortnight.py", 400),
    Long("tests/flows/test_schedule.py", 420, spread=True),
    Long("tests/flows/test_up.py", 300, spread=True),
    Long("tests/deployments/test_iam.py::test_each_permission_is_used", 300),
    Long("tests/flows/test_dask.py", 200),
    Long("tests/fuzz/test_growth.py", 200, spread=True),
    Long("tests/notebooks/", 200),
    Long("tests/interop/", 300),
    Long("tests/tasks/metrics/test_deployments.py", 200),
    Long("tests/flows/test_restore.py", 120, spread=True),
    Long("tests/tasks/search/test_warm.py", 120, spread=True),
    Long("tests/tasks/audit/test_lost_events.py", 90),
    Long("tests/attacks/test_live.py", 90),
    Long("tests/faults/test_races.py", 120, spread=True),
    Long("tests/flows/", 90),
    Long("tests/tasks/search/", 90),
    Long("tests/faults/", 90, spread=True),
    Long("tests/custody/emit/test_asgi_gunicorn.py", 90),
    Long("tests/test_page_commands.py::test_the_commands_of_a_page_run", 90, spread=True),
    Long("tests/test_site.py", 90),
    Long("tests/fuzz/", 90),
    Long("tests/custody/report/test_rows.py", 60),
    Long("tests/custody/cli/test_terminal.py", 60),
    Long("tests/custody/verify/test_machine.py", 60),
    Long("tests/custody/emit/test_kafka.py", 60),
    Long("tests/custody/test_wheel.py", 60),
    Long("tests/test_waiting.py", 60),
    Long("tests/servers/", 60),
    Long("tests/helpers/test_aged.py", 60),
    Long("", 60),
)
"""They run in this order: the store, the drain and many in little time, then what takes longest, for no process should
be left with it, then the rest. Of several that fit, the longest path counts; the empty one is for other tests with a
broker, Elasticsearch or Prefect."""


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return all tests in an order that gives each process, as xdist deals them, quick tests and then long ones.

    Those of `ALWAYS` come before all. Tests with the same dear fixture are dealt to one process, where they fit.
    """
    first: list[pytest.Item] = []
    quick: list[pytest.Item] = []
    dear: dict[tuple[str, str], list[pytest.Item]] = {}
    blocks: dict[tuple[int, str], list[pytest.Item]] = {}
    for item in items:
        name = next((name for name in DEAR if name in _fixtures(item)), None)
        rank, long = _rank(item)
        if item.nodeid.startswith(ALWAYS):
            first.append(item)
        elif name is not None:
            dear.setdefault((name, "" if name == DEAR[0] else file_of(item)), []).append(item)
        elif is_long(item):
            blocks.setdefault((rank, item.nodeid if long.spread else file_of(item)), []).append(item)
        else:
            quick.append(item)
    # The first process begins with Dask's test, and has the other tests with Prefect's server too.
    begins = _deal([item] for item in sorted(first, key=lambda item: not item.nodeid.startswith(ALWAYS[0])))
    # What is dear comes first, since a process that has nothing left to do takes from the end of another's list.
    groups = (
        sorted(dear[key], key=_rank) for key in sorted(dear, key=lambda key: (DEAR.index(key[0]), -len(dear[key])))
    )
    ends = _deal([*groups, *(blocks[key] for key in sorted(blocks, key=lambda key: key[0]))])
    room = [size - len(begin) - len(end) for size, begin, end in zip(_sizes(len(items)), begins, ends, strict=True)]
    rest = itertools.chain.from_iterable(_deal(_chunks(quick), room))
    ordered = []
    for begin, size, end in zip(begins, room, ends, strict=True):
        ordered += [*begin, *itertools.islice(rest, max(0, size)), *end]
    return ordered


def is_long(item: pytest.Item) -> bool:
    """Return whether a test may be left out when time runs out."""
    if item.nodeid.startswith(ALWAYS):
        return False
    return _rank(item)[1].path != "" or not SERVERS.isdisjoint(_fixtures(item))


def is_left_out(item: pytest.Item, limit: float, now: float) -> bool:
    """Return whether a test is long and might not end in time.

    Args:
        item: the test.
        limit: when the session has to end, in seconds after its beginning.
        now: seconds since then.
    """
    return is_long(item) and now + _rank(item)[1].seconds > limit


def _chunks(items: Iterable[pytest.Item]) -> Iterator[list[pytest.Item]]:
    """Yield the tests of each file, of a large one several times: or else one process would have all slow files."""
    for _, tests in itertools.groupby(items, file_of):
        while chunk := list(itertools.islice(tests, _CHUNK)):
            yield chunk


def _deal(blocks: Iterable[list[pytest.Item]], room: Sequence[int] = (0,) * PROCESSES) -> list[list[pytest.Item]]:
    """Return what each process gets, where each block goes to the one that has most room."""
    dealt: list[list[pytest.Item]] = [[] for _ in range(PROCESSES)]
    for block in blocks:
        at = max(range(PROCESSES), key=lambda at: room[at] - len(dealt[at]))
        dealt[at] += block
    return dealt


def _sizes(number: int) -> Iterator[int]:
    """Yield how many tests xdist gives to each process."""
    for done in range(PROCESSES):
        size = number // (PROCESSES - done)
        number -= size
        yield size


def _rank(item: pytest.Item) -> tuple[int, Long]:
    fitting = ((rank, long) for rank, long in enumerate(LONG) if item.nodeid.startswith(long.path))
    return max(fitting, key=lambda fit: len(fit[1].path))


def file_of(item: pytest.Item) -> str:
    """Return the path of a test's file."""
    return item.nodeid.partition("::")[0]


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())
