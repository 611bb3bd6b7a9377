"""Start servers that speak S3: a real one that keeps its data on disk (SeaweedFS), and moto for what that one lacks.

SeaweedFS has conditional puts, versions, Object Lock, verified SHA-256 and checked credentials, and survives kill -9.
moto, in memory, has KMS and archived storage classes, but checks neither credentials nor checksums. Neither proves
durability.

Both take credentials by the standard AWS chain, as `Store` does: a test calls `server.use(monkeypatch)` first, or gives
`server.environment()` to a child process.
"""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.guard import start_guard
from tests.servers.ports import free_ports
from tests.servers.shared import Server, one_for_all

REGION = "us-east-1"
LIMITED = {"maynotwrite": ["Read", "List"], "maynotread": ["List", "Write"], "maynotlist": ["Read", "Write"]}
"""Access keys of SeaweedFS that may not do everything, and what they may do."""
_START_SECONDS = 120


@functools.cache
def _shared_loader(data_path: str | None = None) -> Any:
    loader = _create_loader(data_path)
    loader.file_loader.load_file = functools.cache(loader.file_loader.load_file)
    return loader


# Each session of boto3 reads the descriptions of AWS's services again. That is nine tenths of the time that making a
# client takes, and tests make thousands. In this process all sessions share what was read.
_create_loader: Any = botocore.session.create_loader
setattr(botocore.session, "create_loader", _shared_loader)  # noqa: B010 - its types do not know the name


class _Server(Server):
    """A server that speaks S3."""

    access_key = "custodytest"
    secret_key = "custody-test-secret"

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.endpoint_url = f"http://127.0.0.1:{port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that a process needs to use this server, none of them read from this machine's files."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the server's credentials in this process's environment until the test is over."""
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def client(self, service: Any = "s3") -> Any:
        """Return a boto3 client with the server's credentials, for what a Store does not do."""
        return boto3.session.Session(
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key, region_name=REGION
        ).client(
            service,
            endpoint_url=self.endpoint_url,
            config=Config(connect_timeout=5, read_timeout=30, s3={"addressing_style": "path"}),
        )

    def make_bucket(self, *, versioned: bool = False, object_lock: bool = False) -> str:
        """Return the name of a new, empty bucket."""
        name = f"test-{uuid.uuid4().hex}"
        client = self.client()
        try:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
            if versioned:
                client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        finally:
            client.close()
        return name

    def start(self, owner: int | None = None) -> None:
        """Start the process and return when the server answers; after `kill`, on the same files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env={**os.environ, **self._variables()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard = start_guard(owner or os.getpid(), self._process.pid, self.folder)
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{type(self).__name__} did not start; the end of its log:\n{tail}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        if self._process is None:
            raise RuntimeError(f"this {type(self).__name__} does not run")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _variables(self) -> dict[str, str]:
        return {}

    def _ready(self) -> bool:
        raise NotImplementedError


class SeaweedServer(_Server):
    """SeaweedFS: every part of it in one process, data on disk."""

    def __init__(self, folder: Path) -> None:
        self._ports = free_ports(8)
        super().__init__(folder, self._ports[0])

    def start(self, owner: int | None = None) -> None:
        """Start the server with one identity that may do everything, and those of `LIMITED`, with the same secret."""
        self.folder.mkdir(parents=True, exist_ok=True)
        may = {self.access_key: ["Admin", "Read", "List", "Tagging", "Write"], **LIMITED}
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": self.secret_key}], "actions": actions}
            for key, actions in may.items()
        ]
        (self.folder / "identities.json").write_text(json.dumps({"identities": identities}))
        super().start(owner)

    def _command(self) -> list[str]:
        weed = Path(sys.executable).with_name("weed")
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        return [
            str(weed) if weed.exists() else shutil.which("weed") or "weed",
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-disableHttp=true",
            "-admin.ui=false",
            "-webdav=false",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-volume.max=10000",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 'identities.json'}",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.autoCreateBucket=false",
        ]

    def _variables(self) -> dict[str, str]:
        (self.folder / "data").mkdir(exist_ok=True)
        # By default a bucket takes seven volumes of the few there are, and tests make hundreds of buckets.
        return {"GOMEMLIMIT": "512MiB", "GOMAXPROCS": "2", "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}

    def _ready(self) -> bool:
        """A put and a get succeed: the S3 port answers before there is a place to write to."""
        client = self.client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            return bool(client.get_object(Bucket="ready", Key="ready")["Body"].read() == b"ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()


class MotoServer(_Server):
    """moto in server mode: S3 and KMS, in memory."""

    def __init__(self, folder: Path) -> None:
        self._port = free_ports(1)[0]
        super().__init__(folder, self._port)

    def enforce_policies(self) -> None:
        """From now on answer only what IAM's policies allow. So make users before: nobody else may do anything."""
        url, plain = f"{self.endpoint_url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(url, data=b"0", headers=plain, method="POST")  # noqa: S310
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            pass

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=5):
                return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def seaweed(pytestconfig: pytest.Config) -> Iterator[SeaweedServer]:
    """A running SeaweedFS, one for all processes of the test session. Buckets are a test's own: `make_bucket`.

    A test that kills a server starts its own `SeaweedServer`.
    """
    yield from one_for_all(pytestconfig, "seaweed", SeaweedServer)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """A running moto, one a test process."""
    with MotoServer(tmp_path_factory.mktemp("moto")) as server:
        yield server
