"""Begins a copy: checks that FROM is an archive, and that TO is its earlier copy or empty, and another location."""

from itertools import islice

from custody.archive import reader
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.format import layout, limits
from custody.store.protocol import Store, is_local

_COMPARED = 10
"""Objects whose dates show whether two endpoints lead to the same bucket."""


def prepare(source: Store, target: Store, *, elsewhere: bool) -> tuple[str, bool]:
    """Check that one is an archive and the other its copy or empty.

    Returns:
        the archive's id, and whether `archive.json` was put.

    Raises:
        ConfigurationError: they are not.
    """
    ours, theirs = f"{source.url}/", f"{target.url}/"
    nested = ours.startswith(theirs) or theirs.startswith(ours)
    # A folder has no endpoint.
    if nested and (not elsewhere or is_local(source)):
        raise _not_apart(source, target)
    archive, begun = _begin(source, target)
    if nested and ours.startswith("s3:") and _is_one_place(source, target):
        put = f". {target.url}/{layout.ARCHIVE} was put, and nothing else: remove it" if begun else ""
        raise _not_apart(source, target, put)
    return archive, begun


def _not_apart(source: Store, target: Store, more: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"{target.url} and {source.url} are the same, or one is inside the other; copy to a location of its own{more}"
    )


def _is_one_place(source: Store, target: Store) -> bool:
    """Return whether two endpoints lead to the same bucket: what one has just put, or has, is there for the other too.

    Stores have the same objects if these were created in the same seconds. A copy is younger.
    """
    ours, theirs = f"{source.url}/", f"{target.url}/"
    inner, outer = (target, source) if theirs.startswith(ours) else (source, target)
    prefix = inner.url[len(outer.url) + 1 :]
    prefix += "/" if prefix else ""
    keys = [layout.ARCHIVE, *(info.key for info in islice(inner.list(), _COMPARED))]
    try:
        return all(inner.status(key).created == outer.status(prefix + key).created for key in keys)
    except ObjectMissing:
        return False


def _begin(source: Store, target: Store) -> tuple[str, bool]:
    try:
        archive = reader.read_archive(source).id
        own = source.read(layout.ARCHIVE, limit=limits.ARCHIVE_FILE_BYTES)
    except FormatError as error:
        raise ConfigurationError(f"nothing was copied: {error}") from None
    try:
        other = target.read(layout.ARCHIVE, limit=limits.ARCHIVE_FILE_BYTES)
    except ObjectMissing:
        # A copy begins with archive.json, so whatever else is there is not ours.
        if (first := next(iter(target.list()), None)) is not None:
            raise ConfigurationError(
                f"{target.url} is not empty and has no {layout.ARCHIVE}, so it is no copy of an archive: it has"
                f" {first.key!r}. Nothing was written; copy to an empty location"
            ) from None
        target.create(layout.ARCHIVE, own)
        return archive, True
    except FormatError:
        other = b""
    if other != own:
        raise ConfigurationError(
            f"{target.url} has another {layout.ARCHIVE} than {source.url}: it is another archive, or one of the two was"
            " changed. Nothing was written; copy to another location, and verify both"
        )
    return archive, False
