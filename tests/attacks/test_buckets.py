"""Rows 22 and 31 to 34: what a bucket itself tells of the evidence, and a server that says no.

SeaweedFS is a real server. Archived classes that refuse a read, their restore, and lifecycle rules are moto's, which is
none: it shows that the right calls are made, and not that they protect anything.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from custody.store import s3, s3_client
from custody.verify.acceptance import entries
from custody.verify.protection import Protection
from custody.verify.report import Report
from tests.attacks.targets import Bucket, judge, names
from tests.helpers.scene import MAIN, Scene
from tests.servers.proxy import Fault, FaultyProxy, Kind
from tests.servers.s3 import MotoServer, SeaweedServer

pytestmark = pytest.mark.usefixtures("shared_clients")

PREFIX = "company/audit"
_numbers = itertools.count()
LOCK_DAYS = 30
LOCKED = Protection("COMPLIANCE", LOCK_DAYS)
MOVES = ((90, "GLACIER"), (365, "DEEP_ARCHIVE"))


def until(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def segment_key(scene: Scene, sequence: int = 1) -> str:
    key: str = scene.main.statements[sequence]["segment"]["key"]
    return key


def manifest_key(sequence: int) -> str:
    return f"manifests/{MAIN}/{sequence:012}.json"


# --- row 22: versions and delete markers


@pytest.fixture(scope="session")
def versioned_bucket(seaweed: SeaweedServer) -> str:
    """A bucket that keeps versions: each test has a prefix of its own, for a new bucket takes a second."""
    return seaweed.make_bucket(versioned=True)


@pytest.fixture
def versioned(
    seaweed: SeaweedServer, seaweed_client: Any, versioned_bucket: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """The good archive in a bucket that keeps versions."""
    seaweed.use(monkeypatch)
    bucket = Bucket(seaweed_client, versioned_bucket, f"{PREFIX}/{next(_numbers)}", seaweed.endpoint_url)
    bucket.hold(scene)
    return bucket


@dataclass(frozen=True)
class Over:
    """Something put over objects of a bucket that keeps versions."""

    name: str
    apply: Callable[[Scene, Bucket], object]
    findings: tuple[str, ...]
    exit_code: int = 13


def deleted(scene: Scene, bucket: Bucket) -> None:
    bucket.delete(segment_key(scene))


def deleted_and_put_again(scene: Scene, bucket: Bucket) -> None:
    bucket.delete(segment_key(scene))
    bucket.put(segment_key(scene), scene.main.segment(1).read_bytes())


def deleted_and_brought_back(scene: Scene, bucket: Bucket) -> None:
    """Delete an object and remove the marker again: nothing is left of it."""
    bucket.delete(segment_key(scene))
    listed = bucket.client.list_object_versions(Bucket=bucket.bucket, Prefix=bucket.key(segment_key(scene)))
    (marker,) = listed["DeleteMarkers"]
    bucket.delete(segment_key(scene), VersionId=marker["VersionId"])


def expired_deleted(scene: Scene, bucket: Bucket) -> None:
    """Put back what had expired, as it was, and delete it as `custody` does: the marker is no finding."""
    for key, data in scene.expired.items():
        bucket.put(key, data)
        bucket.delete(key)


def all_deleted(scene: Scene, bucket: Bucket) -> None:
    for key in scene.listed():
        bucket.delete(key)


def newest_deleted(_: Scene, bucket: Bucket) -> None:
    for sequence in (10, 11):
        bucket.delete(manifest_key(sequence))


def over(key: str) -> Callable[[Scene, Bucket], object]:
    return lambda _, bucket: bucket.put(key, b"something else")


def tables_twice(_: Scene, bucket: Bucket) -> None:
    for data in (b"1", b"2"):
        bucket.put("tables/day=2026-03-01/audit-0.parquet", data)


def same_bytes(scene: Scene, bucket: Bucket) -> None:
    bucket.put(segment_key(scene), scene.main.segment(1).read_bytes())


def segment_over(scene: Scene, bucket: Bucket) -> None:
    bucket.put(segment_key(scene), b"something else")


OVERS = [
    Over("nothing", lambda *_: None, (), 0),
    Over("a segment", segment_over, ("version",)),
    Over("a segment, by the same bytes", same_bytes, ("version",)),
    Over("a manifest", over(manifest_key(3)), ("version",)),
    Over("the newest manifest", over(manifest_key(11)), ("version",)),
    Over("archive.json", over("archive.json"), ("version",)),
    Over("a checkpoint", over(f"checkpoints/{MAIN}/{9:012}"), ("version",)),
    Over("an audit", over("audits/000000000000.json"), ("version",)),
    Over("tables", tables_twice, (), 0),
    Over("delete marker, a segment", deleted, ("delete-marker",)),
    Over("delete marker, a manifest", lambda _, bucket: bucket.delete(manifest_key(3)), ("delete-marker",)),
    Over("delete marker, the newest manifests", newest_deleted, ("delete-marker", "delete-marker")),
    Over("delete marker, archive.json", lambda _, bucket: bucket.delete("archive.json"), ("delete-marker",)),
    Over("delete marker, a checkpoint", lambda _, b: b.delete(f"checkpoints/{MAIN}/{9:012}"), ("delete-marker",)),
    Over("delete marker, an audit", lambda _, bucket: bucket.delete("audits/000000000001.json"), ("delete-marker",)),
    Over("delete marker, and put again", deleted_and_put_again, ("version", "delete-marker")),
    Over("delete marker, and removed again", deleted_and_brought_back, (), 0),
    Over("delete marker, of what has expired", expired_deleted, (), 0),
]


@pytest.mark.parametrize("over", OVERS, ids=lambda one: one.name)
def test_over(scene: Scene, versioned: Bucket, over: Over) -> None:
    """A newer version or a delete marker is found, the first version is the evidence, and it verifies (row 22)."""
    over.apply(scene, versioned)
    report = judge(scene, versioned)
    assert sorted(names(report)) == sorted(over.findings), [str(one) for one in report.findings]
    assert report.exit_code == over.exit_code
    assert all(PREFIX not in (one.key or "") for one in report.findings)
    assert sum(log.size for log in report.logs) == sum(log.head[0] for log in scene.logs.values())


def put_over(scene: Scene, bucket: Bucket) -> None:
    bucket.put(segment_key(scene), b"something else")


@pytest.mark.parametrize(
    ("attack", "name"), [(put_over, "version"), (deleted, "delete-marker")], ids=["version", "delete marker"]
)
def test_over_that_was_accepted(
    scene: Scene, versioned: Bucket, attack: Callable[[Scene, Bucket], object], name: str
) -> None:
    """What was put over an object and judged is a notice; what is put over it next, or over another, is found again."""
    attack(scene, versioned)
    (one,) = judge(scene, versioned).findings
    assert one.finding == name
    accepted = entries(one, "a drill", "Ada", "2026-03-02T00:00:00.000000Z")
    scene.trust = replace(scene.trust, accepted=tuple(accepted))
    report = judge(scene, versioned)
    assert (names(report), report.exit_code) == ([name], 3)
    attack(scene, versioned)
    report = judge(scene, versioned)
    assert (names(report), report.exit_code) == ([name], 13)
    scene.trust = replace(scene.trust, accepted=(*accepted, *entries(report.findings[0], "again", "Ada", "now")))
    assert judge(scene, versioned).exit_code == 3
    versioned.put(segment_key(scene, 2), b"something else")
    report = judge(scene, versioned)
    assert (sorted(names(report)), report.exit_code) == (sorted([name, "version"]), 13)


def test_everything_behind_delete_markers(scene: Scene, versioned: Bucket) -> None:
    """An archive that was deleted object by object is there beneath its markers: each is named, and all verifies."""
    all_deleted(scene, versioned)
    report = judge(scene, versioned)
    evidence = [key for key in scene.listed() if not key.startswith("tables/")]
    assert set(names(report)) == {"delete-marker"}
    assert sorted(one.key or "" for one in report.findings) == evidence
    assert report.exit_code == 13
    assert sum(log.events for log in report.logs) == 199


def test_what_lies_beneath_is_verified(scene: Scene, versioned: Bucket) -> None:
    """That an object was written over does not hide that its first version was wrong."""
    key = segment_key(scene, 2)
    versioned.delete(key)
    first = versioned.client.list_object_versions(Bucket=versioned.bucket, Prefix=versioned.key(key))["Versions"][-1]
    versioned.delete(key, VersionId=first["VersionId"])
    listed = versioned.client.list_object_versions(Bucket=versioned.bucket, Prefix=versioned.key(key))
    for marker in listed.get("DeleteMarkers", ()):
        versioned.delete(key, VersionId=marker["VersionId"])
    versioned.put(key, b"not what it was")
    versioned.put(key, scene.main.segment(2).read_bytes())
    assert sorted(names(judge(scene, versioned))) == ["segment-size", "version"]


# --- row 34: locks


@pytest.fixture(scope="session")
def locked_bucket(seaweed: SeaweedServer) -> str:
    return seaweed.make_bucket(object_lock=True)


@pytest.fixture
def locked(
    seaweed: SeaweedServer, seaweed_client: Any, locked_bucket: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """A bucket with Object Lock, in which each object is locked as it should be."""
    seaweed.use(monkeypatch)
    scene.options["protection"] = LOCKED
    # What is rebuildable has no lock.
    scene.delete(*scene.listed("tables/"))
    lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until(LOCK_DAYS)}
    return Bucket(seaweed_client, locked_bucket, f"{PREFIX}/{next(_numbers)}", seaweed.endpoint_url, lock)


LOCKS: dict[str, dict[str, Any]] = {
    "missing": {"ObjectLockMode": None, "ObjectLockRetainUntilDate": None},
    "shortened": {"ObjectLockRetainUntilDate": until(LOCK_DAYS - 5)},
    "in governance mode": {"ObjectLockMode": "GOVERNANCE"},
}


@pytest.mark.parametrize("where", ["archive.json", "manifest", "segment", "quarantine", "checkpoint", "audit"])
def test_lock(scene: Scene, locked: Bucket, where: str) -> None:
    """A lock that is missing is a matter of policy, whichever object of evidence lacks it (row 34)."""
    quarantined: str = scene.main.statements[2]["quarantine"]["key"]
    key = {
        "archive.json": "archive.json",
        "manifest": manifest_key(3),
        "segment": segment_key(scene),
        "quarantine": quarantined,
        "checkpoint": f"checkpoints/{MAIN}/{9:012}",
        "audit": "audits/000000000000.json",
    }[where]
    data = scene.read(key)
    scene.delete(key)
    locked.hold(scene)
    scene.put(key, data)
    locked.more = {}
    locked.put(key, data)
    report = judge(scene, locked)
    assert names(report) == ["lock"], [str(one) for one in report.findings]
    assert report.exit_code == 10
    assert key in str(report.findings[0].to_dict())


@pytest.mark.parametrize("how", LOCKS)
def test_lock_that_is_not_as_it_should_be(scene: Scene, locked: Bucket, how: str) -> None:
    """Locks that are missing, shortened or weaker are one finding with a count; the good ones are none (row 34)."""
    keys = scene.listed(f"manifests/{MAIN}/")[3:6]
    held = {key: scene.read(key) for key in keys}
    scene.delete(*keys)
    locked.hold(scene)
    locked.more = {name: value for name, value in (locked.more | LOCKS[how]).items() if value is not None}
    for key, data in held.items():
        scene.put(key, data)
        locked.put(key, data)
    report = judge(scene, locked)
    assert names(report) == ["lock"], [str(one) for one in report.findings]
    assert report.findings[0].count == 3
    assert report.exit_code == 10


def test_locks_as_they_should_be(scene: Scene, locked: Bucket) -> None:
    """A locked archive gives no finding, and one without locks gives none where none are asked for."""
    locked.hold(scene)
    assert names(judge(scene, locked)) == []
    scene.options["protection"] = Protection("COMPLIANCE", LOCK_DAYS + 5)
    assert set(names(judge(scene, locked))) == {"lock"}


@pytest.mark.parametrize("refused", ["the lock", "everything"])
def test_lock_that_may_not_be_looked_at(
    seaweed: SeaweedServer, scene: Scene, locked: Bucket, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Who may not see locks is told so, and not that there are none; AWS leaves them out of its answers (row 31)."""
    locked.hold(scene)
    key = manifest_key(3)
    with FaultyProxy(seaweed.endpoint_url) as proxy:
        monkeypatch.setattr(locked, "endpoint_url", proxy.endpoint_url)
        proxy.reset(hidden="x-amz-object-lock")
        assert names(judge(scene, locked)) == []
        part = f"{key}?retention" if refused == "the lock" else key
        proxy.reset(always=Fault("403", effect=False), part=part, hidden="x-amz-object-lock")
        report = judge(scene, locked)
    assert names(report) == ["unreadable"], [str(one) for one in report.findings]
    assert report.exit_code == 12
    assert report.findings[0].key == key
    assert ("s3:GetObjectRetention" in report.findings[0].message) == (refused == "the lock")


# --- rows 32 to 34: archived classes and lifecycle rules, of moto


@pytest.fixture(scope="session")
def moto_client(moto: MotoServer) -> Iterator[Any]:
    client = moto.client()
    yield client
    client.close()


@pytest.fixture
def mocked(moto: MotoServer, moto_client: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The good archive in a bucket of moto."""
    moto.use(monkeypatch)
    bucket = Bucket(moto_client, moto.make_bucket(), PREFIX, moto.endpoint_url)
    bucket.hold(scene)
    return bucket


def archive(scene: Scene, bucket: Bucket, sequence: int, data: bytes | None = None, **more: Any) -> str:
    """Move a segment to an archived class, with other bytes if they are said."""
    key = segment_key(scene, sequence)
    bucket.put(key, scene.read(key) if data is None else data, StorageClass="GLACIER", **more)
    return key


@pytest.mark.parametrize("restored", [False, True], ids=["not restored", "restored"])
def test_archived(scene: Scene, mocked: Bucket, *, restored: bool) -> None:
    """An archived object is checked by the store's SHA-256 with no restore, and the rest is read (row 32)."""
    key = archive(scene, mocked, 1)
    archive(scene, mocked, 2)
    if restored:
        mocked.client.restore_object(Bucket=mocked.bucket, Key=mocked.key(key), RestoreRequest={"Days": 1})
    report = judge(scene, mocked)
    assert set(names(report)) == {"deferred"}
    assert sum(one.count for one in report.findings) == 2
    assert report.exit_code == 3
    assert "SHA-256" in str(report.findings[0])


@pytest.mark.parametrize(
    "key", ["events//planted", "events/2026//planted", "/planted", "manifests//0/x", "events/../x"]
)
def test_keys_that_no_store_of_ours_reads(scene: Scene, mocked: Bucket, key: str) -> None:
    """A key with an empty name in it is a foreign object, and hides no other one (row 40)."""
    mocked.put(key, b"planted")
    mocked.put("events/planted", b"planted")
    report = judge(scene, mocked)
    assert names(report) == ["foreign", "foreign"]
    assert {one.key for one in report.findings} == {key, "events/planted"}
    assert report.exit_code == 10


def test_archived_with_other_bytes(scene: Scene, mocked: Bucket) -> None:
    """An archived object whose stored SHA-256 differs is tampered with (row 33)."""
    data = scene.main.segment(1).read_bytes()
    archive(scene, mocked, 1, data[:-1] + bytes([data[-1] ^ 1]))
    report = judge(scene, mocked)
    assert names(report) == ["segment-hash"]
    assert report.exit_code == 13


def test_archived_in_another_size(scene: Scene, mocked: Bucket) -> None:
    """An archived object of another size is tampered with."""
    archive(scene, mocked, 1, scene.main.segment(1).read_bytes() + b"x")
    assert names(judge(scene, mocked)) == ["segment-size"]


def test_archived_without_a_digest(scene: Scene, mocked: Bucket) -> None:
    """Where the store keeps no SHA-256 of an archived object nothing can be said of it without a restore."""
    key = segment_key(scene)
    mocked.client.put_object(
        Bucket=mocked.bucket, Key=mocked.key(key), Body=scene.read(key), StorageClass="DEEP_ARCHIVE"
    )
    report = judge(scene, mocked)
    assert names(report) == ["unreadable"]
    assert report.exit_code == 12


def rule(prefix: str, moves: tuple[tuple[int, str], ...] = MOVES, **more: Any) -> dict[str, Any]:
    transitions = [{"Days": days, "StorageClass": class_} for days, class_ in moves]
    return {
        "ID": f"tiers of {prefix}",
        "Status": "Enabled",
        "Filter": {"Prefix": f"{PREFIX}/{prefix}"},
        **({"Transitions": transitions} if transitions else {}),
        **more,
    }


GOOD_RULES = [rule("events/"), rule("quarantine/")]
GOOD = {
    "as they should be": GOOD_RULES,
    "and one of somebody else's folder": [*GOOD_RULES, rule("", Filter={"Prefix": "other/"}, ID="o")],
    "and one of what is rebuildable": [*GOOD_RULES, rule("tables/", (), ID="t", Expiration={"Days": 9})],
}
BAD: dict[str, list[dict[str, Any]]] = {
    "gone": [],
    "one gone": GOOD_RULES[:1],
    "one disabled": [GOOD_RULES[0], GOOD_RULES[1] | {"Status": "Disabled"}],
    "days changed": [rule("events/", ((7, "GLACIER"), MOVES[1])), GOOD_RULES[1]],
    "class changed": [rule("events/", ((90, "DEEP_ARCHIVE"),)), GOOD_RULES[1]],
    "narrowed by a tag": [
        rule("events/", Filter={"And": {"Prefix": f"{PREFIX}/events/", "Tags": [{"Key": "a", "Value": "b"}]}}),
        GOOD_RULES[1],
    ],
    "narrowed to a year": [rule("events/2026/"), GOOD_RULES[1]],
    "one more for a year, at once": [*GOOD_RULES, rule("events/2026/", ((0, "DEEP_ARCHIVE"),), ID="y")],
    "one more for a tag, at once": [
        *GOOD_RULES,
        rule(
            "quarantine/",
            ((0, "DEEP_ARCHIVE"),),
            ID="t",
            Filter={"And": {"Prefix": f"{PREFIX}/quarantine/", "Tags": [{"Key": "a", "Value": "b"}]}},
        ),
    ],
    "one that moves manifests": [*GOOD_RULES, rule("manifests/", ID="m")],
    "one that moves everything at once": [*GOOD_RULES, rule("", ((0, "DEEP_ARCHIVE"),), ID="m")],
    "one that moves the whole bucket": [*GOOD_RULES, rule("", Filter={"Prefix": ""}, ID="m")],
    "one that deletes": [*GOOD_RULES, rule("events/", (), ID="d", Expiration={"Days": 9})],
    "one that deletes a year": [*GOOD_RULES, rule("events/2026/", (), ID="d", Expiration={"Days": 9})],
    "one that deletes everything": [*GOOD_RULES, rule("", (), ID="d", Filter={"Prefix": ""}, Expiration={"Days": 9})],
    "one that deletes versions": [
        *GOOD_RULES,
        rule("", (), ID="d", NoncurrentVersionExpiration={"NoncurrentDays": 1}),
    ],
}


@pytest.mark.parametrize("rules", [*GOOD, *BAD])
def test_lifecycle(scene: Scene, mocked: Bucket, rules: str) -> None:
    """Rules move segments and quarantine as they should and nothing else, and never delete evidence (row 34)."""
    if put := (GOOD | BAD)[rules]:
        mocked.client.put_bucket_lifecycle_configuration(Bucket=mocked.bucket, LifecycleConfiguration={"Rules": put})
    scene.options["protection"] = Protection(moves=MOVES)
    report = judge(scene, mocked)
    assert set(names(report)) == ({"lifecycle"} if rules in BAD else set()), [str(one) for one in report.findings]
    assert report.exit_code == (10 if rules in BAD else 0)


# --- row 31: a server that says no


@pytest.fixture
def proxied(
    seaweed: SeaweedServer, bucket: Bucket, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Bucket, FaultyProxy]]:
    """The good archive behind a proxy that can break any call."""
    seaweed.use(monkeypatch)
    # What a call without an answer costs, and how long is waited between tries.
    monkeypatch.setattr(s3_client, "_READ_SECONDS", 1)
    monkeypatch.setattr(s3, "READ_ATTEMPTS", 2)
    monkeypatch.setattr(s3_client, "READ_ATTEMPTS", 2)
    monkeypatch.setattr(s3, "_BACKOFF_SECONDS", (0.01, 0.05))
    bucket.hold(scene)
    with FaultyProxy(seaweed.endpoint_url) as proxy:
        monkeypatch.setattr(bucket, "endpoint_url", proxy.endpoint_url)
        yield bucket, proxy


def broken(scene: Scene, proxied: tuple[Bucket, FaultyProxy], kind: Kind, part: str) -> Report:
    bucket, proxy = proxied
    scene.delete(segment_key(scene, 7))
    bucket.hold(scene)
    proxy.reset(always=Fault(kind, effect=False), part=part)
    return judge(scene, bucket)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *((kind, "manifests/audit/0/000000000003") for kind in ("403", "503", "timeout", "reset", "garbage")),
        *((kind, "-audit-0-00000000000000000100-") for kind in ("403", "garbage")),
    ],
)
def test_no_answer(scene: Scene, proxied: tuple[Bucket, FaultyProxy], kind: Kind, part: str) -> None:
    """A read that is refused, times out or is answered by garbage is a finding, and the rest is verified (row 31)."""
    report = broken(scene, proxied, kind, part)
    assert names(report) == ["unreadable", "segment-missing"], [str(one) for one in report.findings]
    assert report.exit_code == 12


@pytest.mark.parametrize("kind", ["403", "503"])
def test_listing_refused(scene: Scene, proxied: tuple[Bucket, FaultyProxy], kind: Kind) -> None:
    """Folders that cannot be listed are findings, and what is in the others is verified (row 31)."""
    report = broken(scene, proxied, kind, "prefix=company%2Faudit%2Fquarantine%2F")
    assert names(report) == ["unreadable", "segment-missing"], [str(one) for one in report.findings]
    assert report.exit_code == 12


def test_half_an_answer(scene: Scene, proxied: tuple[Bucket, FaultyProxy]) -> None:
    """A body that breaks off is asked for again, and no tampering."""
    report = broken(scene, proxied, "cut", "manifests/audit/0/000000000003")
    assert names(report) == ["unreadable", "segment-missing"], [str(one) for one in report.findings]
