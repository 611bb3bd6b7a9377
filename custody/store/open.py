"""Opens an archive's root by its URL."""

import re
from urllib.parse import unquote

from custody.errors import ConfigurationError
from custody.store.folder import FolderStore
from custody.store.protocol import S3Options, Store
from custody.store.s3 import S3Store

__all__ = ["open_store"]


def open_store(url: str, options: S3Options | None = None) -> Store:
    """Open an archive's root. Nothing is created before the first put.

    Args:
        url: `s3://BUCKET/PREFIX`, `file:///DIR`, or a folder's path.
        options: for S3.

    Raises:
        ConfigurationError: the URL or an option cannot be used, or boto3 is not installed.
        StoreError: the folder cannot be looked at.
    """
    if "\0" in url or not url:
        raise ConfigurationError("the archive's URL is empty or has a null byte; want s3://BUCKET/PREFIX or a folder")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)
    if scheme is None:
        return FolderStore(url)
    match scheme[1].lower():
        case "file":
            return FolderStore(_folder_of(url))
        case "s3":
            return S3Store(url, options or S3Options())
        case other:
            raise ConfigurationError(
                f"an archive cannot be kept in {other}://; want s3://BUCKET/PREFIX, file:///DIR, or a folder's path"
            )


def _folder_of(url: str) -> str:
    """Return the path in a file URL: `file:///absolute`, or `file:relative` to the working folder."""
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in {"", "localhost"} or not slash:
            raise ConfigurationError(
                "a file URL has no host: write file:///absolute/path (three slashes) or file:relative/path"
            )
        rest = slash + path
    if "?" in rest or "#" in rest:
        raise ConfigurationError("a file URL has no '?' or '#' (write them as %3F and %23)")
    path = unquote(rest)
    if not path or "\0" in path:
        raise ConfigurationError("the file URL has no path; want file:///DIR")
    return path
