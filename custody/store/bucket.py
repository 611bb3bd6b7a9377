"""What a bucket is configured to do."""

from collections.abc import Sequence
from typing import Any

from custody.store.protocol import LifecycleRule, legible
from custody.store.s3_client import Bucket
from custody.store.s3_errors import CallUnknown, NoLifecycle, s3_errors


class Configuration:
    """The configuration of an archive's bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def rules(self) -> Sequence[LifecycleRule] | None:
        """Return the rules in force for objects of the archive, None where the server knows no such thing."""
        where = f"s3://{self._bucket.name}"
        try:
            with s3_errors("read the lifecycle rules of", where):
                found = self._bucket.reader.get_bucket_lifecycle_configuration(**self._bucket.owned())
        except CallUnknown:
            return None
        except NoLifecycle:
            return ()
        rules = (_lifecycle_rule(rule) for rule in found.get("Rules", ()) if rule.get("Status") == "Enabled")
        root = self._bucket.absolute("")
        return [rule for rule in rules if rule.prefix.startswith(root) or root.startswith(rule.prefix)]


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
