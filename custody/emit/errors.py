"""The error that an application gets when an audit event could not be written."""

from typing import Literal

from custody.errors import CustodyError

__all__ = ["AuditError"]

Kind = Literal["S3", "Elasticsearch", "Kafka", "Serialization", "Spool"]
"""The part that failed."""


class AuditError(CustodyError):
    """An audit event could not be written. Neither text nor repr has an event's values.

    Attributes:
        kind: the part that failed.
        accepted: the backends that have the event nevertheless, where it goes to several.
    """

    def __init__(self, kind: Kind, reason: str, accepted: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.kind = kind
        self.accepted = accepted

    def __reduce__(self) -> tuple[type["AuditError"], tuple[Kind, str, tuple[str, ...]]]:
        # An exception is pickled by its `args`, which lack the kind.
        return type(self), (self.kind, self.args[0], self.accepted)
