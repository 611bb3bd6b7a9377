"""The errors that custody raises.

    CustodyError
    ├── ConfigurationError      a setting, argument or local file cannot be used as it is
    │   └── NoArchive           there is no archive at the location
    ├── FormatError             bytes do not follow FORMAT.md
    │   └── NotEvidence         a file is no evidence at all, so nothing of it was checked
    ├── StoreError              the archive's storage
    │   ├── ObjectMissing       there is no such object
    │   ├── ObjectArchived      it is in an archive storage class: restore it first
    │   ├── ObjectExists        the key already has other bytes: another writer was first
    │   ├── TransientStoreError the same call may succeed later (time-out, throttling, 5xx, a cut connection)
    │   └── TerminalStoreError  the same call will fail again (refused, wrong credentials, disk full)
    │       └── NoBucket        there is no such bucket: a ConfigurationError too
    ├── SigningError            keys
    │   ├── SignatureInvalid    the signature was checked and is wrong
    │   └── KeyUnavailable      it could not be made or checked (no such key, KMS does not answer)
    ├── HeadRollback            an archive's head contradicts a known head: it is older, or another
    ├── Fenced                  another writer has appended to the log; this writer's work is not needed
    ├── SourceError             Kafka
    │   ├── TransientSourceError    the broker does not answer at the moment
    │   ├── LogChanged          the topic was recreated or moved: the operator must begin a new epoch
    │   └── SourceRefused       the broker refuses, or a topic cannot be archived
    ├── AuditError              (custody.emit.errors) an application's event could not be written
    └── SearchError             Elasticsearch did not do what was asked; the archive is complete without it
        └── TransientSearchError    it does not answer at the moment

Every message says what happened, to what, and what to do. No message contains a secret. Text of others, which may be
hostile, is made harmless by `escape`, wherever it is shown, and by `legible` for a message.
"""

import re

__all__ = [
    "ConfigurationError",
    "CustodyError",
    "Fenced",
    "FormatError",
    "HeadRollback",
    "KeyUnavailable",
    "LogChanged",
    "NoArchive",
    "NoBucket",
    "NotEvidence",
    "ObjectArchived",
    "ObjectExists",
    "ObjectMissing",
    "SearchError",
    "SignatureInvalid",
    "SigningError",
    "SourceError",
    "SourceRefused",
    "StoreError",
    "TerminalStoreError",
    "TransientSearchError",
    "TransientSourceError",
    "TransientStoreError",
    "counted",
    "escape",
    "legible",
]


_DETAIL_CHARACTERS = 300


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun, such as `1 topic` or `2,000 topics`, and with a verb if both forms are given."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def escape(text: str) -> str:
    """Return the text with control characters, newlines too, as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def legible(text: str) -> str:
    """Return a library's or server's text for a message: short, escaped, and without credentials in URLs."""
    # A password may have a slash or an @ in it. So all up to the last @ is hidden, in a text that is bounded first.
    text = re.sub(r"//\S*@", "//***@", text[: 4 * _DETAIL_CHARACTERS])
    text = escape(" ".join(text.split()))
    return text if len(text) <= _DETAIL_CHARACTERS else text[:_DETAIL_CHARACTERS] + "…"


class CustodyError(Exception):
    """Any error that custody raises on purpose. Each argument is one problem, and is printed as one line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigurationError(CustodyError):
    """A setting, an argument or a local file cannot be used as it is."""


class NoArchive(ConfigurationError):
    """There is no archive at the location that was named."""

    def __init__(self, url: str) -> None:
        super().__init__(f"there is no archive at {url}: is this the right place? 'custody init' makes one")


class FormatError(CustodyError):
    """Bytes do not follow FORMAT.md."""


class NotEvidence(FormatError):
    """A file is no evidence at all: not a zip file, or one without the members of evidence."""


class StoreError(CustodyError):
    """The archive's storage did not do what was asked."""


class ObjectMissing(StoreError):
    """There is no object under the key."""


class ObjectArchived(StoreError):
    """The object is in an archive storage class, and has no restored copy."""


class ObjectExists(StoreError):
    """The key already has other bytes."""


class TransientStoreError(StoreError):
    """The call failed, and may succeed later: a time-out, throttling, a 5xx, a cut connection."""


class TerminalStoreError(StoreError):
    """The call failed, and will fail again."""


class NoBucket(TerminalStoreError, ConfigurationError):
    """There is no bucket of the name that the archive's URL has."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no such bucket: s3://{name}; create it, or correct the archive's URL")


class SigningError(CustodyError):
    """A key or signature cannot be used as it is."""


class SignatureInvalid(SigningError):
    """A signature was checked and is wrong."""


class KeyUnavailable(SigningError):
    """A signature could not be made or checked: the key is unknown, or its service does not answer."""


class HeadRollback(CustodyError):
    """The head of a log contradicts a known head. Nothing may be appended."""


class Fenced(CustodyError):
    """Another writer appended to the log first. Its statement is valid; this writer's work is discarded."""


class SourceError(CustodyError):
    """Kafka did not do what was asked."""


class TransientSourceError(SourceError):
    """The broker does not answer at the moment."""


class LogChanged(SourceError):
    """The topic is not the one that the log was archived from: it was recreated or moved."""


class SourceRefused(SourceError):
    """The broker refuses, or the topic cannot be archived."""


class SearchError(CustodyError):
    """Elasticsearch did not do what was asked. Nothing is lost: all events are in the archive."""


class TransientSearchError(SearchError):
    """Elasticsearch does not answer at the moment: no connection, too busy, or shards without a node."""
