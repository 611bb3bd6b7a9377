"""Which objects of an archive are listed, and which are named by its statements, in bounded memory.

Names are kept as digests. What is more than fits in memory goes to a temporary file.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from tempfile import TemporaryFile
from typing import IO, Self

_BUCKETS = 64
_BUCKET_BYTES = 131_072
"""What is more in a bucket goes to a file: that is with more than a million objects."""
DIGEST_BYTES = 8


class Names:
    """Which objects are listed, and which are named: 64-bit digests with a random key, in buckets.

    What is more than fits in memory goes to one temporary file. Where this machine has no room for it, all stays in
    memory: the verdict is worth more than the bound. The buckets are compared one by one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """Begin. A worker process gets the `key` of the digests, so that they can be compared."""
        self.key = key or os.urandom(16)
        self._keyed = blake2b(digest_size=DIGEST_BYTES, key=self.key)
        # One thread lists objects while another reads the statements that name them.
        self._lock = threading.Lock()
        self._listed = [_Bucket() for _ in range(_BUCKETS)]
        self._named = [_Bucket() for _ in range(_BUCKETS)]
        self._file: IO[bytes] | None = None
        self._end = 0
        self._room = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def list(self, key: str) -> None:
        """Add an object that was listed."""
        self._put(self._listed, self.digest(key))

    def name(self, key: str) -> None:
        """Add an object that a manifest names."""
        self._put(self._named, self.digest(key))

    def take_named(self, digests: bytes) -> None:
        """Add objects that manifests name, by their digests, one after another."""
        for start in range(0, len(digests), DIGEST_BYTES):
            self._put(self._named, digests[start : start + DIGEST_BYTES])

    def unnamed(self) -> frozenset[bytes]:
        """Return the digests of objects that were listed but not named."""
        unnamed: set[bytes] = set()
        for listed, named in zip(self._listed, self._named, strict=True):
            unnamed |= self._digests(listed) - self._digests(named)
        return frozenset(unnamed)

    def digest(self, key: str) -> bytes:
        """Return an object's digest."""
        # A copy of what has the key already takes half the time.
        digest = self._keyed.copy()
        digest.update(key.encode())
        return digest.digest()

    def _put(self, buckets: Sequence["_Bucket"], digest: bytes) -> None:
        with self._lock:
            bucket = buckets[digest[0] % _BUCKETS]
            bucket.kept += digest
            if len(bucket.kept) >= _BUCKET_BYTES and self._room:
                self._spill(bucket)

    def _spill(self, bucket: "_Bucket") -> None:
        """Move a bucket's digests to the temporary file, if they can be written."""
        try:
            self._file = self._file or TemporaryFile(buffering=0)  # noqa: SIM115 - see __exit__
            self._room = os.pwrite(self._file.fileno(), bucket.kept, self._end) == len(bucket.kept)
        except OSError:
            self._room = False
        if self._room:
            bucket.blocks.append((self._end, len(bucket.kept)))
            self._end += len(bucket.kept)
            bucket.kept.clear()

    def _digests(self, bucket: "_Bucket") -> set[bytes]:
        blocks = [os.pread(self._file.fileno(), size, start) for start, size in bucket.blocks] if self._file else []
        data = b"".join((*blocks, bucket.kept))
        return {data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)}


@dataclass(slots=True)
class _Bucket:
    """Some of the digests: those in memory, and where in the file the others are."""

    kept: bytearray = field(default_factory=bytearray)
    blocks: list[tuple[int, int]] = field(default_factory=list)
