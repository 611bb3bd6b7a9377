"""Makes the golden keyrings and `trust.json`, by FORMAT.md alone: no code of custody, fixed keys, salt and nonce."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

KEYS = Path(__file__).parent / "keys"
PASSPHRASE = "correct horse"
TURN = "2026-04-01T12:00:00.000001Z"
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
"""Of RFC 8032's first test vector."""
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()


def keyring() -> bytes:
    """Return a keyring with each kind of key, one of them rotated."""
    return indented(
        {
            "format": "custody/keyring/1",
            "keys": [
                key("hmac-000000000001", "HMAC-SHA256", "2026-01-01T00:00:00.000000Z", TURN, secret=bytes(range(32))),
                key("hmac-000000000002", "HMAC-SHA256", TURN, None, secret=bytes(range(32, 64))),
                key("ed25519-000000000001", "Ed25519", private=SEED, public=PUBLIC),
                key("leaves-000000000001", "SHAKE-256", secret=bytes(range(64, 96))),
            ],
        }
    )


def encrypted() -> bytes:
    """Return the same keyring under a passphrase."""
    salt, nonce = bytes(range(16)), bytes(range(12))
    parameters = {"n": 2**14, "r": 8, "p": 1}
    stretched = Scrypt(salt, 32, **parameters).derive(PASSPHRASE.encode())
    return indented(
        {
            "format": "custody/keyring/1",
            "scrypt": {"salt": text(salt), **parameters},
            "nonce": text(nonce),
            "ciphertext": text(AESGCM(stretched).encrypt(nonce, keyring(), None)),
        }
    )


def trust() -> bytes:
    """Return a `trust.json` that says all that one can say, but for secrets."""
    return indented(
        {
            "format": "custody/trust/1",
            "archive": {"id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "sha256": "44" * 32},
            "keys": [
                key("hmac-000000000001", "HMAC-SHA256", "2026-01-01T00:00:00.000000Z", "2026-03-01T00:00:00.000000Z")
                | {"until": {"audit.events/0": {"size": 7, "root": "11" * 32}}},
                key("ed25519-000000000001", "Ed25519", public=PUBLIC),
                key("arn:aws:kms:eu-west-1:123456789012:key/0a1b2c3d-0000-4000-8000-000000000000", "HMAC-SHA256"),
                key("leaves-000000000001", "SHAKE-256"),
            ],
            "heads": {"audit.events@2/3": {"size": 12, "root": "22" * 32}},
            "witnesses": [witness("witness.example/w1", WITNESS)],
            "quorum": 1,
            "retention_days": 2555,
            "accepted": [
                {
                    "finding": "segment-hash",
                    "log": "audit.events/0",
                    "sequence": 3,
                    "sha256": "33" * 32,
                    "reason": "disk fault, restored from copy",
                    "by": "A. Auditor",
                    "at": "2026-05-01T00:00:00.000000Z",
                },
                {
                    "finding": "unlisted",
                    "key": "events/stray",
                    "reason": "a stray copy",
                    "by": "A. Auditor",
                    "at": "2026-05-01T00:00:00.000000Z",
                },
            ],
        }
    )


def witness(name: str, public: bytes, kind: int = 4) -> str:
    """Return a C2SP vkey."""
    data = bytes([kind]) + public
    key_hash = hashlib.sha256(f"{name}\n".encode() + data).digest()[:4]
    return f"{name}+{key_hash.hex()}+{text(data)}"


def key(id_: str, algorithm: str, begin: str | None = None, end: str | None = None, **halves: bytes) -> dict[str, Any]:
    """Return a key as files list it."""
    return {"id": id_, "algorithm": algorithm, "from": begin, "to": end} | {
        name: text(value) for name, value in halves.items()
    }


def text(data: bytes) -> str:
    """Return base64."""
    return base64.b64encode(data).decode()


def indented(document: dict[str, Any]) -> bytes:
    """Return JSON for people."""
    return json.dumps(document, indent=1).encode() + b"\n"


FILES = {"plain.json": keyring, "encrypted.json": encrypted, "trust.json": trust}


def regenerate() -> None:
    """Write the golden files anew."""
    for name, make in FILES.items():
        (KEYS / name).write_bytes(make())
