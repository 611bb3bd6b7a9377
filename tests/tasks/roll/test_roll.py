"""Indices are rolled by age, and none is deleted by age alone. Tested on a real Elasticsearch."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from custody.archive.reader import find_audit_tip, read_audit
from custody.errors import HeadRollback, SearchError
from custody.format.layout import parse_log_text
from custody.keys.trust import Trust, open_trust
from custody.settings import TierSettings
from custody.store.open import open_store
from custody.tlog import merkle
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.audit.signed import Coverage
from tasks.roll.indices import roll_indices
from tasks.roll.record import Action
from tasks.roll.run import roll_all
from tasks.search.client import Search
from tasks.search.documents import index_name, out_of_range_name, restored_name
from tasks.search.index import index_logs
from tasks.settings import AuditSettings, SearchSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.environment import shifted
from tests.helpers.reading import anything
from tests.helpers.roll import LATER, NOW, event_to_roll, roll
from tests.helpers.sample import Growing
from tests.helpers.search import daily_indices, delete_indices
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.proxy import Fault, FaultyProxy


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    made = Growing(tmp_path, retention_days=1)
    made.append(3, event_to_roll)
    return made


@contextmanager
def indexed(growing: Growing, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """Index an archive under a prefix of its own, yield its settings, and delete its indices afterwards."""
    made = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0),
    )
    index_logs(made)
    yield made
    delete_indices(made)


@pytest.fixture
def given(growing: Growing, elastic: ElasticsearchServer) -> Iterator[Settings]:
    with indexed(growing, elastic) as made:
        yield made


@pytest.fixture
def search(given: Settings) -> Iterator[Search]:
    opened = Search(given.search)
    yield opened
    opened.close()


def test_tomorrow(given: Settings, search: Search) -> None:
    """Tomorrow's index is created once, with the alias and the mapping."""
    tomorrow = index_name(given.search.prefix, (NOW + timedelta(days=1)).date())
    assert roll(given) == [Action("create", tomorrow, "done")]
    found = search.client.indices.get(index=tomorrow)[tomorrow]
    assert given.search.prefix in found["aliases"]
    assert found["mappings"]["properties"]["client_ip"]["type"] == "ip"
    assert roll(given) == []


def test_old_indices_are_closed_and_merged(growing: Growing, given: Settings, search: Search) -> None:
    """Some days after its day, an index is read-only and has one segment. The next roll has nothing to do."""
    search.client.indices.flush(index=f"{search.prefix}*")
    growing.append(3, event_to_roll)
    index_logs(given)
    search.client.indices.flush(index=f"{search.prefix}*")
    today = max(daily_indices(search))
    actions = roll(given, NOW + timedelta(days=4))
    assert [one for one in actions if one.target == today and one.what in {"read-only", "merge"}] == [
        Action("read-only", today, "done"),
        Action("merge", today, "done"),
    ]
    settings = search.client.indices.get_settings(index=today, flat_settings=True)[today]["settings"]
    assert settings["index.blocks.write"] == "true"
    search.client.indices.refresh(index=today)
    stats = search.client.indices.stats(index=today, metric="segments")["indices"][today]["primaries"]
    assert stats["segments"]["count"] == 1
    assert [one for one in roll(given, NOW + timedelta(days=4)) if one.target == today] == []


def test_what_comes_late_opens_its_day(growing: Growing, given: Settings) -> None:
    """A late event opens a read-only index. The next roll makes the index read-only again."""
    roll(given, NOW + timedelta(days=4))
    growing.append(1, event_to_roll)
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (5, 0, None)
    assert [one.what for one in roll(given, NOW + timedelta(days=4)) if one.outcome == "done"][:1] == ["read-only"]


def test_nothing_is_deleted_on_the_word_of_a_timer(given: Settings, search: Search) -> None:
    """An index whose events no audit has verified stays, however old it is, and the refusal says why."""
    before = daily_indices(search)
    refused = [one for one in roll(given, LATER) if one.what == "delete"]
    assert {one.target for one in refused} == before
    assert {one.outcome for one in refused} == {"refused"}
    assert "statement 0 of audit.grows/0 is not verified by an audit yet" in refused[0].why
    assert before <= daily_indices(search)


def test_what_is_not_seen_yet_is_there(growing: Growing, given: Settings, search: Search) -> None:
    """An index whose documents cannot be searched yet does not count as empty."""
    growing.append(1, event_to_roll)
    today = max(daily_indices(search))
    search.client.indices.put_settings(index=today, settings={"index.refresh_interval": "-1"})
    index_logs(given)
    assert {one.outcome for one in roll_indices(given, LATER) if one.target == today} == {"refused"}


def test_a_clock_that_is_ahead_deletes_no_index(
    given: Settings, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is far ahead of all others deletes no index, until an operator confirms the clock.

    Its own refusals, which it signs with its time, do not make the clock right.
    """
    audit(given)
    before = daily_indices(search)
    monkeypatch.setattr("tasks.roll.record.datetime", shifted(LATER - NOW))
    for _ in range(3):
        kept = [one for one in roll_all(given, LATER) if one.what == "delete"]
        assert {(one.target, one.outcome, "--confirm-clock" in one.why) for one in kept} >= {
            (name, "failed", True) for name in before
        }
        assert {one.outcome for one in kept} == {"failed"}
    assert before <= daily_indices(search)
    gone = [one for one in roll_all(given, LATER, confirm_clock=True) if one.what == "delete"]
    assert {one.target for one in gone if one.outcome == "done"} >= before
    assert not before & daily_indices(search)


def test_the_earliest_clock_counts_for_indices(
    given: Settings, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index is old only if it is by every clock, also if another clock agrees with the host's."""
    audit(given)
    before = daily_indices(search)
    monkeypatch.setattr("tasks.roll.run.read_clocks", lambda *_, **__: [LATER, NOW])
    assert [one for one in roll_all(given, LATER) if one.what == "delete"] == []
    assert before <= daily_indices(search)
    monkeypatch.setattr("tasks.roll.run.read_clocks", lambda *_, **__: [LATER, LATER])
    assert {one.outcome for one in roll_all(given, LATER) if one.target in before} == {"done"}
    assert not before & daily_indices(search)


def test_deleted_once_verified(given: Settings, search: Search) -> None:
    """Once signed audits have verified every statement with an event in it, an old index is deleted."""
    audit(given)
    before = daily_indices(search)
    planned = [one for one in roll(given, LATER, dry_run=True) if one.what == "delete"]
    assert [(one.target, one.outcome) for one in planned] == [(name, "planned") for name in sorted(before)]
    assert daily_indices(search) == before
    assert {one.outcome for one in roll(given, LATER) if one.what == "delete"} == {"done"}
    assert not before & daily_indices(search)


def test_a_part_is_not_enough(growing: Growing, given: Settings) -> None:
    """Events sealed after the last audit keep their day's index."""
    audit(given)
    growing.append(1, event_to_roll)
    index_logs(given)
    refused = [one for one in roll(given, LATER) if one.what == "delete" and one.outcome == "refused"]
    assert len(refused) == 1
    assert "statement 3 of audit.grows/0" in refused[0].why


def test_an_audit_that_found_something_vouches_for_nothing(growing: Growing, given: Settings) -> None:
    """If the archive is damaged, no index is deleted, because it may have the only copy."""
    path = next((growing.folder / "events").rglob("*.gz"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    audit(given)
    assert {one.outcome for one in roll(given, LATER) if one.what == "delete"} == {"refused"}


def test_an_unsigned_audit_vouches_for_nothing(growing: Growing, given: Settings) -> None:
    """An audit that no trusted key signed permits no deletion."""
    audit(given)
    path = growing.folder / "audits" / f"{0:012}.json"
    data = path.read_bytes()
    line, _, signatures = data.partition(b"\n")
    changed = json.loads(line)
    changed["counts"]["events"] += 1
    path.unlink()
    path.write_bytes(json.dumps(changed, separators=(",", ":")).encode() + b"\n" + signatures)
    assert {one.outcome for one in roll(given, LATER) if one.what == "delete"} == {"refused"}


def test_an_audit_that_does_not_parse_vouches_for_nothing(growing: Growing, given: Settings, search: Search) -> None:
    """A damaged audit does not undo what other audits have verified. Each is read once, the newest first."""
    audit(given)
    audit(given)
    growing.append(1, event_to_roll)
    index_logs(given)
    audit(given)
    path = growing.folder / "audits" / f"{1:012}.json"
    path.unlink()
    path.write_bytes(b"no audit")
    before = daily_indices(search)
    assert {one.outcome for one in roll(given, LATER, dry_run=True) if one.target in before} == {"planned"}

    read: list[int] = []

    class Counting(Coverage):
        def _read(self, sequence: int) -> None:
            read.append(sequence)
            super()._read(sequence)

    trust = open_trust([given.keys])
    verified = Counting(open_store(given.archive), trust)
    log = parse_log_text(growing.log)
    assert log
    assert [verified.gap(log, 3, 4), read] == [None, [2]]
    assert [verified.gap(log, 0, 4), verified.gap(log, 0, 5), verified.gap(log, 1, 3)] == [None, 4, None]
    assert read == [2, 1, 0]


def test_an_audit_by_a_key_that_had_ended_vouches_for_nothing(growing: Growing, tmp_path: Path) -> None:
    """Audits that a leaked key signed count up to the heads at which it ended, and not after them."""
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}", audit=AuditSettings(tables=False))
    audit(given)
    store, log = open_store(given.archive), parse_log_text(growing.log)
    assert log
    signed = read_audit(store, 0, anything)
    (key,) = (one for one in given.own_trust().keys.values() if one.algorithm == "HMAC-SHA256")
    end = {"size": 1, "root": merkle.leaf_hash(signed.message).hex()}

    def trusting(until: dict[str, Any], **span: Any) -> Trust:
        entry = {"id": key.id, "algorithm": key.algorithm, "from": None, "to": None, **span}
        path = tmp_path / "trust.json"
        path.write_text(json.dumps({"format": "custody/trust/1", "keys": [entry | until]}))
        return open_trust([given.keys], path)

    assert Coverage(store, trusting({"until": {"audits/0": end}})).gap(log, 0, 3) is None
    assert Coverage(store, trusting({}, to="2020-01-01T00:00:00.000000Z")).gap(log, 0, 3) == 0
    for until in ({}, {"audits/0": {**end, "root": "11" * 32}}):
        with pytest.raises(HeadRollback, match="ended"):
            Coverage(store, trusting({"until": until})).gap(log, 0, 3)


def test_foreign_documents_keep_an_index(given: Settings, search: Search) -> None:
    """An index with documents that the archive does not have is evidence, and stays."""
    audit(given)
    index = max(daily_indices(search))
    search.client.index(index=index, id="x", document={"@custody": {"topic": "other", "partition": 0, "offset": 1}})
    refused = [one for one in roll(given, LATER) if one.outcome == "refused"]
    assert [one.target for one in refused] == [index]
    assert "a log that the archive does not have" in refused[0].why


def bring_back(search: Search) -> str:
    """Put today's documents where a backfill puts those of a day that had aged out, and return the index."""
    name = restored_name(search.prefix, date(2026, 1, 1))
    search.client.indices.refresh(index=f"{search.prefix}*")
    for hit in search.client.search(index=search.prefix, size=100)["hits"]["hits"]:
        search.client.index(index=name, id=hit["_id"], document=hit["_source"])
    search.client.indices.refresh(index=name)
    return name


def test_what_was_brought_back_goes_again(given: Settings, search: Search) -> None:
    """A restored day stays for `search.restored_days` after it was restored, and is deleted once it is verified."""
    audit(given)
    name = bring_back(search)
    days = given.search.restored_days
    assert all(one.target != name for one in roll(given, NOW + timedelta(days=days - 1)))
    later = datetime.now(UTC) + timedelta(days=days, minutes=5)
    (planned,) = (one for one in roll(given, later, dry_run=True) if one.target == name)
    assert (planned.what, planned.outcome) == ("delete", "planned")
    assert search.client.indices.exists(index=name)
    (done,) = (one for one in roll(given, later) if one.target == name)
    assert (done.outcome, done.why) == ("done", f"restored {days} days ago, and all its events verified")
    assert not search.client.indices.exists(index=name)
    assert daily_indices(search)


def test_what_was_brought_back_waits_for_an_audit(given: Settings, search: Search) -> None:
    """A restored day that no audit has verified stays, however old it is, and the refusal says why."""
    name = bring_back(search)
    (refused,) = (one for one in roll(given, NOW + timedelta(days=60)) if one.target == name)
    assert (refused.what, refused.outcome) == ("delete", "refused")
    assert "is not verified by an audit yet" in refused.why
    assert search.client.indices.exists(index=name)


def test_a_foreign_document_keeps_what_was_brought_back(given: Settings, search: Search) -> None:
    """A restored day with a document that the archive does not have is evidence, and stays."""
    audit(given)
    name = bring_back(search)
    search.client.index(index=name, document={"request_id": "of nowhere"})
    (refused,) = (one for one in roll(given, NOW + timedelta(days=40)) if one.target == name)
    assert (refused.outcome, "not say where" in refused.why) == ("refused", True)
    assert search.client.indices.exists(index=name)


MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def outlying(tmp_path: Path, elastic: ElasticsearchServer) -> Iterator[tuple[Growing, Settings]]:
    """An archive, and its settings, with out-of-range events only: two statements of yesterday, two of today."""
    growing = Growing(tmp_path, begun=MIDNIGHT - timedelta(minutes=2))
    growing.append(4, lambda offset: event_to_roll(offset, timestamp="1970-01-01T00:00:00Z"))
    with indexed(growing, elastic) as made:
        yield growing, made


def outliers(given: Settings) -> list[int]:
    opened = Search(given.search)
    name = out_of_range_name(opened.prefix)
    opened.client.indices.refresh(index=name)
    hits = opened.client.search(index=name, size=100)["hits"]["hits"]
    opened.close()
    return sorted(hit["_source"].get("@custody", {}).get("offset", -1) for hit in hits)


def test_outlying_events_go_by_when_they_were_sealed(
    outlying: tuple[Growing, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out-of-range events are deleted once they were sealed long ago and signed audits have verified them.

    What no event of the archive is stays as evidence, and the next audit misses nothing that went.
    """
    growing, given = outlying
    monkeypatch.setattr("tasks.search.queries._PAGE", 3)
    later = MIDNIGHT + timedelta(days=given.search.days, hours=12)
    target = f"{out_of_range_name(given.search.prefix)}: {growing.log}"

    def ended(now: datetime, *, dry_run: bool = False) -> list[Action]:
        return [one for one in roll(given, now, dry_run=dry_run) if one.what == "delete"]

    assert ended(later - timedelta(days=1)) == []
    (refused,) = ended(later)
    assert (refused.target, refused.outcome) == (target, "refused")
    assert "statement 0 of audit.grows/0 is not verified by an audit yet" in refused.why
    audit(given)
    opened = Search(given.search)
    opened.client.index(index=out_of_range_name(opened.prefix), document={"request_id": "of nowhere"})
    opened.close()
    (planned,) = ended(later, dry_run=True)
    assert (planned.target, planned.outcome) == (target, "planned")
    assert "10 documents" in planned.why
    assert outliers(given) == [-1, *range(20)]
    (done,) = ended(later)
    assert (done.target, done.outcome) == (target, "done")
    assert outliers(given) == [-1, *range(10, 20)]
    assert ended(later) == []
    plan = plan_audit(given, Request(full=True), later)
    found = [one for piece in verify_pieces(given, plan, plan.pieces) for one in piece.findings]
    assert [one for one in found if one["finding"].startswith("index-")] == []


def test_a_fault_while_outlying_events_go(outlying: tuple[Growing, Settings]) -> None:
    """Whichever call fails, young events stay, and the next roll does the rest."""
    _, given = outlying
    audit(given)
    later = MIDNIGHT + timedelta(days=given.search.days, hours=12)
    with FaultyProxy(str(given.search.url)) as proxy:
        through = given.model_copy(update={"search": given.search.model_copy(update={"url": proxy.endpoint_url})})
        proxy.reset()
        list(roll_indices(through, later, dry_run=True))
        for number in range(len(proxy.calls), len(proxy.calls) + 12):
            proxy.reset({number: Fault("reset", effect=True)})
            with contextlib.suppress(SearchError):
                list(roll_indices(through, later))
            assert outliers(given)[-10:] == list(range(10, 20))
    list(roll_indices(given, later))
    assert outliers(given) == list(range(10, 20))


def test_rejected_events_go_by_when_they_were_sealed(tmp_path: Path, elastic: ElasticsearchServer) -> None:
    """Entries of rejected events are deleted once the events were sealed long ago and are verified.

    The next audit misses nothing of them; and what was refused lately, by a backfill say, stays for a while.
    """
    growing = Growing(tmp_path, begun=MIDNIGHT - timedelta(minutes=2))
    growing.append(4, lambda offset: event_to_roll(offset, **{"@custody": offset}))
    with indexed(growing, elastic) as given:
        later = MIDNIGHT + timedelta(days=given.search.days, hours=12)
        name = f"{given.search.prefix}-rejected"
        opened = Search(given.search)
        opened.client.index(index=name, document={"log": "of nowhere/0", "offset": 1})
        opened.client.index(index=name, document={"reason": "none"})

        def ended(now: datetime, *, dry_run: bool = False, **search: int) -> list[Action]:
            changed = given.search.model_copy(update=search)
            actions = roll(given.model_copy(update={"search": changed}), now, dry_run=dry_run)
            return [one for one in actions if one.target.startswith(name)]

        def left() -> int:
            opened.client.indices.refresh(index=name)
            return int(opened.client.count(index=name)["count"])

        assert ended(later - timedelta(days=1)) == []
        (refused,) = ended(later)
        assert (refused.what, refused.target, refused.outcome) == ("delete", f"{name}: {growing.log}", "refused")
        assert "statement 0 of audit.grows/0 is not verified by an audit yet" in refused.why
        audit(given)
        assert ended(later, restored_days=given.search.days + 1) == []
        (planned,) = ended(later, dry_run=True)
        assert (planned.outcome, "10 documents" in planned.why, left()) == ("planned", True, 22)
        (done,) = ended(later)
        assert (done.outcome, left(), ended(later)) == ("done", 12, [])
        outcome = audit(given, MIDNIGHT + timedelta(days=given.search.days), full=True)
        assert [one for one in outcome.findings if one["finding"].startswith("index-")] == []
        assert outcome.counts["rejected"] == 10
        opened.close()


class Dying(FaultyProxy):
    """An Elasticsearch that deletes one index, and answers nothing from then on."""

    dead = False

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        if self.dead:
            raise ConnectionResetError
        self.dead = request.command == "DELETE"
        return super()._ask(request, body)


def test_what_was_done_before_a_fault_is_told_and_signed(
    growing: Growing, given: Settings, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Elasticsearch fails after a deletion, the deletion is still recorded, and the other steps still run."""
    # Else nothing would expire by a clock that is so far ahead.
    monkeypatch.setattr("tasks.roll.expire._other_clocks", lambda *_: [LATER])
    today = max(daily_indices(search))
    growing.append(1, lambda offset: event_to_roll(offset, timestamp="1970-01-01T00:00:00Z"))
    index_logs(given)
    audit(given)
    with Dying(str(given.search.url)) as proxy:
        through = given.model_copy(
            update={
                "search": given.search.model_copy(update={"url": proxy.endpoint_url}),
                "tiers": TierSettings(life_days=99),
            }
        )
        actions = roll_all(through, LATER)
    assert not search.client.indices.exists(index=today)
    (deleted,) = (one for one in actions if one.target == today)
    assert (deleted.what, deleted.outcome) == ("delete", "done")
    (ended,) = (one for one in actions if one.what == "step")
    assert (ended.target, ended.outcome, "does not answer" in ended.why) == ("indices", "failed", True)
    assert {one.outcome for one in actions if one.what == "expire"} == {"done"}
    newest = find_audit_tip(open_store(given.archive), anything).newest
    assert newest
    findings = newest.statement.findings
    assert isinstance(findings, list)
    told = [str(one["message"]) for one in findings]
    assert any(one.startswith("delete done: 100 days old") for one in told)
    assert any(one.startswith("step failed") for one in told)


def test_dry_run(given: Settings, search: Search) -> None:
    """A dry run says what would be done, and changes nothing."""
    before = search.client.indices.get_settings(index=f"{search.prefix}*").body
    actions = roll(given, NOW + timedelta(days=4), dry_run=True)
    assert {one.outcome for one in actions} == {"planned"}
    assert {one.what for one in actions} >= {"create", "read-only"}
    assert search.client.indices.get_settings(index=f"{search.prefix}*").body == before


@pytest.mark.parametrize("fault", [Fault("reset", effect=True), Fault("503", effect=False)], ids=str)
def test_a_fault_at_each_call(given: Settings, search: Search, fault: Fault) -> None:
    """Whichever call fails, no unverified index is deleted, and the next roll does the rest."""
    before = daily_indices(search)
    with FaultyProxy(str(given.search.url)) as proxy:
        through = given.model_copy(update={"search": given.search.model_copy(update={"url": proxy.endpoint_url})})
        proxy.reset()
        list(roll_indices(through, LATER))
        calls = len(proxy.calls)
        assert calls > 5
        for number in range(calls):
            proxy.reset({number: fault})
            with contextlib.suppress(SearchError):
                assert {one.outcome for one in roll_indices(through, LATER) if one.target in before} <= {
                    "refused",
                    "failed",
                }
            assert before <= daily_indices(search)
        proxy.reset()
        audit(given)
        gone = [one for one in roll_indices(through, LATER) if one.what == "delete" and one.target in before]
        assert {one.outcome for one in gone} == {"done"}
    assert not before & daily_indices(search)


def close_index(search: Search, name: str) -> None:
    search.client.indices.close(index=name)


def forbid_reads(search: Search, name: str) -> None:
    search.client.indices.put_settings(index=name, settings={"index.blocks.read": True})


def lie_about_offsets(search: Search, name: str) -> None:
    """Let all documents of an index claim an offset that audits have verified."""
    runtime = {"@custody.offset": {"type": "long"}}
    search.client.indices.put_mapping(index=name, runtime=runtime)


def map_offsets_as_text(search: Search, name: str) -> None:
    documents = search.client.search(index=name, size=10)["hits"]["hits"]
    search.client.indices.delete(index=name)
    offset = {"@custody": {"properties": {"offset": {"type": "keyword"}}}}
    search.client.indices.create(index=name, mappings={"properties": offset})
    search.client.index(index=name, document=documents[0]["_source"], refresh=True)


UNSEARCHABLE: dict[str, tuple[Callable[[Search, str], None], str]] = {
    "closed": (close_index, "it is closed"),
    "no reads": (forbid_reads, "index.blocks.read"),
    "a runtime field": (lie_about_offsets, "a runtime field hides @custody.offset"),
    "another mapping": (map_offsets_as_text, "@custody.offset is mapped as keyword"),
}


@pytest.mark.parametrize("name", UNSEARCHABLE)
def test_an_index_that_cannot_be_searched_is_named_and_left(
    growing: Growing, given: Settings, search: Search, name: str
) -> None:
    """It is neither merged nor deleted, however old it is, and the roll says so by name. Others are rolled."""
    make, reason = UNSEARCHABLE[name]
    audit(given)
    search.client.indices.refresh(index=f"{search.prefix}-*")
    odd = index_name(search.prefix, (NOW - timedelta(days=3)).date())
    (indexed_day, *_) = sorted(daily_indices(search))
    documents = search.client.search(index=indexed_day, size=5)["hits"]["hits"]
    for document in documents:
        # In one segment each, so that a merge is due.
        search.client.index(index=odd, document=document["_source"], refresh=True)
    make(search, odd)
    settled = roll(given, NOW + timedelta(days=4))
    failed = [action for action in settled if action.outcome == "failed"]
    assert [(action.what, action.target, reason in action.why) for action in failed] == [("merge", odd, True)]
    assert Action("read-only", indexed_day, "done") in settled
    late = roll(given, LATER)
    failed = [action for action in late if action.outcome == "failed"]
    assert [(action.what, action.target, reason in action.why) for action in failed] == [("delete", odd, True)]
    assert [action.outcome for action in late if action.target == indexed_day] == ["done"]
    assert odd in search.client.indices.get(index=f"{search.prefix}-*", expand_wildcards="all")
    assert growing.folder.exists()


def test_a_hidden_index_is_rolled(given: Settings, search: Search) -> None:
    """Wildcards leave hidden indices out; the roll does not."""
    audit(given)
    (name, *_) = sorted(daily_indices(search))
    search.client.indices.put_settings(index=name, settings={"index.hidden": True})
    assert [action.outcome for action in roll(given, LATER) if action.target == name] == ["done"]
