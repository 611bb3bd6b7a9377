"""Each role's IAM policy allows what its commands call, nothing that they do not call, and no harm.

The commands run as processes of their own against moto and a fake KMS, through a proxy that obeys the role's policy.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from custody.archive.assemble import Assembler
from custody.archive.reader import read_archive
from custody.archive.writer import LogWriter
from custody.format.layout import EVIDENCE, REBUILDABLE
from custody.format.manifest import LogId
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.store.protocol import S3Options
from tests.helpers.sample import Message
from tests.helpers.search import now_event
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.kms import ALIASES, ED25519_ARN, HMAC_ARN, FakeKms, serve
from tests.servers.policy import Policy, PolicyProxy
from tests.servers.s3 import MotoServer

ROOT = Path(__file__).resolve().parents[2]
IAM = ROOT / "deployments" / "iam"
ROLES = sorted(path.stem for path in IAM.glob("*.json"))
ENCRYPTION_ARN = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-0encryption"
NOW = datetime.now(UTC)
roles = pytest.mark.parametrize("role", ROLES)
pytestmark = pytest.mark.timeout(900)


def policy_of(role: str, bucket: str) -> Policy:
    """Return a role's policy with its placeholders filled in."""
    text = (IAM / f"{role}.json").read_text()
    keys = {"STATEMENTS": HMAC_ARN, "CHECKPOINTS": ED25519_ARN, "ENCRYPTION": ENCRYPTION_ARN}
    for name, arn in keys.items():
        text = text.replace(f"arn:aws:kms:REGION:ACCOUNT:key/{name}", arn)
    document = json.loads(text.replace("BUCKET", bucket).replace("PREFIX", "some/archive"))
    assert document["Version"] == "2012-10-17"
    return Policy(document["Statement"])


@dataclass(slots=True)
class Company:
    """A bucket of moto, two keys of the fake KMS, and everybody who works with them.

    Attributes:
        folder: where the commands run.
        policies: by role, with what was used of them.
    """

    folder: Path
    moto: MotoServer
    kms: FakeKms
    bucket: str
    topic: str
    environment: dict[str, str]
    policies: dict[str, Policy]
    endpoints: dict[str, tuple[str, str]]
    """The role's proxies before S3 and KMS."""

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/some/archive"

    def run(self, role: str, *arguments: str, code: int = 0, search: str = "") -> None:
        """Run a command of custody's as a role, with an Elasticsearch if its URL is given, and check how it ends."""
        s3, kms = self.endpoints[role]
        variables = {**self.environment, "CUSTODY_S3__ENDPOINT_URL": s3, "AWS_ENDPOINT_URL_KMS": kms}
        if search:
            variables["CUSTODY_SEARCH__URL"] = search
        if role == "verifier":
            # With the public keys of trust.json alone.
            del variables["CUSTODY_KEYS"], variables["CUSTODY_CHECKPOINT_KEYS"]
        ran = subprocess.run(
            [sys.executable, "-m", "custody", *arguments],
            cwd=self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == code, (role, arguments, ran.stdout[-3000:], self.policies[role].refused)
        assert self.policies[role].refused == [], (role, arguments, ran.stdout[-3000:])

    def write(self, topic: str, sealed_at: datetime) -> None:
        """Append a statement of ten events to a log, as its writer did at a time, without a lock on its objects."""
        uris = ("aws-kms:///alias/statements", "aws-kms:///alias/checkpoints")
        with closing(open_store(self.url, S3Options(endpoint_url=self.moto.endpoint_url))) as store:
            writer = LogWriter(
                store,
                read_archive(store).id,
                LogId("cluster", topic, "topic-id", 0, 1),
                signer=open_signers(uris[0], NOW, None, uris[1]).hmac(),
                trust=open_trust(list(uris)),
                writer="a test",
                clock=lambda: sealed_at,
            )
            writer.open()
            at = writer.next_offset or 0
            assembler = Assembler(at, batch_events=5, segment_bytes=2**20, level=1, number=writer.next_batch)
            contents = {offset: b"no event" if offset % 10 == 4 else now_event(offset) for offset in range(at, at + 10)}
            assembler.add([Message(offset, content) for offset, content in contents.items()])
            writer.append(assembler.cut())

    def overwrite(self, prefix: str) -> None:
        """Put an object again, as somebody with another policy might: a second version of the same bytes."""
        with closing(self.moto.client()) as client:
            given = {"Bucket": self.bucket, "Key": self.keys(prefix)[-1]}
            client.put_object(**given, Body=client.get_object(**given)["Body"].read())

    def freeze(self, topic: str) -> None:
        """Let a lifecycle rule move a log's segments to an archive class."""
        with closing(self.moto.client()) as client:
            for key in self.keys("events/"):
                if f"-{topic}-" in key:
                    given = {"Bucket": self.bucket, "Key": key}
                    answer = client.get_object(**given)
                    data = answer["Body"].read()
                    client.delete_object(**given, VersionId=answer["VersionId"])
                    client.put_object(**given, Body=data, StorageClass="DEEP_ARCHIVE")

    @contextmanager
    def deleted(self, prefix: str) -> Iterator[None]:
        """Put a delete marker over the newest object of a prefix, for as long as the block lasts."""
        given = {"Bucket": self.bucket, "Key": self.keys(prefix)[-1]}
        with closing(self.moto.client()) as client:
            marker = client.delete_object(**given)["VersionId"]
            yield
            client.delete_object(**given, VersionId=marker)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of objects under a prefix of the archive."""
        with closing(self.moto.client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"some/archive/{prefix}"
            )
            return [item["Key"] for page in pages for item in page.get("Contents", ())]


@pytest.fixture(scope="module")
def company(
    tmp_path_factory: pytest.TempPathFactory, moto: MotoServer, kafka: KafkaServer, elastic: ElasticsearchServer
) -> Iterator[Company]:
    bucket = moto.make_bucket(object_lock=True, versioned=True)
    topic = kafka.create_topic(kafka.unused_name("audit.iam"))
    folder = tmp_path_factory.mktemp("iam")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "AWS_", "PREFECT_"))}
    settings = {
        "ARCHIVE": f"s3://{bucket}/some/archive",
        "KEYS": "aws-kms:///alias/statements",
        "CHECKPOINT_KEYS": "aws-kms:///alias/checkpoints",
        "TRUST": "trust.json",
        "S3__RETENTION_MODE": "GOVERNANCE",
        "S3__RETENTION_DAYS": "1",
        "S3__LEGAL_HOLD": "true",
        "S3__SSE_KMS_KEY": ENCRYPTION_ARN,
        "TIERS__LIFE_DAYS": "500",
        "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "KAFKA__TOPICS": topic,
        "KAFKA__GROUP": topic,
        "SEARCH__PREFIX": elastic.unused_prefix(),
        "SEARCH__REPLICAS": "0",
        "AUDIT__WORKERS": "1",
    }
    variables = {f"CUSTODY_{name}": value for name, value in settings.items()}
    policies = {role: policy_of(role, bucket) for role in ROLES}
    keys = {**ALIASES, **{arn: arn for arn in ALIASES.values()}}
    with ExitStack() as stack:
        kms = stack.enter_context(serve())
        endpoints = {
            role: (
                stack.enter_context(PolicyProxy(moto.endpoint_url, policy)).endpoint_url,
                stack.enter_context(PolicyProxy(kms.endpoint_url, policy, keys)).endpoint_url,
            )
            for role, policy in policies.items()
        }
        environment = {**kept, **moto.environment(), **variables, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("AWS_ENDPOINT_URL_KMS", kms.endpoint_url)
        for name, value in moto.environment().items():
            patched.setenv(name, value)
        made = Company(folder, moto, kms, bucket, topic, environment, policies, endpoints)
        work(made, kafka, elastic)
        yield made


def work(company: Company, kafka: KafkaServer, elastic: ElasticsearchServer) -> None:
    """Let every role do all that it is there for, also where somebody has overwritten or deleted objects."""
    company.run("founder", "init", "--retention-days", "1")
    company.run("founder", "init")
    company.write("audit.old", NOW - timedelta(days=600))
    company.write("audit.old", NOW - timedelta(days=600))
    company.write("audit.deep", NOW)
    producer = kafka.producer()
    for offset in range(20):
        producer.produce(company.topic, b"no event" if offset == 7 else now_event(offset), partition=0)
    assert producer.flush(30) == 0
    company.run("drainer", "drain", "--once")
    # The logs that were made here have no topic.
    company.run("drainer", "status", code=3)
    company.run("indexer", "index", search=elastic.url)
    company.run("detector", "detect", "run")
    # Its states are deleted once two newer ones are there.
    company.run("detector", "detect", "rebuild")
    company.run("detector", "detect", "rebuild")
    company.overwrite("quarantine/")
    with company.deleted("manifests/audit.deep/"):
        # What was hidden is read as it was first written.
        company.run("auditor", "audit", code=13)
    company.run("verifier", "verify", code=13)
    # moto is not AWS, and its bucket has neither policy nor rules.
    company.run("verifier", "bucket", code=10)
    with company.deleted("manifests/audit.old/"):
        company.run("roller", "roll", code=1)
    company.run("roller", "roll", search=elastic.url)
    assert not [key for key in company.keys("events/") if "-audit.old-" in key]
    company.run("investigator", "query", "SELECT count(*) FROM events")
    company.run("investigator", "evidence", f"{company.topic}/0", "3", "-o", "evidence")
    company.run("investigator", "show", company.keys(f"manifests/{company.topic}/")[-1].removeprefix("some/archive/"))
    company.run("investigator", "verify", code=13)
    company.freeze("audit.deep")
    span = ("--since", f"{NOW - timedelta(days=1):%F}", "--until", f"{NOW + timedelta(days=2):%F}")
    company.run("investigator", "backfill", *span, "--log", "audit.deep", "--to", "folder", "--folder", "copied")
    with company.deleted(f"manifests/{company.topic}/"):
        company.run("drainer", "drain", "--once", code=1)


def test_each_permission_is_used(company: Company) -> None:
    """A policy allows nothing that none of the role's commands calls: each action, on each resource, was needed."""
    unused = {role: policy.granted - policy.used for role, policy in company.policies.items()}
    assert unused == {role: set() for role in ROLES}


WRITES = {
    "founder": {"archive.json"},
    "drainer": {"events/", "quarantine/", "manifests/", "checkpoints/"},
    "indexer": set(),
    # Only in a folder of `reports/`.
    "detector": set(),
    "auditor": {"audits/", "checkpoints/", "tables/", "reports/"},
    "roller": {"manifests/", "checkpoints/", "audits/"},
    "verifier": set(),
    "investigator": set(),
}
DELETES = {"roller": {"events/", "quarantine/", "tables/"}}
PARTS = (*EVIDENCE, *REBUILDABLE)


@dataclass(slots=True)
class Intruder:
    """Somebody with a role's credentials and another program."""

    client: Any
    keys: Any
    bucket: str

    def denied(self, call: str, **arguments: object) -> bool:
        """Return whether S3 says that this is not allowed."""
        try:
            getattr(self.client, call)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            return bool(error.response["Error"]["Code"] == "AccessDenied")
        return False

    def cannot_sign(self, call: str, **arguments: object) -> bool:
        """Return whether KMS says that this is not allowed."""
        try:
            getattr(self.keys, call)(Message=b"forged", **arguments)
        except ClientError as error:
            return bool(error.response["Error"]["Code"] == "AccessDeniedException")
        return False


@pytest.fixture
def intruder(role: str, moto: MotoServer) -> Iterator[Intruder]:
    bucket = moto.make_bucket(object_lock=True, versioned=True)
    policy, keys = policy_of(role, bucket), {arn: arn for arn in ALIASES.values()}
    with closing(moto.client()) as admin:
        for part in PARTS:
            admin.put_object(Bucket=bucket, Key=f"some/archive/{part.removesuffix('/')}", Body=b"before")
            admin.put_object(Bucket=bucket, Key=f"some/archive/{part}old", Body=b"before")
    with serve() as kms, PolicyProxy(moto.endpoint_url, policy) as s3, PolicyProxy(kms.endpoint_url, policy, keys) as k:
        session = boto3.session.Session(moto.access_key, moto.secret_key, region_name="us-east-1")
        config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        client = session.client("s3", endpoint_url=s3.endpoint_url, config=config)
        signing = session.client("kms", endpoint_url=k.endpoint_url, config=config)
        with closing(client), closing(signing):
            yield Intruder(client, signing, bucket)


def key_in(part: str, name: str) -> str:
    return f"some/archive/{part}{name if part.endswith('/') else ''}"


@roles
def test_what_a_role_creates(role: str, intruder: Intruder) -> None:
    """A role creates objects in its own parts of the archive, and nowhere else in the bucket."""
    new = {"Body": b"x", "IfNoneMatch": "*"}
    allowed = {part for part in PARTS if not intruder.denied("put_object", Key=key_in(part, "new"), **new)}
    assert allowed == WRITES[role]
    assert intruder.denied("put_object", Key="elsewhere", Body=b"x", IfNoneMatch="*")


@roles
def test_no_role_overwrites(intruder: Intruder) -> None:
    """No role puts an object without If-None-Match: so none replaces one, or what it says about an old one."""
    for part in PARTS:
        for name in ("old", "new"):
            assert intruder.denied("put_object", Key=key_in(part, name), Body=b"forged")


@roles
def test_what_a_role_deletes(role: str, intruder: Intruder) -> None:
    """Only the roll deletes: versions of records and tables. No role leaves a delete marker, or bypasses a lock."""
    deletes = set()
    for part in PARTS:
        key = key_in(part, "old")
        assert intruder.denied("delete_object", Key=key)
        assert intruder.denied("delete_object", Key=key, VersionId="some", BypassGovernanceRetention=True)
        if not intruder.denied("delete_object", Key=key, VersionId="some"):
            deletes.add(part)
    assert deletes == DELETES.get(role, set())


@roles
def test_what_a_role_configures(role: str, intruder: Intruder) -> None:
    """Only the roll sets lifecycle rules. No role changes the bucket's policy, versions or lock, or its existence."""
    rules: Any = {"Rules": [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]}
    assert intruder.denied("put_bucket_lifecycle_configuration", LifecycleConfiguration=rules) == (role != "roller")
    assert intruder.denied("put_bucket_versioning", VersioningConfiguration={"Status": "Suspended"})
    assert intruder.denied("put_bucket_policy", Policy="{}")
    assert intruder.denied("delete_bucket_policy")
    assert intruder.denied("put_object_lock_configuration", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
    assert intruder.denied("delete_bucket")


@roles
def test_who_signs(role: str, intruder: Intruder) -> None:
    """Who only reads cannot sign."""
    signs = role in {"founder", "drainer", "auditor", "roller"}
    assert intruder.cannot_sign("generate_mac", KeyId=HMAC_ARN, MacAlgorithm="HMAC_SHA_256") != signs
    asked = {"MessageType": "RAW", "SigningAlgorithm": "ED25519_SHA_512"}
    assert intruder.cannot_sign("sign", KeyId=ED25519_ARN, **asked) != signs


def test_the_readme_lists_each_policy() -> None:
    """The table of policies has each one, and no other."""
    text = (ROOT / "deployments" / "README.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)\.json` \|", text, re.MULTILINE)) == ROLES
