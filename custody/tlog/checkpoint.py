"""Signed tree heads in the C2SP forms: `signed-note`, `tlog-checkpoint` and `tlog-cosignature`, with Ed25519. Pure.

A note is text, an empty line, and signature lines `— <name> <base64(key hash, 4 bytes ‖ signature)>`. A checkpoint is a
note whose text is an origin, a size and a root, a line each. Any client of these forms can check ours with the public
key alone. Parsing is strict and bounded; whatever is wrong is a `FormatError`.
"""

import base64
import re
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from custody.errors import FormatError, SignatureInvalid
from custody.format import limits
from custody.format.envelope import Signer, decode_base64
from custody.format.layout import Log
from custody.tlog.head import Head

__all__ = ["Checkpoint", "Note", "NoteKey", "NoteSignature", "parse_checkpoint", "parse_note"]

ED25519 = 1
"""The type byte of a key that signs the note's text."""
COSIGNATURE = 4
"""The type byte of a witness's key, which signs a time and the note's text."""


_DASH = "— "
_VKEY = re.compile(r"(?P<name>[^\s+]+)\+(?P<hash>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]+={0,2})")
_HASH_BYTES = 4
_TIME_BYTES = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head."""

    origin: str
    """Which log: `custody/<archive>/<log>/<partition>`."""
    size: int
    root: bytes

    @property
    def head(self) -> Head:
        """The size and the root."""
        return Head(self.size, self.root)

    def text(self) -> bytes:
        """Return what is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n".encode()


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line of a note."""

    name: str
    key_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures."""

    text: bytes
    """Ends in a newline."""
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """Return the note as it is stored."""
        lines = (f"{_DASH}{line.name} {_base64(line.key_hash + line.signature)}\n" for line in self.signatures)
        return self.text + b"\n" + "".join(lines).encode()


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key by which notes are checked."""

    name: str
    public: bytes
    """The 32 bytes of Ed25519."""
    type: int = ED25519

    @classmethod
    def parse(cls, vkey: str) -> "NoteKey":
        """Parse a C2SP vkey, `<name>+<hash>+<base64(type ‖ key)>`.

        Raises:
            FormatError: it is none, or of a type that is not known here.
        """
        # An argument that is not UTF-8 comes with surrogates.
        match = _VKEY.fullmatch(vkey) if vkey.isascii() or vkey == vkey.encode(errors="replace").decode() else None
        decoded = decode_base64(match["key"], "the key") if match else b""
        if not match or len(decoded) != 33 or decoded[0] not in {ED25519, COSIGNATURE}:
            raise FormatError(f"{vkey[:200]!r} is no vkey of an Ed25519 key, NAME+HASH+KEY")
        key = cls(match["name"], decoded[1:], decoded[0])
        if key.key_hash.hex() != match["hash"]:
            raise FormatError(f"the hash in the vkey of {key.name[:200]!r} does not belong to its key")
        return key

    @property
    def key_hash(self) -> bytes:
        """The four bytes that signatures name the key by."""
        return sha256(f"{self.name}\n".encode() + bytes([self.type]) + self.public).digest()[:_HASH_BYTES]

    @property
    def vkey(self) -> str:
        """The key as C2SP writes it."""
        return f"{self.name}+{self.key_hash.hex()}+{_base64(bytes([self.type]) + self.public)}"

    def verify(self, text: bytes, signature: bytes) -> int | None:
        """Check a signature over a note's text; return the witness's time, in seconds since 1970, of a cosignature.

        Raises:
            SignatureInvalid: it does not hold.
        """
        time = None
        if self.type == COSIGNATURE:
            time = int.from_bytes(signature[:_TIME_BYTES], "big")
            text, signature = cosigned(text, time), signature[_TIME_BYTES:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except (InvalidSignature, ValueError):
            raise SignatureInvalid(f"the signature of key {self.name!r} is not over this note") from None
        return time


def parse_note(data: bytes) -> Note:
    """Parse a signed note.

    Raises:
        FormatError: it is none.
    """
    if len(data) > limits.NOTE_BYTES:
        raise FormatError(f"the note has {len(data)} bytes (limit {limits.NOTE_BYTES})")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise FormatError("the note is not UTF-8") from None
    if any(character < " " and character != "\n" for character in whole):
        raise FormatError("the note holds a control character")
    text, separator, below = whole.rpartition("\n\n")
    if not separator or not below.endswith("\n"):
        raise FormatError(
            "the note has no signatures: text, an empty line, and lines that begin with a dash are wanted"
        )
    lines = below[:-1].split("\n")
    if len(lines) > limits.NOTE_SIGNATURES:
        raise FormatError(f"the note has {len(lines)} signatures (limit {limits.NOTE_SIGNATURES})")
    return Note((text + "\n").encode(), tuple(map(_parse_signature, lines)))


def _parse_signature(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not is_name(name):
        raise FormatError(f"{line[:100]!r} is no signature line of a note")
    value = decode_base64(encoded, "a signature of the note")
    if len(value) <= _HASH_BYTES:
        raise FormatError("a signature of the note is too short")
    return NoteSignature(name, value[:_HASH_BYTES], value[_HASH_BYTES:])


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Parse the text of a note that is a checkpoint. Lines of extensions behind the three are refused: we write none.

    Raises:
        FormatError: it is none.
    """
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError:
        raise FormatError("the checkpoint is not UTF-8") from None
    if len(lines) != 4 or lines[3] or not lines[0]:
        raise FormatError("a checkpoint is three lines: origin, size and root")
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]) or int(lines[1]) > limits.INT_MAX:
        raise FormatError(f"the checkpoint's size {lines[1][:40]!r} is no number of statements")
    root = decode_base64(lines[2], "the checkpoint's root")
    if len(root) != 32:
        raise FormatError(f"the checkpoint's root has {len(root)} bytes, not 32")
    return Checkpoint(lines[0], int(lines[1]), root)


def origin_of(archive: str, log: Log) -> str:
    """Return the first line of a log's checkpoints, which a key's rotation does not change."""
    return f"custody/{archive}/{log}"


def sign_checkpoint(signer: "NoteSigner", archive: str, log: Log, head: Head) -> Note:
    """Return a log's head, signed by an Ed25519 key; the key's id is its name.

    Raises:
        KeyUnavailable: the signer cannot sign now.
        FormatError: the key's id cannot be a name in a note.
    """
    if not is_name(signer.key_id):
        raise FormatError(f"the key {signer.key_id!r} cannot sign checkpoints: its id holds white space or '+'")
    text = Checkpoint(origin_of(archive, log), head.size, head.root).text()
    key = NoteKey(signer.key_id, signer.public)
    return Note(text, (NoteSignature(key.name, key.key_hash, signer.sign(text)),))


class NoteSigner(Signer, Protocol):
    """An Ed25519 key that can sign notes; its id is its name."""

    @property
    def public(self) -> bytes:
        """The 32 bytes of its public half."""
        ...


def cosigned(text: bytes, time: int) -> bytes:
    """Return what a witness signs of a note at a time (C2SP `tlog-cosignature`, version 1)."""
    return f"cosignature/v1\ntime {time}\n".encode() + text


def with_signature(note: Note, signature: NoteSignature) -> Note:
    """Return the note with one signature more, in place of an earlier one of the same key."""
    own = (signature.name, signature.key_hash)
    others = tuple(other for other in note.signatures if (other.name, other.key_hash) != own)
    return replace(note, signatures=(*others, signature))


def is_name(name: str) -> bool:
    """Return whether a text can be a key's name in a note: not empty, without white space and `+`."""
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
