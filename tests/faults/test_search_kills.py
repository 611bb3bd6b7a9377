"""Indexing and the roll, killed with -9 at any call to the outside, leave nothing that the next run does not put right.

On a real Elasticsearch: nothing lost, nothing doubled, and nothing deleted too early.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from tasks.search.client import Search
from tasks.search.documents import index_day
from tests.faults.child import Plan, finish
from tests.faults.processes import start
from tests.faults.search_child import What, run
from tests.faults.sweep import swept
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, document_id, documents, now_event, search_settings
from tests.servers.elasticsearch import ElasticsearchServer

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=100)
LIMIT_SECONDS = 90


@dataclass
class World:
    """An archive, indices of its own, and what runs on both in processes of their own."""

    growing: Growing
    url: str
    prefix: str

    def run(self, what: What, plan: Plan, now: datetime = NOW) -> tuple[int | None, dict[str, Any]]:
        """Run one thing, and return its exit code and report."""
        report = self.growing.root / "report.json"
        report.unlink(missing_ok=True)
        environment = {
            "CUSTODY_ARCHIVE": str(self.growing.folder),
            "CUSTODY_KEYS": f"file:{self.growing.keyring}",
            "CUSTODY_SEARCH__URL": self.url,
            "CUSTODY_SEARCH__PREFIX": self.prefix,
            "CUSTODY_SEARCH__REPLICAS": "0",
            "CUSTODY_TIERS__LIFE_DAYS": "9",
        }
        process = start(self.growing.root, run, environment, what, now.isoformat(), plan, report)
        return finish(process, report, LIMIT_SECONDS, f"{what} at {plan}")

    def drop(self) -> None:
        """Remove every index."""
        search = Search(search_settings(self.growing, self.url, self.prefix).search)
        search.client.options(ignore_status=404).indices.delete(index=f"{self.prefix}*")
        search.close()

    def days(self) -> set[str]:
        """Return the daily indices."""
        search = Search(search_settings(self.growing, self.url, self.prefix).search)
        names = search.client.indices.get(index=f"{self.prefix}-*")
        search.close()
        return {name for name in names if index_day(self.prefix, name)}

    def verdict(self) -> int:
        """Return the exit code of a verification."""
        trust = open_trust([f"file:{self.growing.keyring}"])
        return verify(open_store(str(self.growing.folder)), trust, now=datetime.now(UTC), workers=0).exit_code


@pytest.fixture
def world(tmp_path: Path, elastic: ElasticsearchServer) -> Iterator[World]:
    made = World(Growing(tmp_path, begun=NOW - timedelta(minutes=30)), elastic.url, elastic.unused_prefix())
    yield made
    made.drop()


@pytest.mark.timeout(500)
def test_indexing_killed_at_every_call(world: World) -> None:
    """Killed before any call and run again, every event is there, once."""
    world.growing.append(2, now_event)
    code, report = world.run("index", Plan())
    assert (code, report["error"]) == (0, None)
    expected = {document_id(LOG, offset) for offset in range(10)}
    calls = report["calls"]
    assert {"search", "store.read"} <= set(calls)
    for at in swept(range(len(calls))):
        world.drop()
        assert world.run("index", Plan(at, "kill-before"))[0] == -signal.SIGKILL
        code, report = world.run("index", Plan())
        assert (code, report["error"], [one["problem"] for one in report["done"]]) == (0, None, [None])
        assert set(documents(search_settings(world.growing, world.url, world.prefix))) == expected


@pytest.mark.timeout(500)
def test_roll_killed_at_every_call(world: World) -> None:
    """Killed anywhere, a roll deletes no index that the archive has not verified, and the next one does the rest."""
    world.growing.append(2, now_event)
    world.run("index", Plan())
    before = world.days()
    code, report = world.run("roll", Plan(), LATER)
    assert code == 0
    for at in range(0, len(report["calls"]), 2):
        world.run("roll", Plan(at, "kill-before"), LATER)
        assert before <= world.days()
        assert world.verdict() == 0
    code, report = world.run("roll", Plan(), LATER)
    assert {one["outcome"] for one in report["done"] if one["what"] == "delete"} == {"refused"}


@pytest.mark.timeout(500)
def test_expiry_killed_at_its_calls(world: World, tmp_path: Path) -> None:
    """Killed before every second call: the end of life is signed before anything is gone, and all verifies."""
    source = Growing(tmp_path / "old", begun=NOW - timedelta(days=10), retention_days=1)
    source.append(3)
    probe = World(source.copy(tmp_path / "probe"), world.url, world.prefix)
    code, report = probe.run("expire", Plan())
    assert (code, report["error"]) == (0, None)
    calls = report["calls"]
    assert calls.count("store.remove") == 3
    for at in range(0, len(calls), 2):
        one = World(source.copy(tmp_path / f"at-{at}"), world.url, world.prefix)
        assert one.run("expire", Plan(at, "kill-before"))[0] == -signal.SIGKILL
        assert one.verdict() in {0, 3}
        code, report = one.run("expire", Plan())
        assert (code, report["error"]) == (0, None)
        assert not list((one.growing.folder / "events").rglob("*.gz"))
        assert one.verdict() in {0, 3}
