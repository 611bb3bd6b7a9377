"""Indices move to warm nodes. Tested on a real cluster of a hot and a warm node, which then dies."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from custody.errors import SearchError
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.roll.indices import _WARM_WHY, LOST, UNKNOWN, roll_indices
from tasks.roll.record import Action
from tasks.search.client import Search
from tasks.search.documents import TIER
from tasks.search.index import index_logs
from tasks.search.queries import logs_in
from tasks.settings import AuditSettings, SearchSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.roll import LATER, NOW, event_to_roll, roll
from tests.helpers.sample import Growing
from tests.helpers.search import daily_indices
from tests.servers.elasticsearch import ElasticsearchServer, ElasticsearchUnavailableError
from tests.servers.require import unavailable

MOVED_SECONDS = 60
PROMPT_SECONDS = 25
"""Each step on a cluster with a dead warm node takes less. One call that hangs takes 30 s."""
WARM = NOW + timedelta(days=8)
"""When today's index is old enough for warm nodes."""


@pytest.fixture
def tiers() -> Iterator[tuple[ElasticsearchServer, ElasticsearchServer]]:
    """Yield a hot node without the content role, and a warm node, of one cluster."""
    hot = ElasticsearchServer("384m", "hot", ("master", "ingest", "data_hot"))
    warm = ElasticsearchServer("256m", "warm", ("data_warm",), hot)
    with ExitStack() as stack:
        for node in (hot, warm):
            stack.push(node.__exit__)
        try:
            hot.launch()
            warm.launch()
        except ElasticsearchUnavailableError as error:
            unavailable(str(error))
        hot.wait()
        warm.wait()
        yield hot, warm


def lie_on(search: Search, index: str, *nodes: str | None) -> bool:
    """Return whether an index's shards move to exactly these nodes. None stands for an unassigned shard."""
    deadline = time.monotonic() + MOVED_SECONDS
    while time.monotonic() < deadline:
        # The client types what comes in any format as text; JSON comes parsed.
        answer = search.client.cat.shards(index=index, format="json", h="node,state")
        shards = cast("list[dict[str, str | None]]", answer.body)
        if {one["node"] for one in shards} == {*nodes} and {one["state"] for one in shards} <= {
            "STARTED",
            "UNASSIGNED",
        }:
            return True
        time.sleep(0.1)
    return False


@contextmanager
def prompt() -> Iterator[None]:
    """Check that a step waits for no dead node. Each is measured alone: many together take long on a busy machine."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PROMPT_SECONDS


def promptly_audited(given: Settings) -> list[dict[str, Any]]:
    """Return the findings of a full audit."""
    with prompt():
        plan = plan_audit(given, Request(full=True), NOW)
    with prompt():
        pieces = list(verify_pieces(given, plan, plan.pieces))
    return [*plan.findings, *(finding for piece in pieces for finding in piece.findings)]


def of(actions: list[Action], *names: str) -> list[tuple[str, str, str, str]]:
    return [(one.what, one.target, one.outcome, one.why) for one in actions if one.target in names]


@pytest.mark.timeout(240)
def test_warm_nodes(tmp_path: Path, tiers: tuple[ElasticsearchServer, ElasticsearchServer]) -> None:
    """An index that is old enough moves to the warm node once, with all its documents. A young one stays.

    Indices can be created without a node of the content tier. If the warm node is dead, the roll reports what it cannot
    do for each index on it, does not wait, deletes nothing that it cannot see, and rolls the other indices. An audit
    names the indices that it could not compare, and does not call their documents missing.
    """
    hot, warm = tiers
    growing = Growing(tmp_path)
    growing.append(3, event_to_roll)
    given = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        search=SearchSettings(url=hot.url, prefix=hot.unused_prefix(), replicas=0),
    )
    (result,) = index_logs(given)
    assert (result.created, result.problem) == (15, None)
    search = Search(given.search)
    today, tomorrow = max(daily_indices(search)), f"{search.prefix}-{NOW + timedelta(days=1):%Y.%m.%d}"
    assert of(roll(given), today, tomorrow) == [("create", tomorrow, "done", "")]
    assert lie_on(search, f"{today},{tomorrow}", "hot")
    planned = [one for one in roll(given, WARM, dry_run=True) if one.what == "warm"]
    assert of(planned, today) == [("warm", today, "planned", _WARM_WHY)]
    assert lie_on(search, today, "hot")
    young = f"{search.prefix}-{WARM:%Y.%m.%d}"
    search.client.indices.create(index=young)
    actions = roll(given, WARM)
    assert ("warm", today, "done", _WARM_WHY) in of(actions, today)
    assert of(actions, young) == []
    assert lie_on(search, today, "warm")
    assert lie_on(search, young, "hot")
    assert search.find(index=search.prefix)["hits"]["total"]["value"] == 15
    assert of(roll(given, WARM), today, tomorrow, young) == []

    # An index of two shards, of which the dead node holds one: what the other says is not all of it.
    halved = f"{search.prefix}-{NOW - timedelta(days=3):%Y.%m.%d}"
    spread = {"number_of_shards": 2, "routing.allocation.total_shards_per_node": 1}
    search.client.indices.create(index=halved, settings={"index": spread}, wait_for_active_shards=0)
    search.client.indices.put_settings(index=halved, settings={f"index.{TIER}": None})
    assert lie_on(search, halved, "hot", "warm")
    audit(given)
    warm.kill()
    assert lie_on(search, today, None)
    refused = f"{UNKNOWN}: {LOST}"
    for _ in range(2):
        with prompt():
            closed = list(roll_indices(given, WARM))
        assert ("merge", today, "refused", LOST) in of(closed, today)
        with prompt():
            late = list(roll_indices(given, LATER))
        assert of(late, halved, today) == [("delete", name, "refused", refused) for name in (halved, today)]
    with prompt():
        assert not search.client.indices.exists(index=tomorrow)
        assert search.client.indices.exists(index=f"{today},{halved}")
    for name in (halved, search.prefix):
        with prompt(), pytest.raises(SearchError, match=r"answers for only \d of \d shards"), search.errors(name):
            logs_in(search, name)
    found = promptly_audited(given)
    assert {(one["finding"], one["severity"]) for one in found} == {("unreadable", "unverifiable")}
    assert {today, halved} == {str(one["message"]).split()[2] for one in found}
    search.close()
