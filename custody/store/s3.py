"""An archive in a bucket of S3, or of a server that speaks its protocol; the rules are those of `store.py`.

It is one module because each method of the store maps the same client's errors, and knows the same bucket's versions.
"""

import base64
import contextlib
import functools
import hashlib
import random
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from custody.errors import (
    ConfigurationError,
    FormatError,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    StoreError,
    TerminalStoreError,
    TransientStoreError,
)
from custody.format.layout import EVIDENCE
from custody.store.protocol import (
    ARCHIVED_CLASSES,
    LifecycleRule,
    ObjectInfo,
    ObjectStatus,
    S3Options,
    Store,
    Tier,
    Version,
    check_key,
    check_prefix,
    legible,
    no_object,
    occupied,
    too_large,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ListObjectVersionsOutputTypeDef


_CONNECT_SECONDS = 5
_READ_SECONDS = 30
_CONNECTIONS = 64
_READ_ATTEMPTS = 3
_PUT_ATTEMPTS = 5
_PUT_PATIENCE = 60.0
_BACKOFF_SECONDS = (0.1, 2.0)


class _CutShortError(TransientStoreError):
    """An answer that had begun well did not arrive whole."""


class S3Store:
    """An archive in a bucket of AWS S3, or of a server that speaks its protocol."""

    def __init__(self, url: str, options: S3Options, chosen: Mapping[str, Version] | None = None) -> None:
        self._chosen = chosen or {}
        self._bucket, self._prefix = _bucket_of(url)
        _check_options(options)
        self._options = options
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        # Every botocore retry sends a call again without looking. Reads may be; a put is not, see `create`.
        self._reader, self._writer = _s3_clients(options, _READ_ATTEMPTS, 1)
        self._bucket_seen = False

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.url, self._options, self._chosen)

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def create(self, key: str, data: bytes) -> None:
        where = self._where(key)
        put = {**self._object(key), **self._protection(key)}
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        started = time.monotonic()
        problem: StoreError | None = None
        for attempt in range(_PUT_ATTEMPTS):
            if attempt:
                _wait(attempt)
            try:
                with _s3_errors("write", where):
                    self._writer.put_object(
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
                    problem = TransientStoreError(f"the server says that {where} exists, and that it does not")
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
        """Say whether the object's bytes are these."""
        try:
            return self.read(key, limit=len(data)) == data
        except FormatError:
            return False

    def _protection(self, key: str) -> dict[str, Any]:
        """Return what a put says about encryption and, of evidence, about Object Lock."""
        options = self._options
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
            if not self.exists(key):
                raise no_object(self._where(key))
            return b""
        # botocore's retries end with the answer's head; a body that breaks off is asked for again here.
        for attempt in range(1, _READ_ATTEMPTS):
            try:
                return self._read(key, limit, start, size, restored)
            except _CutShortError:
                _wait(attempt)
        return self._read(key, limit, start, size, restored)

    def _read(self, key: str, limit: int, start: int, size: int | None, restored: bool) -> bytes:
        where = self._where(key)
        span: dict[str, Any] = {}
        if start or size is not None:
            want = limit + 1 if size is None else min(size, limit + 1)
            span["Range"] = f"bytes={start}-{start + want - 1}"
        try:
            with _s3_errors("read", where):
                answer = self._reader.get_object(**self._object(key), **self._version(key), **span)
        except _BeyondEndError:
            return b""
        body = answer["Body"]
        try:
            if not restored and answer.get("StorageClass") in ARCHIVED_CLASSES:
                raise ObjectArchived(f"{where} is in an archived storage class, and only a restored copy can be read")
            if span and "ContentRange" not in answer:
                raise TerminalStoreError(
                    f"cannot read a part of {where}: the server does not do ranges; use one that does"
                )
            length = answer["ContentLength"]
            if length > limit:
                raise too_large(where, limit)
            try:
                with _s3_errors("read", where):
                    data = body.read(length) if length else b""
            except TransientStoreError as error:
                raise _CutShortError(str(error)) from None
        finally:
            body.close()
        if len(data) != length:
            raise _CutShortError(f"cannot read {where}: {len(data):,} of {length:,} bytes came; try again")
        return data

    def exists(self, key: str) -> bool:
        where = self._where(key)
        try:
            with _s3_errors("look for", where):
                self._reader.head_object(**self._object(key), **self._version(key))
        except ObjectMissing:
            self._check_bucket()
            return False
        return True

    def _check_bucket(self) -> None:
        """Tell a missing object from a missing bucket, for which HEAD has the same answer."""
        if self._bucket_seen:
            return
        where = f"s3://{self._bucket}"
        try:
            with _s3_errors("look for", where):
                self._reader.head_bucket(**self._owned())
        except ObjectMissing:
            raise TerminalStoreError(f"there is no bucket {where}: create it, or correct the archive's URL") from None
        except TerminalStoreError:
            # Who may only read objects may not look at the bucket; then its object's answer has to do.
            pass
        self._bucket_seen = True

    def names(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        if prefix and not prefix.endswith("/"):
            raise FormatError(f"{legible(prefix)!r} is no folder: its prefix ends in '/'")
        folders, objects = self.level(prefix)
        return sorted({*folders, *(info.key[len(prefix) :] for info in objects)} - {""})

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        check_prefix(prefix)
        root, skip = len(self._absolute("")), len(self._absolute(prefix))
        folders: set[str] = set()
        objects: dict[str, ObjectInfo] = {}
        for page in self._pages(prefix, {"Delimiter": "/"}):
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

    def list(self, prefix: str = "", *, after: str = "", without: Collection[str] = ()) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        if after > prefix and not after.startswith(prefix):
            return
        start = _safe_start(prefix, after)
        recent: set[str] = set()
        for page in self._pages(prefix, {"StartAfter": self._absolute(start)} if start > prefix else {}):
            # A server may repeat keys where one page ends and the next begins.
            seen, recent = recent, set()
            for item in page.get("Contents", ()):
                key = item["Key"][len(self._absolute("")) :]
                if key in self._chosen or key[: key.find("/") + 1] in without:
                    continue
                if key > after and key.startswith(prefix) and key not in seen and key not in recent:
                    recent.add(key)
                    yield ObjectInfo(key, item["Size"], item.get("StorageClass", "STANDARD"))
        for key, version in self._chosen.items():
            if key > after and key.startswith(prefix) and key[: key.find("/") + 1] not in without:
                yield ObjectInfo(key, version.size)

    def _version(self, key: str) -> dict[str, Any]:
        return {"VersionId": self._chosen[key].id} if key in self._chosen else {}

    def _pages(self, prefix: str, arguments: dict[str, Any]) -> Iterator["ListObjectsV2OutputTypeDef"]:
        where = f"{self.url}/{prefix}"
        more: dict[str, Any] = {}
        while True:
            with _s3_errors("list", where):
                page = self._reader.list_objects_v2(**self._owned(), **arguments, **more, Prefix=self._absolute(prefix))
            yield page
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            if more.get("ContinuationToken") == token:
                raise TerminalStoreError(f"cannot list {where}: the server gives the same page again and again")
            more = {"ContinuationToken": token}

    def has_history(self, key: str) -> bool:
        absolute = self._absolute(key)
        for page in self._version_pages(absolute, self._where(key)):
            if any(marker["Key"] == absolute for marker in page.get("DeleteMarkers", ())):
                return True
            for version in page.get("Versions", ()):
                # An object without a version, and that is there now, is no history: `exists` tells of it.
                plain = version.get("VersionId", "null") == "null" and version.get("IsLatest", True)
                if version["Key"] == absolute and not plain:
                    return True
        return False

    def status(self, key: str) -> ObjectStatus:
        where = self._where(key)
        try:
            with _s3_errors("look at", where):
                call = {**self._object(key), **self._version(key)}
                found: dict[str, Any] = {**self._reader.head_object(**call, ChecksumMode="ENABLED")}
        except ObjectMissing:
            self._check_bucket()
            raise
        digest = found.get("ChecksumSHA256")
        # One of several parts ("…-3") is no digest of the bytes.
        if digest is not None and (found.get("ChecksumType") == "COMPOSITE" or "-" in digest):
            digest = None
        return ObjectStatus(
            size=found["ContentLength"],
            created=found["LastModified"],
            storage_class=found.get("StorageClass", "STANDARD"),
            restored='ongoing-request="false"' in found.get("Restore", ""),
            restoring='ongoing-request="true"' in found.get("Restore", ""),
            sha256=base64.b64decode(digest).hex() if digest is not None else None,
            lock_mode=found.get("ObjectLockMode"),
            lock_until=found.get("ObjectLockRetainUntilDate"),
            legal_hold=found.get("ObjectLockLegalHoldStatus") == "ON",
        )

    def lock(self, key: str) -> tuple[str, datetime] | None:
        where = self._where(key)
        try:
            with _s3_errors(_LOOK_AT_LOCK, where):
                found = self._reader.get_object_retention(**self._object(key), **self._version(key))["Retention"]
        except (_NotImplementedError, _NoLockError):
            return None
        mode, until = found.get("Mode"), found.get("RetainUntilDate")
        return (mode, until) if mode and until else None

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        where = self._where(key)
        asked: Any = {"Days": days, "GlacierJobParameters": {"Tier": tier.capitalize()}}
        try:
            with _s3_errors("restore", where):
                self._reader.restore_object(**self._object(key), **self._version(key), RestoreRequest=asked)
        except _RestoringError:
            return

    def history(self, prefix: str = "") -> Iterator[Version]:
        check_prefix(prefix)
        skip = len(self._absolute(""))
        held: dict[str, list[Version]] = {}
        for page in self._version_pages(self._absolute(prefix), f"{self.url}/{prefix}"):
            for one in page.get("Versions", ()):
                version = Version(one["Key"][skip:], one["VersionId"], False, one["IsLatest"], one["Size"], one["ETag"])
                held.setdefault(version.key, []).append(version)
            for marker in page.get("DeleteMarkers") or ():
                version = Version(marker["Key"][skip:], marker["VersionId"], True, marker["IsLatest"], 0)
                held.setdefault(version.key, []).append(version)
            # The last key of a page may go on in the next.
            open_key = page.get("NextKeyMarker", "")[skip:] if page.get("IsTruncated") else ""
            for key, versions in held.items():
                if key != open_key and (len(versions) > 1 or versions[0].marker):
                    yield from versions
            held = {open_key: held[open_key]} if open_key in held else {}

    def _version_pages(self, absolute: str, where: str) -> Iterator["ListObjectVersionsOutputTypeDef"]:
        more: dict[str, Any] = {}
        while True:
            try:
                with _s3_errors("list versions of", where):
                    page = self._reader.list_object_versions(**self._owned(), **more, Prefix=absolute)
            except _NotImplementedError:
                return
            yield page
            following = {
                "KeyMarker": page.get("NextKeyMarker", ""),
                "VersionIdMarker": page.get("NextVersionIdMarker", ""),
            }
            following = {name: marker for name, marker in following.items() if marker}
            if not page.get("IsTruncated") or following == more:
                return
            more = following

    def remove(self, key: str) -> None:
        absolute, where = self._absolute(key), self._where(key)
        versions: list[str] = []
        for page in self._version_pages(absolute, where):
            found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            versions += [one.get("VersionId", "null") for one in found if one["Key"] == absolute]
        with _s3_errors("delete", where):
            # By its version: else a bucket with versions would keep the bytes, under a delete marker.
            for version in versions:
                self._writer.delete_object(**self._object(key), VersionId=version)
            if not versions:
                self._writer.delete_object(**self._object(key))

    def tiers(self) -> Sequence[str]:
        """The bucket's rules move objects."""
        return ()

    def move(self, key: str, tier: str) -> None:
        """Likewise."""
        raise TerminalStoreError(f"cannot move {self._where(key)} to {tier!r}: in S3 the bucket's rules move objects")

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        return S3Store(self.url, self._options, chosen)

    def lifecycle(self) -> Sequence[LifecycleRule] | None:
        where = f"s3://{self._bucket}"
        try:
            with _s3_errors("read the lifecycle rules of", where):
                found = self._reader.get_bucket_lifecycle_configuration(**self._owned())
        except _NotImplementedError:
            return None
        except _NoLifecycleError:
            return ()
        rules = (_lifecycle_rule(rule) for rule in found.get("Rules", ()) if rule.get("Status") == "Enabled")
        root = self._absolute("")
        return [rule for rule in rules if rule.prefix.startswith(root) or root.startswith(rule.prefix)]

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _absolute(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _where(self, key: str) -> str:
        check_key(key)
        return f"{self.url}/{key}"

    def _owned(self) -> dict[str, Any]:
        owner = self._options.expected_bucket_owner
        return {"Bucket": self._bucket, "ExpectedBucketOwner": owner} if owner else {"Bucket": self._bucket}

    def _object(self, key: str) -> dict[str, Any]:
        return {**self._owned(), "Key": self._absolute(key)}


def _safe_start(prefix: str, after: str) -> str:
    """Return a StartAfter that loses no key greater than `after`, whether the server sorts by bytes or by path.

    By path "a/b" comes before "a-b", and a server may take StartAfter "a" to mean that folder "a" is done. Cut at the
    first character that sorts before "/", and then one character shorter, what is greater than `after` by bytes is
    greater by path, too, and so is the folder it is in. So a few keys come in vain, ten of a log's manifests at most.
    """
    end = len(prefix)
    while end < len(after) and after[end] >= "/":
        end += 1
    if end > len(prefix) and after[end - 1] != "/":
        end -= 1
    return after[:end]


def _lifecycle_rule(rule: Any) -> LifecycleRule:
    """Return in our terms what boto3 gives of a rule."""
    filter_ = rule.get("Filter") or {}
    both = filter_.get("And") or {}
    moves = {(move.get("Days", 0), move["StorageClass"]) for move in rule.get("Transitions", ())}
    expiration = rule.get("Expiration") or {}
    return LifecycleRule(
        id=legible(rule.get("ID", "")),
        prefix=filter_.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or "",
        filtered=bool(set(filter_) - {"Prefix", "And"} or set(both) - {"Prefix"}),
        moves=tuple(sorted(moves)),
        deletes=bool({"Days", "Date"} & set(expiration) or rule.get("NoncurrentVersionExpiration")),
    )


def _bucket_of(url: str) -> tuple[str, str]:
    """Return the bucket and the prefix that an S3 URL names."""
    bucket, _, prefix = url[len("s3://") :].partition("/") if url[:5].lower() == "s3://" else ("", "", "")
    if "@" in bucket:
        raise ConfigurationError(
            "the archive's URL holds an '@': credentials do not belong there, set AWS_ACCESS_KEY_ID instead"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:[A-Za-z0-9:/_-]+", bucket):
        raise ConfigurationError(f"{legible(bucket)!r} is no bucket's name; want s3://BUCKET/PREFIX")
    prefix = prefix.removesuffix("/")
    try:
        check_prefix(prefix)
    except FormatError:
        raise ConfigurationError(
            f"{legible(prefix)!r} cannot be an archive's prefix: it has no leading or double '/', no '.' and no '..'"
        ) from None
    return bucket, prefix


def _check_options(options: S3Options) -> None:
    if options.endpoint_url is not None:
        try:
            endpoint = urlsplit(options.endpoint_url)
            valid = endpoint.scheme in {"http", "https"} and endpoint.hostname and endpoint.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigurationError(
                f"endpoint_url is {legible(options.endpoint_url)!r}; want https://HOST or http://HOST:PORT"
            )
        if "@" in endpoint.netloc:
            raise ConfigurationError(
                "endpoint_url holds an '@': credentials do not belong there, set AWS_ACCESS_KEY_ID instead"
            )
    if (options.retention_mode is None) != (options.retention_days is None):
        raise ConfigurationError("retention_mode and retention_days go together: set both or neither")
    if options.retention_mode not in {None, "GOVERNANCE", "COMPLIANCE"}:
        raise ConfigurationError(f"retention_mode is {options.retention_mode!r}; want GOVERNANCE or COMPLIANCE")
    if options.retention_days is not None and not 1 <= options.retention_days <= 36_500:
        raise ConfigurationError(f"retention_days is {options.retention_days}; want 1 to 36500")
    owner = options.expected_bucket_owner
    if owner is not None and not re.fullmatch(r"[0-9]{12}", owner):
        raise ConfigurationError(f"expected_bucket_owner is {legible(owner)!r}; want an account id of 12 digits")


def _s3_clients(options: S3Options, *attempts: int) -> "list[S3Client]":
    """Return a client for each number of attempts, sending each call at most so often."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigurationError(
            "an archive in S3 needs boto3, which is not installed: install custody with its extra `s3`"
        ) from None
    try:
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
            # A custom server rarely has a name for each bucket.
            s3={"addressing_style": "path"} if options.endpoint_url else {},
            # A digest that does not match is the verifier's finding, with the bytes at hand, not a failed read.
            response_checksum_validation="when_required",
            user_agent_extra="custody",
        )
        # Not boto3's default session, which is no thread's own.
        session = boto3.session.Session()
        return [
            session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                region_name=options.region,
                config=config.merge(Config(retries={"mode": "standard", "total_max_attempts": most})),
            )
            for most in attempts
        ]
    except _s3_failures() as error:
        raise ConfigurationError(f"the AWS settings cannot be used: {_said(error)}") from None


class _NotImplementedError(TerminalStoreError):
    """The server does not know the call."""


class _NoLifecycleError(TerminalStoreError):
    """The bucket has no lifecycle rules."""


class _NoLockError(TerminalStoreError):
    """The object, or its whole bucket, has no Object Lock."""


class _RestoringError(TerminalStoreError):
    """A copy of the archived object is being made already."""


class _BeyondEndError(TerminalStoreError):
    """The range asked for begins behind the object's end."""


_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "InternalFailure",
        "KMS.ThrottlingException",
        "LimitExceededException",
        "OperationAborted",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "TransactionInProgressException",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)


# 412: to a call without a condition it makes no sense.
_TRANSIENT_STATUS = frozenset({408, 409, 412, 425, 429})


_LOOK_AT_LOCK = "look at the lock of"


# AWS has a code for an object without a lock, and InvalidRequest for one in a bucket without.
_NO_LOCK_CODES = frozenset({"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest"})


_CREDENTIALS_ADVICE = "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the AWS profile or role)"
_EXPIRED_ADVICE = "the credentials have expired: renew them"
_REGION_ADVICE = "the bucket is in another region: set `region` to the bucket's"
_ACCESS_ADVICE = (
    "the bucket's or the identity's policy does not allow it: allow s3:GetObject, s3:PutObject, s3:ListBucket and"
    " s3:ListBucketVersions (without s3:ListBucket a missing object looks like this, too)"
)
_CODE_ADVICE = {
    "AccessDenied": _ACCESS_ADVICE,
    "AllAccessDisabled": _ACCESS_ADVICE,
    "AuthorizationHeaderMalformed": _REGION_ADVICE,
    "ExpiredToken": _EXPIRED_ADVICE,
    "ExpiredTokenException": _EXPIRED_ADVICE,
    "IllegalLocationConstraintException": _REGION_ADVICE,
    "InvalidAccessKeyId": _CREDENTIALS_ADVICE,
    "InvalidToken": _CREDENTIALS_ADVICE,
    "NoSuchBucket": "there is no such bucket: create it, or correct the archive's URL",
    "PermanentRedirect": _REGION_ADVICE,
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "SignatureDoesNotMatch": _CREDENTIALS_ADVICE,
    "301": _REGION_ADVICE,
    "400": f"set `region` to the bucket's, and {_CREDENTIALS_ADVICE}",
    "403": _ACCESS_ADVICE,
}


@functools.cache
def _s3_failures() -> tuple[type[Exception], ...]:
    """Return what boto3 is known to raise. ValueError and LookupError: from answers that do not parse."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, ResponseParserError, Boto3Error, HTTPError, OSError, ValueError, LookupError)


@contextlib.contextmanager
def _s3_errors(doing: str, where: str) -> Iterator[None]:
    """Turn what boto3 raises into the store's errors. Its own are not chained: they hold the server's whole answer."""
    try:
        yield
    except _s3_failures() as error:
        raise _from_s3(error, doing, where) from None


def _from_s3(error: Exception, doing: str, where: str) -> StoreError:
    """Return the store's error for one of boto3's."""
    from botocore.exceptions import ClientError

    return _from_answer(error, doing, where) if isinstance(error, ClientError) else _from_library(error, doing, where)


def _from_answer(error: Any, doing: str, where: str) -> StoreError:
    """Return the store's error for an answer that says no."""
    answer = error.response.get("Error") or {}
    code = str(answer.get("Code") or "")
    status = (error.response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    if not status and re.fullmatch(r"[1-5][0-9][0-9]", code):
        status = int(code)
    if code in {"NoSuchKey", "NoSuchVersion", "404"}:
        return no_object(where)
    if status == 412 and doing == "write":
        return occupied(where)
    if code == "NoSuchLifecycleConfiguration":
        return _NoLifecycleError(f"{where} has no lifecycle rules")
    if code in _NO_LOCK_CODES and doing == _LOOK_AT_LOCK:
        return _NoLockError(f"{where} has no lock")
    if code == "AccessDenied" and doing == _LOOK_AT_LOCK:
        return TerminalStoreError(f"cannot {doing} {where}: HTTP {status}, {code} (allow s3:GetObjectRetention)")
    if code == "RestoreAlreadyInProgress":
        return _RestoringError(f"{where} is being restored already")
    if code == "AccessDenied" and doing == "restore":
        return TerminalStoreError(f"cannot restore {where}: HTTP {status}, {code} (allow s3:RestoreObject)")
    if code == "InvalidObjectState" and doing == "restore":
        return TerminalStoreError(f"cannot restore {where}: it is in no archived storage class any more; run again")
    if code == "InvalidObjectState":
        return ObjectArchived(f"{where} is in an archived storage class (InvalidObjectState): restore it first")
    said = f"{legible(code)} {legible(str(answer.get('Message') or ''))}".strip() or "an answer without a code"
    message = f"cannot {doing} {where}: HTTP {status or '?'}, {said}"
    if code == "InvalidRange" or status == 416:
        return _BeyondEndError(message)
    if code == "NotImplemented" or status == 501:
        return _NotImplementedError(f"{message} (this server lacks what an archive needs; use one that has it)")
    if code in _TRANSIENT_CODES or status >= 500 or (status in _TRANSIENT_STATUS and code not in _CODE_ADVICE):
        return TransientStoreError(f"{message} (it may pass; try again)")
    return TerminalStoreError(f"{message} ({_CODE_ADVICE.get(code, 'trying again does not help')})")


def _from_library(error: Exception, doing: str, where: str) -> StoreError:
    """Return the store's error for a call without an answer, or with one that makes no sense."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    message = f"cannot {doing} {where}: {_said(error)}"
    untrusted = isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    if untrusted:
        return TerminalStoreError(
            f"{message} (set AWS_CA_BUNDLE to the certificate authority that the server's is from)"
        )
    passing = (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.ChecksumError,
        exceptions.FlexibleChecksumError,
        exceptions.IncompleteReadError,
        exceptions.MetadataRetrievalError,
        exceptions.CredentialRetrievalError,
        ResponseParserError,
        HTTPError,
    )
    # Some of botocore's settings errors are ValueErrors as well; those of no library are a broken answer's.
    beneath = isinstance(error, (OSError, ValueError, LookupError)) and not isinstance(error, exceptions.BotoCoreError)
    if isinstance(error, passing) or beneath:
        return TransientStoreError(f"{message} (it may pass; try again)")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return TerminalStoreError(f"{message} ({_CREDENTIALS_ADVICE})")
    return TerminalStoreError(f"{message} (check the AWS settings and credentials)")


def _said(error: Exception) -> str:
    """Return an error's kind and words, but for those that may quote what a credential helper printed."""
    from botocore.exceptions import CredentialRetrievalError

    kind = type(error).__name__
    if isinstance(error, CredentialRetrievalError):
        return f"{kind}: the provider {legible(str(error.kwargs.get('provider', '')))!r} gave no credentials"
    return f"{kind}: {legible(str(error))}"


def _wait(attempt: int) -> None:
    """Sleep longer after each attempt, by chance, so that many writers do not come back at once."""
    base, most = _BACKOFF_SECONDS
    time.sleep(random.uniform(0.5, 1) * min(most, base * 4 ** (attempt - 1)))  # noqa: S311 - nothing secret
