"""KMS refuses one call after the other: the rest is done, and the error says which permission who lacks.

moto refuses here, by its own reading of IAM's policies; no real KMS can be had. It makes no Ed25519 keys, so `Sign` and
`GetPublicKey` are refused by the fake of `servers.kms`.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from custody.archive.writer import create_archive
from custody.errors import CustodyError, KeyUnavailable
from custody.keys.keyring import new_keyring
from custody.keys.kms import KmsEd25519Key, KmsKey
from custody.store.open import open_store
from custody.verify.run import verify
from flows.operate.sample import sample_events
from tasks.drain.run import drain_logs
from tasks.health.read import read_health
from tasks.settings import AuditSettings, KafkaSettings, Settings
from tests.helpers.audit import audit
from tests.servers.kafka import KafkaServer
from tests.servers.kms import ED25519_ARN, FakeKms
from tests.servers.s3 import REGION, MotoServer

CALLS = ["DescribeKey", "GenerateMac", "VerifyMac"]
BATCH = 5


@dataclass
class Policed:
    """A moto that enforces policies, an HMAC key in it, and a user of which custody has the access key."""

    admin: Any
    arn: str
    access_key: str
    secret: str

    def allow(self, *calls: str) -> None:
        statement = {"Effect": "Allow", "Action": [f"kms:{call}" for call in calls], "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.admin.put_user_policy(UserName="custody", PolicyName="kms", PolicyDocument=policy)


def make_user(iam: Any, name: str) -> tuple[str, str]:
    iam.create_user(UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


@pytest.fixture
def policed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Policed]:
    """A moto of the test's own, because its policies are everybody's."""
    with MotoServer(tmp_path / "moto") as moto:
        moto.use(monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", moto.endpoint_url)
        iam, kms = moto.client("iam"), moto.client("kms")
        arn = kms.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["Arn"]
        admin, admins_secret = make_user(iam, "admin")
        everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
        iam.put_user_policy(UserName="admin", PolicyName="all", PolicyDocument=policy)
        key, secret = make_user(iam, "custody")
        moto.enforce_policies()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        session = boto3.session.Session(aws_access_key_id=admin, aws_secret_access_key=admins_secret)
        made = Policed(session.client("iam", region_name=REGION, endpoint_url=moto.endpoint_url), arn, key, secret)
        made.allow(*CALLS)
        yield made


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_refused(
    call: str, policed: Policed, kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drain, audit, status and verification name call, key and caller. Nothing is signed or called tampered."""
    monkeypatch.chdir(tmp_path)
    topic = kafka.create_topic(kafka.unused_name("kms"))
    new_keyring(tmp_path / "checkpoints.json", datetime.now(UTC))
    given = Settings(
        archive=str(tmp_path / "archive"),
        keys=f"aws-kms:///{policed.arn}",
        checkpoint_keys="file:checkpoints.json",
        audit=AuditSettings(tables=False),
        kafka=KafkaSettings(bootstrap_servers=kafka.bootstrap, topics=[topic], group=kafka.unused_name("group")),
    )
    with closing(open_store(given.archive)) as store:
        create_archive(store, given.signers(datetime.now(UTC)).both)

    def produce() -> None:
        producer = kafka.producer()
        for value in sample_events(BATCH, 1, datetime(2026, 3, 1, tzinfo=UTC)):
            producer.produce(topic, value)
        assert producer.flush(30) == 0

    def drain() -> list[str]:
        return [f"{result.outcome} {result.events} {result.problem}" for result in drain_logs(given, once=True)]

    def judge() -> list[str]:
        with closing(open_store(given.archive)) as store:
            report = verify(store, given.own_trust(), now=datetime.now(UTC), workers=0)
        return [f"exit code {report.exit_code}", *(f"{each.finding} {each.message}" for each in report.findings)]

    def audited() -> list[str]:
        outcome = audit(given, full=True)
        return [f"exit code {outcome.exit_code}", *(str(found["message"]) for found in outcome.findings)]

    def status() -> list[str]:
        return [problem.message for problem in read_health(given, datetime.now(UTC)).problems]

    produce()
    assert drain() == [f"drained {BATCH} None"]
    produce()
    before = {path: path.read_bytes() for path in (tmp_path / "archive").rglob("*.json")}
    policed.allow(*(each for each in CALLS if each != call))

    needs = {
        # Whoever only checks calls a key by its ARN, and need not resolve it.
        "DescribeKey": [drain, audited],
        "GenerateMac": [drain, audited],
        "VerifyMac": [drain, judge, audited, status],
    }
    for run in (drain, judge, audited, status):
        try:
            said = run()
        except CustodyError as error:
            said = [str(error)]
        text = "\n".join(said)
        named = (
            f"KMS refused {call} for {policed.arn} (403), to access key {policed.access_key} of env: allow kms:{call}"
        )
        assert (named in text) == (run in needs[call]), text
        assert policed.secret not in text
        assert "exit code 13" not in text
        assert ("exit code 0" not in text) or run not in needs[call], text
    manifests = [path for path in (tmp_path / "archive" / "manifests").rglob("*.json") if path not in before]
    assert manifests == []

    policed.allow(*CALLS)
    assert drain() == [f"drained {BATCH} None"]
    assert judge() == ["exit code 0"]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("call", ["GetPublicKey", "Sign"])
def test_an_ed25519_key_is_refused(call: str, fake_kms: FakeKms) -> None:
    """Each call to an Ed25519 key says what was refused to whom, and never the secret. Here a fake refuses."""
    named = rf"KMS refused {call} for .*, to access key id of env: allow kms:{call} "
    if call == "GetPublicKey":
        fake_kms.refused.add(call)
        with pytest.raises(KeyUnavailable, match=named) as raised:
            KmsKey.open(ED25519_ARN)
    else:
        key = KmsKey.open(ED25519_ARN)
        assert isinstance(key, KmsEd25519Key)
        fake_kms.refused.add(call)
        with pytest.raises(KeyUnavailable, match=named) as raised:
            key.sign(b"m")
    assert "very-secret" not in str(raised.value)
