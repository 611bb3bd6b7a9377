"""An archive in a bucket of S3, or of a server that speaks its protocol; the rules are those of `protocol.py`."""

import base64
import hashlib
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from custody.errors import (
    FormatError,
    NoBucket,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    StoreError,
    TerminalStoreError,
    TransientStoreError,
)
from custody.format.layout import EVIDENCE
from custody.store import retries
from custody.store.bucket import Configuration
from custody.store.protocol import (
    ARCHIVED_CLASSES,
    Capabilities,
    ObjectInfo,
    ObjectStatus,
    S3Options,
    Store,
    Tier,
    Version,
    check_folder,
    check_key,
    check_prefix,
    is_beyond,
    occupied,
    too_large,
)
from custody.store.s3_client import READ_ATTEMPTS, Bucket
from custody.store.s3_errors import LOOK_AT_LOCK, BeyondEnd, CallUnknown, NotConfigured, Restoring

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef


_PUT_ATTEMPTS = 5
_PUT_PATIENCE = 60.0
_BACKOFF_SECONDS = (0.1, 2.0)


class _CutShortError(TransientStoreError):
    """An answer did not arrive completely."""


class S3Store:
    """An archive in a bucket of AWS S3, or of a server that speaks its protocol."""

    def __init__(self, url: str, options: S3Options, chosen: Mapping[str, Version] | None = None) -> None:
        self._chosen = chosen or {}
        self._bucket = Bucket(url, options)
        self.url = self._bucket.url
        self._versions = S3Versions(self._bucket)
        self._bucket_seen = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            versions=self._versions,
            locks=self,
            restores=self,
            lifecycle=Configuration(self._bucket),
            clock=self._bucket,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.url, self._bucket.options, self._chosen)

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def create(self, key: str, data: bytes) -> None:
        where = self._bucket.where(key)
        put = {**self._bucket.object(key), **self._protection(key)}
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        started = time.monotonic()
        problem: StoreError | None = None
        for attempt in range(_PUT_ATTEMPTS):
            if attempt:
                retries.count("s3", retries.type_of(problem) if problem else "unknown")
                _wait(attempt)
            try:
                with self._bucket.errors("write", where):
                    self._bucket.writer.put_object(
                        **put, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256", ChecksumSHA256=digest
                    )
            except (TransientStoreError, ObjectExists) as error:
                problem = error
            else:
                return
            try:
                if self._holds(key, data):
                    return
            except ObjectMissing:
                if isinstance(problem, ObjectExists):
                    problem = TransientStoreError(f"the server says both that {where} exists and that it does not")
            except TransientStoreError as error:
                problem = error
            else:
                raise occupied(where)
            if time.monotonic() - started > _PUT_PATIENCE:
                break
        raise TransientStoreError(
            f"it is not known whether {where} was written, after {attempt + 1} attempts: {problem}"
        )

    def _holds(self, key: str, data: bytes) -> bool:
        """Return whether the object has these bytes."""
        try:
            return self.read(key, limit=len(data)) == data
        except FormatError:
            return False

    def _protection(self, key: str) -> dict[str, Any]:
        """Return the arguments of a put for encryption and, for evidence, for Object Lock."""
        options = self._bucket.options
        put: dict[str, Any] = {}
        if options.sse_kms_key:
            put |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.sse_kms_key}
        if not key.startswith(EVIDENCE):
            return put
        if options.retention_mode and options.retention_days:
            until = datetime.now(UTC) + timedelta(days=options.retention_days)
            put |= {"ObjectLockMode": options.retention_mode, "ObjectLockRetainUntilDate": until}
        if options.legal_hold:
            put |= {"ObjectLockLegalHoldStatus": "ON"}
        return put

    def read(
        self,
        key: str,
        *,
        limit: int,
        start: int = 0,
        size: int | None = None,
        restored: bool = False,
    ) -> bytes:
        if size is not None and size <= 0:
            self._head(key)
            return b""
        # botocore does not retry if the connection breaks within the body, so this does.
        for attempt in range(1, READ_ATTEMPTS):
            try:
                return self._read(key, limit, start, size, restored)
            except _CutShortError as error:
                retries.count("s3", retries.type_of(error))
                _wait(attempt)
        return self._read(key, limit, start, size, restored)

    def _read(self, key: str, limit: int, start: int, size: int | None, restored: bool) -> bytes:
        where = self._bucket.where(key)
        span: dict[str, Any] = {}
        if start or size is not None:
            want = limit + 1 if size is None else min(size, limit + 1)
            span["Range"] = f"bytes={start}-{start + want - 1}"
        try:
            with self._bucket.errors("read", where):
                answer = self._bucket.reader.get_object(**self._bucket.object(key), **self._version(key), **span)
        except BeyondEnd:
            return b""
        body = answer["Body"]
        try:
            if not restored and answer.get("StorageClass") in ARCHIVED_CLASSES:
                raise ObjectArchived(f"{where} is in an archive storage class, and only a restored copy can be read")
            if span and "ContentRange" not in answer:
                raise TerminalStoreError(
                    f"cannot read a part of {where}: the server does not support ranges; use another one"
                )
            length = answer["ContentLength"]
            if length > limit:
                raise too_large(where, limit)
            try:
                with self._bucket.errors("read", where):
                    data = body.read(length) if length else b""
            except TransientStoreError as error:
                raise _CutShortError(str(error)) from None
        finally:
            body.close()
        if len(data) != length:
            raise _CutShortError(f"cannot read {where}: {len(data):,} of {length:,} bytes came; try again")
        return data

    def exists(self, key: str) -> bool:
        try:
            self._head(key)
        except ObjectMissing:
            return False
        return True

    def _head(self, key: str) -> dict[str, Any]:
        where, call = self._bucket.where(key), {**self._bucket.object(key), **self._version(key)}
        try:
            with self._bucket.errors("look at", where):
                return {**self._bucket.reader.head_object(**call, ChecksumMode="ENABLED")}
        except ObjectMissing:
            self._check_bucket()
            raise

    def _check_bucket(self) -> None:
        """Raise an error if the bucket is missing: HEAD gives the same answer for a missing object."""
        if self._bucket_seen:
            return
        where = f"s3://{self._bucket.name}"
        try:
            with self._bucket.errors("look for", where):
                self._bucket.reader.head_bucket(**self._bucket.owned())
        except ObjectMissing:
            raise NoBucket(self._bucket.name) from None
        except TerminalStoreError:
            # Without permission for this call, the answer about the object has to do.
            pass
        self._bucket_seen = True

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        check_folder(prefix)
        root, skip = len(self._bucket.absolute("")), len(self._bucket.absolute(prefix))
        folders: set[str] = set()
        objects: dict[str, ObjectInfo] = {}
        for page in self._pages(prefix, Delimiter="/"):
            folders.update(common["Prefix"][skip:].rstrip("/") for common in page.get("CommonPrefixes", ()))
            for item in page.get("Contents", ()):
                objects[item["Key"][root:]] = ObjectInfo(
                    item["Key"][root:], item["Size"], item.get("StorageClass", "STANDARD")
                )
        for key, version in self._chosen.items():
            if key.startswith(prefix):
                folder, deeper, _ = key[len(prefix) :].partition("/")
                if deeper:
                    folders.add(folder)
                else:
                    objects[key] = ObjectInfo(key, version.size)
        return sorted(folders), list(objects.values())

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        if after > prefix and not after.startswith(prefix):
            return
        start = _safe_start(prefix, after)

        def wanted(key: str) -> bool:
            within = key > after and key.startswith(prefix) and (not through or key <= through)
            return within and key[: key.find("/") + 1] not in without

        recent: set[str] = set()
        more = {"StartAfter": self._bucket.absolute(start)} if start > prefix else {}
        for page in self._pages(prefix, **more):
            # A server may repeat keys at the beginning of the next page.
            seen, recent = recent, set()
            key = ""
            for item in page.get("Contents", ()):
                key = item["Key"][len(self._bucket.absolute("")) :]
                if key in self._chosen or not wanted(key):
                    continue
                if key not in seen and key not in recent:
                    recent.add(key)
                    yield ObjectInfo(key, item["Size"], item.get("StorageClass", "STANDARD"))
            if through and is_beyond(key, through):
                break
        for key, version in self._chosen.items():
            if wanted(key):
                yield ObjectInfo(key, version.size)

    def _version(self, key: str) -> dict[str, Any]:
        return {"VersionId": self._chosen[key].id} if key in self._chosen else {}

    def _pages(self, prefix: str, **arguments: str) -> Iterator["ListObjectsV2OutputTypeDef"]:
        markers = {"NextContinuationToken": "ContinuationToken"}
        return self._bucket.pages(self._bucket.reader.list_objects_v2, "list", prefix, markers, **arguments)

    def status(self, key: str) -> ObjectStatus:
        head = self._head(key)
        digest = head.get("ChecksumSHA256")
        # A digest of several parts ("…-3") is not a digest of the bytes.
        if digest is not None and (head.get("ChecksumType") == "COMPOSITE" or "-" in digest):
            digest = None
        return ObjectStatus(
            size=head["ContentLength"],
            created=head["LastModified"],
            storage_class=head.get("StorageClass", "STANDARD"),
            restored='ongoing-request="false"' in head.get("Restore", ""),
            restoring='ongoing-request="true"' in head.get("Restore", ""),
            sha256=base64.b64decode(digest).hex() if digest is not None else None,
            lock_mode=head.get("ObjectLockMode"),
            lock_until=head.get("ObjectLockRetainUntilDate"),
            legal_hold=head.get("ObjectLockLegalHoldStatus") == "ON",
        )

    def remove(self, key: str) -> None:
        where, versions = self._bucket.where(key), list(self._versions.of(key))
        with self._bucket.errors("delete", where):
            # By version: otherwise a bucket with versions keeps the bytes, under a delete marker.
            for version in versions:
                self._bucket.writer.delete_object(**self._bucket.object(key), VersionId=version.id)
            if not versions:
                self._bucket.writer.delete_object(**self._bucket.object(key))

    def close(self) -> None:
        self._bucket.close()

    def lock(self, key: str) -> tuple[str, datetime] | None:
        where = self._bucket.where(key)
        try:
            with self._bucket.errors(LOOK_AT_LOCK, where):
                call = {**self._bucket.object(key), **self._version(key)}
                retention = self._bucket.reader.get_object_retention(**call)["Retention"]
        except (CallUnknown, NotConfigured):
            return None
        mode, until = retention.get("Mode"), retention.get("RetainUntilDate")
        return (mode, until) if mode and until else None

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        where = self._bucket.where(key)
        asked: Any = {"Days": days, "GlacierJobParameters": {"Tier": tier.capitalize()}}
        try:
            with self._bucket.errors("restore", where):
                self._bucket.reader.restore_object(
                    **self._bucket.object(key), **self._version(key), RestoreRequest=asked
                )
        except Restoring:
            return


class S3Versions:
    """The versions and delete markers that a bucket keeps."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """Return a view of the store in which these versions of some keys are the present ones."""
        return S3Store(self._bucket.url, self._bucket.options, chosen)

    def has_history(self, key: str) -> bool:
        """Return whether there is a version or a delete marker of the key, besides an object without versions."""
        # A present object without a version id is not history.
        return any(version.marker or version.id != "null" or not version.latest for version in self.of(key))

    def history(self, prefix: str = "", *, after: str = "", through: str = "") -> Iterator[Version]:
        """Yield all versions and delete markers of keys that have more than one plain object; keys as in `list`."""
        check_prefix(prefix)
        pending: dict[str, list[Version]] = {}
        for versions, last_key in self._pages(prefix, after, through):
            for version in versions:
                if version.key > after and (not through or version.key <= through):
                    pending.setdefault(version.key, []).append(version)
            # The last key of a page may go on in the next.
            for key, of_key in pending.items():
                if key != last_key and (len(of_key) > 1 or of_key[0].marker):
                    yield from of_key
            pending = {last_key: pending[last_key]} if last_key in pending else {}

    def of(self, key: str) -> Iterator[Version]:
        """Yield all versions and delete markers of a key."""
        check_key(key)
        return (version for versions, _ in self._pages(key) for version in versions if version.key == key)

    def _pages(self, prefix: str, after: str = "", through: str = "") -> Iterator[tuple[list[Version], str]]:
        """Yield the versions and delete markers of each page, with the key that may go on in the next page.

        Some keys up to `after`, and beyond `through`, are among them.
        """
        start = _safe_start(prefix, after)
        more = {"KeyMarker": self._bucket.absolute(start)} if start > prefix else {}
        skip = len(self._bucket.absolute(""))
        call, markers = (
            self._bucket.reader.list_object_versions,
            {"NextKeyMarker": "KeyMarker", "NextVersionIdMarker": "VersionIdMarker"},
        )
        try:
            for page in self._bucket.pages(call, "list versions of", prefix, markers, **more):
                entries = [(entry, False) for entry in page.get("Versions", ())]
                entries += [(entry, True) for entry in page.get("DeleteMarkers", ())]
                versions = [
                    Version(
                        entry["Key"][skip:],
                        entry.get("VersionId", "null"),
                        marker,
                        entry.get("IsLatest", True),
                        entry.get("Size", 0),
                        entry.get("ETag", ""),
                    )
                    for entry, marker in entries
                ]
                following = page.get("NextKeyMarker", "")[skip:] if page.get("IsTruncated") else ""
                if through and following and is_beyond(following, through):
                    yield versions, ""
                    return
                yield versions, following
        except CallUnknown:
            return


def _safe_start(prefix: str, after: str) -> str:
    """Return a StartAfter that skips no key greater than `after`, whether the server sorts by bytes or by path.

    By path, "a/b" comes before "a-b", and a server may take StartAfter "a" to mean that folder "a" is done. So `after`
    is cut before the first character that sorts before "/", and by one more character. Then each key that is greater by
    bytes is greater by path too, and so is its folder. A few keys are listed in vain, at most ten of a log's manifests.
    """
    end = len(prefix)
    while end < len(after) and after[end] >= "/":
        end += 1
    if end > len(prefix) and after[end - 1] != "/":
        end -= 1
    return after[:end]


def _wait(attempt: int) -> None:
    """Sleep, longer after each attempt. The time is random, so that many writers do not try again at once."""
    base, most = _BACKOFF_SECONDS
    time.sleep(random.uniform(0.5, 1) * min(most, base * 4 ** (attempt - 1)))  # noqa: S311 - nothing secret
