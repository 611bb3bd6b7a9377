"""Tries whether a bucket really locks: the only put in custody of a lock that ends within seconds."""

from datetime import datetime
from typing import Any

from custody.store.protocol import S3Options
from custody.store.s3_client import Bucket


def create_locked(url: str, options: S3Options, key: str, data: bytes, until: datetime) -> None:
    """Create an object with a lock of the mode in the options.

    Args:
        url: of the archive, `s3://BUCKET/PREFIX`.
        options: of the archive, with a retention mode.
        key: the object, which does not exist yet and is no evidence.
        data: its bytes.
        until: the end of the lock, by the store's clock.

    Raises:
        ConfigurationError: an option cannot be used.
        StoreError: the bucket has no locks, or the object was not put.
    """
    bucket = Bucket(url, options)
    where = bucket.where(key)
    put: dict[str, Any] = {"ObjectLockMode": options.retention_mode, "ObjectLockRetainUntilDate": until}
    if options.sse_kms_key:
        put |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.sse_kms_key}
    try:
        with bucket.errors("write", where):
            bucket.writer.put_object(
                **bucket.object(key), **put, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256"
            )
    finally:
        bucket.close()
