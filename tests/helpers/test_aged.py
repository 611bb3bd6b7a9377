"""The archive of any age is one that the verifier and the store's protocol agree with, and its requests are counted."""

import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest

import custody
from custody.errors import ObjectExists, ObjectMissing
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from tests.helpers.aged import DAY, EACH, AgedStore, make_archive, use_aged

END = datetime(2026, 11, 28, tzinfo=UTC)
STATEMENTS = 2 * DAY + 10


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AgedStore:
    """Return an archive of two days and some minutes, of two logs."""
    return make_archive(tmp_path_factory.mktemp("aged"), STATEMENTS, logs=2, end=END)


def test_the_verifier_finds_nothing(store: AgedStore) -> None:
    """Every manifest, segment, checkpoint and audit is of the format, signed, and chained."""
    report = verify(store, open_trust([store.keys]), now=END, workers=0)
    assert [finding.message for finding in report.findings] == []
    assert sum(log.size for log in report.logs) == 2 * STATEMENTS


def test_a_listing_has_each_object_as_it_is_read(store: AgedStore) -> None:
    """Keys come in order, sizes are those of the bytes, and a part of a listing is that part of the whole."""
    infos = list(store.list())
    keys = [info.key for info in infos]
    assert keys == sorted(keys)
    assert len(keys) == 2 * 2 * STATEMENTS + 2 * 49 + 2 + 2 + 1
    for info in infos[::97]:
        assert len(store.read(info.key, limit=1 << 20)) == info.size
    for prefix in ("manifests/audit/1/", "events/2026/11/27/23", "checkpoints/audits/", "audits/0", "archive.json"):
        under = [key for key in keys if key.startswith(prefix)]
        assert [info.key for info in store.list(prefix)] == under
        assert [info.key for info in store.list(prefix, after=under[len(under) // 2])] == under[len(under) // 2 + 1 :]
    for prefix in ("", "events/", "events/2026/11/27/23/", "manifests/", "manifests/audit/", "checkpoints/", "audits/"):
        below = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        folders, objects = store.level(prefix)
        assert folders == sorted({key.partition("/")[0] for key in below if "/" in key})
        assert sorted(info.key for info in objects) == sorted(prefix + key for key in below if "/" not in key)


def test_requests_are_counted_as_s3_has_them(store: AgedStore) -> None:
    """A listing takes a request for each 1,000 keys, all else takes one."""
    store.requests.clear()
    list(store.list("manifests/audit/0/"))
    list(store.history("manifests/"))
    store.exists("manifests/audit/0/000000009999.json")
    with pytest.raises(ObjectMissing):
        store.read("manifests/audit/0/000000009999.json", limit=1)
    store.create("reports/one", b"1")
    assert store.read("reports/one", limit=1) == b"1"
    assert store.requests.by_folder == {
        ("LIST", "manifests"): 3,
        ("VERSIONS", "manifests"): 6,
        ("HEAD", "manifests"): 1,
        ("GET", "manifests"): 1,
        ("PUT", "reports"): 1,
        ("GET", "reports"): 1,
    }
    assert store.requests.read_bytes == 1
    store.remove("reports/one")
    assert not store.exists("reports/one")


def test_what_is_there_is_never_replaced(store: AgedStore) -> None:
    """A put of the same bytes is success, and of others is an error."""
    key = "manifests/audit/0/000000000007.json"
    store.create(key, store.read(key, limit=1 << 20))
    with pytest.raises(ObjectExists):
        store.create(key, b"other")


def test_it_is_opened_by_its_url(store: AgedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of custody opens it by its URL, and a process that gets it by pickle reads the same."""
    use_aged(monkeypatch)
    assert open_store(store.url) is store
    other = pickle.loads(pickle.dumps(store))  # noqa: S301 - it is our own
    key = "checkpoints/audit/1/000000000060"
    assert other.read(key, limit=1 << 20) == store.read(key, limit=1 << 20)


def test_what_a_nightly_audit_made_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an index, the events of a whole day are read from tables, and the verifier finds nothing."""
    store = make_archive(tmp_path / "aged", 3 * DAY, end=END, span=480)
    assert not verify(store, open_trust([store.keys]), now=END, workers=0).findings
    use_aged(monkeypatch)
    store.requests.clear()
    monkeypatch.setenv("CUSTODY_ARCHIVE", store.url)
    monkeypatch.setenv("CUSTODY_KEYS", store.keys)
    with custody.connect() as connection:
        assert connection.execute("SELECT count(*) FROM events WHERE day = '2026-11-27'").fetchone() == (EACH * DAY,)
    assert {("GET", "manifests"), ("GET", "events")}.isdisjoint(store.requests.by_folder)
