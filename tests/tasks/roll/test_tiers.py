"""The bucket's rules are set and held against the settings (moto, for lifecycle rules); what lies where is told."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.archive.writer import create_archive
from custody.format.envelope import Signer
from custody.keys.keyring import Keyring
from custody.store.open import open_store
from custody.store.protocol import S3Options
from tasks.roll import tiers
from tasks.roll.indices import Action
from tasks.roll.tiers import SMALL_BYTES, measure_usage, roll_bucket, small_objects
from tasks.settings import Settings, TierSettings
from tests.helpers.sample import Growing
from tests.servers.s3 import MotoServer, SeaweedServer


def signers() -> tuple[Signer, Signer]:
    now = datetime.now(UTC)
    return Keyring.new(now).signers(now).both()


@pytest.fixture
def given(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    moto.use(monkeypatch)
    bucket = moto.make_bucket(object_lock=True)
    # No server here knows the condition of the policy: whether a put gets through is a fake, but where a test says so.
    monkeypatch.setattr(tiers._Bucket, "_probe", lambda _: "PreconditionFailed")
    made = Settings(
        archive=f"s3://{bucket}/archive",
        s3=S3Options(endpoint_url=moto.endpoint_url, retention_mode="COMPLIANCE", retention_days=2555),
        tiers=TierSettings(policy=True),
    )
    create_archive(open_store(made.archive, S3Options(endpoint_url=moto.endpoint_url)), signers)
    return made


def bucket_of(given: Settings) -> str:
    return given.archive.removeprefix("s3://").partition("/")[0]


def roll(given: Settings, **more: Any) -> dict[str, Action]:
    return {one.target.rpartition(": ")[2]: one for one in roll_bucket(given, **more)}


def test_set_once(given: Settings, moto: MotoServer) -> None:
    """Rules that move evidence, and the policy that refuses plain puts, are set; then there is nothing to do."""
    first = roll(given)
    assert {name: one.outcome for name, one in first.items()} == {"lifecycle": "done", "policy": "done"}
    rules = moto.client().get_bucket_lifecycle_configuration(Bucket=bucket_of(given))["Rules"]
    assert {rule["Filter"]["Prefix"] for rule in rules} == {"archive/events/", "archive/quarantine/"}
    for rule in rules:
        assert [(move["Days"], move["StorageClass"]) for move in rule["Transitions"]] == [
            (90, "STANDARD_IA"),
            (365, "DEEP_ARCHIVE"),
        ]
        assert "Expiration" not in rule
    assert roll(given) == {}


def test_versions(moto: MotoServer, given: Settings) -> None:
    """A bucket without versions gets them."""
    bucket = moto.make_bucket()
    plain = given.model_copy(update={"archive": f"s3://{bucket}/archive"})
    create_archive(open_store(plain.archive, S3Options(endpoint_url=moto.endpoint_url)), signers)
    found = roll(plain)
    assert found["versions"].outcome == "done"
    assert moto.client().get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert found["Object Lock"].outcome == "refused"


def test_others_stay(given: Settings, moto: MotoServer) -> None:
    """What others have set stays; a rule of theirs that deletes evidence is said, and is not ours to remove."""
    bucket, client = bucket_of(given), moto.client()
    theirs = [
        {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 7}},
        {"ID": "bad", "Status": "Enabled", "Filter": {"Prefix": "archive/events/"}, "Expiration": {"Days": 7}},
    ]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": theirs})
    statement = {
        "Sid": "theirs",
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    actions = list(roll_bucket(given))
    assert ["refused" in one.outcome for one in actions if "'bad'" in one.why] == [False, True]
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {"logs", "bad"} < {rule["ID"] for rule in rules}
    assert len(rules) == 4
    assert statement in json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]


@pytest.mark.parametrize("there", [True, False], ids=["with a policy of theirs", "without"])
def test_a_server_that_does_not_understand(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """On a server that takes our policy for a ban on all puts it is taken back, and theirs is as it was: SeaweedFS."""
    seaweed.use(monkeypatch)
    bucket, client = seaweed.make_bucket(versioned=True), seaweed.client()
    given = Settings(
        archive=f"s3://{bucket}/archive",
        s3=S3Options(endpoint_url=seaweed.endpoint_url),
        tiers=TierSettings(policy=True),
    )
    assert "to try it by" in roll(given)["policy"].why
    store = open_store(given.archive, given.s3)
    create_archive(store, signers)
    theirs = {"Sid": "theirs", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
    before = json.dumps({"Version": "2012-10-17", "Statement": [{**theirs, "Resource": f"arn:aws:s3:::{bucket}/*"}]})
    if there:
        client.put_bucket_policy(Bucket=bucket, Policy=before)
    assert "taken back" in roll(given)["policy"].why
    store.create("manifests/a/0/000000000000.json", b"still written")
    if there:
        assert json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"]) == json.loads(before)
    plain = given.model_copy(update={"tiers": TierSettings()})
    assert "this is not AWS" in roll(plain)["policy"].why


def test_a_server_that_ignores_conditions(given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """To try a server changes no byte of archive.json, even where it writes whatever the condition says."""
    put: list[dict[str, Any]] = []

    class Client:
        def get_object(self, **_: Any) -> dict[str, Any]:
            return {"Body": io.BytesIO(b"what is there")}

        def put_object(self, **asked: Any) -> None:
            put.append(asked)

    monkeypatch.undo()
    assert tiers._Bucket(given, Client(), "bucket", "archive/", False)._probe() == ""
    assert put == [{"Bucket": "bucket", "Key": "archive/archive.json", "Body": b"what is there", "IfNoneMatch": "*"}]


def test_drift(given: Settings, moto: MotoServer) -> None:
    """A rule of ours that somebody changed is said, and set again; the other stays as it is."""
    roll(given)
    client, bucket = moto.client(), bucket_of(given)
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    rules[0]["Transitions"][0]["Days"] = 30
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    client.delete_bucket_policy(Bucket=bucket)
    planned = roll(given, dry_run=True)
    assert {name: one.outcome for name, one in planned.items()} == {"lifecycle": "planned", "policy": "planned"}
    assert {name: one.outcome for name, one in roll(given).items()} == {"lifecycle": "done", "policy": "done"}
    assert roll(given) == {}


def test_only_said(given: Settings, moto: MotoServer) -> None:
    """Where the settings leave rules to others, drift is said and nothing is set."""
    said = given.model_copy(update={"tiers": TierSettings(manage=False, policy=True)})
    found = roll(said)
    assert {one.outcome for one in found.values()} == {"refused"}
    assert "tiers.manage is off" in found["policy"].why
    assert {name: one.outcome for name, one in roll(given).items()} == {"lifecycle": "done", "policy": "done"}
    assert moto.client().get_bucket_versioning(Bucket=bucket_of(given))["Status"] == "Enabled"


def test_locks_shorter_than_life(given: Settings) -> None:
    """Locks that end before epoch does, or that nobody asks for, are said."""
    short = given.model_copy(update={"s3": S3Options(endpoint_url=given.s3.endpoint_url)})
    assert "s3.retention_mode is not set" in roll(short)["Object Lock"].why
    longer = given.model_copy(update={"tiers": TierSettings(life_days=4000, policy=True)})
    assert "s3.retention_days is 2555, and life lasts 4000 days" in roll(longer)["Object Lock"].why


def test_no_bucket(given: Settings) -> None:
    """A bucket that is not there is one clear line for each thing, and no traceback."""
    gone = given.model_copy(update={"archive": "s3://there-is-no-such-bucket/archive"})
    actions = list(roll_bucket(gone))
    assert len(actions) == 4
    assert {one.outcome for one in actions} == {"failed"}
    assert all("there-is-no-such-bucket" in f"{one.target} {one.why}" for one in actions)


def test_folder(tmp_path: Path) -> None:
    """A folder has no rules, and its usage is counted all the same."""
    growing = Growing(tmp_path)
    growing.append(3)
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    assert list(roll_bucket(given)) == []
    usage = {one.part: one for one in measure_usage(given)}
    assert (usage["events/"].objects, usage["events/"].small, usage["manifests/"].small) == (3, 3, 0)
    paths = list((growing.folder / "events").rglob("*.gz"))
    assert usage["events/"].size == sum(path.stat().st_size for path in paths)


def test_usage_by_class(given: Settings, moto: MotoServer) -> None:
    """Bytes, objects and dollars are told by class; what is too small for a cheaper class is counted."""
    store, client, bucket = open_store(given.archive, given.s3), moto.client(), bucket_of(given)
    store.create("events/a", bytes(SMALL_BYTES))
    client.put_object(Bucket=bucket, Key="archive/events/b", Body=bytes(10), StorageClass="DEEP_ARCHIVE")
    usage = measure_usage(given)
    assert [(one.storage_class, one.objects, one.size, one.small) for one in usage if one.part == "events/"] == [
        ("DEEP_ARCHIVE", 1, 10, 1),
        ("STANDARD", 1, SMALL_BYTES, 0),
    ]
    prices = given.tiers.prices
    by_class = {one.storage_class: one for one in usage if one.part == "events/"}
    assert by_class["STANDARD"].cost == pytest.approx(SMALL_BYTES / 1e9 * prices["STANDARD"])
    assert small_objects(usage, given)[0] == 1
