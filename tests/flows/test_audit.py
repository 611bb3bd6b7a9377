"""The flow that audits: what people see of a real archive and a real Elasticsearch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from custody.cli.main import main
from flows.audit import audit
from flows.summaries import findings_markdown
from tasks.audit.conclude import Outcome
from tasks.search.index import index_logs
from tasks.settings import Settings
from tests.helpers.environment import use_archive
from tests.helpers.sample import Growing
from tests.helpers.search import delete_indices, now_event_but_refused
from tests.servers.elasticsearch import ElasticsearchServer


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """Settings of an archive of twenty events. Elasticsearch rejected one of them."""
    growing = Growing(tmp_path / "audited")
    growing.append(4, now_event_but_refused)
    use_archive(monkeypatch, growing.folder, growing.keyring)
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


@pytest.mark.usefixtures("prefect_server", "indexed")
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


def outcome_of(*findings: dict[str, str]) -> Outcome:
    return Outcome(0, "tampered", 11, {}, findings, "audits/000000000000.json")


def test_the_page_shows_findings_whole() -> None:
    """What is wrong, with what, and what to do is text that wraps, and not the cut cells of a table."""
    text = findings_markdown(
        outcome_of(
            {
                "severity": "tampered",
                "finding": "segment-hash",
                "log": "audit.logins/0",
                "sequence": "3",
                "key": "events/2026/a_b.jsonl.gz",
                "message": "[see](http://evil.example) *this* <img src=x>\nnext",
                "action": "keep the object",
            }
        )
    )
    assert "**tampered: segment-hash** in audit.logins/0 \\#3" in text
    assert "Object: events/2026/a\\_b.jsonl.gz" in text
    assert "To do: keep the object. Read on: `custody explain segment-hash`" in text
    assert "\\[see\\](http://evil.example) \\*this\\* \\<img src=x\\>\\\\nnext." in text
    assert findings_markdown(outcome_of()) == "Nothing was found.\n"


def test_the_page_has_the_worst_of_very_many() -> None:
    """Ten thousand findings are not put into Prefect's database: the page says where all of them are."""
    finding = {"severity": "tampered", "finding": "segment-hash", "message": "m", "action": "a"}
    text = findings_markdown(outcome_of(*[finding] * 10_000))
    assert text.count("**tampered: segment-hash**") == 100
    assert "the first 100 of 10,000; all are in audits/000000000000.json" in text
