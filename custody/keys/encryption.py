"""Keyrings encrypted with a passphrase: scrypt (RFC 7914) and AES-256-GCM (FORMAT.md, Keyring)."""

import secrets
from hashlib import scrypt
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from custody.errors import ConfigurationError
from custody.keys.files import decode_base64, encode_base64

_SCRYPT = {"n": 2**16, "r": 8, "p": 2}
_SCRYPT_MEMORY = 256 * 1024 * 1024
_SCRYPT_WORK = 2**22


class _Scrypt(msgspec.Struct, forbid_unknown_fields=True):
    salt: str
    n: int
    r: int
    p: int


class EncryptedFile(msgspec.Struct, forbid_unknown_fields=True):
    """The encrypted form of a keyring file; bytes are in base64."""

    format: Literal["custody/keyring/1"]
    scrypt: _Scrypt
    nonce: str
    ciphertext: str


def encrypt(data: bytes, passphrase: str) -> dict[str, object]:
    """Return the encrypted form of a keyring's bytes, without its `format`.

    Raises:
        ConfigurationError: the passphrase is empty, or is not Unicode text.
    """
    if not passphrase:
        raise ConfigurationError("the keyring's passphrase is empty; set one, or unset CUSTODY_KEYRING_PASSPHRASE")
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    ciphertext = AESGCM(_stretch(passphrase, salt, **_SCRYPT)).encrypt(nonce, data, None)
    return {
        "scrypt": {"salt": encode_base64(salt), **_SCRYPT},
        "nonce": encode_base64(nonce),
        "ciphertext": encode_base64(ciphertext),
    }


def decrypt(file: EncryptedFile, subject: str, passphrase: str | None) -> bytes:
    """Return the decrypted bytes of a keyring.

    Args:
        file: the encrypted form.
        subject: the name of the file in errors.
        passphrase: decrypts it.

    Raises:
        ConfigurationError: the passphrase is missing or wrong, or the file is out of bounds or altered.
    """
    if not passphrase:
        raise ConfigurationError(
            f"{subject}: it is encrypted, but no passphrase is set; set CUSTODY_KEYRING_PASSPHRASE"
        )
    n, r, p = file.scrypt.n, file.scrypt.r, file.scrypt.p
    if (
        not (2**14 <= n <= 2**24 and n & (n - 1) == 0 and 1 <= r <= 64 and 1 <= p <= 64)
        or 128 * n * r > _SCRYPT_MEMORY
        or n * r * p > _SCRYPT_WORK
    ):
        raise ConfigurationError(
            f"{subject}: scrypt's n, r and p are out of bounds (n a power of two from 2¹⁴,"
            " 128·n·r at most 2²⁸, n·r·p 2²²)"
        )
    salt = decode_base64(file.scrypt.salt, subject, "scrypt.salt")
    nonce = decode_base64(file.nonce, subject, "nonce", 12)
    text = decode_base64(file.ciphertext, subject, "ciphertext")
    if not 16 <= len(salt) <= 64:
        raise ConfigurationError(f"{subject}: scrypt.salt has {len(salt)} bytes; it must have 16 to 64")
    try:
        return AESGCM(_stretch(passphrase, salt, n, r, p)).decrypt(nonce, text, None)
    except InvalidTag:
        raise ConfigurationError(f"{subject}: the passphrase is wrong, or the file was altered") from None


def _stretch(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    # Python reads an environment variable that is not UTF-8 with surrogates.
    try:
        text = passphrase.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigurationError("the keyring's passphrase has characters that are not Unicode text") from None
    return scrypt(text, salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY + 2**26, dklen=32)
