"""Keys in AWS KMS, by URI `aws-kms:///alias/NAME` or `aws-kms:///ARN` (FORMAT.md, Signed files).

An HMAC key in KMS signs and checks; an Ed25519 key signs, and is checked by its public half. Secrets never leave AWS.
What KMS and its client say may quote signed requests, so errors tell the operation, the key and the code. If KMS
refuses, they tell who signed and the permission as well, and no more.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Literal

from custody.errors import ConfigurationError, KeyUnavailable, SignatureInvalid, legible
from custody.store import retries
from custody.store.caller import aws_caller
from custody.store.protocol import READABLE, is_plain

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

logger = logging.getLogger(__name__)

KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]{1,128}")
_NAME = re.compile(
    r"(?:arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:)?(?:alias/[A-Za-z0-9/_-]{1,250}|(?:key/)?[A-Za-z0-9-]{1,128})"
)


class _KmsKey:
    """A key in AWS KMS, called by its ARN. It is always valid: KMS knows no span."""

    from_: ClassVar[None] = None
    to: ClassVar[None] = None

    def __init__(self, arn: str, kms: "_Kms | None" = None) -> None:
        self.key_id = arn
        self._opened = kms

    def _kms(self) -> "_Kms":
        if self._opened is None:
            match = KEY_ARN.fullmatch(self.key_id)
            try:
                self._opened = _Kms(match["region"] if match else None)
            except ConfigurationError as error:
                raise KeyUnavailable(f"the KMS key {self.key_id} cannot be used: {error}") from None
        return self._opened

    def _check_answer(self, operation: str, key_id: str, value: bytes, size: int) -> bytes:
        # Real KMS answers with the ARN, test servers with only the id at its end.
        if key_id not in {self.key_id, self.key_id.rpartition("/")[2]} or len(value) != size:
            raise KeyUnavailable(
                f"KMS answered {operation} for {self.key_id} with another key or length; nothing was signed"
            )
        return value


class KmsKey(_KmsKey):
    """An HMAC_256 key in AWS KMS. Its secret never leaves KMS."""

    algorithm: ClassVar[Literal["HMAC-SHA256"]] = "HMAC-SHA256"
    public: ClassVar[None] = None

    @classmethod
    def open(cls, name: str) -> "KmsKey | KmsEd25519Key":
        """Resolve an alias, id or ARN to the key.

        Raises:
            ConfigurationError: the name is malformed, boto3 or a region is missing, or the key can make neither
                HMAC_SHA_256 nor ED25519_SHA_512.
            KeyUnavailable: KMS does not answer, or says no.
        """
        match = _NAME.fullmatch(name)
        if not match:
            raise ConfigurationError(
                "the URI of a KMS key is aws-kms:///alias/NAME, aws-kms:///KEY-ID or aws-kms:///ARN; the given one is"
                " none of these"
            )
        kms = _Kms(match["region"])
        with kms.errors("DescribeKey", name):
            metadata = kms.client.describe_key(KeyId=name)["KeyMetadata"]
            arn = metadata["Arn"]
        match metadata.get("KeySpec"), metadata.get("KeyUsage"):
            case "HMAC_256", "GENERATE_VERIFY_MAC":
                return cls(arn, kms)
            case "ECC_NIST_EDWARDS25519", "SIGN_VERIFY":
                return KmsEd25519Key(arn, kms)
        raise ConfigurationError(
            f"the KMS key {name} is {metadata.get('KeySpec', 'of another kind')}, and supports neither HMAC_SHA_256 nor"
            " ED25519_SHA_512; create one with key spec HMAC_256 and usage GENERATE_VERIFY_MAC for statements, or"
            " ECC_NIST_EDWARDS25519 and SIGN_VERIFY for checkpoints"
        )

    def sign(self, message: bytes) -> bytes:
        """Return the message's HMAC.

        Raises:
            KeyUnavailable: KMS does not answer, or says no.
        """
        kms = self._kms()
        with kms.errors("GenerateMac", self.key_id):
            answer = kms.client.generate_mac(Message=message, KeyId=self.key_id, MacAlgorithm="HMAC_SHA_256")
            return self._check_answer("GenerateMac", answer["KeyId"], answer["Mac"], 32)

    def check(self, message: bytes, value: bytes) -> None:
        """Check a message's HMAC with KMS.

        Raises:
            SignatureInvalid: it is wrong.
            KeyUnavailable: KMS does not answer, or says no.
        """
        if len(value) != 32:
            raise SignatureInvalid(
                f"the signature of key {self.key_id!r} has {len(value)} bytes, but an HMAC-SHA256 has 32"
            )
        kms = self._kms()
        with kms.errors("VerifyMac", self.key_id):
            answer = kms.client.verify_mac(Message=message, KeyId=self.key_id, MacAlgorithm="HMAC_SHA_256", Mac=value)
        if answer.get("MacValid") is not True:
            raise SignatureInvalid(f"the signature of key {self.key_id!r} is not over this statement")


class KmsEd25519Key(_KmsKey):
    """An Ed25519 key in AWS KMS. With its public part, signatures can be checked without AWS."""

    algorithm: ClassVar[Literal["Ed25519"]] = "Ed25519"

    def __init__(self, arn: str, kms: "_Kms") -> None:
        """Read the public part.

        Raises:
            KeyUnavailable: KMS does not answer, says no, or gives no Ed25519 key.
        """
        super().__init__(arn, kms)
        with kms.errors("GetPublicKey", arn):
            encoded = kms.client.get_public_key(KeyId=arn)["PublicKey"]
        if len(encoded) != len(_SPKI) + 32 or not encoded.startswith(_SPKI):
            raise KeyUnavailable(f"KMS answered GetPublicKey for {arn} with something that is not an Ed25519 key")
        self.public = encoded[len(_SPKI) :]

    def sign(self, message: bytes) -> bytes:
        """Return the message's signature.

        Raises:
            KeyUnavailable: KMS does not answer, or says no.
        """
        kms = self._kms()
        with kms.errors("Sign", self.key_id):
            answer = kms.client.sign(
                KeyId=self.key_id, Message=message, MessageType="RAW", SigningAlgorithm="ED25519_SHA_512"
            )
            return self._check_answer("Sign", answer["KeyId"], answer["Signature"], 64)


# How X.509 writes an Ed25519 public key, up to its 32 bytes (RFC 8410).
_SPKI = bytes.fromhex("302a300506032b6570032100")


class _Kms:
    """A KMS client from the standard AWS settings, AWS_ENDPOINT_URL_KMS and AWS_ENDPOINT_URL among them."""

    def __init__(self, region: str | None) -> None:
        """Open the client; no request is made yet.

        Raises:
            ConfigurationError: boto3 or a region is missing, or the AWS settings cannot be used.
        """
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ModuleNotFoundError:
            raise ConfigurationError(
                "aws-kms keys need boto3, which is not installed: install custody with its extra `s3`"
            ) from None
        # Short, because a drain has less than a minute. The next run signs a statement that was not signed.
        config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
        try:
            session = boto3.session.Session()
            self.client: KMSClient = session.client("kms", region_name=region, config=config)
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(
                f"AWS is not configured for KMS ({type(error).__name__}): set AWS_DEFAULT_REGION, and check AWS_PROFILE"
                " and any AWS_ENDPOINT_URL"
            ) from None
        retries.follow(self.client, "kms")
        _warn_if_plain(self.client.meta.endpoint_url)
        self._caller: Callable[[], str] = functools.partial(aws_caller, session)

    def errors(self, operation: str, name: str) -> AbstractContextManager[None]:
        """Convert botocore's errors in a `with` block.

        Args:
            operation: the name of KMS's operation, which is that of the permission, too.
            name: the key.
        """
        return _errors(operation, name, self._caller)


@functools.cache
def _warn_if_plain(url: str) -> None:
    """Log a warning, once, if AWS's variables or profile name an endpoint with http://."""
    if is_plain(url):
        logger.warning("the AWS settings name the endpoint %s for KMS: %s; use https://", legible(url), READABLE)


_REFUSED = frozenset(
    {"AccessDeniedException", "ExpiredTokenException", "InvalidSignatureException", "UnrecognizedClientException"}
)
_ADVICE = {
    "NotFoundException": "there is no such key in this account and region",
    "DisabledException": "the key is disabled; enable it",
    "KMSInvalidStateException": "the key cannot be used now; its deletion may be pending",
    "InvalidKeyUsageException": "the key is of another kind; create one with key spec HMAC_256 for statements, or"
    " ECC_NIST_EDWARDS25519 for checkpoints",
    "ThrottlingException": "AWS asks for fewer calls; try again later",
}


@contextlib.contextmanager
def _errors(operation: str, name: str, caller: Callable[[], str]) -> Iterator[None]:
    """Convert botocore's errors into ours. Their texts may quote signed requests, so they are left out."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code == "KMSInvalidMacException":
            raise SignatureInvalid(f"the signature of key {name!r} is not over this statement") from None
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in _REFUSED or status in {401, 403}:
            raise KeyUnavailable(
                f"KMS refused {operation} for {name} ({code}), to {caller()}: allow kms:{operation} in the key's policy"
                " or in IAM, and check the credentials"
            ) from None
        advice = _ADVICE.get(code, "look the code up in the AWS KMS API reference")
        raise KeyUnavailable(f"KMS refused {operation} for {name} ({code}): {advice}") from None
    except (BotoCoreError, HTTPClientError) as error:
        raise KeyUnavailable(
            f"KMS did not answer {operation} for {name} ({type(error).__name__}): check the network,"
            " the credentials and the endpoint"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        # The answer did not come from KMS.
        raise KeyUnavailable(
            f"the answer to KMS {operation} for {name} is malformed ({type(error).__name__}): check the endpoint"
        ) from None
