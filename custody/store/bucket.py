"""The present and the wanted configuration of a bucket: versioning, Object Lock, lifecycle rules and policy.

The wanted configuration is a document with one key per configuration, each in the shape that the AWS API takes under
that name. The rules only move segments and quarantine. Only the roll deletes evidence, after it signed the expiry.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custody.errors import ConfigurationError, legible
from custody.format import layout
from custody.store.protocol import LifecycleRule, S3Options
from custody.store.s3_client import Bucket
from custody.store.s3_errors import CallUnknown, NotConfigured

VERSIONING = "VersioningConfiguration"
OBJECT_LOCK = "ObjectLockConfiguration"
LIFECYCLE = "LifecycleConfiguration"
POLICY = "Policy"

_SID = "CustodyConditionalWrites"
_UNKNOWN = "this server knows no lifecycle rules"
_UNCONDITIONAL = "a put without If-None-Match could write over evidence"
_TRY_FIRST = (
    f"{_UNCONDITIONAL}; this is not AWS: try the policy first, for a server that does not know s3:if-none-match refuses"
    " every put by it"
)
NOT_LOCKED = "s3.retention_mode is not set: whoever may write may also delete; want COMPLIANCE"

Moves = Sequence[tuple[int, str]]
"""Days since the put, and the storage class moved to."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between a bucket's configuration and the wanted one.

    Attributes:
        configuration: the key of the wanted document that differs.
        why: what differs, and what follows from it.
        settable: whether setting the wanted configuration removes it. Other people have to remove their own rules.
    """

    configuration: str
    why: str
    settable: bool = True


@dataclass(frozen=True, slots=True)
class RuleProblem:
    """A problem with lifecycle rules.

    Attributes:
        message: what is wrong.
        key: the part of the archive.
        found: the present rules.
        expected: the wanted moves, None if a rule should not exist.
    """

    message: str
    key: str
    found: str
    expected: str | None = None


class Configuration:
    """Reads and compares the configuration of an archive's bucket, and sets lifecycle rules.

    Attributes:
        name: the bucket's name.
        root: the prefix of the archive's keys in the bucket, empty or ending in a slash.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.name = bucket.name
        self.root = bucket.absolute("")
        self._where = f"s3://{bucket.name}"

    def close(self) -> None:
        """Close the connections."""
        self._bucket.close()

    def wanted(self, moves: Moves, *, locked: bool) -> dict[str, Any]:
        """Return the configuration that the bucket should have.

        Args:
            moves: of segments and quarantine.
            locked: whether each put asks for a lock, so that the bucket needs Object Lock.
        """
        lock = {OBJECT_LOCK: {"ObjectLockEnabled": "Enabled"}} if locked else {}
        transitions = [{"Days": days, "StorageClass": class_} for days, class_ in moves]
        rules = [
            {
                "ID": f"custody-{(self.root + part).rstrip('/').replace('/', '-')}"[:255],
                "Status": "Enabled",
                "Filter": {"Prefix": self.root + part},
                "Transitions": transitions,
            }
            for part in layout.RECORDS
        ]
        policy = {"Version": "2012-10-17", "Statement": [_conditional_writes(self.name, self.root)]}
        return {VERSIONING: {"Status": "Enabled"}, **lock, LIFECYCLE: {"Rules": rules}, POLICY: policy}

    def compare(self, name: str, wanted: Mapping[str, Any], moves: Moves) -> Iterator[Difference]:
        """Yield the differences between one configuration of the bucket and the wanted one.

        Args:
            name: the configuration's key.
            wanted: the wanted document.
            moves: the moves in it.

        Raises:
            StoreError: the configuration cannot be read.
        """
        reader = self._bucket.reader
        if name == VERSIONING:
            versioning = self._read("versioning", reader.get_bucket_versioning) or {}
            if versioning.get("Status") != "Enabled":
                yield Difference(name, "without versions what is written over is lost")
        elif name == OBJECT_LOCK:
            answer = self._read("Object Lock", reader.get_object_lock_configuration) or {}
            if (answer.get(OBJECT_LOCK) or {}).get("ObjectLockEnabled") != "Enabled":
                yield Difference(name, "Object Lock is off, and each put asks for a lock")
        elif name == LIFECYCLE:
            rules = self.rules()
            if rules is None:
                yield Difference(name, _UNKNOWN, settable=False)
                return
            for problem in check_rules(rules, self.root, moves):
                yield Difference(name, problem.message, settable=problem.expected is not None)
        elif name == POLICY:
            (statement,) = wanted[name]["Statement"]
            answer = self._read("policy", reader.get_bucket_policy) or {}
            if _plain(statement) not in _statements(answer.get(POLICY)):
                yield Difference(name, _UNCONDITIONAL if self._bucket.options.endpoint_url is None else _TRY_FIRST)

    def rules(self) -> Sequence[LifecycleRule] | None:
        """Return the enabled rules for the archive's objects, None if the server has no lifecycle rules."""
        raw = self._raw_rules()
        if raw is None:
            return None
        rules = (_lifecycle_rule(rule) for rule in raw if rule.get("Status") == "Enabled")
        return [rule for rule in rules if rule.prefix.startswith(self.root) or self.root.startswith(rule.prefix)]

    def set_rules(self, wanted: Mapping[str, Any]) -> None:
        """Set the wanted lifecycle rules. Rules with other ids stay.

        Raises:
            StoreError: they cannot be read or put.
        """
        ours = wanted[LIFECYCLE]["Rules"]
        ids = {rule["ID"] for rule in ours}
        others = [rule for rule in self._raw_rules() or () if rule.get("ID") not in ids]
        with self._bucket.errors("set the lifecycle rules of", self._where):
            self._bucket.writer.put_bucket_lifecycle_configuration(
                **self._bucket.owned(), LifecycleConfiguration={"Rules": [*others, *ours]}
            )

    def _read(self, subject: str, call: Callable[..., Any]) -> Any:
        """Return the bucket's answer: None if the server does not know the call, {} if nothing is set."""
        try:
            with self._bucket.errors(f"read the {subject} of", self._where):
                return call(**self._bucket.owned())
        except CallUnknown:
            return None
        except NotConfigured:
            return {}

    def _raw_rules(self) -> Sequence[Any] | None:
        answer = self._read("lifecycle rules", self._bucket.reader.get_bucket_lifecycle_configuration)
        return None if answer is None else answer.get("Rules", ())


def is_bucket(url: str) -> bool:
    """Return whether an archive's URL names a bucket."""
    return url[:5].lower() == "s3://"


def open_configuration(url: str, options: S3Options) -> Configuration:
    """Return the configuration of an archive's bucket. Makes no call yet.

    Raises:
        ConfigurationError: the archive is not in a bucket, or an option cannot be used.
    """
    if not is_bucket(url):
        raise ConfigurationError(
            f"the archive {legible(url)} is a folder, and only a bucket is configured: want s3://BUCKET/PREFIX"
        )
    return Configuration(Bucket(url, options))


def check_rules(rules: Sequence[LifecycleRule], root: str, moves: Moves | None) -> Iterator[RuleProblem]:
    """Check that lifecycle rules move segments and quarantine as wanted, and delete no evidence. Yield the problems.

    Args:
        rules: the enabled rules.
        root: prefix of the archive in its bucket, empty or ending in a slash.
        moves: the wanted moves, None if any are allowed.
    """
    for rule in rules:
        touched = [part for part in layout.EVIDENCE if _touches(rule, root + part)]
        key, present_rule = touched[0] if touched else "", f"prefix {rule.prefix[:200]!r}"
        if rule.deletes and touched:
            message = f"the lifecycle rule {rule.id[:100]!r} deletes evidence: only a signed expiry may"
            yield RuleProblem(message, key, present_rule)
        staying = [part for part in touched if part not in layout.RECORDS]
        if rule.moves and staying:
            message = f"the lifecycle rule {rule.id[:100]!r} moves {staying[0]}, which stays where it was put"
            yield RuleProblem(message, key, present_rule)
    if moves is None:
        return
    for folder in layout.RECORDS:
        moving = (rule for rule in rules if not rule.filtered and (root + folder).startswith(rule.prefix))
        present = sorted({move for rule in moving for move in rule.moves})
        # A rule for a part of the folder, or for some tags, moves what the good ones move too.
        beside = {move for rule in rules if _touches(rule, root + folder) for move in rule.moves} - set(moves)
        if present != sorted(moves) or beside:
            message = f"the lifecycle rules of {folder} are not those wanted"
            yield RuleProblem(message, folder, _described({*present, *beside}), _described(moves))


def _touches(rule: LifecycleRule, part: str) -> bool:
    """Return whether a rule applies to any key of a part of the archive."""
    return part.startswith(rule.prefix) or rule.prefix.startswith(part)


def _described(moves: Sequence[tuple[int, str]] | set[tuple[int, str]]) -> str:
    return ", ".join(f"{class_} after {days} days" for days, class_ in sorted(moves)) or "none"


def _conditional_writes(bucket: str, root: str) -> dict[str, Any]:
    """Return the statement that refuses every put of evidence which could replace an object."""
    return {
        "Sid": _SID,
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": [f"arn:aws:s3:::{bucket}/{root}{part}*" for part in layout.EVIDENCE],
        "Condition": {"Null": {"s3:if-none-match": "true"}},
    }


def _statements(policy: str | None) -> list[Any]:
    """Return the statements of a policy's JSON, in a form that compares; none if it cannot be read."""
    try:
        given = json.loads(policy or "{}")["Statement"]
    except (ValueError, LookupError, TypeError):
        return []
    return [_plain(statement) for statement in (given if isinstance(given, list) else [given])]


def _plain(statement: Any) -> Any:
    """Return a policy's statement in a normal form: a server may write the same statement differently."""
    if isinstance(statement, list):
        return sorted((_plain(item) for item in statement), key=repr)
    if isinstance(statement, dict):
        # A list of one is written without brackets as well; `Sid` is a name, and Principal "*" has a longer form.
        plain = {
            name: _plain(value if isinstance(value, list | dict) else [value]) for name, value in statement.items()
        }
        plain.pop("Sid", None)
        return ["*"] if plain == {"AWS": ["*"]} else plain
    return statement


def _lifecycle_rule(rule: Any) -> LifecycleRule:
    """Convert a rule from boto3's form."""
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
