"""One good archive a session, and a place for each attack on it."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from custody.store import s3_client
from tests.attacks.targets import Bucket, Folder, Target
from tests.helpers.scene import Scene, build
from tests.servers.s3 import SeaweedServer


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The good archive, to look at and to copy."""
    return build(tmp_path_factory.mktemp("good"))


@pytest.fixture
def scene(good: Scene, tmp_path: Path) -> Scene:
    """A copy of the good archive, to attack."""
    return good.copy(tmp_path / "archive")


# Making boto3's clients takes as long as verifying a small archive: all attacks of a process share them.
_shared_clients = functools.cache(s3_client.s3_clients)


@pytest.fixture
def shared_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share clients among stores of the same options."""
    monkeypatch.setattr(s3_client, "s3_clients", _shared_clients)


@pytest.fixture(scope="session")
def seaweed_client(seaweed: SeaweedServer) -> Iterator[Any]:
    """A client of the real S3 server, for who may do everything there."""
    client = seaweed.client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def bucket(seaweed: SeaweedServer, seaweed_client: Any) -> Bucket:
    """A prefix in a real S3 server that one attacked archive after the other is put under: only what differs is."""
    return Bucket(seaweed_client, seaweed.make_bucket(), "company/audit", seaweed.endpoint_url)


@pytest.fixture(params=["file", "s3"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A place for one attack: a folder, or a prefix in a real S3 server."""
    if request.param == "file":
        return Folder()
    seaweed: SeaweedServer = request.getfixturevalue("seaweed")
    seaweed.use(monkeypatch)
    request.getfixturevalue("shared_clients")
    held: Bucket = request.getfixturevalue("bucket")
    return held
