"""A fake KMS on 127.0.0.1: moto 5.2.5 makes no ECC_NIST_EDWARDS25519 keys, and no real KMS can be had here.

It speaks the JSON protocol of DescribeKey, GetPublicKey, Sign, GenerateMac and VerifyMac, as far as custody calls them,
with real keys behind it: what it signs is what any Ed25519 or HMAC makes. That AWS answers in just this way is taken
from its API reference, and not shown by any test.
"""

import base64
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ED25519_ARN = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-0000000ed255"
HMAC_ARN = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-00000000hmac"
ALIASES = {"alias/checkpoints": ED25519_ARN, "alias/statements": HMAC_ARN}


class _RefusedError(Exception):
    """What KMS answers with an error code."""


@dataclass(slots=True)
class FakeKms:
    """The keys behind the server, and what was asked of it."""

    endpoint_url: str = ""
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    secret: bytes = bytes(32)
    asked: list[str] = field(default_factory=list)
    """Names of operations."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Fields of answers that are other than they should be."""
    refused: set[str] = field(default_factory=set)
    """Operations that the client may not call."""

    @property
    def public(self) -> bytes:
        """The public half of the Ed25519 key."""
        return self.private.public_key().public_bytes_raw()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the standard variables, by which AWS clients find it."""
        for name, value in {
            "AWS_ENDPOINT_URL_KMS": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a call."""
        self.asked.append(operation)
        if operation in self.refused:
            raise _RefusedError("AccessDeniedException")
        name = request["KeyId"]
        arn = next((arn for arn in (ED25519_ARN, HMAC_ARN) if name in {arn, arn.rpartition("/")[2]}), ALIASES.get(name))
        if arn is None:
            raise _RefusedError("NotFoundException")
        message = base64.b64decode(request.get("Message", ""))
        ed25519 = arn == ED25519_ARN
        match operation:
            case "DescribeKey":
                kind = ("ECC_NIST_EDWARDS25519", "SIGN_VERIFY") if ed25519 else ("HMAC_256", "GENERATE_VERIFY_MAC")
                return {"KeyMetadata": {"KeyId": arn, "Arn": arn, "KeySpec": kind[0], "KeyUsage": kind[1]}}
            case "GetPublicKey" if ed25519:
                encoded = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
                return {"KeyId": arn, "PublicKey": base64.b64encode(encoded).decode()}
            case "Sign" if ed25519:
                if (request["MessageType"], request["SigningAlgorithm"]) != ("RAW", "ED25519_SHA_512"):
                    raise _RefusedError("ValidationException")
                return {"KeyId": arn, "Signature": base64.b64encode(self.private.sign(message)).decode()}
            case "GenerateMac" if not ed25519:
                mac = hmac.digest(self.secret, message, "sha256")
                return {"KeyId": arn, "Mac": base64.b64encode(mac).decode(), "MacAlgorithm": "HMAC_SHA_256"}
            case "VerifyMac" if not ed25519:
                if base64.b64decode(request["Mac"]) != hmac.digest(self.secret, message, "sha256"):
                    raise _RefusedError("KMSInvalidMacException")
                return {"KeyId": arn, "MacValid": True, "MacAlgorithm": "HMAC_SHA_256"}
        raise _RefusedError("InvalidKeyUsageException")


@contextmanager
def serve() -> Iterator[FakeKms]:
    """Serve a fake KMS for as long as it is needed."""
    kms = FakeKms()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                body = kms.answer(self.headers["X-Amz-Target"].rpartition(".")[2], request) | kms.changed
                status = 200
            except _RefusedError as error:
                body, status = {"__type": str(error), "message": "no"}, 400
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kms.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield kms
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def fake_kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKms]:
    """A fake KMS that keys are looked for in, with one for Ed25519 and one for HMAC."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with serve() as kms:
        kms.use(monkeypatch)
        yield kms
