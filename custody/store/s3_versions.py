"""The versions and delete markers that a bucket keeps."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from custody.store.protocol import Store, Version, check_prefix
from custody.store.s3_client import Bucket
from custody.store.s3_errors import CallUnknown, s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectVersionsOutputTypeDef


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
        absolute = self._bucket.absolute(key)
        for page in self._pages(absolute, self._bucket.where(key)):
            if any(marker["Key"] == absolute for marker in page.get("DeleteMarkers", ())):
                return True
            for version in page.get("Versions", ()):
                # An object without a version, and that is there now, is no history: `exists` tells of it.
                plain = version.get("VersionId", "null") == "null" and version.get("IsLatest", True)
                if version["Key"] == absolute and not plain:
                    return True
        return False

    def history(self, prefix: str = "") -> Iterator[Version]:
        """Yield all versions and delete markers of keys that have more than one plain object."""
        check_prefix(prefix)
        skip = len(self._bucket.absolute(""))
        held: dict[str, list[Version]] = {}
        for page in self._pages(self._bucket.absolute(prefix), f"{self._bucket.url}/{prefix}"):
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

    def ids(self, key: str) -> list[str]:
        """Return the ids of all versions and delete markers of a key."""
        absolute = self._bucket.absolute(key)
        ids: list[str] = []
        for page in self._pages(absolute, self._bucket.where(key)):
            found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            ids += [one.get("VersionId", "null") for one in found if one["Key"] == absolute]
        return ids

    def _pages(self, absolute: str, where: str) -> Iterator["ListObjectVersionsOutputTypeDef"]:
        more: dict[str, Any] = {}
        while True:
            try:
                with s3_errors("list versions of", where):
                    page = self._bucket.reader.list_object_versions(**self._bucket.owned(), **more, Prefix=absolute)
            except CallUnknown:
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
