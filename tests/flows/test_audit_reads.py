"""The nightly audit reads each byte once from a real S3 server, in threads, processes and on Dask.

Longer than 5 seconds, because workers start, and each imports Prefect.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from prefect.settings import PREFECT_API_URL

from custody.format import layout
from flows.audit import audit
from tasks.settings import Settings
from tests.helpers.audit import audit as audit_here
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing
from tests.servers.proxy import FaultyProxy
from tests.servers.s3 import SeaweedServer

LOGS, OLD, NEW = 2, 12, 9


class Site:
    """An archive in a bucket behind a proxy that counts. It was audited once, and has grown since."""

    def __init__(self, folder: Path, seaweed: SeaweedServer, proxy: FaultyProxy) -> None:
        self._client, self._proxy = seaweed.client(), proxy
        self.bucket = seaweed.make_bucket(versioned=True)
        self._logs = [Growing(folder, partition) for partition in range(LOGS)]
        self._folder = self._logs[0].folder
        self.keys = f"file:{self._logs[0].keyring}"

    def append(self, statements: int) -> None:
        """Append statements to each log, and put them into the bucket."""
        for log in self._logs:
            log.append(statements)
        there = self.objects()
        for path in filter(Path.is_file, self._folder.rglob("*")):
            key = path.relative_to(self._folder).as_posix()
            if key not in there and not key.startswith("."):
                self._client.put_object(Bucket=self.bucket, Key=f"a/{key}", Body=path.read_bytes())

    def objects(self) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="a/")
        return {each["Key"].removeprefix("a/") for page in pages for each in page.get("Contents", ())}

    def reads(self, there: set[str]) -> Counter[str]:
        """Return how often each object was read that was there."""
        begin = f"GET /{self.bucket}/a/"
        keys = [unquote(call).removeprefix(begin) for call in self._proxy.calls if call.startswith(begin)]
        return Counter(key for key in keys if key in there)


@pytest.fixture
def site(
    tmp_path: Path, prefect_server: None, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    del prefect_server
    clear_settings(monkeypatch)
    seaweed.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with FaultyProxy(seaweed.endpoint_url) as proxy:
        made = Site(tmp_path / "made", seaweed, proxy)
        # Workers that a run starts talk to this server, too.
        monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        for name, value in {
            "ARCHIVE": f"s3://{made.bucket}/a",
            "KEYS": made.keys,
            "S3__ENDPOINT_URL": proxy.endpoint_url,
            "AUDIT__PIECE_STATEMENTS": "3",
            "AUDIT__REREAD_DAYS": "2",
            "AUDIT__REPORT": "false",
            "AUDIT__WORKERS": "2",
        }.items():
            monkeypatch.setenv(f"CUSTODY_{name}", value)
        made.append(OLD)
        assert audit_here(Settings()).verdict == "verified"
        made.append(NEW)
        proxy.reset()
        yield made


@pytest.mark.parametrize("runner", ["threads", "processes", "dask"])
def test_each_byte_is_read_once(site: Site, monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
    """New manifests, and those of a share of the old; their segments, checkpoints and tables: one GET each.

    The newest audit is read again before the next one is signed. In processes and on Dask each share reads the index
    by time by itself.
    """
    monkeypatch.setenv("CUSTODY_AUDIT__TASK_RUNNER", runner)
    there = site.objects()
    ended = audit(return_state=True)
    assert ended.is_completed(), ended.message
    counts = site.reads(there)
    folders = Counter(key.partition("/")[0] for key in counts)
    # Of the old a half, and the statement before the new ones, at which the survey begins.
    assert folders["events"] == LOGS * (NEW + OLD // 2)
    assert folders["manifests"] >= LOGS * (NEW + OLD // 2 + 1)
    assert folders["tables"] > 0
    assert counts.pop(layout.audit_key(0)) <= 3
    index = [key for key in counts if key.startswith("reports/index/")]
    if runner != "threads":
        for key in index:
            assert counts.pop(key) <= 16
    assert {key: count for key, count in counts.items() if count > 1} == {}
