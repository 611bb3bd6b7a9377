"""Row 36: a real Elasticsearch lacks an event, has one too many, or an edited one, and the nightly audit says so."""

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

import pytest

from custody.errors import SearchError
from custody.format import limits
from custody.format.layout import Log
from custody.format.members import pack
from custody.query.connect import connect
from tasks.audit.conclude import Outcome, conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.search import client, queries, reconcile
from tasks.search.client import Search
from tasks.search.documents import ORIGIN, index_day, index_name, out_of_range_name, restored_name
from tasks.search.index import index_logs
from tasks.search.queries import logs_in
from tasks.settings import AuditSettings, SearchSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, delete_indices, document_id, now_event, now_event_but_refused
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.ports import free_ports
from tests.servers.proxy import FaultyProxy


class Place(TypedDict):
    """Where a document is, as the client's calls take it."""

    index: str
    id: str


@dataclass(frozen=True)
class Scene:
    """An archive of fifteen events of today in three statements, indexed."""

    settings: Settings
    search: Search
    growing: Growing

    def place(self, offset: int) -> Place:
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

    def within(self, days: int) -> "Scene":
        """Return the same where `search.days` is another."""
        search = self.settings.search.model_copy(update={"days": days})
        return replace(self, settings=self.settings.model_copy(update={"search": search}))

    def index_findings(self, **request: Any) -> list[tuple[str, int | None]]:
        """Audit, and return what it finds in Elasticsearch, and of which offset."""
        found = self.audit(full=True, **request).findings
        return [(one["finding"], one.get("offset")) for one in found if one["finding"].startswith("index-")]

    def audit(self, **request: Any) -> Outcome:
        self.refresh()
        return audit(self.settings, **request)


@pytest.fixture
def scene(tmp_path: Path, elastic: ElasticsearchServer) -> Iterator[Scene]:
    growing = Growing(tmp_path)
    growing.append(3, now_event)
    with indexed(growing, elastic) as made:
        yield made


@pytest.fixture
def aged(tmp_path: Path, elastic: ElasticsearchServer) -> Iterator[Scene]:
    """Return one of statements of 100 days, 40 days and 30 hours ago, and of two of today, all indexed."""
    now = datetime.now(UTC)
    growing = Growing(tmp_path, begun=now - timedelta(days=100))
    for hours, statements in ((2400, 1), (960, 1), (30, 1), (0.5, 2)):
        sealed = growing.begun = now - timedelta(hours=hours)
        growing.append(statements, partial(now_event, timestamp=f"{sealed:%FT%TZ}"))
    with indexed(growing, elastic, days=400) as made:
        yield made.within(90)


@contextmanager
def indexed(growing: Growing, elastic: ElasticsearchServer, **search: Any) -> Iterator[Scene]:
    given = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0, **search),
    )
    index_logs(given)
    opened = Search(given.search)
    yield Scene(given, opened, growing)
    opened.close()
    delete_indices(given)


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
    scene.search.client.index(index=scene.place(7)["index"], id="x", document=document)


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
    "moved to another day's index": (move, "index-edited", 3),
    "one too many, doubled": (add(7, days=3), "index-extra", 13),
    "one too many, beyond the head": (add(1_000_000), "index-extra", 13),
    "one too many, before the log begins": (add(-1), "index-extra", 13),
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
    assert "indexed again: 1" in outcome.findings[0]["message"]


def edit_one(scene: Scene) -> None:
    scene.refresh()
    edit(client_ip="6.6.6.6")(scene)


def set_cursor(scene: Scene, changed: dict[str, Any] | None) -> None:
    """Write over the cursor of the log, or delete it."""
    client, name = scene.search.client, scene.search.cursors
    client.indices.refresh(index=name)
    (hit,) = client.search(index=name)["hits"]["hits"]
    if changed is None:
        client.delete(index=name, id=hit["_id"])
    else:
        client.index(index=name, id=hit["_id"], document={**hit["_source"], **changed})


BACK: dict[str, dict[str, Any] | None] = {
    "to the beginning": {"sequence": 0, "indexed": 0},
    "by one": {"sequence": 2},
    "deleted": None,
}
UNTRUE: dict[str, dict[str, Any]] = {
    "far ahead": {"sequence": 1_000_000},
    "as far as numbers go": {"sequence": 2**63},
    "negative": {"sequence": -1},
    "no number": {"sequence": "3", "indexed": None},
}


@pytest.mark.parametrize("changed", BACK.values(), ids=BACK)
def test_a_cursor_that_goes_back_hides_nothing(scene: Scene, changed: dict[str, Any] | None) -> None:
    """A cursor that goes back right before an audit is a notice, and an edit is found all the same."""
    assert scene.audit().exit_code == 0
    set_cursor(scene, changed)
    outcome = scene.audit(full=True)
    assert [(one["finding"], one["severity"]) for one in outcome.findings] == [("index-missing", "notice")]
    assert "but an audit has seen 3" in outcome.findings[0]["message"]
    edit_one(scene)
    scene.search.client.index(**scene.place(2), document={**scene.source(2), "client_ip": "6.6.6.6"})
    found = [(one["finding"], one.get("sequence")) for one in scene.audit(full=True).findings]
    assert found == [("index-edited", 0), ("index-edited", 1), ("index-missing", None)]


def test_a_cursor_at_the_beginning_before_the_first_audit(scene: Scene) -> None:
    """What is there is compared even where nobody has ever seen it indexed."""
    edit_one(scene)
    set_cursor(scene, None)
    scene.audit()
    found = [(one["finding"], one["severity"]) for one in scene.audit(full=True).findings]
    assert found == [("index-edited", "tampered"), ("index-missing", "notice")]


def test_a_deletion_behind_a_cursor_that_goes_back(scene: Scene) -> None:
    """What was deleted before the cursor went back is there again after the audit, which says so."""
    assert scene.audit().exit_code == 0
    scene.refresh()
    delete_one(scene)
    set_cursor(scene, {"sequence": 0})
    outcome = scene.audit(full=True)
    assert [one["finding"] for one in outcome.findings] == ["index-missing"] * 2
    assert {one["severity"] for one in outcome.findings} == {"notice"}
    assert any(one["message"].startswith("1 event was not in") for one in outcome.findings)
    scene.refresh()
    assert scene.source(7)["request_id"] == "request-7"


def test_a_cursor_held_back_hides_no_deletion(scene: Scene) -> None:
    """Who holds a cursor where audits have seen it hides nothing that they delete behind it: later events are there."""
    assert scene.audit().exit_code == 0
    scene.growing.append(3, now_event)
    index_logs(scene.settings)
    scene.refresh()
    scene.search.client.delete(**scene.place(22))
    set_cursor(scene, {"sequence": 3, "indexed": 15})
    outcome = scene.audit()
    assert {(one["finding"], one["severity"]) for one in outcome.findings} == {("index-missing", "notice")}
    assert {one["message"][:22] for one in outcome.findings} >= {"1 event was not in Ela"}
    scene.refresh()
    assert scene.source(22)["request_id"] == "request-22"


@pytest.mark.parametrize("changed", UNTRUE.values(), ids=UNTRUE)
def test_a_cursor_that_cannot_be_true(scene: Scene, changed: dict[str, Any]) -> None:
    """It ends no indexing: the audit calls it tampering; a run says so, indexes what lacks, and puts it right."""
    scene.growing.append(2, now_event)
    set_cursor(scene, changed)
    outcome = scene.audit()
    assert outcome.exit_code == 13
    assert "index-edited" in {one["finding"] for one in outcome.findings}
    set_cursor(scene, changed)
    (result,) = index_logs(scene.settings)
    assert "find out who wrote it" in str(result.problem)
    assert (result.sequence, result.behind) == (5, 0.0)
    scene.refresh()
    assert [scene.source(offset)["request_id"] for offset in (0, 24)] == ["request-0", "request-24"]
    assert [one.problem for one in index_logs(scene.settings)] == [None]
    assert scene.audit(full=True).exit_code == 0


def test_a_cursor_set_ahead_within_the_log(scene: Scene) -> None:
    """One that leaves out statements that are there is found by what lacks before it, which is indexed."""
    scene.growing.append(2, now_event)
    set_cursor(scene, {"sequence": 5})
    outcome = scene.audit()
    assert (outcome.exit_code, {one["finding"] for one in outcome.findings}) == (11, {"index-missing"})
    scene.refresh()
    assert scene.source(24)["request_id"] == "request-24"


def lose_everything(scene: Scene) -> None:
    scene.search.client.indices.delete(index=f"{scene.search.prefix}*")
    scene.search.client.indices.delete_index_template(name=scene.search.prefix)


def test_lost(scene: Scene) -> None:
    """An Elasticsearch that lost all is filled again, with its templates, by whoever comes first; nobody is accused."""
    assert scene.audit().exit_code == 0
    lose_everything(scene)
    outcome = scene.audit(full=True)
    assert {(one["finding"], one["severity"]) for one in outcome.findings} == {("index-missing", "notice")}
    assert "15 events" in outcome.findings[1]["message"]
    (result,) = index_logs(scene.settings)
    assert (result.created, result.there, result.problem) == (0, 15, None)
    assert scene.audit(full=True).exit_code == 0
    lose_everything(scene)
    (result,) = index_logs(scene.settings)
    assert (result.created, result.problem) == (15, None)
    assert scene.audit(full=True).exit_code == 0
    mapping = scene.search.client.indices.get_mapping(index=f"{scene.search.prefix}-2*")
    assert all(one["mappings"]["properties"]["client_ip"]["type"] == "ip" for one in mapping.values())


def test_restored_from_an_older_snapshot(scene: Scene) -> None:
    """What came after the snapshot is indexed again, and is a notice if an audit comes first."""
    scene.growing.append(1, now_event)
    index_logs(scene.settings)
    assert scene.audit().exit_code == 0
    scene.refresh()
    for offset in range(15, 20):
        scene.search.client.delete(**scene.place(offset))
    set_cursor(scene, {"sequence": 3, "indexed": 15})
    assert scene.audit(full=True).exit_code == 3
    assert [(one.created, one.there, one.problem) for one in index_logs(scene.settings)] == [(0, 5, None)]
    assert scene.audit(full=True).exit_code == 0


def test_a_week_behind(scene: Scene) -> None:
    """Indexing that is late is a notice, however much it lacks, and goes on from where it was."""
    assert scene.audit().exit_code == 0
    scene.growing.append(5, now_event)
    for request in ({}, {"full": True}):
        outcome = scene.audit(**request)
        assert [(one["finding"], one["severity"]) for one in outcome.findings] == [("index-missing", "notice")]
        assert "the next one was sealed" in outcome.findings[0]["message"]
    assert [(one.created, one.problem) for one in index_logs(scene.settings)] == [(25, None)]
    assert scene.audit(full=True).exit_code == 0


def test_an_unreadable_segment_costs_its_own_statement(scene: Scene) -> None:
    """Where a segment cannot be read, the documents of all other statements are compared, before it and behind it."""
    assert scene.audit().exit_code == 0
    damaged = json.loads((scene.growing.folder / f"manifests/{LOG}/{1:012}.json").read_bytes().splitlines()[0])
    (scene.growing.folder / damaged["segment"]["key"]).unlink()
    scene.refresh()
    for offset in (2, 12):
        scene.search.client.index(**scene.place(offset), document={**scene.source(offset), "client_ip": "6.6.6.6"})
    outcome = scene.audit(full=True)
    assert [(one["finding"], one.get("offset")) for one in outcome.findings if "index" in one["finding"]] == [
        ("index-edited", 2),
        ("index-edited", 12),
    ]


def test_a_damaged_segment_accuses_no_document(scene: Scene) -> None:
    """Documents are compared with what was signed, and with nothing else that lies in the archive."""
    assert scene.audit().exit_code == 0
    line = (scene.growing.folder / f"manifests/{LOG}/{1:012}.json").read_bytes().splitlines()[0]
    path = scene.growing.folder / json.loads(line)["segment"]["key"]
    lines = gzip.decompress(path.read_bytes()).replace(b"request-7", b"request-8").splitlines(keepends=True)
    path.unlink()
    path.write_bytes(pack(b"".join(lines[:3])).data + pack(b"".join(lines[3:])).data)
    found = {one["finding"] for one in scene.audit(full=True).findings}
    # Which of the two depends on how well the lines of this moment pack.
    assert found & {"segment-hash", "segment-size"}
    assert not any(name.startswith("index-") for name in found)


def test_rejected_events_are_counted(scene: Scene) -> None:
    """The signed audit counts the events it read that Elasticsearch has refused; they are not missing."""
    assert scene.audit().counts["rejected"] == 0
    scene.growing.append(2, now_event_but_refused)
    assert [(one.created, one.rejected) for one in index_logs(scene.settings)] == [(9, 1)]
    outcome = scene.audit()
    assert (outcome.counts["rejected"], outcome.findings) == (1, ())
    signed = (scene.growing.folder / f"audits/{outcome.sequence:012}.json").read_bytes().splitlines()[0]
    assert json.loads(signed)["counts"]["rejected"] == 1
    again = scene.audit(full=True)
    assert (again.counts["rejected"], again.findings) == (1, ())
    with closing(connect(str(scene.growing.folder))) as opened:
        assert opened.execute("SELECT rejected FROM audits ORDER BY sequence").fetchall() == [(0,), (1,), (1,)]


FORGED = {
    "beyond the head": '"@custody.offset": 1000000000000000',
    "negative": '"@custody.offset": -1',
    "of another event": '"@custody.offset": 0',
    "several": '"@custody.offset": [3, 4]',
    "of another log": '"@custody.topic": "x"',
    "spelled otherwise": r'"\u0040cust\u006fdy\u002eoffset": 5',
    "as a whole": '"@custody": {"offset": 5}',
}


def test_an_origin_forged_by_a_producer(scene: Scene) -> None:
    """An event that says itself where it is in the archive is archived, and rejected; it makes no other look forged."""
    added = [f", {member}}}" for member in FORGED.values()]
    innocent = ', "details": {"@custody.offset": 3}, "a": "\\u0040custody.offset", "\\u0063": "@custody.offset"}'

    def forge(offset: int) -> bytes:
        members = [*added, innocent][offset % 8] if offset < 23 else innocent
        return now_event(offset, execution_time=1.5)[:-1] + members.encode()

    scene.growing.append(2, forge)
    assert [(one.created, one.rejected) for one in index_logs(scene.settings)] == [(3, 7)]
    scene.refresh()
    assert logs_in(scene.search, scene.search.prefix)[0] == 0
    outcome = scene.audit()
    assert (outcome.counts["rejected"], outcome.findings) == (7, ())
    reasons = scene.search.client.search(index=scene.search.rejected, size=10)["hits"]["hits"]
    assert {one["_source"]["type"] for one in reasons} == {"forged_origin"}
    # Of an Elasticsearch that has lost who was rejected, they are not missing either.
    scene.search.client.indices.delete(index=scene.search.rejected)
    assert scene.audit(full=True).findings == ()
    outcome = scene.audit(full=True)
    assert (outcome.counts["rejected"], outcome.findings) == (7, ())


def test_a_document_of_two_origins_is_one(scene: Scene) -> None:
    """What claims two offsets hides no document of none: documents are counted, and not what they claim."""
    scene.refresh()
    scene.search.client.index(**scene.place(7), document={**scene.source(7), f"{ORIGIN}.offset": 8})
    add(None)(scene)
    found = [one["message"] for one in scene.audit(full=True).findings]
    assert any("1 document of" in one and "does not say where" in one for one in found)


def test_a_deletion_called_a_rejection(scene: Scene) -> None:
    """What is said to be refused is offered again, so that nobody can delete an event by saying so."""
    assert scene.audit().exit_code == 0
    scene.refresh()
    delete_one(scene)
    scene.search.client.index(index=scene.search.rejected, document={"log": str(LOG), "offset": 7, "reason": "no"})
    outcome = scene.audit(full=True)
    assert (outcome.exit_code, outcome.counts["rejected"]) == (11, 1)
    assert "1 event that" in outcome.findings[0]["message"]
    scene.refresh()
    assert scene.source(7)["request_id"] == "request-7"


def test_other_days_accuse_nobody(scene: Scene) -> None:
    """What lies where other `search.days`, or a backfill, put it is where it may lie."""

    def old(offset: int) -> bytes:
        return now_event(offset, timestamp=f"{datetime.now(UTC) - timedelta(days=20 if offset % 2 else 5):%FT%TZ}")

    scene.growing.append(1, old)
    assert [one.created for one in index_logs(scene.settings)] == [5]
    assert scene.audit(full=True).findings == ()
    for days in (10, 2):
        assert scene.within(days).audit(full=True).findings == ()
    document = scene.source(15)
    scene.search.client.delete(**scene.place(15))
    for name in (out_of_range_name(scene.search.prefix), restored_name(scene.search.prefix, None)):
        scene.search.client.index(index=name, id="x", document=document, refresh=True)
        assert scene.audit(full=True).findings == ()
        scene.search.client.delete(index=name, id="x")


def test_an_offset_too_old_for_its_index(aged: Scene) -> None:
    """A document that claims an event that is not compared any more is found by the index that it lies in."""
    for days in (90, 35, 1):
        assert aged.within(days).index_findings() == []
    document, prefix = aged.source(17), aged.search.prefix
    day = datetime.now(UTC).date()

    def forge(index: str, offset: int) -> list[tuple[str, int | None]]:
        forged = {**document, ORIGIN: {**document[ORIGIN], "offset": offset}}
        aged.search.client.index(index=index, id="x", document=forged, refresh=True)
        found = aged.index_findings()
        aged.search.client.delete(index=index, id="x")
        return found

    assert forge(index_name(prefix, day), 2) == [("index-extra", 5)]
    assert forge(f"{prefix}-others", 2) == []
    aged.search.client.indices.put_alias(index=f"{prefix}-others", name=prefix)
    assert forge(f"{prefix}-others", 2) == [("index-extra", 5)]
    # What a backfill brings back may be as old as the log, but no older.
    assert forge(restored_name(prefix, day - timedelta(days=100)), 2) == []
    assert forge(restored_name(prefix, None), -1) == [("index-extra", 0)]


def test_a_damaged_head_costs_its_own_log(scene: Scene) -> None:
    """Where a log's head cannot be read, documents of no statement are found in all logs behind it."""
    other = Growing(scene.growing.root, partition=1)
    other.append(1, now_event)
    (scene.growing.folder / f"manifests/{LOG}/{2:012}.json").write_bytes(b"damaged")
    scene.refresh()
    add(1_000_000, Log("audit.grows", 1))(scene)
    assert ("index-extra", 5) in scene.index_findings()


@pytest.mark.parametrize("origin", [7, [0, 7]], ids=["the same", "two"])
def test_any_number_of_one_offset(scene: Scene, monkeypatch: pytest.MonkeyPatch, origin: Any) -> None:
    """Of more documents of one offset than a page holds none is passed over, nor any of a later offset."""
    scene.refresh()
    place, document = scene.place(7), scene.source(7)
    document[ORIGIN]["offset"] = origin
    copies = [one for _ in range(2100) for one in ({"create": {"_index": place["index"]}}, document)]
    scene.search.client.bulk(operations=copies, refresh=True)
    found = scene.audit(full=True).findings
    assert {one["finding"] for one in found} == {"index-extra"}
    assert any(one["message"].startswith("2,100 documents belong to no event") for one in found)
    # Far too many are not read.
    monkeypatch.setattr(reconcile, "_SPARE", 100)
    (one, *_) = scene.audit(full=True).findings
    assert "too many to be compared" in one["message"]


def odd_index(settings: dict[str, Any] | None = None, **mappings: Any) -> Callable[[Scene], None]:
    """Return an attack that puts one document into an index of another mapping behind the alias."""

    def attack(scene: Scene) -> None:
        scene.refresh()
        name = index_name(scene.search.prefix, datetime.now(UTC).date() - timedelta(days=8))
        scene.search.client.indices.create(index=name, settings=settings, mappings=mappings)
        scene.search.client.index(index=name, id="odd", document=scene.source(1), refresh=True)

    return attack


def of_offset(kind: str) -> Callable[[Scene], None]:
    return odd_index(properties={ORIGIN: {"properties": {"offset": {"type": kind}}}})


def nested(scene: Scene) -> None:
    """Nest an event's document deeper than Python's parser goes; Elasticsearch takes it."""
    depth = 985
    deep = '{"a":' * depth + "1" + "}" * depth
    document = json.dumps(scene.source(1))[:-1] + f', "deep": {deep}}}'
    place = scene.place(1)
    scene.search.client.perform_request(
        "PUT",
        f"/{place['index']}/_doc/{place['id']}",
        headers={"content-type": "application/json", "accept": "application/json"},
        body=document.encode(),
    )


def nested_cursor(scene: Scene) -> None:
    deep = '{"a":' * 985 + "1" + "}" * 985
    (hit,) = scene.search.client.search(index=scene.search.cursors)["hits"]["hits"]
    scene.search.client.perform_request(
        "PUT",
        f"/{scene.search.cursors}/_doc/{hit['_id']}",
        headers={"content-type": "application/json", "accept": "application/json"},
        body=f'{{"sequence": {deep}}}'.encode(),
    )


ODD: dict[str, Callable[[Scene], None]] = {
    "an offset that is a double": of_offset("double"),
    "an offset that is a keyword": of_offset("keyword"),
    "an offset that is a date": of_offset("date"),
    "an offset that is not indexed": odd_index(properties={ORIGIN: {"enabled": False}}),
    "no source": odd_index(_source={"enabled": False}),
    "half of the source": odd_index(_source={"excludes": ["client_ip"]}),
    "a made-up source": odd_index({"index.mapping.source.mode": "synthetic"}),
    "an index that answers no search": odd_index({"index.max_result_window": 1}),
    "a runtime field over the offset": odd_index(runtime={f"{ORIGIN}.offset": {"type": "long"}}),
    "a document nested too deep": nested,
    "a cursor nested too deep": nested_cursor,
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_compared_hides_nothing_else(scene: Scene, name: str) -> None:
    """An audit is signed that is not clean. What was edited and deleted elsewhere is found all the same."""
    assert scene.audit().exit_code == 0
    scene.refresh()
    ODD[name](scene)
    outcome = scene.audit(full=True)
    assert outcome.exit_code >= 12, outcome.findings
    scene.refresh()
    edit(client_ip="6.6.6.6")(scene)
    scene.search.client.delete(**scene.place(12))
    outcome = scene.audit(full=True)
    found = {(one["finding"], one.get("sequence")) for one in outcome.findings}
    assert found >= {("index-edited", 1), ("index-missing", 2)}
    assert outcome.exit_code == 13


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "blocked"])
def test_an_index_that_nobody_may_search_hides_nothing_else(scene: Scene, *, closed: bool) -> None:
    """A search of the alias fails for all of its indices, so such an index is left out, and named."""
    assert scene.audit().exit_code == 0
    scene.refresh()
    edit(client_ip="6.6.6.6")(scene)
    scene.search.client.delete(**scene.place(12))
    odd_index()(scene)
    name = index_name(scene.search.prefix, datetime.now(UTC).date() - timedelta(days=8))
    if closed:
        scene.search.client.indices.close(index=name)
    else:
        scene.search.client.indices.put_settings(index=name, settings={"index.blocks.read": True})
    outcome = scene.audit(full=True)
    found = {(one["finding"], one.get("sequence")) for one in outcome.findings}
    assert found >= {("index-edited", 1), ("index-missing", 2)}
    assert any(one["finding"] == "unreadable" and name in one["message"] for one in outcome.findings)


def test_an_index_on_no_node_hides_nothing_else(scene: Scene) -> None:
    """An index whose allocation filter no node meets is left out and named. What is in it is not called missing."""
    assert scene.audit().exit_code == 0
    scene.refresh()
    edit(client_ip="6.6.6.6")(scene)
    scene.search.client.delete(**scene.place(12))
    # Later a refresh would wait a minute for the shard.
    scene.refresh()
    name = index_name(scene.search.prefix, datetime.now(UTC).date() - timedelta(days=8))
    nowhere = {"index.routing.allocation.require._name": "nobody"}
    scene.search.client.indices.create(index=name, settings=nowhere, wait_for_active_shards="0")
    outcome = audit(scene.settings, full=True)
    found = {(one["finding"], one.get("sequence")) for one in outcome.findings}
    assert found == {("index-edited", 1), ("index-missing", 2), ("unreadable", None)}
    assert [one["severity"] for one in outcome.findings if name in one["message"]] == ["unverifiable"]
    # A day's index that is on no node: whether its events are there is not known.
    today = scene.place(7)["index"]
    scene.search.client.indices.delete(index=today)
    scene.search.client.indices.create(index=today, settings=nowhere, wait_for_active_shards="0")
    outcome = audit(scene.settings, full=True)
    assert {(one["finding"], one["severity"]) for one in outcome.findings} == {("unreadable", "unverifiable")}
    assert {name, today} == {one["message"].split()[2] for one in outcome.findings}


@pytest.mark.parametrize("multi", [False, True], ids=["search", "msearch"])
def test_a_time_limit_of_the_cluster_counts_for_no_search(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, multi: bool
) -> None:
    """Each search names its own time limit, so `search.default_search_timeout` of the cluster ends none.

    It is not set here: tests share the server, and so small a search is seldom ended.
    """
    if multi:
        odd_index(runtime={f"{ORIGIN}.offset": {"type": "long"}})(scene)
    sent: list[str] = []
    perform = client._Node.perform_request

    def record(node: Any, method: str, target: str, body: bytes | None = None, *others: Any, **more: Any) -> Any:
        if "/_search" in target or "/_msearch" in target:
            sent.append(f"{target} {(body or b'').decode()}")
        return perform(node, method, target, body, *others, **more)

    scene.refresh()
    monkeypatch.setattr(client._Node, "perform_request", record)
    scene.audit(full=True)
    assert sent
    assert [one for one in sent if '"timeout":"30s"' not in one] == []
    assert any("/_msearch" in one for one in sent) == multi


def test_an_index_that_answers_no_search_is_named(scene: Scene) -> None:
    """An index whose settings let searches of it fail is reported: its documents may hide behind that."""
    assert scene.audit().exit_code == 0
    odd_index({"index.max_result_window": 1})(scene)
    messages = [finding["message"] for finding in scene.audit(full=True).findings if finding["finding"] == "unreadable"]
    assert any("did not answer every search" in message for message in messages), messages


def test_large_documents_are_read_in_small_answers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents far larger than events are found as edited and extra. Memory follows one answer, not all of them."""
    scene.refresh()
    # The first audit imports modules, which is not what is measured.
    assert scene.audit().exit_code == 0
    monkeypatch.setattr(client, "ANSWER_BYTES", 2 * limits.MIB)
    large, small = "a" * (2 * client.ANSWER_BYTES), "a" * (client.ANSWER_BYTES // 4)
    edit(comment=large)(scene)
    place, document = scene.place(8), scene.source(8)
    for _ in range(40):
        scene.search.client.index(index=place["index"], document={**document, "comment": small})
    scene.search.client.delete(**scene.place(12))
    scene.refresh()
    tracemalloc.start()
    try:
        outcome = scene.audit(full=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = {(one["finding"], one.get("sequence")) for one in outcome.findings}
    assert found == {("index-edited", 1), ("index-extra", 1), ("index-missing", 2)}
    assert any("40 documents belong to no event" in one["message"] for one in outcome.findings)
    assert peak < 8 * client.ANSWER_BYTES


def test_a_large_cursor_stops_nothing(scene: Scene) -> None:
    """A cursor of many MiB is no cursor: the audit says so, and events are indexed on."""
    scene.refresh()
    (hit,) = scene.search.client.search(index=scene.search.cursors)["hits"]["hits"]
    document = {"sequence": "9" * client.ANSWER_BYTES}
    scene.search.client.index(index=scene.search.cursors, id=hit["_id"], document=document, refresh=True)
    assert any("is not a cursor" in one["message"] for one in scene.audit().findings)
    scene.growing.append(1, now_event)
    (result,) = index_logs(scene.settings)
    assert (result.created, result.sequence) == (5, 4)


def test_a_rejection_that_is_over_is_not_counted(scene: Scene) -> None:
    """An event that is listed as rejected, and is there, is not counted as rejected."""
    rejected = {"log": str(LOG), "offset": 7, "reason": "no"}
    scene.search.client.index(index=scene.search.rejected, document=rejected, refresh=True)
    for request in ({}, {"full": True}):
        outcome = scene.audit(**request)
        assert (outcome.counts["rejected"], outcome.findings) == (0, ())


def test_not_yet_indexed(scene: Scene) -> None:
    """What was sealed just now lies beyond a log's cursor, and is not missing."""
    scene.growing.begun = datetime.now(UTC) - timedelta(minutes=5)
    scene.growing.append(2, now_event)
    assert scene.audit().exit_code == 0


def test_indexing_under_way(scene: Scene) -> None:
    """Of a statement whose last event is indexed others may still be under way: nobody says that they were lost."""
    assert scene.audit().exit_code == 0
    scene.growing.begun = datetime.now(UTC) - timedelta(minutes=5)
    scene.growing.append(1, now_event)
    index_logs(scene.settings)
    scene.refresh()
    for offset in range(15, 19):
        scene.search.client.delete(**scene.place(offset))
    set_cursor(scene, {"sequence": 3, "indexed": 15})
    assert scene.audit(full=True).findings == ()


def test_down(scene: Scene) -> None:
    """An Elasticsearch that does not answer is a notice: it says nothing against the archive."""
    (port,) = free_ports(1)
    search = scene.settings.search.model_copy(update={"url": f"http://127.0.0.1:{port}"})
    given = scene.settings.model_copy(update={"search": search})
    plan = plan_audit(given, Request(), datetime.now(UTC))
    outcome = conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))
    assert {one["finding"] for one in outcome.findings} == {"unreadable"}
    assert outcome.exit_code == 3


Change = Callable[[dict[str, Any]], None]


def fail_shard(kind: str) -> Change:
    """Return a change of a search's answer: a shard failed."""
    failure = {"index": "x", "reason": {"type": kind, "reason": "Data too large"}}

    def change(answer: dict[str, Any]) -> None:
        answer["_shards"] |= {"failed": 1, "successful": answer["_shards"]["total"] - 1, "failures": [failure]}

    return change


def answer_status(status: int, kind: str) -> Change:
    """Return a change of a search's answer, also of one in a multi-search: it has an error instead."""

    def change(answer: dict[str, Any]) -> None:
        answer.clear()
        answer |= {"error": {"type": kind, "reason": "Data too large"}, "status": status}

    return change


def run_out_of_time(answer: dict[str, Any]) -> None:
    answer |= {"timed_out": True}
    answer["hits"] = {"total": {"value": 0, "relation": "eq"}, "hits": []}


PARTIAL: dict[str, Change] = {
    "circuit breaker": answer_status(429, "circuit_breaking_exception"),
    "rejected": answer_status(429, "es_rejected_execution_exception"),
    "not available": answer_status(503, "search_phase_execution_exception"),
    "deleted meanwhile": answer_status(404, "index_not_found_exception"),
    "circuit breaker of a shard": fail_shard("circuit_breaking_exception"),
    "a shard without memory": fail_shard("i_o_exception"),
    "out of time": run_out_of_time,
}
"""Answers that say nothing about the documents."""


def change_searches(change: Change, which: Callable[[int], bool]) -> Callable[[str, bytes], bytes]:
    """Return a change of each answer to a search of documents, by its number."""
    numbers = count()

    def rewrite(path: str, body: bytes) -> bytes:
        if "/_search" not in path and "/_msearch" not in path:
            return body
        if not which(next(numbers)):
            return body
        answer = json.loads(body)
        for each in answer.get("responses", [answer]):
            change(each)
        return json.dumps(answer).encode()

    return rewrite


@pytest.mark.parametrize("multi", [False, True], ids=["search", "msearch"])
@pytest.mark.parametrize("name", PARTIAL)
def test_an_answer_that_is_not_whole_is_no_notice(scene: Scene, name: str, *, multi: bool) -> None:
    """It says nothing about documents, and nothing is indexed again. But they could not be verified: no mere notice.

    Otherwise whoever makes searches fail each night would hide edits behind a notice.
    """
    if multi:
        # An index that must be left out, so the others are searched by name.
        odd_index(runtime={f"{ORIGIN}.offset": {"type": "long"}})(scene)
    scene.refresh()
    before = {(one["finding"], one["message"]) for one in scene.audit(full=True).findings}
    with FaultyProxy(scene.settings.search.url or "") as proxy:
        search = scene.settings.search.model_copy(update={"url": proxy.endpoint_url})
        given = scene.settings.model_copy(update={"search": search})
        proxy.reset(rewrite=change_searches(PARTIAL[name], lambda number: number >= 2))
        outcome = audit(given, full=True)
    added = [one for one in outcome.findings if (one["finding"], one["message"]) not in before]
    assert added
    assert {(one["finding"], one["severity"]) for one in added} == {("unreadable", "unverifiable")}


def test_a_search_is_made_again_while_elasticsearch_is_busy(scene: Scene) -> None:
    """A circuit breaker that opens for a moment costs no finding, in a search and in a multi-search."""
    odd_index(runtime={f"{ORIGIN}.offset": {"type": "long"}})(scene)
    scene.refresh()
    before = [one["message"] for one in scene.audit(full=True).findings]
    with FaultyProxy(scene.settings.search.url or "") as proxy:
        search = scene.settings.search.model_copy(update={"url": proxy.endpoint_url})
        given = scene.settings.model_copy(update={"search": search})
        for change in ("circuit breaker", "circuit breaker of a shard"):
            proxy.reset(rewrite=change_searches(PARTIAL[change], lambda number: number % 2 == 0))
            assert [one["message"] for one in audit(given, full=True).findings] == before


def test_more_logs_than_can_be_listed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of more logs than fit into an answer do not hide that they are of no log."""
    monkeypatch.setattr(queries, "_LOGS", 2)
    scene.refresh()
    for partition in range(7, 10):
        add(3, Log("audit.aaa", partition))(scene)
    outcome = scene.audit(full=True)
    assert any(one["finding"] == "index-extra" and "more than 2 logs" in one["message"] for one in outcome.findings), (
        outcome.findings
    )
    assert outcome.exit_code == 13
    rejected = [{"log": f"audit.aaa/{partition}", "offset": 1} for partition in range(3)]
    for document in rejected:
        scene.search.client.index(index=scene.search.rejected, document=document)
    with pytest.raises(SearchError, match="has more logs than can be listed"):
        queries.refused_logs(scene.search)
