"""The versions and delete markers that a bucket keeps."""

from collections.abc import Callable, Iterator, Mapping

from custody.store.protocol import Store, Version, check_key, check_prefix
from custody.store.s3_client import Bucket
from custody.store.s3_errors import CallUnknown


class S3Versions:
    """What a bucket keeps of objects that were written over or deleted."""

    def __init__(self, bucket: Bucket, at_versions: Callable[[Mapping[str, Version]], Store]) -> None:
        self._bucket = bucket
        self._at_versions = at_versions

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """Return the store as it shows when of some keys these versions are read."""
        return self._at_versions(chosen)

    def has_history(self, key: str) -> bool:
        """Return whether there is a version or a delete marker of the key, besides an object without versions."""
        # An object without a version, and that is there now, is no history: `exists` tells of it.
        return any(version.marker or version.id != "null" or not version.latest for version in self._of(key))

    def history(self, prefix: str = "") -> Iterator[Version]:
        """Yield all versions and delete markers of keys that have more than one plain object."""
        check_prefix(prefix)
        pending: dict[str, list[Version]] = {}
        for versions, last_key in self._pages(prefix):
            for version in versions:
                pending.setdefault(version.key, []).append(version)
            # The last key of a page may go on in the next.
            for key, of_key in pending.items():
                if key != last_key and (len(of_key) > 1 or of_key[0].marker):
                    yield from of_key
            pending = {last_key: pending[last_key]} if last_key in pending else {}

    def ids(self, key: str) -> list[str]:
        """Return the ids of all versions and delete markers of a key."""
        return [version.id for version in self._of(key)]

    def _of(self, key: str) -> Iterator[Version]:
        check_key(key)
        return (version for versions, _ in self._pages(key) for version in versions if version.key == key)

    def _pages(self, prefix: str) -> Iterator[tuple[list[Version], str]]:
        """Yield the versions and delete markers of each page, with the key that may go on in the next page."""
        skip = len(self._bucket.absolute(""))
        call, markers = (
            self._bucket.reader.list_object_versions,
            {"NextKeyMarker": "KeyMarker", "NextVersionIdMarker": "VersionIdMarker"},
        )
        try:
            for page in self._bucket.pages(call, "list versions of", prefix, markers):
                found = [(entry, False) for entry in page.get("Versions", ())]
                found += [(entry, True) for entry in page.get("DeleteMarkers", ())]
                versions = [
                    Version(
                        entry["Key"][skip:],
                        entry.get("VersionId", "null"),
                        marker,
                        entry.get("IsLatest", True),
                        entry.get("Size", 0),
                        entry.get("ETag", ""),
                    )
                    for entry, marker in found
                ]
                yield versions, page.get("NextKeyMarker", "")[skip:] if page.get("IsTruncated") else ""
        except CallUnknown:
            return
