"""A proxy before S3 and KMS that refuses what an IAM policy does not allow, and notes what was allowed.

No server here evaluates policies: moto passes over conditions, SeaweedFS knows neither all actions nor
s3:if-none-match. Which permission a request needs is taken from AWS' Service Authorization Reference, and what follows
from a missing one from the S3 API reference. That AWS decides in just this way is not shown by any test.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.proxy import FaultyProxy

_BUCKET = {
    ("GET", "list-type"): "s3:ListBucket",
    ("GET", "versions"): "s3:ListBucketVersions",
    ("GET", "versioning"): "s3:GetBucketVersioning",
    ("GET", "object-lock"): "s3:GetBucketObjectLockConfiguration",
    ("GET", "lifecycle"): "s3:GetLifecycleConfiguration",
    ("GET", "policy"): "s3:GetBucketPolicy",
    ("PUT", "versioning"): "s3:PutBucketVersioning",
    ("PUT", "object-lock"): "s3:PutBucketObjectLockConfiguration",
    ("PUT", "lifecycle"): "s3:PutLifecycleConfiguration",
    ("PUT", "policy"): "s3:PutBucketPolicy",
    ("DELETE", "policy"): "s3:DeleteBucketPolicy",
    ("HEAD", ""): "s3:ListBucket",
    ("DELETE", ""): "s3:DeleteBucket",
}
_OBJECT = {
    ("GET", ""): "s3:GetObject",
    ("HEAD", ""): "s3:GetObject",
    ("PUT", ""): "s3:PutObject",
    ("DELETE", ""): "s3:DeleteObject",
    ("GET", "retention"): "s3:GetObjectRetention",
    ("PUT", "retention"): "s3:PutObjectRetention",
    ("PUT", "legal-hold"): "s3:PutObjectLegalHold",
    ("POST", "restore"): "s3:RestoreObject",
}
_SUBRESOURCES = {name for _, name in (*_BUCKET, *_OBJECT) if name}
_BY_VERSION = {"s3:GetObject", "s3:DeleteObject"}
_LOCK_HEADERS = {
    "x-amz-object-lock-mode": "Retention",
    "x-amz-object-lock-retain-until-date": "Retention",
    "x-amz-object-lock-legal-hold": "LegalHold",
}
_ENCRYPTED_BY = "x-amz-server-side-encryption-aws-kms-key-id"


@dataclass(frozen=True, slots=True)
class Need:
    """A permission that a request needs: an action on a resource, with the values of condition keys."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Policy:
    """A policy of an identity, with what was needed of it.

    Attributes:
        statements: all of them allow.
        used: the action and the resource, as the policy writes them, of each permission that was needed.
        refused: what was needed, and is not allowed.
    """

    statements: list[dict[str, Any]]
    used: set[tuple[str, str]] = field(default_factory=set)
    refused: list[Need] = field(default_factory=list)

    @property
    def granted(self) -> set[tuple[str, str]]:
        """Return each action with each resource that the policy allows it on."""
        return {
            (action, resource)
            for statement in self.statements
            for action in statement["Action"]
            for resource in statement["Resource"]
        }

    def allows(self, need: Need) -> bool:
        """Return whether a statement allows this, and note which."""
        for statement in self.statements:
            assert statement["Effect"] == "Allow"
            (resource,) = [one for one in statement["Resource"] if fnmatchcase(need.resource, one)][:1] or [None]
            met = all(_is_met(kind, keys, need.context) for kind, keys in statement.get("Condition", {}).items())
            if resource and met and need.action in statement["Action"]:
                self.used.add((need.action, resource))
                return True
        return False


def _is_met(kind: str, keys: Mapping[str, str], context: Mapping[str, str]) -> bool:
    """Return whether a condition is met. `Null` is the only kind in our policies."""
    assert kind == "Null", kind
    return all((key not in context) == (wanted == "true") for key, wanted in keys.items())


def needs(method: str, target: str, headers: Mapping[str, str]) -> Iterator[Need]:
    """Yield what a request to S3 or KMS needs, besides what follows from the object that it reads."""
    if operation := headers.get("x-amz-target", ""):
        # The key's ARN is in the body: see `PolicyProxy._handle`.
        yield Need(f"kms:{operation.rpartition('.')[2]}", "")
        return
    split = urlsplit(target)
    query = parse_qs(split.query, keep_blank_values=True)
    bucket, _, key = unquote(split.path).lstrip("/").partition("/")
    (sub,) = list(_SUBRESOURCES & set(query))[:1] or [""]
    action = (_OBJECT if key else _BUCKET).get((method, sub), f"unknown:{method} {split.query}")
    arn = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    if "versionId" in query and action in _BY_VERSION:
        action += "Version"
    context = {"s3:if-none-match": headers["if-none-match"]} if "if-none-match" in headers else {}
    yield Need(action, arn, context)
    if headers.get("x-amz-bypass-governance-retention", "").lower() == "true":
        yield Need("s3:BypassGovernanceRetention", arn)
    if action == "s3:PutObject":
        for kind in {_LOCK_HEADERS[name] for name in headers if name in _LOCK_HEADERS}:
            yield Need(f"s3:PutObject{kind}", arn)
        if _ENCRYPTED_BY in headers:
            yield Need("kms:GenerateDataKey", headers[_ENCRYPTED_BY])


class PolicyProxy(FaultyProxy):
    """A proxy before S3 or KMS that obeys a policy.

    Args:
        upstream: the server behind.
        policy: of whoever calls.
        keys: the ARN of each KMS key, by the names under which it may be asked for.
    """

    def __init__(self, upstream: str, policy: Policy, keys: Mapping[str, str] | None = None) -> None:
        super().__init__(upstream)
        self._policy = policy
        self._keys = keys or {}

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        given = {name.lower(): value for name, value in request.headers.items()}
        needed = list(needs(request.command, request.path, given))
        if kms := "x-amz-target" in given:
            name = json.loads(body)["KeyId"]
            needed = [Need(needed[0].action, self._keys.get(name, name))]
        with self._lock:
            if refused := [need for need in needed if not self._policy.allows(need)]:
                self._policy.refused += refused
        if refused:
            self._refuse(request, kms=kms)
            return
        status, headers, answer = self._ask(request, body)
        if not kms and request.command in {"GET", "HEAD"} and "/" in request.path.strip("/"):
            with self._lock:
                status, headers = self._seen(needed[0], status, headers)
        if status == 403:
            self._refuse(request, kms=kms)
        else:
            self._answer(request, status, headers, answer)

    def _seen(self, need: Need, status: int, headers: list[tuple[str, str]]) -> tuple[int, list[tuple[str, str]]]:
        """Return the status and the headers of an answer about an object as AWS gives them to this caller."""
        bucket = need.resource.partition("/")[0]
        if status == 404 and not self._policy.allows(Need("s3:ListBucket", bucket)):
            # Who may not list does not learn whether there is such an object.
            return 403, headers
        for name, value in headers:
            if name.lower() == _ENCRYPTED_BY and not self._policy.allows(decrypt := Need("kms:Decrypt", value)):
                self._policy.refused.append(decrypt)
                return 403, headers
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() not in _LOCK_HEADERS
            or self._policy.allows(Need(f"s3:GetObject{_LOCK_HEADERS[name.lower()]}", need.resource))
        ]
        return status, kept

    def _refuse(self, request: BaseHTTPRequestHandler, *, kms: bool) -> None:
        if kms:
            answer = b'{"__type": "AccessDeniedException", "message": "no"}'
            headers = [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(answer)))]
            self._answer(request, 400, headers, answer)
            return
        answer = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))]
        self._answer(request, 403, headers, answer)
