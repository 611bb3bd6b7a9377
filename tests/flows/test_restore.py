"""A backfill from DEEP_ARCHIVE with `custody up`'s own server and worker: it ends, and another run looks again."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.operate.deploy import DEPLOYMENTS
from tasks.search.client import Search
from tasks.settings import SearchSettings, Settings
from tests.flows.installation import Installation, ended
from tests.helpers.backfill import DAY, DAYS_OFFSETS, NIGHT, Deep, hourly
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, document_id, documents
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.s3 import MotoServer


class Restores:
    """How far moto's restores come: it takes each a state further by a rule, when somebody looks at the object."""

    def __init__(self, moto: MotoServer) -> None:
        self._moto = moto

    def begin(self) -> None:
        """From now on a restore that is asked for is under way when it is looked at for the first time."""
        self._rule("set", transition={"progression": "manual", "times": 1})

    def end(self) -> None:
        """Those that are under way, and those asked for from now on, are done."""
        self._rule("unset")

    def _rule(self, what: str, **rule: Any) -> None:
        request = urllib.request.Request(
            f"{self._moto.endpoint_url}/moto-api/state-manager/{what}-transition",
            json.dumps({"model_name": "s3::keyrestore", **rule}).encode(),
        )
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def restores(moto: MotoServer) -> Iterator[Restores]:
    made = Restores(moto)
    try:
        yield made
    finally:
        # Other tests of this process use the same moto.
        made.end()


@pytest.fixture
def given(
    tmp_path: Path, moto: MotoServer, elastic: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """An archive of three days in a bucket, its segments in DEEP_ARCHIVE, and an Elasticsearch with nothing of it."""
    moto.use(monkeypatch)
    growing = Growing(tmp_path / "written")
    growing.begun = DAY - NIGHT
    growing.append(15, hourly)
    deep = Deep(moto, growing)
    search = SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0)
    made = Settings(archive=deep.url, keys=f"file:{growing.keyring}", s3=deep.options, search=search)
    yield made
    deep.client.close()
    with closing(Search(search)) as opened:
        opened.client.options(ignore_status=404).indices.delete(index=f"{search.prefix}*")


@pytest.fixture
def installation(tmp_path: Path, given: Settings, prefect_database: Path) -> Iterator[Installation]:
    """An installation with the deployment of backfills that operators get, and no other."""
    settings = f"""
        archive = "{given.archive}"
        keys = "{given.keys}"
        [s3]
        endpoint_url = "{given.s3.endpoint_url}"
        [search]
        url = "{given.search.url}"
        prefix = "{given.search.prefix}"
        replicas = 0
        """
    deployments = yaml.safe_load(DEPLOYMENTS.read_text())
    deployments["deployments"] = [
        one for one in deployments["deployments"] if one["entrypoint"] == "flows.backfill.backfill"
    ]
    (tmp_path / "up").mkdir()
    made = Installation(tmp_path / "up", settings, yaml.safe_dump(deployments), prefect_database)
    with ended(made):
        yield made


def following(installation: Installation) -> Any:
    """Return the one run that is scheduled, once nothing runs: no process waits for it."""
    installation.wait(lambda: not installation.running(), 180, "no run to be under way")
    (one,) = installation.prefect("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert datetime.fromisoformat(one["expected_start_time"]) - datetime.now(UTC) > timedelta(minutes=50)
    assert one["parameters"]["since"] == DAY.isoformat()
    return one


def run_now(installation: Installation, run: Any) -> Any:
    """Bring a scheduled run's time forward, as a person does in Prefect's UI, and return it once it has ended."""
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    installation.prefect(f"flow_runs/{run['id']}/set_state", state=state, force=True)
    return installation.finish(run["id"])


@pytest.mark.timeout(600)
def test_a_run_ends_and_another_looks_again(installation: Installation, given: Settings, moto: MotoServer) -> None:
    """The run from the form asks for restores and ends; the one that it scheduled looks again, and copies every event.

    No process waits meanwhile. Only the hour between the two is left out here.
    """
    with restores(moto) as copies:
        installation.up()
        copies.begin()
        first = installation.finish(
            installation.start("backfill/backfill-ad-hoc", since=DAY.isoformat(), until=(DAY + NIGHT).isoformat())
        )
        assert (first["state"]["name"], first["state"]["type"]) == ("Restoring", "COMPLETED")
        assert "6 segments are being restored" in first["state"]["message"]
        copies.end()
        second = run_now(installation, following(installation))
        assert (second["state"]["name"], "24 copied" in second["state"]["message"]) == ("Completed", True)
    assert first["deployment_id"] == second["deployment_id"]
    found = documents(given)
    assert set(found) == {document_id(LOG, offset) for offset in DAYS_OFFSETS}
    left = installation.prefect("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert left == []
    assert installation.end() == 0
