"""Being refused a look is never tampering and never success: each prefix and kind of call is refused in turn."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apprise  # noqa: F401 - while this process may read root's packages: nobody may not
import duckdb
import pytest

from custody.errors import CustodyError, SourceError, SourceRefused, TransientSourceError
from custody.query.connect import connect
from custody.store.caller import user
from custody.store.open import open_store
from custody.verify.run import verify
from tasks.check import retention
from tasks.drain.bounds import Bounds
from tasks.drain.kafka import Broker, Topic
from tasks.drain.run import find_partitions
from tasks.health.model import Health
from tasks.health.read import read_health
from tasks.roll.run import roll_all
from tasks.search.index import index_logs
from tasks.settings import AuditSettings, SearchSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.commands import Command
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing, make_archive
from tests.helpers.search import delete_indices, documents, now_event
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kms import FakeKms
from tests.servers.proxy import Fault, FaultyProxy
from tests.servers.s3 import SeaweedServer

REFUSED = Fault("403", effect=False)
REFUSED_TO = f"refused to access key {SeaweedServer.access_key} of env"
NOBODY = 65534
STORE = {
    "archive.json": "/audit/archive.json",
    "manifests": "/audit/manifests/",
    "events": "/audit/events/",
    "quarantine": "/audit/quarantine/",
    "audits": "/audit/audits/",
    "checkpoints": "/audit/checkpoints/",
    "listings": "list-type=2",
    "the listing of events": "prefix=audit%2Fevents",
    "manifests and their listing": "manifests",
    "audits and their listing": "audits",
    "versions": "versions",
    "lifecycle rules": "lifecycle",
    "everything": "",
}
"""What of a bucket may not be looked at, and what paths of such requests have in common."""


@pytest.fixture(scope="module")
def uploaded(seaweed: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A whole archive, with quarantine and an audit, in a bucket with versions; and its keyring."""
    sample = make_archive(tmp_path_factory.mktemp("refused"))
    audit(Settings(archive=str(sample.folder), keys=f"file:{sample.keyring}"))
    bucket = seaweed.make_bucket(versioned=True)
    with closing(seaweed.client()) as client:
        for path in filter(Path.is_file, sample.folder.rglob("*")):
            key = f"audit/{path.relative_to(sample.folder)}"
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    return f"s3://{bucket}/audit", sample.keyring


@pytest.fixture(scope="module")
def overwritten(uploaded: tuple[str, Path], seaweed: SeaweedServer) -> str:
    """A copy of the archive in a bucket of its own. There, a segment was put over."""
    source, bucket = uploaded[0].removeprefix("s3://").partition("/")[0], seaweed.make_bucket(versioned=True)
    with closing(seaweed.client()) as client:
        keys = [item["Key"] for item in client.list_objects_v2(Bucket=source)["Contents"]]
        for key in keys:
            data = client.get_object(Bucket=source, Key=key)["Body"].read()
            client.put_object(Bucket=bucket, Key=key, Body=data)
        segment = next(key for key in keys if key.startswith("audit/events/"))
        client.put_object(Bucket=bucket, Key=segment, Body=b"something else")
    return f"s3://{bucket}/audit"


@pytest.fixture
def behind(
    uploaded: tuple[str, Path], seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Settings, FaultyProxy]]:
    """The archive's settings, by a proxy that can refuse calls. Kafka does not answer."""
    clear_settings(monkeypatch)
    seaweed.use(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def no_kafka(_: Broker) -> str:
        raise TransientSourceError("no answer")

    monkeypatch.setattr(Broker, "cluster", no_kafka)
    with FaultyProxy(seaweed.endpoint_url) as proxy:
        monkeypatch.setenv("CUSTODY_ARCHIVE", uploaded[0])
        monkeypatch.setenv("CUSTODY_KEYS", f"file:{uploaded[1]}")
        monkeypatch.setenv("CUSTODY_S3__ENDPOINT_URL", proxy.endpoint_url)
        yield Settings(), proxy


def said_by(run: Callable[[], list[str]]) -> list[str]:
    """Return what a command says, or the error that ends it. Any other error than ours is a traceback."""
    try:
        return run()
    except CustodyError as error:
        return [str(error)]


def judge(given: Settings) -> tuple[int, list[str]]:
    """Return the exit code of a verification, and its findings as text."""
    with closing(open_store(given.archive, given.s3)) as store:
        report = verify(store, given.own_trust(), now=datetime.now(UTC), workers=0)
    return report.exit_code, [f"{one.finding} {one.key or ''} {one.message}" for one in report.findings]


@pytest.mark.parametrize("part", STORE)
def test_a_refusing_store(behind: tuple[Settings, FaultyProxy], part: str) -> None:
    """The verdict is unverifiable, and names what was refused; of what is said nothing is called tampered."""
    given, proxy = behind
    _, before = judge(given)
    proxy.reset(always=REFUSED, part=STORE[part])
    code, findings = judge(given)
    assert code == 12, findings
    new = [one for one in findings if one not in before]
    assert any("403" in one and REFUSED_TO in one for one in new), findings
    assert not any(SeaweedServer.secret_key in one for one in findings)
    assert {one.split()[0] for one in new} == {"unreadable"}, new
    # Whoever may not look writes no audit that is clean.
    (written,) = said_by(lambda: [f"exit code {audit(given, full=True).exit_code}"])
    assert ("403" in written and REFUSED_TO in written) or written == "exit code 12"


@pytest.mark.parametrize("part", STORE)
def test_a_refusing_store_of_a_tampered_archive(
    behind: tuple[Settings, FaultyProxy], overwritten: str, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Whatever else is refused, an object that was put over is found. Without versions, what is there now is judged."""
    _, proxy = behind
    monkeypatch.setenv("CUSTODY_ARCHIVE", overwritten)
    given = Settings()
    proxy.reset(always=REFUSED, part=STORE[part])
    code, findings = judge(given)
    assert any(one.startswith("unreadable ") and "403" in one and REFUSED_TO in one for one in findings), findings
    assert code == (12 if part == "everything" else 13), findings
    named = any(one.startswith("version ") for one in findings)
    assert named or part in {"versions", "everything"}, findings


def assert_other_parts(health: Health, part: str) -> None:
    """Check that the status has each part that is not refused."""
    assert {"kafka-unreachable", "alerts-nobody"} <= {problem.kind for problem in health.problems}
    assert health.topics_without_log is None
    # The end of the audits is compared with their checkpoints.
    if part not in {"audits", "checkpoints", "listings", "everything"}:
        assert health.audit is not None


@pytest.mark.parametrize("part", ["archive.json", "manifests", "events", "listings", "everything"])
@pytest.mark.parametrize("command", ["status", "query", "roll"])
def test_commands_of_a_refusing_store(behind: tuple[Settings, FaultyProxy], part: str, command: str) -> None:
    """A command either does not need what is refused, or says what that is; it never just shows less.

    The status shows all other parts.
    """
    given, proxy = behind

    def status() -> list[str]:
        health = read_health(given, datetime.now(UTC))
        assert_other_parts(health, part)
        problems = [f"{one.subject}: {one.message}" for one in health.problems if one.subject != "kafka"]
        return [*(f"{log.log} {log.size} {log.root}" for log in health.logs), *problems]

    def query() -> list[str]:
        with closing(connect()) as opened:
            try:
                return [str(row) for row in opened.execute("SELECT count(*) FROM events").fetchall()]
            except duckdb.Error as error:
                return [str(error)]

    def roll() -> list[str]:
        done = roll_all(given, datetime.now(UTC), dry_run=True)
        return [f"{one.what} {one.target} {one.outcome} {one.why}" for one in done]

    run: Callable[[], list[str]] = {"status": status, "query": query, "roll": roll}[command]
    expected = run()
    proxy.reset(always=REFUSED, part=STORE[part])
    said = run() if command == "status" else said_by(run)
    assert said == expected or any("403" in one and REFUSED_TO in one for one in said), said
    if (command, part) == ("status", "archive.json"):
        assert expected[0] in said


@pytest.mark.parametrize(
    ("key", "doing", "status", "code"),
    [
        ("maynotread", "read", "HTTP 403, AccessDenied", 12),
        ("maynotlist", "list", "HTTP 403, AccessDenied", 12),
        ("maynotwrite", "write", "HTTP 403, AccessDenied", 0),
        ("unknown", "", "HTTP 403, InvalidAccessKeyId", 12),
    ],
)
def test_a_refused_access_key(
    behind: tuple[Settings, FaultyProxy],
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    doing: str,
    status: str,
    code: int,
) -> None:
    """A real server that refuses one kind of call names nobody; the error names the key's id, and never its secret."""
    given, _ = behind
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    given = Settings()
    exit_code, findings = judge(given)
    assert exit_code == code, findings
    said = findings + said_by(lambda: [f"exit code {audit(given, full=True).exit_code}"])
    refusals = [one for one in said if f"refused to access key {key} of env" in one]
    assert any(f"cannot {doing}" in one and status in one and "s3://" in one for one in refusals), said
    assert not any(SeaweedServer.secret_key in one for one in said)
    if code:
        assert {one.split()[0] for one in findings if f"key {key} " in one} == {"unreadable"}


@pytest.fixture
def nobodys() -> Iterator[tuple[Settings, Path]]:
    """An archive in a folder of the user nobody's, and this process as nobody: root is refused nothing."""
    root = Path(tempfile.mkdtemp(prefix="custody-refused-"))
    user = os.geteuid()
    try:
        sample = make_archive(root)
        given = Settings(archive=str(sample.folder), keys=f"file:{sample.keyring}")
        audit(given)
        if user == 0:
            for path in (root, *root.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        yield given, sample.folder
    finally:
        os.seteuid(user)
        for path in (root, *filter(Path.is_dir, root.rglob("*"))):
            path.chmod(0o700)
        shutil.rmtree(root)


FOLDERS = ["archive.json", "manifests", "events", "quarantine", "audits", "checkpoints", "everything"]


@pytest.mark.parametrize("part", FOLDERS)
def test_a_refusing_folder(nobodys: tuple[Settings, Path], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that the process may not read is unreadable to its user, by name; commands say so, or do not need it."""
    monkeypatch.chdir("/")
    given, folder = nobodys
    now = datetime.now(UTC)

    def no_kafka(*_: object) -> list[Topic]:
        raise TransientSourceError("no answer")

    monkeypatch.setattr(Broker, "topics", no_kafka)

    def status() -> list[str]:
        health = read_health(given, now)
        assert_other_parts(health, part)
        sizes = [f"{log.log} {log.size}" for log in health.logs]
        return sizes + [f"{problem.kind} {problem.subject} {problem.message}" for problem in health.problems]

    def roll() -> list[str]:
        return [f"{one.outcome} {one.why}" for one in roll_all(given, datetime.now(UTC), dry_run=True)]

    expected = {run: run() for run in (status, roll)}
    trusted = given.own_trust()
    refused = folder if part == "everything" else folder / part
    mode = refused.stat().st_mode
    refused.chmod(0)
    try:
        who = f"refused to {user()}"
        assert "uid" in who
        with closing(open_store(given.archive, given.s3)) as store:
            report = verify(store, trusted, now=datetime.now(UTC), workers=0)
        findings = list(report.findings)
        assert report.exit_code == 12, findings
        assert {one.finding for one in findings} == {"unreadable"}
        assert any(who in one.message and str(refused) in one.message for one in findings), findings
        for run, before in expected.items():
            said = run() if run is status else said_by(run)
            assert said == before or any(who in one for one in said), (run, said)
            if part in {"manifests", "everything"}:
                (line,) = retention.check(given, now)
                assert (line.subject, line.level) == ("headroom", "warning")
                assert "cannot be" in line.message
            if run is status and part in {"manifests", "everything"}:
                assert any(one.startswith("log-unknown archive its logs cannot be listed") for one in said), said
        (written,) = said_by(lambda: [f"exit code {audit(given, full=True).exit_code}"])
        assert who in written or written == "exit code 12"
    finally:
        refused.chmod(mode)


SEARCH = {
    "searches": "/_search",
    "cursors": "-cursors/_doc",
    "mappings": "filter_path",
    "refreshes": "_refresh",
    "everything": "",
}


@pytest.mark.parametrize("part", SEARCH)
def test_a_refusing_elasticsearch(tmp_path: Path, elastic: ElasticsearchServer, part: str) -> None:
    """An audit that may not look at something in Elasticsearch is signed as unverifiable, and names the refusal."""
    growing = Growing(tmp_path)
    growing.append(2, now_event)
    with FaultyProxy(elastic.url) as proxy:
        search = SearchSettings(url=proxy.endpoint_url, prefix=elastic.unused_prefix(), replicas=0)
        given = Settings(
            archive=str(growing.folder),
            keys=f"file:{growing.keyring}",
            audit=AuditSettings(tables=False),
            search=search,
        )
        index_logs(given)
        assert audit(given).exit_code == 0
        proxy.reset(always=REFUSED, part=SEARCH[part])
        outcome = audit(given, full=True)
        assert outcome.exit_code == 12, outcome.findings
        assert {one["finding"] for one in outcome.findings} == {"unreadable"}
        growing.append(1, now_event)
        said = said_by(lambda: [str(one.problem) for one in index_logs(given)])
        assert proxy.endpoint_url in said[0] or part in {"searches", "refreshes"}
        proxy.reset()
        assert [one.problem for one in index_logs(given)] == [None]
        assert len(documents(given)) == 15
        assert audit(given, full=True).counts["rejected"] == 0
        delete_indices(given)


@pytest.fixture(params=["sound", "tampered"])
def local(request: pytest.FixtureRequest, tmp_path: Path, custody: Command) -> tuple[Command, int, str]:
    """The command line beside an archive, the exit code for it when something is refused, and its key's URI."""
    sample = make_archive(tmp_path)
    if request.param == "tampered":
        segment = next((sample.folder / "events").rglob("*.gz"))
        segment.chmod(0o644)
        segment.write_bytes(b"something else")
    return custody, 12 if request.param == "sound" else 13, f"file:{sample.keyring}"


def verified(custody: Command, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code of `custody verify`, and its findings that are `unreadable`. It must give a verdict."""
    done = custody("verify", "archive", *arguments, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert any(line["kind"] == "verdict" for line in lines), done.err
    return done.code, [line for line in lines if line.get("finding") == "unreadable"]


@pytest.mark.parametrize("call", ["cluster", "topics", "remembered", "bounds"])
def test_a_refusing_kafka(local: tuple[Command, int, str], monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A broker that refuses a call costs no verdict on the archive, and what else can be compared is compared."""
    custody, expected, key = local
    refuse = raising(SourceRefused("the broker said no"))
    # The topic has another id, unless its bounds are asked for.
    topic = Topic("audit.events", "topic-id" if call == "bounds" else "another", 1)
    for name, answer in {"cluster": "cluster", "topics": [topic], "remembered": [], "bounds": None}.items():
        monkeypatch.setattr(Broker, name, refuse if name == call else lambda *_, answer=answer: answer)
    code, unreadable = verified(custody, "--keys", key, "--kafka")
    assert code == expected
    assert any("the broker said no" in one["message"] for one in unreadable), unreadable
    if call == "remembered":
        out = custody("verify", "archive", "--keys", key, "--kafka", "--json").out
        assert "topic-changed" in out


@pytest.mark.parametrize("operation", ["DescribeKey", "GetPublicKey"])
def test_a_refusing_kms(local: tuple[Command, int, str], fake_kms: FakeKms, operation: str) -> None:
    """A key that KMS does not resolve is named, and the other keys still judge."""
    custody, expected, key = local
    alias = "aws-kms:///alias/checkpoints"
    fake_kms.refused.add(operation)
    for keys in ((alias, key), (key, alias)):
        code, unreadable = verified(custody, *(word for uri in keys for word in ("--keys", uri)))
        assert code == expected
        (one,) = unreadable
        assert f"KMS refused {operation}" in one["message"]
        assert f"to access key id of env: allow kms:{operation} " in one["message"]
        assert "very-secret" not in one["message"]
    code, (one,) = verified(custody, "--keys", alias)
    assert code == expected
    assert operation in one["message"]


def spoil(settings: Settings, how: str, monkeypatch: pytest.MonkeyPatch, fake_kms: FakeKms) -> Settings:
    """Make something that heads are checked by unusable, and return the settings."""
    file = Path(settings.archive, "archive.json")
    match how:
        case "KMS refused":
            fake_kms.refused.add("DescribeKey")
            monkeypatch.setenv("CUSTODY_KEYS", "aws-kms:///alias/statements")
        case "no such keyring":
            monkeypatch.setenv("CUSTODY_KEYS", "file:missing.json")
        case "archive.json is garbage":
            file.unlink()
            file.write_bytes(b"garbage")
        case "archive.json is gone":
            file.unlink()
    return Settings(archive=settings.archive)


@pytest.mark.parametrize(
    "how", ["KMS refused", "no such keyring", "archive.json is garbage", "archive.json is gone", "no key at all"]
)
def test_status_that_checks_no_head(
    local: tuple[Command, int, str], monkeypatch: pytest.MonkeyPatch, fake_kms: FakeKms, how: str
) -> None:
    """Where keys or archive.json cannot be used, that is a failure. For who names no key, it is a warning."""
    if how != "no key at all":
        monkeypatch.setenv("CUSTODY_KEYS", local[2])
    else:
        Path("keyring.json").unlink()
    # The first question: it need not wait for a broker that is not there.
    monkeypatch.setattr(Broker, "topics", raising(TransientSourceError("no answer")))
    health = read_health(spoil(Settings(archive="archive"), how, monkeypatch, fake_kms), datetime.now(UTC))
    (level,) = (problem.level for problem in health.problems if problem.kind == "heads-unchecked")
    assert level == ("warning" if how == "no key at all" else "failed")
    assert health.logs[-1].size == 4


def raising(error: Exception) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise error

    return refuse


@pytest.mark.parametrize("call", ["cluster", "topics", "bounds", "disagreement"])
@pytest.mark.parametrize("error", [SourceRefused, TransientSourceError])
def test_status_of_a_refusing_kafka(
    local: tuple[Command, int, str], monkeypatch: pytest.MonkeyPatch, call: str, error: type[SourceError]
) -> None:
    """A broker that refuses, or does not answer, leaves the lag unknown. That is one problem, and the head is shown."""
    monkeypatch.setenv("CUSTODY_KEYS", local[2])
    topics = [Topic("audit.events", "topic-id", 1)]
    bounds = Bounds(0, 10**6, 10**6)
    answers = {"cluster": "cluster", "topics": topics, "all_bounds": {}, "bounds": bounds, "disagreement": None}
    for name, answer in answers.items():
        refused = raising(error("the broker said no"))
        monkeypatch.setattr(Broker, name, refused if name == call else lambda *_, answer=answer: answer)
    health = read_health(Settings(archive="archive"), datetime.now(UTC))
    (problem,) = (problem for problem in health.problems if "the broker said no" in problem.message)
    if call in {"cluster", "topics"}:
        assert (problem.kind, problem.level, problem.subject) == ("kafka-unreachable", "failed", "kafka")
    else:
        expected = ("topic-refused", "failed") if error is SourceRefused else ("lag-unknown", "warning")
        assert (problem.kind, problem.level, problem.subject) == (*expected, "audit.events/0")
    assert (health.logs[-1].size, health.logs[-1].lag_records) == (4, None)


@pytest.mark.parametrize("data", [b"garbage", None])
def test_a_vanished_topic_without_a_readable_statement(
    local: tuple[Command, int, str], monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> None:
    """A log whose first statement does not count was in Kafka: it is missed, and the other logs are drained."""
    monkeypatch.setenv("CUSTODY_KEYS", local[2])
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", "^.*")
    first = Path("archive/manifests/audit.events/0") / f"{0:012}.json"
    forged = first.read_bytes().replace(b'"cluster":"cluster"', b'"cluster":"direct"') if data is None else data
    first.unlink()
    first.write_bytes(forged)
    monkeypatch.setattr(Broker, "topics", lambda *_: [Topic("other", "id", 1)])
    assert find_partitions(Settings(archive="archive")) == [("other", 0), ("audit.events", 0)]
