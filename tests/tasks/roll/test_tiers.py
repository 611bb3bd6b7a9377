"""The bucket is compared with the settings, and its rules are set (moto knows lifecycle rules); usage is counted."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.archive.writer import create_archive
from custody.format.envelope import Signer
from custody.keys.keyring import Keyring
from custody.settings import TierSettings
from custody.store.bucket import LIFECYCLE, OBJECT_LOCK, POLICY, VERSIONING, open_configuration
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.store.s3_errors import KeyRefused, NoAnswer
from tasks.roll.run import roll_all
from tasks.roll.tiers import SMALL_BYTES, measure_usage, roll_bucket
from tasks.settings import Settings
from tests.helpers.sample import Growing
from tests.servers.ports import free_ports
from tests.servers.s3 import MotoServer, SeaweedServer


def signers() -> tuple[Signer, Signer]:
    now = datetime.now(UTC)
    return Keyring.new(now).signers(now).both()


@pytest.fixture
def given(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    moto.use(monkeypatch)
    bucket = moto.make_bucket(object_lock=True)
    made = Settings(
        archive=f"s3://{bucket}/archive",
        s3=S3Options(endpoint_url=moto.endpoint_url, retention_mode="COMPLIANCE", retention_days=2555),
    )
    create_archive(open_store(made.archive, S3Options(endpoint_url=moto.endpoint_url)), signers)
    return made


def bucket_of(given: Settings) -> str:
    return given.archive.removeprefix("s3://").partition("/")[0]


def roll(given: Settings, **more: Any) -> dict[str, tuple[str, str]]:
    """Roll, and return the outcome and the reason by the bucket's configuration."""
    return {one.target.rpartition(": ")[2]: (one.outcome, one.why) for one in roll_bucket(given, **more)}


def outcomes(given: Settings, **more: Any) -> dict[str, str]:
    return {name: outcome for name, (outcome, _) in roll(given, **more).items()}


def set_policy(given: Settings, moto: MotoServer) -> None:
    """Set the policy as an operator would: by what `custody bucket` prints."""
    wanted = open_configuration(given.archive, given.s3).wanted(given.tiers.moves, locked=True)
    moto.client().put_bucket_policy(Bucket=bucket_of(given), Policy=json.dumps(wanted[POLICY]))


def test_rules_are_set_once(given: Settings, moto: MotoServer) -> None:
    """Lifecycle rules are set, the policy that is missing is reported and not set; then there is nothing to set."""
    assert outcomes(given) == {LIFECYCLE: "done", POLICY: "refused"}
    rules = moto.client().get_bucket_lifecycle_configuration(Bucket=bucket_of(given))["Rules"]
    assert {rule["Filter"]["Prefix"] for rule in rules} == {"archive/events/", "archive/quarantine/"}
    for rule in rules:
        assert [(move["Days"], move["StorageClass"]) for move in rule["Transitions"]] == [
            (90, "STANDARD_IA"),
            (365, "DEEP_ARCHIVE"),
        ]
        assert "Expiration" not in rule
    assert outcomes(given) == {POLICY: "refused"}
    set_policy(given, moto)
    assert roll(given) == {}


def test_versions_and_locks_are_reported(moto: MotoServer, given: Settings) -> None:
    """A bucket without versions and Object Lock is reported, and neither is turned on."""
    bucket = moto.make_bucket()
    plain = given.model_copy(update={"archive": f"s3://{bucket}/archive"})
    found = roll(plain)
    assert found[VERSIONING][0] == found[OBJECT_LOCK][0] == "refused"
    assert "custody bucket" in found[VERSIONING][1]
    assert "Status" not in moto.client().get_bucket_versioning(Bucket=bucket)
    unlocked = plain.model_copy(update={"s3": S3Options(endpoint_url=given.s3.endpoint_url)})
    assert "s3.retention_mode is not set" in roll(unlocked)[OBJECT_LOCK][1]


@pytest.mark.parametrize("problem", ["wrong secret", "down"])
def test_a_roll_that_may_ask_nothing_says_it_once(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: str
) -> None:
    """A storage that refuses all, or is down, ends the roll before its steps, which all would say so."""
    seaweed.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (port,) = free_ports(1)
    s3 = S3Options(endpoint_url=seaweed.endpoint_url if problem == "wrong secret" else f"http://127.0.0.1:{port}")
    archive = f"s3://{seaweed.make_bucket()}/archive"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    kind, text = (KeyRefused, "403") if problem == "wrong secret" else (NoAnswer, f"{port} does not answer")
    with pytest.raises(kind, match=text):
        roll_all(Settings(archive=archive, s3=s3), datetime.now(UTC))


def test_others_stay(given: Settings, moto: MotoServer) -> None:
    """Other people's rules stay. One that deletes evidence is reported, and not removed."""
    bucket, client = bucket_of(given), moto.client()
    theirs = [
        {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 7}},
        {"ID": "bad", "Status": "Enabled", "Filter": {"Prefix": "archive/events/"}, "Expiration": {"Days": 7}},
    ]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": theirs})
    set_policy(given, moto)
    before = client.get_bucket_policy(Bucket=bucket)["Policy"]
    actions = [(one.outcome, one.why) for one in roll_bucket(given)]
    assert [outcome for outcome, why in actions if "'bad'" in why] == ["refused"]
    assert [outcome for outcome, why in actions if "'bad'" not in why] == ["done"]
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {"logs", "bad"} < {rule["ID"] for rule in rules}
    assert len(rules) == 4
    assert client.get_bucket_policy(Bucket=bucket)["Policy"] == before


def test_a_server_without_storage_classes(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server accepts no rules that move objects, such as SeaweedFS, that is one line and no failure."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket(versioned=True, object_lock=True)
    options = S3Options(endpoint_url=seaweed.endpoint_url, retention_mode="GOVERNANCE", retention_days=1)
    given = Settings(archive=f"s3://{bucket}/archive", s3=options)
    for _ in range(2):
        found = roll(given)
        assert {name: outcome for name, (outcome, _) in found.items()} == {LIFECYCLE: "refused", POLICY: "refused"}
        assert "stay in the class" in found[LIFECYCLE][1]
        assert "this is not AWS" in found[POLICY][1]
    open_store(given.archive, options).create("manifests/a/0/000000000000.json", b"still written")


def test_drift(given: Settings, moto: MotoServer) -> None:
    """A rule of ours that somebody changed is reported and set again; the other stays as it is."""
    set_policy(given, moto)
    roll(given)
    client, bucket = moto.client(), bucket_of(given)
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    rules[0]["Transitions"][0]["Days"] = 30
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    assert outcomes(given, dry_run=True) == {LIFECYCLE: "planned"}
    assert outcomes(given) == {LIFECYCLE: "done"}
    assert roll(given) == {}


def test_only_said(given: Settings) -> None:
    """With `tiers.manage` off, drift is reported and nothing is set."""
    said = given.model_copy(update={"tiers": TierSettings(manage=False)})
    for _ in range(2):
        found = roll(said)
        assert {outcome for outcome, _ in found.values()} == {"refused"}
        assert "tiers.manage is off" in found[LIFECYCLE][1]
    assert outcomes(given)[LIFECYCLE] == "done"


def test_no_bucket(given: Settings) -> None:
    """A missing bucket gives one clear line for each configuration, and no traceback."""
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
    assert (usage["events/"].objects, usage["events/"].too_small, usage["manifests/"].too_small) == (3, 3, 0)
    paths = list((growing.folder / "events").rglob("*.gz"))
    assert usage["events/"].bytes == sum(path.stat().st_size for path in paths)


def test_usage_by_class(given: Settings, moto: MotoServer) -> None:
    """Bytes and objects are counted by class, and objects that are too small too. Costs need prices."""
    store, client, bucket = open_store(given.archive, given.s3), moto.client(), bucket_of(given)
    store.create("events/a", bytes(SMALL_BYTES))
    client.put_object(Bucket=bucket, Key="archive/events/b", Body=bytes(10), StorageClass="DEEP_ARCHIVE")
    usage = measure_usage(given)
    assert [(one.storage_class, one.objects, one.bytes, one.too_small) for one in usage if one.part == "events/"] == [
        ("DEEP_ARCHIVE", 1, 10, 1),
        ("STANDARD", 1, SMALL_BYTES, 0),
    ]
    assert {one.cost_a_month for one in usage} == {None}
    priced = given.model_copy(update={"tiers": TierSettings(prices={"STANDARD": 0.5})})
    by_class = {one.storage_class: one.cost_a_month for one in measure_usage(priced) if one.part == "events/"}
    assert by_class == {"STANDARD": pytest.approx(SMALL_BYTES / 1e9 * 0.5), "DEEP_ARCHIVE": None}
