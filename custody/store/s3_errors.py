"""Converts boto3's errors into ours: terminal or transient, with advice, and without secrets.

An error for a refusal says whom the server refused: the id of the access key that signed.
Nothing of boto3 is imported before the first store of S3 is opened.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from custody.errors import NoBucket, ObjectArchived, StoreError, TerminalStoreError, TransientStoreError, legible
from custody.store.protocol import no_object, occupied


class CallUnknown(TerminalStoreError):
    """The server does not know the call."""


class NotConfigured(TerminalStoreError):
    """The bucket has no such configuration, or the object no lock."""


class Restoring(TerminalStoreError):
    """A copy of the archived object is already being made."""


class KeyRefused(TerminalStoreError):
    """The server does not accept the access key, or there is none: each other call is refused, too."""


class NoAnswer(TransientStoreError):
    """The server cannot be reached, or sent nothing in time."""


class BeyondEnd(TerminalStoreError):
    """The requested range begins after the object's end."""


# Codes whose HTTP status may not show that they are transient. Each service has its own name for throttling.
_TRANSIENT_CODE = re.compile(
    r"BadDigest|IncompleteBody|InternalError|InternalFailure|PriorRequestNotComplete|TransactionInProgressException"
    r"|RequestTimeout(Exception)?|ServiceUnavailable|SlowDown|TooManyRequestsException|XAmzContent\w+Mismatch"
    r"|[\w.]*(LimitExceeded|ThroughputExceeded|Throttled|Throttling)(Exception)?"
)
# 412 makes no sense for a call without a condition.
_TRANSIENT_STATUS = frozenset({408, 409, 412, 425, 429})


LOOK_AT_LOCK = "look at the lock of"


# AWS has a code for an object without a lock, and InvalidRequest for one in a bucket without.
_NO_LOCK_CODES = frozenset({"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest"})


_NOT_CONFIGURED_CODES = frozenset(
    {"NoSuchLifecycleConfiguration", "NoSuchBucketPolicy", "ObjectLockConfigurationNotFoundError"}
)
# Codes of servers without storage classes, or without the configuration.
_UNKNOWN_CODES = frozenset({"MethodNotAllowed", "InvalidStorageClass"})


# The permission that an operation needs, if it is not reading or writing objects.
_PERMISSIONS = {
    LOOK_AT_LOCK: "s3:GetObjectRetention",
    "restore": "s3:RestoreObject",
    "read the versioning of": "s3:GetBucketVersioning",
    "read the Object Lock of": "s3:GetBucketObjectLockConfiguration",
    "read the lifecycle rules of": "s3:GetLifecycleConfiguration",
    "set the lifecycle rules of": "s3:PutLifecycleConfiguration",
    "read the policy of": "s3:GetBucketPolicy",
}


_CREDENTIALS_ADVICE = "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the AWS profile or role)"
_EXPIRED_ADVICE = "the credentials have expired: renew them"
_REGION_ADVICE = "the bucket is in another region: set `region` to the bucket's"
_ALLOW = (
    "allow s3:GetObject, s3:PutObject, s3:ListBucket and s3:ListBucketVersions (without s3:ListBucket a missing object"
    " looks like this, too)"
)
_ACCESS_ADVICE = f"the bucket's or the identity's policy does not allow it: {_ALLOW}"
# An answer to HEAD has no body, so no code says which of the two it is.
_BARE_ADVICE = f"the key is wrong, or a policy does not allow it: {_CREDENTIALS_ADVICE}; or {_ALLOW}"
_CODE_ADVICE = {
    "AccessDenied": _ACCESS_ADVICE,
    "AllAccessDisabled": _ACCESS_ADVICE,
    "AuthorizationHeaderMalformed": _REGION_ADVICE,
    "ExpiredToken": _EXPIRED_ADVICE,
    "ExpiredTokenException": _EXPIRED_ADVICE,
    "IllegalLocationConstraintException": _REGION_ADVICE,
    "InvalidAccessKeyId": _CREDENTIALS_ADVICE,
    "InvalidToken": _CREDENTIALS_ADVICE,
    "PermanentRedirect": _REGION_ADVICE,
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "SignatureDoesNotMatch": _CREDENTIALS_ADVICE,
    "301": _REGION_ADVICE,
    "400": f"set `region` to the bucket's, and {_CREDENTIALS_ADVICE}",
    "403": _BARE_ADVICE,
}


# Codes of an access key that is not accepted, whatever the HTTP status is.
_KEY_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"}
)


@functools.cache
def s3_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that boto3 may raise. Malformed answers cause ValueError and LookupError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, ResponseParserError, Boto3Error, HTTPError, OSError, ValueError, LookupError)


@contextlib.contextmanager
def s3_errors(doing: str, where: str, caller: Callable[[], str]) -> Iterator[None]:
    """Convert boto3's errors. They are not chained, because they contain the server's whole answer.

    Args:
        doing: what the call does.
        where: to which object, prefix or bucket.
        caller: returns who signs the calls. It is asked after a refusal.
    """
    try:
        yield
    except s3_failures() as error:
        from botocore.exceptions import ClientError

        if isinstance(error, ClientError):
            raise _from_answer(error, doing, where, caller) from None
        raise _from_library(error, doing, where) from None


def _from_answer(error: Any, doing: str, where: str, caller: Callable[[], str]) -> StoreError:  # noqa: C901 - cases
    """Convert the error in a server's answer."""
    answer = error.response.get("Error") or {}
    code = str(answer.get("Code") or "")
    status = (error.response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    if not status and re.fullmatch(r"[1-5][0-9][0-9]", code):
        status = int(code)
    if code in {"NoSuchKey", "NoSuchVersion", "404"}:
        return no_object(where)
    if code == "NoSuchBucket":
        return NoBucket(urlsplit(where).netloc)
    if status == 412 and doing == "write":
        return occupied(where)
    if code in _NO_LOCK_CODES and doing == LOOK_AT_LOCK:
        return NotConfigured(f"{where} has no lock")
    if code in _NOT_CONFIGURED_CODES:
        return NotConfigured(f"cannot {doing} {where}: {code}")
    if code == "RestoreAlreadyInProgress":
        return Restoring(f"{where} is already being restored")
    if code == "InvalidObjectState" and doing == "restore":
        return TerminalStoreError(f"cannot restore {where}: it is no longer in an archive storage class; run again")
    if code == "InvalidObjectState":
        return ObjectArchived(f"{where} is in an archive storage class (InvalidObjectState): restore it first")
    detail = f"{legible(code)} {legible(str(answer.get('Message') or ''))}".strip() or "an answer without a code"
    message = f"cannot {doing} {where}: HTTP {status or '?'}, {detail}"
    if code == "InvalidRange" or status == 416:
        return BeyondEnd(message)
    if code == "NotImplemented" or status == 501 or (code in _UNKNOWN_CODES and doing in _PERMISSIONS):
        return CallUnknown(f"{message} (this server lacks what an archive needs; use one that has it)")
    if _TRANSIENT_CODE.fullmatch(code) or status >= 500 or (status in _TRANSIENT_STATUS and code not in _CODE_ADVICE):
        return TransientStoreError(f"{message} (it may pass; try again)")
    advice = _CODE_ADVICE.get(code, "trying again does not help")
    if status in {401, 403} or code in _KEY_CODES:
        needed = _PERMISSIONS.get(doing)
        advice = f"allow {needed}" if code == "AccessDenied" and needed else advice
        kind = KeyRefused if code in _KEY_CODES else TerminalStoreError
        return kind(f"{message} (refused to {caller()}: {advice})")
    return TerminalStoreError(f"{message} ({advice})")


def _from_library(error: Exception, doing: str, where: str) -> StoreError:
    """Convert the error of a call that got no answer, or a malformed one."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    silent = (
        exceptions.EndpointConnectionError,
        exceptions.ConnectTimeoutError,
        exceptions.ReadTimeoutError,
        exceptions.ConnectionClosedError,
    )
    if isinstance(error, silent):
        url = urlsplit(str(error.kwargs.get("endpoint_url", "")))
        # Without what stands before an @: it may be a password.
        server = legible(f"{url.scheme}://{url.netloc.rpartition('@')[2]}")
        return NoAnswer(
            f"cannot {doing} {where}: the archive's storage at {server} does not answer ({type(error).__name__}):"
            " check that it runs, and s3.endpoint_url"
        )
    message = f"cannot {doing} {where}: {error_text(error)}"
    untrusted = isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    if untrusted:
        return TerminalStoreError(
            f"{message} (set AWS_CA_BUNDLE to the certificate authority that the server's is from)"
        )
    passing = (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.ChecksumError,
        exceptions.FlexibleChecksumError,
        exceptions.IncompleteReadError,
        exceptions.MetadataRetrievalError,
        exceptions.CredentialRetrievalError,
        ResponseParserError,
        HTTPError,
    )
    # Some of botocore's settings errors are also ValueErrors. Other ValueErrors come from a malformed answer.
    beneath = isinstance(error, (OSError, ValueError, LookupError)) and not isinstance(error, exceptions.BotoCoreError)
    if isinstance(error, passing) or beneath:
        return TransientStoreError(f"{message} (it may pass; try again)")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return KeyRefused(f"{message} ({_CREDENTIALS_ADVICE})")
    return TerminalStoreError(f"{message} (check the AWS settings and credentials)")


def error_text(error: Exception) -> str:
    """Return an error's type and text. The text is left out if it may quote the output of a credential helper."""
    from botocore.exceptions import CredentialRetrievalError

    kind = type(error).__name__
    if isinstance(error, CredentialRetrievalError):
        return f"{kind}: the provider {legible(str(error.kwargs.get('provider', '')))!r} gave no credentials"
    return f"{kind}: {legible(str(error))}"
