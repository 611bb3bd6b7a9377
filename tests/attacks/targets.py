"""Where an attacked archive is verified: in a folder, or in a bucket of a server that speaks S3."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from custody.store.open import open_store
from custody.store.protocol import S3Options, Store
from custody.verify.report import Report
from custody.verify.run import verify
from tests.helpers.scene import Scene

_UPLOADERS = 8


class Target(Protocol):
    """A place that holds what a scene's folder holds, once it is told."""

    def hold(self, scene: Scene) -> None:
        """Make the place what the folder is: put what is new or changed, and delete what is gone."""

    def open(self, scene: Scene) -> Store:
        """Return the store to verify."""


class Folder:
    """The scene's folder itself."""

    def hold(self, scene: Scene) -> None:
        """There is nothing to do."""

    def open(self, scene: Scene) -> Store:
        return open_store(str(scene.root))


@dataclass
class Bucket:
    """A prefix of a bucket, written by somebody who may do everything there."""

    client: Any
    bucket: str
    prefix: str
    endpoint_url: str
    more: dict[str, Any] = field(default_factory=dict)
    """More for each put."""
    _held: dict[str, bytes] = field(default_factory=dict)

    def hold(self, scene: Scene) -> None:
        wanted = {key: sha256(scene.read(key)).digest() for key in scene.listed()}
        changed = [key for key, digest in wanted.items() if self._held.get(key) != digest]
        # Asked, not remembered: what an attack broke off, or put without this, is not in `_held`.
        gone = [key for key in self.keys() if key not in wanted]
        # What breaks off in the middle is put again.
        self._held = {key: digest for key, digest in self._held.items() if key not in changed}
        with ThreadPoolExecutor(_UPLOADERS) as threads:
            list(threads.map(lambda key: self.put(key, scene.read(key)), changed))
            list(threads.map(self.delete, gone))
        self._held = wanted

    def put(self, key: str, data: bytes, **more: Any) -> None:
        arguments = {"ChecksumAlgorithm": "SHA256", **self.more, **more}
        self.client.put_object(Bucket=self.bucket, Key=self.key(key), Body=data, **arguments)

    def keys(self) -> list[str]:
        """Return the keys of all objects."""
        within = self.key("")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=within)
        return [found["Key"].removeprefix(within) for page in pages for found in page.get("Contents", ())]

    def delete(self, key: str, **more: Any) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.key(key), **more)

    def key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def open(self, scene: Scene) -> Store:
        del scene
        where = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return open_store(where, S3Options(endpoint_url=self.endpoint_url))


def judge(scene: Scene, target: Target, around: Callable[[Store], Store] | None = None) -> Report:
    """Verify what a target holds, by what the scene gives to a verifier."""
    store = target.open(scene)
    try:
        options: dict[str, Any] = {"now": scene.now, "workers": 0} | scene.options
        return verify(around(store) if around else store, scene.trust, **options)
    finally:
        store.close()


def names(report: Report) -> list[str]:
    """Return the findings' names, each fit to be printed as one line that says what to do."""
    for one in report.findings:
        assert "\n" not in str(one)
        assert one.action
        assert one.where
    return [one.finding for one in report.findings]
