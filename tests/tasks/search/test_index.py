"""Every archived event gets into Elasticsearch, whatever fails on the way; tested on a real Elasticsearch."""

import contextlib
import gzip
import json
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from elastic_transport import Transport
from msgspec import structs

from custody.archive.reader import read_archive
from custody.archive.writer import Entry
from custody.errors import ConfigurationError, CustodyError, SearchError, TransientSearchError
from custody.format import layout, manifest
from custody.format.members import pack
from custody.store import retries
from custody.store.open import open_store
from flows.operate import cli as operate
from tasks.search import bulk
from tasks.search.bulk import Bulk, Sent, StoppedError
from tasks.search.client import DOWN, Search, Unreachable
from tasks.search.documents import ORIGIN, Documents, index_day, index_name, out_of_range_name, properties
from tasks.search.index import AT_ONCE, Indexer, IndexResult, index_logs
from tasks.search.indices import prepare, put_cursor, read_cursor
from tasks.search.queries import delete_documents
from tasks.settings import SearchSettings, Settings
from tests.helpers.commands import Command
from tests.helpers.commands import custody as custody_fixture
from tests.helpers.corpus import EVENTS
from tests.helpers.environment import clear_settings
from tests.helpers.remote import URL, pass_for_a_bucket
from tests.helpers.sample import Growing, make_archive
from tests.helpers.search import (
    LOG,
    document_id,
    documents,
    now_event,
    now_event_but_refused,
    search_settings,
)
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.ports import free_ports
from tests.servers.proxy import Fault, FaultyProxy

custody = custody_fixture


def manifest_of(growing: Growing, sequence: int) -> Path:
    return growing.folder / layout.manifest_key(LOG, sequence)


def segment_of(growing: Growing, sequence: int) -> Path:
    segment = manifest.parse(manifest_of(growing, sequence).read_bytes()).statement.segment
    assert segment is not None
    return growing.folder / segment.key


def test_every_event_is_found(growing: Growing, given: Settings) -> None:
    """Each event is a document in the index of its day, with the archived content, and leads back to its evidence."""
    growing.append(4, now_event)
    (result,) = index_logs(given)
    assert (result.created, result.there, result.rejected, result.sequence, result.problem) == (20, 0, 0, 4, None)
    found = documents(given)
    assert set(found) == {document_id(LOG, offset) for offset in range(20)}
    for offset in range(20):
        document = found[document_id(LOG, offset)]
        origin = document.pop(ORIGIN)
        assert (origin["topic"], origin["partition"], origin["offset"]) == ("audit.grows", 0, offset)
        assert (growing.folder / origin["segment"]).exists()
        assert index_day(given.search.prefix, document.pop("_index")) == date.fromisoformat(document["timestamp"][:10])
        assert document["request_id"] == f"request-{offset}"
        assert document["event_type"] == list(EVENTS)[offset % len(EVENTS)]


def test_again_changes_nothing(growing: Growing, given: Settings) -> None:
    """A second run has nothing to do. Without a cursor it offers every event again, and finds it there."""
    growing.append(2, now_event)
    index_logs(given)
    before = documents(given)
    assert [(one.created, one.there) for one in index_logs(given)] == [(0, 0)]
    opened = Search(given.search)
    opened.client.indices.delete(index=opened.cursors)
    opened.close()
    assert [(one.created, one.there) for one in index_logs(given)] == [(0, 10)]
    assert documents(given) == before


def test_from_a_bucket(growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that wait are read together with their segments, not one after the other."""
    growing.append(20, now_event)
    together = pass_for_a_bucket(monkeypatch, growing.folder, "manifests/", "events/")
    (result,) = index_logs(given.model_copy(update={"archive": URL}))
    assert (result.created, result.there, result.rejected, result.sequence, result.problem) == (100, 0, 0, 20, None)
    assert together.one_by_one == []
    assert set(documents(given)) == {document_id(LOG, offset) for offset in range(100)}


def test_an_interrupt_waits_for_no_log(
    growing: Growing, given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the indexing of all logs before their next statement."""
    for partition in range(2 * AT_ONCE):
        Growing(tmp_path, partition, growing.begun).append(1, now_event)
    ended: list[layout.Log] = []
    begun = threading.Barrier(AT_ONCE, timeout=30)

    def look(indexer: Indexer, log: layout.Log, _: object) -> None:
        begun.wait()
        if log == LOG:
            raise KeyboardInterrupt
        assert indexer._stopped.wait(30)
        ended.append(log)

    monkeypatch.setattr(Indexer, "index", look)
    with pytest.raises(KeyboardInterrupt):
        index_logs(given)
    assert len(ended) == AT_ONCE - 1


def test_a_problem_is_kept_where_time_runs_out(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong with a log is over once its head is reached, and not because nobody looked any more."""
    growing.append(1, now_event)
    outcomes: list[Any] = [SearchError("refused"), False, True]

    def follow(*_: object) -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)

    monkeypatch.setattr(Indexer, "_follow", follow)
    store, search, result = open_store(given.archive), Search(given.search), IndexResult(growing.log)
    with ThreadPoolExecutor(1) as threads:
        indexer = Indexer(given, store, search, read_archive(store).id, given.trust_at_hand(), threads)
        problems = []
        for _ in range(3):
            indexer.index(LOG, result)
            problems.append(result.problem)
    search.close()
    assert problems == ["refused", "refused", None]


def test_what_was_sent_is_counted_whatever_fails(given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two requests that fail, both count what they did. What Elasticsearch says comes before that time ran out."""
    parts = [Documents([b"{}"], [b"x" * 2048], [offset]) for offset in range(2)]
    both = threading.Barrier(2, timeout=30)

    def create(_: Bulk, __: layout.Log, documents: Documents, sent: Sent) -> None:
        sent.created += 1
        both.wait()
        raise StoppedError if documents.offsets[0] == 0 else SearchError("refused")

    monkeypatch.setattr(Bulk, "create", create)
    search, total = Search(given.search.model_copy(update={"bulk_bytes": 1024})), Sent()
    with pytest.raises(SearchError, match="refused"):
        Bulk(search).send(LOG, parts, total)
    search.close()
    assert total.created == 2


def test_rejections_as_json(growing: Growing, given: Settings, custody: Command) -> None:
    """`--json` has the number of rejected events by reason."""
    growing.append(4, now_event_but_refused)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("URL", given.search.url), ("PREFIX", given.search.prefix), ("REPLICAS", "0")):
            patch.setenv(f"CUSTODY_SEARCH__{name}", str(value))
        done = custody("index", "--json", "--archive", growing.folder, "--keys", growing.keyring)
    result = json.loads(done.out)
    assert (result["created"], result["rejected"]) == (19, 1), done.err
    assert list(result["reasons"].values()) == [1]


def test_requests_at_once_have_a_limit(
    growing: Growing, given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many logs are indexed at once, Elasticsearch gets four bulk requests at a time."""
    for partition in range(12):
        Growing(tmp_path, partition, growing.begun).append(1, now_event, each=20)
    given = given.model_copy(update={"search": given.search.model_copy(update={"bulk_bytes": 1024})})
    ask, now, most, changed = Transport.perform_request, 0, 0, threading.Condition()

    def count(transport: Transport, method: str, target: str, **more: Any) -> Any:
        nonlocal now, most
        if "_bulk" not in target:
            return ask(transport, method, target, **more)
        with changed:
            now += 1
            most = max(most, now)
            changed.wait_for(lambda: most > 4, 0.1)
        try:
            return ask(transport, method, target, **more)
        finally:
            with changed:
                now -= 1

    monkeypatch.setattr(Transport, "perform_request", count)
    assert [one.created for one in index_logs(given)] == [20] * 12
    assert 1 < most <= 4


def test_slots_that_were_passed_over(growing: Growing, given: Settings) -> None:
    """A slot without a statement is a problem until the writer passes over it."""
    growing.append(1, now_event)
    (growing.folder / "manifests" / growing.log / f"{1:012}.json").write_bytes(b"no manifest")
    store, search = open_store(given.archive), Search(given.search)
    prepare(search)
    result = IndexResult(growing.log)
    with ThreadPoolExecutor(1) as threads:
        indexer = Indexer(given, store, search, read_archive(store).id, given.trust_at_hand(), threads)
        assert indexer.index(LOG, result)
        assert "manifest" in (result.problem or "")
        growing.append(1, now_event)
        assert indexer.index(LOG, result)
    assert (result.created, result.sequence, result.problem) == (10, 3, None)
    search.close()
    assert [one.problem for one in index_logs(given)] == [None]


def test_growth_is_followed(growing: Growing, given: Settings) -> None:
    """Statements that are sealed later are indexed from the cursor on."""
    growing.append(1, now_event)
    index_logs(given)
    growing.append(2, now_event)
    assert [(one.created, one.there, one.sequence) for one in index_logs(given)] == [(10, 0, 3)]
    opened = Search(given.search)
    archive = read_archive(open_store(str(growing.folder))).id
    assert read_cursor(opened, archive, LOG) == 3
    opened.close()


@pytest.mark.parametrize("sequence", [0, 1, 1_000_000])
def test_what_has_aged_out_is_not_indexed(growing: Growing, given: Settings, sequence: int) -> None:
    """From an old or untrue cursor, indexing continues with the events that the next roll would keep."""
    growing.begun = datetime.now(UTC) - timedelta(days=given.search.days + 10)
    growing.append(3, now_event)
    for path in (growing.folder / "events").rglob("*.gz"):
        path.unlink()
    growing.begun = datetime.now(UTC) - timedelta(minutes=30)
    growing.append(2, now_event)
    archive = read_archive(open_store(str(growing.folder))).id
    opened = Search(given.search)
    prepare(opened)
    put_cursor(opened, archive, LOG, sequence)
    (result,) = index_logs(given)
    assert (result.created, result.sequence, bool(result.problem)) == (10, 5, sequence > 5)
    cursor = read_cursor(opened, archive, LOG)
    opened.close()
    assert cursor == 5
    assert set(documents(given)) == {document_id(LOG, offset) for offset in range(15, 25)}


def test_gaps_keep_their_offsets(tmp_path: Path, elastic: ElasticsearchServer) -> None:
    """Quarantined and skipped offsets have no document. Later events keep their own offsets."""
    sample = make_archive(tmp_path)
    given = Settings(
        archive=str(sample.folder),
        keys=f"file:{sample.keyring}",
        search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0, days=3650),
    )
    index_logs(given)
    found = documents(given)
    assert set(found) == {document_id(sample.log, offset) for offset in sample.events}
    for offset, content in sample.events.items():
        assert found[document_id(sample.log, offset)]["request_id"] == json.loads(content)["request_id"]


def test_far_days_share_an_index(growing: Growing, given: Settings) -> None:
    """Events whose day is far from their sealing share an index, and can be searched."""
    times = ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00+14:00"]
    today = datetime.now(UTC)

    def content(offset: int) -> bytes:
        return now_event(offset, **({"timestamp": times[offset]} if offset < len(times) else {}))

    growing.append(1, content)
    index_logs(given)
    names = sorted(one["_index"] for one in documents(given).values())
    assert names[-3:] == [out_of_range_name(given.search.prefix)] * 3
    assert set(names[:2]) <= {index_name(given.search.prefix, (today - timedelta(days=d)).date()) for d in (0, 1)}


def test_what_is_refused_stops_nothing(growing: Growing, given: Settings) -> None:
    """An event that Elasticsearch rejects is listed with the reason. The others are indexed."""

    def content(offset: int) -> bytes:
        event = json.loads(now_event(offset))
        if offset == 3:
            event = {**json.loads(now_event(3)), **EVENTS["api_key_operation"], "permissions": [{"no": "keyword"}]}
        return json.dumps(event).encode()

    growing.append(2, content)
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (9, 1, None)
    opened = Search(given.search)
    opened.client.indices.refresh(index=opened.rejected)
    (hit,) = opened.client.search(index=opened.rejected)["hits"]["hits"]
    opened.close()
    assert hit["_id"] == document_id(LOG, 3)
    assert hit["_source"]["offset"] == 3
    assert "permissions" in hit["_source"]["reason"]
    assert document_id(LOG, 3) not in documents(given)


def test_values_out_of_range_are_kept(growing: Growing, given: Settings) -> None:
    """Unknown fields, and values that do not fit a field's type, stay in the source. The event is not rejected."""
    odd = {"timestamp": f"{date.today()}T00:00:00.1234567890123Z", "client_ip": "::ffff:1.2.3.4", "more": {"a": [1]}}  # noqa: DTZ011
    growing.append(1, lambda offset: now_event(offset, **odd))
    (result,) = index_logs(given)
    assert (result.created, result.rejected) == (5, 0)
    assert all(one["more"] == {"a": [1]} for one in documents(given).values())


def test_mapping_does_not_grow(growing: Growing, given: Settings) -> None:
    """The mapping has the fields of the six event types only, whatever fields producers add."""
    growing.append(2, lambda offset: now_event(offset, **{f"invented_{offset}": offset}))
    index_logs(given)
    opened = Search(given.search)
    found = opened.client.indices.get_mapping(index=f"{given.search.prefix}-2*")
    opened.close()
    for one in found.values():
        assert set(one["mappings"]["properties"]) == set(properties())


def test_lost_elasticsearch(growing: Growing, given: Settings) -> None:
    """If all indices were lost, with the cursors, the next run indexes everything again."""
    growing.append(3, now_event)
    index_logs(given)
    before = documents(given)
    opened = Search(given.search)
    opened.client.indices.delete(index=f"{given.search.prefix}*")
    opened.close()
    assert [one.created for one in index_logs(given)] == [15]
    assert documents(given) == before


def lost_segment(growing: Growing, sequence: int) -> None:
    segment_of(growing, sequence).unlink()


def flipped_bit(growing: Growing, sequence: int) -> None:
    path = segment_of(growing, sequence)
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)


def unreadable_manifest(growing: Growing, sequence: int) -> None:
    manifest_of(growing, sequence).write_bytes(b"no manifest")


def misplaced_manifest(growing: Growing, sequence: int) -> None:
    manifest_of(growing, sequence).write_bytes(manifest_of(growing, 0).read_bytes())


def lost_manifest(growing: Growing, sequence: int) -> None:
    manifest_of(growing, sequence).unlink()


BAD = [lost_segment, flipped_bit, unreadable_manifest, misplaced_manifest, lost_manifest]


def test_nothing_stalls_behind_what_is_bad(growing: Growing, given: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A statement that cannot be indexed is reported once. All later statements are indexed."""
    growing.append(2 * len(BAD) + 1, now_event)
    bad = range(1, 2 * len(BAD), 2)
    for sequence, make in zip(bad, BAD, strict=True):
        make(growing, sequence)
    (result,) = index_logs(given)
    assert (result.sequence, result.behind) == (2 * len(BAD) + 1, 0.0)
    assert "sequence 1 of audit.grows/0" in str(result.problem)
    assert f"and {len(BAD) - 1} more problems like this" in str(result.problem)
    for sequence in bad:
        names = {f"{sequence:012}.json", f"sequence {sequence} of", f"(sequence {sequence})"}
        assert any(name in one for one in caplog.messages for name in names)
    good = {offset for offset in range(growing.events) if offset // 5 not in bad}
    assert {document_id(LOG, offset) for offset in good} <= set(documents(given))
    (result,) = index_logs(given)
    assert (result.created, result.sequence, result.problem) == (0, 2 * len(BAD) + 1, None)


NO_EVENTS = (b"{]", b"", b"[]", b'{"@custody":]', b'"@custody"')


def test_nothing_stalls_behind_signed_lines_that_are_no_events(growing: Growing, given: Settings) -> None:
    """A signed line that is not an event is reported. All later statements are indexed."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    def two_days(offset: int) -> bytes:
        return now_event(offset, timestamp=f"{today - timedelta(days=offset % 2):%FT%TZ}")

    def put(line: bytes, entry: Entry) -> Entry:
        payload = b"\n".join([line, *gzip.decompress(entry.members[0]).split(b"\n")[1:]])
        member, (first, second) = pack(payload).data, entry.batches
        said = {"size": len(member), "inflated": len(payload), "sha256": sha256(payload).hexdigest()}
        batches = [structs.replace(first, **said), structs.replace(second, start=len(member))]
        return replace(entry, members=[member, *entry.members[1:]], batches=batches)

    for line in NO_EVENTS:
        growing.append(1, now_event if ORIGIN.encode() in line else two_days, partial(put, line))
    growing.append(1, now_event)
    (result,) = index_logs(given)
    assert (result.created, result.sequence) == (5, len(NO_EVENTS) + 1)
    assert "sequence 0 of audit.grows/0: batch 0 of sequence 0 has a line that is no event" in str(result.problem)
    assert f"and {len(NO_EVENTS) - 1} more problems like this" in str(result.problem)
    assert "\n" not in str(result.problem)


def test_a_hole_is_not_the_head(growing: Growing, given: Settings) -> None:
    """Manifests deleted at the cursor, or right before it, are reported as missing. Later statements are indexed."""
    growing.append(4, now_event)
    index_logs(given)
    growing.append(5, now_event)
    for sequence in (4, 5, 6):
        lost_manifest(growing, sequence)
    (result,) = index_logs(given)
    assert (result.created, result.sequence) == (10, 9)
    assert "(4 to 6), but later ones exist" in str(result.problem)
    lost_manifest(growing, 7)
    (result,) = index_logs(given)
    assert (result.created, result.sequence, result.problem) == (0, 9, None)
    lost_manifest(growing, 8)
    (result,) = index_logs(given)
    assert (result.there, result.sequence) == (20, 4)
    assert "the log has fewer" in str(result.problem)


def test_an_unreadable_end_is_said_until_it_is_mended(growing: Growing, given: Settings) -> None:
    """A cursor never passes the last readable statement, even if somebody put an object far ahead."""
    growing.append(2, now_event)
    for sequence in (2, 10**9):
        unreadable_manifest(growing, sequence)
    for _ in range(2):
        (result,) = index_logs(given)
        assert result.sequence == 2
        assert "and 2 more problems like this" in str(result.problem)
    lost_manifest(growing, 2)
    (result,) = index_logs(given)
    assert result.sequence == 2
    assert "(2 to 999999999), but later ones exist" in str(result.problem)
    unreadable_manifest(growing, 2)
    for sequence in (2, 10**9):
        lost_manifest(growing, sequence)
    growing.append(1, now_event)
    (result,) = index_logs(given)
    assert (result.created, result.sequence, result.problem) == (5, 3, None)


def test_what_expired_is_no_loss(growing: Growing, given: Settings) -> None:
    """Segments that a signed statement calls expired are no problem. Other missing segments are."""
    growing.append(4, now_event)
    for sequence in (0, 1, 2):
        lost_segment(growing, sequence)
    growing.expire(0, 2)
    (result,) = index_logs(given)
    assert (result.created, result.sequence) == (5, 5)
    assert "sequence 2 of" in str(result.problem)
    assert "more problems" not in str(result.problem)


@pytest.mark.parametrize("hole", [[0, 1], [4, 5, 7], [8, 9, 11]], ids=str)
def test_what_has_aged_out_is_not_indexed_whatever_is_missing(
    growing: Growing, given: Settings, hole: list[int]
) -> None:
    """Where manifests are missing, too, a lost Elasticsearch gets all that is wanted, and nothing that is not."""
    growing.begun = datetime.now(UTC) - timedelta(days=given.search.days + 10)
    growing.append(9, now_event)
    growing.begun = datetime.now(UTC) - timedelta(minutes=30)
    growing.append(4, now_event)
    for sequence in hole:
        lost_manifest(growing, sequence)
    (result,) = index_logs(given)
    assert result.sequence == 13
    assert set(documents(given)) == {
        document_id(LOG, offset)
        for sequence in {9, 10, 11, 12} - {*hole}
        for offset in range(sequence * 5, sequence * 5 + 5)
    }


@pytest.mark.parametrize("seed", range(3))
def test_times_need_no_order(growing: Growing, given: Settings, seed: int) -> None:
    """Every statement of the last days is indexed, and no other, in whatever order the clocks were."""
    chance, days = random.Random(seed), given.search.days
    ages = [timedelta(days=chance.choice([0, 1, days - 1, days + 1, 4000])) for _ in range(24)]
    # By halves, the first recent one was taken to be behind the second old one.
    ages[0] = ages[15] = timedelta(days=4000)
    recent = {sequence for sequence, age in enumerate(ages) if age.days < days}
    for age in ages:
        growing.begun = datetime.now(UTC) - age - timedelta(minutes=growing.size + 1)
        growing.append(1, now_event)
    (result,) = index_logs(given)
    expected = {document_id(LOG, offset) for sequence in recent for offset in range(5 * sequence, 5 * sequence + 5)}
    assert (result.sequence, result.problem, set(documents(given))) == (24, None, expected), seed


def test_a_time_of_the_future_hides_no_delay(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that waits, and was sealed by a clock years ahead, counts as late: its time tells nothing."""
    growing.begun = datetime.now(UTC) + timedelta(days=400)
    growing.append(1, now_event)

    def refuse(*_: Any, **__: Any) -> None:
        raise SearchError("no")

    monkeypatch.setattr(Indexer, "_index", refuse)
    (result,) = index_logs(given)
    assert result.problem
    assert result.behind > timedelta(days=399).total_seconds()


FAULTS = [Fault(kind, effect) for kind in ("reset", "429", "503") for effect in (False, True)]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_at_each_call(growing: Growing, given: Settings, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """If any call fails, before or after its effect, the next run ends with every event indexed once."""
    monkeypatch.setattr(bulk, "PATIENCE_SECONDS", 1)
    growing.append(1, now_event)
    index_logs(given)
    expected = documents(given)
    opened = Search(given.search)
    with FaultyProxy(str(given.search.url)) as proxy:
        through = search_settings(growing, proxy.endpoint_url, given.search.prefix, bulk_bytes=1024)
        opened.client.indices.delete(index=f"{given.search.prefix}*")
        proxy.reset()
        index_logs(through)
        calls = len(proxy.calls)
        assert calls > 3
        for number in range(calls):
            opened.client.indices.delete(index=f"{given.search.prefix}*")
            proxy.reset({number: fault})
            with contextlib.suppress(SearchError):
                index_logs(through)
            proxy.reset()
            (result,) = index_logs(through)
            assert result.problem is None
            assert documents(given) == expected
    opened.close()


def test_down(growing: Growing, given: Settings) -> None:
    """If Elasticsearch does not answer, the error is one line with the address."""
    growing.append(1, now_event)
    (port,) = free_ports(1)
    down = given.model_copy(update={"search": given.search.model_copy(update={"url": f"http://127.0.0.1:{port}"})})
    with pytest.raises(SearchError, match=f"{port} does not answer .*: check that it runs, and search.url$"):
        index_logs(down)
    with pytest.raises(ConfigurationError, match="is not set"):
        index_logs(given.model_copy(update={"search": SearchSettings()}))


@pytest.mark.parametrize("command", ["index", "backfill"])
def test_a_server_that_takes_connections_and_answers_none(growing: Growing, custody: Command, command: str) -> None:
    """It is named within seconds, as `custody status` does, and not after the timeout of a request."""
    growing.append(1, now_event)
    span = ("--since", "2000-01-01", "--until", "now") if command == "backfill" else ()
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CUSTODY_SEARCH__URL", url)
            begin = time.monotonic()
            refused = custody(command, *span, "--archive", growing.folder, "--keys", growing.keyring)
    assert refused.code == 1
    assert refused.err.splitlines()[-1].startswith(f"custody: Elasticsearch at {url} does not answer within 3 s")
    assert time.monotonic() - begin < 10


ODD_ANSWERS: list[Any] = [
    {"errors": True, "items": []},
    {"errors": True, "items": [{"create": {"status": 400}}] * 6},
    {"errors": True, "items": None},
    {"hits": None},
    [],
]


@pytest.mark.parametrize("answer", ODD_ANSWERS, ids=str)
def test_a_server_that_answers_oddly(growing: Growing, answer: Any) -> None:
    """A server that does not answer like Elasticsearch is reported, whatever it answers."""

    class Odd(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            cursor = self.path.startswith("/odd-cursors/_doc")
            body = b"{}" if cursor else json.dumps(answer).encode()
            self.send_response(404 if cursor else 200)
            self.send_header("x-elastic-product", "Elasticsearch")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - as the server names them

        def log_message(self, *_: object) -> None:
            pass

    growing.append(1, now_event)
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given = search_settings(growing, f"http://127.0.0.1:{server.server_port}", "odd")
        with pytest.raises(SearchError, match="does not answer like an Elasticsearch"):
            index_logs(given)
        opened = Search(given.search)
        with pytest.raises(SearchError, match="does not answer like"):
            delete_documents(opened, "odd", {})
        opened.close()
        server.shutdown()


@pytest.mark.parametrize("part", ["status line", "header", "body"])
def test_a_server_that_drips(growing: Growing, part: str) -> None:
    """A response takes one timeout at most, though a byte of it comes before each wait for one is over."""
    head = {
        "status line": b"HTTP/1.1 200 OK",
        "header": b"HTTP/1.1 200 OK\r\nx-elastic-product: Elasticsearch",
        "body": b"HTTP/1.1 200 OK\r\nx-elastic-product: Elasticsearch\r\ncontent-length: 1000\r\n\r\n",
    }[part]
    closing = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(head)
            with contextlib.suppress(OSError):
                for _ in range(200):
                    if closing.wait(0.1):
                        break
                    self.wfile.write(b" ")
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given = search_settings(growing, f"http://127.0.0.1:{server.server_port}", "drips")
        opened = Search(given.search, 1)
        begin = time.monotonic()
        try:
            with (
                pytest.raises(TransientSearchError, match=f"does not answer .*: {DOWN}$") as caught,
                opened.errors("a look"),
            ):
                opened.client.indices.get(index="drips")
            assert time.monotonic() - begin < 10
            # Something answers there.
            assert not isinstance(caught.value, Unreachable)
        finally:
            closing.set()
            opened.close()
            server.shutdown()


def all_refused(_: int) -> bytes:
    return now_event_but_refused(18)


def test_an_index_command_that_indexes_nothing_fails(
    growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how many events were rejected, the commonest reason, and where to look. Exit 0 only if some are there."""
    monkeypatch.setattr(operate, "_settings", lambda: given)
    growing.append(1, all_refused)
    with pytest.raises(CustodyError) as caught:
        operate.index()
    said = str(caught.value)
    assert "nothing was indexed" in said
    assert "Elasticsearch rejected 5 events, most often because of document_parsing_exception: failed to parse" in said
    assert f"{given.search.prefix}-rejected lists each" in said
    growing.append(1, now_event)
    growing.append(1, all_refused)
    operate.index()
    assert "Elasticsearch rejected 5 events" in capsys.readouterr().err
    # Nothing to do is no failure.
    operate.index()


def test_what_is_indexed_without_keys_is_unverified(
    growing: Growing, given: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys no signature is checked, and a warning says so, in the words of a query."""
    clear_settings(monkeypatch)
    # The default keyring is one of the current folder.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    growing.append(1, now_event)
    (result,) = index_logs(Settings(archive=given.archive, search=given.search))
    assert (result.created, result.problem) == (5, None)
    said = "unverified: no keys are at hand, so no signature was checked; set `keys`, or `trust`"
    # A busy server may need a second try, which its client logs.
    ours = [record for record in caplog.records if not record.name.startswith("elastic_transport")]
    assert [record.getMessage() for record in ours] == [said]


def test_reasons_of_rejections_are_bounded() -> None:
    """A producer that thinks of many reasons fills no memory."""
    total = bulk.Sent()
    for number in range(1000):
        bulk.Sent(rejected=1, reasons=Counter([f"reason {number}"])).add_to(total)
    assert total.rejected == total.reasons.total() == 1000
    assert len(total.reasons) <= bulk._REASONS + 1


def test_requests_that_are_made_again_are_counted(growing: Growing, given: Settings) -> None:
    """What Elasticsearch is too busy for counts once for each time that it is sent again."""
    growing.append(1, now_event)
    with FaultyProxy(str(given.search.url)) as proxy:
        proxied = search_settings(growing, proxy.endpoint_url, given.search.prefix)
        proxy.reset(always=Fault("429", effect=False), part="/_bulk")

        def recover() -> None:
            deadline = time.monotonic() + 60
            while not any("/_bulk" in call for call in proxy.calls) and time.monotonic() < deadline:
                time.sleep(0.05)
            proxy.reset()

        retries.take()
        recovering = threading.Thread(target=recover)
        recovering.start()
        (result,) = index_logs(proxied)
        recovering.join()
        assert (result.created, result.problem) == (5, None)
        counts = retries.take()
        assert set(counts) == {("elasticsearch", "429")}
        assert counts.total() >= 1
