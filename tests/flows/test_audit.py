"""The flow that audits: what people see of a real archive and a real Elasticsearch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from custody.cli.main import main
from flows.audit import audit
from tasks.search.index import index_logs
from tasks.settings import Settings
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing
from tests.helpers.search import delete_indices, now_event_but_refused
from tests.servers.elasticsearch import ElasticsearchServer


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """Settings of an archive of twenty events. Elasticsearch rejected one of them."""
    growing = Growing(tmp_path / "audited")
    growing.append(4, now_event_but_refused)
    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    monkeypatch.setenv("CUSTODY_AUDIT__TABLES", "false")
    monkeypatch.setenv("CUSTODY_AUDIT__REPORT", "false")
    monkeypatch.setenv("CUSTODY_SEARCH__URL", elastic.url)
    monkeypatch.setenv("CUSTODY_SEARCH__PREFIX", elastic.unused_prefix())
    monkeypatch.setenv("CUSTODY_SEARCH__REPLICAS", "0")
    monkeypatch.chdir(tmp_path)
    made = Settings()
    index_logs(made)
    yield made
    delete_indices(made)


@pytest.mark.usefixtures("server", "indexed")
def test_rejected_events_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Rejected events are no finding, but the artifact, the run and the command say how many there are."""
    ended = audit(return_state=True)
    assert ended.is_completed()
    said = "Elasticsearch rejected 1 of these events"
    assert said in str(ended.message)
    with get_client(sync_client=True) as client:
        (artifact,) = (one for one in client.read_artifacts() if one.flow_run_id == ended.state_details.flow_run_id)
    assert said in str(artifact.description)
    with pytest.raises(SystemExit) as finished:
        main(["audit", "--full"])
    assert not finished.value.code
    assert said in capsys.readouterr().out
