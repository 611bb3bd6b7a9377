"""Row 36: a real Elasticsearch lacks an event, has one too many, or an edited one, and the nightly audit says so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.layout import Log
from custody.settings import AuditSettings, SearchSettings, Settings
from tasks.audit import Outcome, Request, conclude, plan_audit, verify_pieces
from tasks.documents import ORIGIN, document_id, index_day, index_name
from tasks.index import index_logs
from tasks.search import Search
from tests.sample import Growing
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.ports import free_ports
from tests.tasks.test_index import now_event

LOG = Log("audit.grows", 0)


@dataclass(frozen=True)
class Scene:
    """An archive of fifteen events of today in three statements, indexed."""

    settings: Settings
    search: Search
    growing: Growing

    def place(self, offset: int) -> dict[str, str]:
        """Return where an event's document is."""
        hits = self.search.client.search(
            index=self.search.prefix, query={"term": {f"{ORIGIN}.offset": offset}}, size=10
        )["hits"]["hits"]
        return {"index": hits[0]["_index"], "id": hits[0]["_id"]}

    def source(self, offset: int) -> dict[str, Any]:
        """Return an event's document."""
        return dict(self.search.client.get(**self.place(offset))["_source"])

    def refresh(self) -> None:
        self.search.client.indices.refresh(index=f"{self.search.prefix}*")

    def audit(self, **request: Any) -> Outcome:
        self.refresh()
        plan = plan_audit(self.settings, Request(**request), datetime.now(UTC))
        return conclude(self.settings, plan, list(verify_pieces(self.settings, plan, plan.pieces)))


@pytest.fixture
def scene(tmp_path: Path, elastic: ElasticsearchServer) -> Iterator[Scene]:
    growing = Growing(tmp_path)
    growing.append(3, now_event)
    given = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0),
    )
    index_logs(given)
    opened = Search(given.search)
    yield Scene(given, opened, growing)
    opened.client.options(ignore_status=404).indices.delete(index=f"{opened.prefix}*")
    opened.client.options(ignore_status=404).indices.delete_index_template(name=opened.prefix)
    opened.close()


def delete_one(scene: Scene) -> None:
    scene.search.client.delete(**scene.place(7))


def delete_index(scene: Scene) -> None:
    for name in scene.search.client.indices.get(index=f"{scene.search.prefix}-*"):
        if index_day(scene.search.prefix, name):
            scene.search.client.indices.delete(index=name)


def edit(**fields: Any) -> Callable[[Scene], None]:
    def attack(scene: Scene) -> None:
        scene.search.client.index(**scene.place(7), document={**scene.source(7), **fields})

    return attack


def denials_as_numbers(scene: Scene) -> None:
    document = scene.source(8)
    assert document["permission_granted"] is False
    scene.search.client.index(**scene.place(8), document={**document, "permission_granted": 0})


def lose_a_field(scene: Scene) -> None:
    document = scene.source(7)
    del document["client_ip"]
    scene.search.client.index(**scene.place(7), document=document)


def add(offset: int | None, log: Log = LOG, days: int = 0, **fields: Any) -> Callable[[Scene], None]:
    def attack(scene: Scene) -> None:
        document = {**scene.source(7), **fields}
        if offset is None:
            del document[ORIGIN]
        else:
            document[ORIGIN] |= {"offset": offset, "topic": log.name, "partition": log.partition}
        day = datetime.now(UTC).date() - timedelta(days=days)
        index = index_name(scene.search.prefix, day)
        scene.search.client.index(index=index, id=f"{document_id(log, offset or 0)}-x", document=document)

    return attack


def of_no_offset(scene: Scene) -> None:
    document = {**scene.source(7), ORIGIN: {"topic": "audit.grows", "partition": 9}}
    scene.search.client.index(**{**scene.place(7), "id": "x"}, document=document)


def move(scene: Scene) -> None:
    document = scene.source(7)
    delete_one(scene)
    index = index_name(scene.search.prefix, date(2026, 1, 1))
    scene.search.client.index(index=index, id=document_id(LOG, 7), document=document)


ATTACKS: dict[str, tuple[Callable[[Scene], None], str, int]] = {
    "a document deleted": (delete_one, "index-missing", 11),
    "a day's index deleted": (delete_index, "index-missing", 11),
    "a field edited": (edit(client_ip="6.6.6.6"), "index-edited", 13),
    "a number edited by the last digit": (edit(request_id="request-8"), "index-edited", 13),
    "a truth made a number": (denials_as_numbers, "index-edited", 13),
    "a field added": (edit(innocent=True), "index-edited", 13),
    "a field removed": (lose_a_field, "index-edited", 13),
    "moved to another day's index": (move, "index-edited", 13),
    "one too many, doubled": (add(7, days=3), "index-extra", 13),
    "one too many, beyond the head": (add(1_000_000), "index-extra", 13),
    "one too many, of another log": (add(3, Log("audit.grows", 9)), "index-extra", 13),
    "one too many, of no offset": (of_no_offset, "index-extra", 13),
    "one too many, of nowhere": (add(None), "index-extra", 13),
}


def test_untouched(scene: Scene) -> None:
    """What nobody touched gives no finding, at first and when everything is read again."""
    assert scene.audit().findings == ()
    outcome = scene.audit(full=True)
    assert (outcome.findings, outcome.exit_code) == ((), 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(scene: Scene, name: str) -> None:
    """Each attack gives its finding and exit code; what is missing is indexed again, all else stays as evidence."""
    attack, expected, code = ATTACKS[name]
    assert scene.audit().exit_code == 0
    scene.refresh()
    attack(scene)
    outcome = scene.audit(full=True)
    assert {one["finding"] for one in outcome.findings} == {expected}
    assert outcome.exit_code == code
    again = scene.audit(full=True)
    assert again.exit_code == (0 if expected == "index-missing" else code)


def test_counts_find_what_content_does_not_read(scene: Scene) -> None:
    """What is new is compared by counts at once: a document that is lost right away is found the same night."""
    scene.refresh()
    delete_one(scene)
    outcome = scene.audit()
    assert [one["finding"] for one in outcome.findings] == ["index-missing"]
    assert "1 are indexed again" in outcome.findings[0]["message"]


def test_not_yet_indexed(scene: Scene) -> None:
    """What lies beyond a log's cursor is late, and not missing."""
    scene.growing.append(2, now_event)
    assert scene.audit().exit_code == 0


def test_down(scene: Scene) -> None:
    """An Elasticsearch that does not answer is a notice: it says nothing against the archive."""
    (port,) = free_ports(1)
    search = scene.settings.search.model_copy(update={"url": f"http://127.0.0.1:{port}"})
    given = scene.settings.model_copy(update={"search": search})
    plan = plan_audit(given, Request(), datetime.now(UTC))
    outcome = conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))
    assert {one["finding"] for one in outcome.findings} == {"unreadable"}
    assert outcome.exit_code == 3
