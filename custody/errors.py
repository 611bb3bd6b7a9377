"""The errors that custody raises.

    CustodyError
    ├── ConfigurationError      a setting, argument or local file cannot be used as it is
    ├── FormatError             bytes do not follow FORMAT.md
    │   └── NotEvidence         a file is no evidence at all, so nothing of it was checked
    ├── StoreError              the archive's storage
    │   ├── ObjectMissing       there is no such object
    │   ├── ObjectArchived      it lies in an archived storage class: restore it first
    │   ├── ObjectExists        the key holds other bytes: somebody else was first
    │   ├── TransientStoreError the same call may succeed later (time-out, throttling, 5xx, a cut connection)
    │   └── TerminalStoreError  the same call will fail again (refused, no bucket, bad credentials, disk full)
    ├── SigningError            keys
    │   ├── SignatureInvalid    the signature was checked and is wrong
    │   └── KeyUnavailable      it could not be made or checked (no such key, KMS does not answer)
    ├── HeadRollback            an archive's head is behind, or other than, what was seen of it before
    ├── Fenced                  another writer has appended to the log; this one's work is not needed
    ├── SourceError             Kafka
    │   ├── TransientSourceError    the broker does not answer, or not now
    │   ├── LogChanged          the topic was created again or moved: the operator must begin a new epoch
    │   └── SourceRefused       the broker says no, or a topic cannot be archived
    └── SearchError             Elasticsearch did not do what was asked; the archive is whole without it

Every message says what happened, to what, and what to do. None holds a secret.
"""

__all__ = [
    "ConfigurationError",
    "CustodyError",
    "Fenced",
    "FormatError",
    "HeadRollback",
    "KeyUnavailable",
    "LogChanged",
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
    "TransientSourceError",
    "TransientStoreError",
]


class CustodyError(Exception):
    """Any error that custody raises on purpose."""


class ConfigurationError(CustodyError):
    """A setting, an argument or a local file cannot be used as it is."""


class FormatError(CustodyError):
    """Bytes do not follow FORMAT.md."""


class NotEvidence(FormatError):
    """A file is no evidence at all: no zip, or one without the members of evidence."""


class StoreError(CustodyError):
    """The archive's storage did not do what was asked."""


class ObjectMissing(StoreError):
    """There is no object under the key."""


class ObjectArchived(StoreError):
    """The object lies in an archived storage class, and no restored copy is there."""


class ObjectExists(StoreError):
    """The key already holds other bytes."""


class TransientStoreError(StoreError):
    """The call failed in a way that may pass: a time-out, throttling, a 5xx, a cut connection."""


class TerminalStoreError(StoreError):
    """The call failed in a way that trying again does not change."""


class SigningError(CustodyError):
    """Something about keys and signatures."""


class SignatureInvalid(SigningError):
    """A signature was checked and does not hold."""


class KeyUnavailable(SigningError):
    """A signature could not be made or checked: the key is unknown, or its service does not answer."""


class HeadRollback(CustodyError):
    """The head of a log is behind, or other than, what was seen of it before. Nothing may be appended."""


class Fenced(CustodyError):
    """Another writer appended to the log first. What it wrote is valid; this writer's work is thrown away."""


class SourceError(CustodyError):
    """Kafka did not give what was asked."""


class TransientSourceError(SourceError):
    """The broker does not answer, or not now."""


class LogChanged(SourceError):
    """The topic behind a log is not the one that the log was made from."""


class SourceRefused(SourceError):
    """The broker refuses, or the topic cannot be archived."""


class SearchError(CustodyError):
    """Elasticsearch did not do what was asked. Nothing is lost: what it lacks is in the archive."""
