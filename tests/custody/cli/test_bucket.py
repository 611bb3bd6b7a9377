"""`custody bucket` prints the wanted configuration, and says in what the bucket differs."""

import json
from pathlib import Path

import pytest

from custody.errors import TerminalStoreError
from custody.store.bucket import LIFECYCLE, OBJECT_LOCK, POLICY, VERSIONING
from custody.store.open import open_store
from custody.store.protocol import S3Options
from tests.helpers.commands import Command
from tests.servers.s3 import MotoServer, SeaweedServer


def use(server: MotoServer | SeaweedServer, monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    server.use(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", f"s3://{bucket}/some/archive")
    monkeypatch.setenv("CUSTODY_S3__ENDPOINT_URL", server.endpoint_url)
    monkeypatch.setenv("CUSTODY_S3__RETENTION_MODE", "COMPLIANCE")
    monkeypatch.setenv("CUSTODY_S3__RETENTION_DAYS", "2555")


def test_what_is_printed_makes_the_bucket_as_wanted(
    custody: Command, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each configuration goes to the AWS API as it is printed; then nothing differs."""
    bucket, client = moto.make_bucket(object_lock=True), moto.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    use(moto, monkeypatch, bucket)
    differing = custody("bucket")
    wanted = json.loads(differing.out)
    assert (differing.code, set(wanted)) == (10, {VERSIONING, OBJECT_LOCK, LIFECYCLE, POLICY})
    for name in (VERSIONING, LIFECYCLE, POLICY):
        assert name in differing.err
    assert OBJECT_LOCK not in differing.err
    assert wanted[POLICY]["Statement"][0]["Condition"] == {"Null": {"s3:if-none-match": "true"}}
    assert f"arn:aws:s3:::{bucket}/some/archive/manifests/*" in wanted[POLICY]["Statement"][0]["Resource"]

    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=wanted[VERSIONING])
    client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=wanted[OBJECT_LOCK])
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=wanted[LIFECYCLE])
    # A server may write a list of one without brackets, and keeps what others have set.
    (statement,) = wanted[POLICY]["Statement"]
    other = {"Sid": "theirs", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}
    theirs = {**statement, "Sid": "renamed", "Principal": {"AWS": "*"}, "Action": [statement["Action"]]}
    policy = {**wanted[POLICY], "Statement": [other, theirs]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    same = custody("bucket")
    assert (same.code, json.loads(same.out), same.err) == (0, wanted, "")


def test_a_policy_that_differs(custody: Command, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that covers less than all evidence is not the one wanted."""
    bucket, client = moto.make_bucket(object_lock=True), moto.client()
    use(moto, monkeypatch, bucket)
    policy = json.loads(custody("bucket", "--wanted").out)[POLICY]
    policy["Statement"][0]["Resource"].pop()
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    found = custody("bucket")
    assert (found.code, "could write over evidence" in found.err) == (10, True)


def test_without_asking(custody: Command, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --wanted no bucket has to be there; without, one that is not there is an error."""
    use(moto, monkeypatch, "there-is-no-such-bucket")
    printed = custody("bucket", "--wanted")
    assert (printed.code, printed.err) == (0, "")
    assert set(json.loads(printed.out)) == {VERSIONING, OBJECT_LOCK, LIFECYCLE, POLICY}
    asked = custody("bucket")
    assert (asked.code, "there is no such bucket" in asked.err) == (2, True)


def test_without_locks(custody: Command, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no put asks for a lock the bucket needs no Object Lock; that it has none is said."""
    use(moto, monkeypatch, moto.make_bucket())
    monkeypatch.delenv("CUSTODY_S3__RETENTION_MODE")
    monkeypatch.delenv("CUSTODY_S3__RETENTION_DAYS")
    found = custody("bucket")
    assert OBJECT_LOCK not in json.loads(found.out)
    assert "s3.retention_mode is not set" in found.err


def test_seaweed(custody: Command, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server is asked for each configuration, whatever it knows of them."""
    use(seaweed, monkeypatch, seaweed.make_bucket())
    plain = custody("bucket")
    assert plain.code == 10
    for name in (VERSIONING, OBJECT_LOCK, LIFECYCLE, POLICY):
        assert name in plain.err
    assert "this is not AWS" in plain.err
    use(seaweed, monkeypatch, seaweed.make_bucket(versioned=True, object_lock=True))
    protected = custody("bucket")
    assert (VERSIONING in protected.err, OBJECT_LOCK in protected.err) == (False, False)


def test_a_server_that_does_not_know_the_condition(
    custody: Command, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS takes the policy for a ban on all puts: what the README warns of."""
    bucket, client = seaweed.make_bucket(versioned=True), seaweed.client()
    use(seaweed, monkeypatch, bucket)
    policy = json.loads(custody("bucket", "--wanted").out)[POLICY]
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    assert "If-None-Match" not in custody("bucket").err
    store = open_store(f"s3://{bucket}/some/archive", S3Options(endpoint_url=seaweed.endpoint_url))
    with pytest.raises(TerminalStoreError, match="403"):
        store.create("manifests/a/0/000000000000.json", b"x")


def test_a_folder(custody: Command, tmp_path: Path) -> None:
    """A folder has no configuration, which is a usage error."""
    for options in ((), ("--wanted",)):
        refused = custody("bucket", str(tmp_path), *options)
        assert (refused.code, refused.out) == (2, "")
        assert "only a bucket is configured" in refused.err
