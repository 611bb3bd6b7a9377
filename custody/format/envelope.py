"""The two-line form that `archive.json`, manifests and audits share (FORMAT.md, Signed files). Pure.

Line 1 is a JSON object; line 2 holds the signatures over its digest. Readers hash the bytes as stored, so parsed files
keep them. Parsing is strict: unknown, missing, doubled or reordered fields, wrong types, integers outside 0 to 2⁶³-1,
floats, deep nesting, trailing bytes and sizes beyond the limits are all a `FormatError`. Nothing else is ever raised.
"""

import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

import msgspec

from custody.errors import FormatError, counted
from custody.format import limits
from custody.format.strict_json import check_depth, unique

Int = Annotated[int, msgspec.Meta(ge=0, le=limits.INT_MAX)]
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Time = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Algorithm = Literal["HMAC-SHA256", "Ed25519"]
"""The algorithm of a signature."""


class Tree(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The tree of the entries before this one: its size, its root, and its compact range, all hashes in hex."""

    size: Int
    root: str
    compact_range: list[str]


class HeadRef(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A log's size and root, as files write it."""

    size: Int
    root: Hex


class Signature(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One signature of line 2; the value in base64."""

    key: str
    algorithm: Algorithm
    value: str


class _Signatures(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    signatures: list[Signature]


Signatures = tuple[tuple[Signature, bytes], ...]
"""Each signature of line 2, with its value decoded."""

S_co = TypeVar("S_co", covariant=True)


class SignedFile(msgspec.Struct, Generic[S_co], frozen=True, gc=False):
    """A parsed two-line file, with line 1 exactly as stored."""

    statement: S_co
    line: bytes
    """Line 1 without its newline."""
    signatures: Signatures
    message: bytes
    """What is signed, and the entry of the tree."""


class Signer(Protocol):
    """A key that can sign."""

    @property
    def key_id(self) -> str:
        """The key's name in signatures."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm of the key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Sign; raises KeyUnavailable."""
        ...


_encoder = msgspec.json.Encoder()
_signatures_decoder = msgspec.json.Decoder(_Signatures)
_HEX = re.compile(r"[0-9a-f]{64}")
_HEX_LENGTHS = frozenset([64])


def message(line: bytes, form: str) -> bytes:
    r"""Return what is signed, and what the tree's leaf is made of: `form`, newline, hex SHA-256 of line 1, newline."""
    return f"{form}\n{sha256(line).hexdigest()}\n".encode()


def passed_over_message(digest: str) -> bytes:
    """Return the tree's entry for a slot that holds no valid file, by the hex SHA-256 of the bytes stored there."""
    return f"custody/passed-over/1\n{digest}\n".encode()


def encode_line(value: object, subject: str = "line 1", hint: str = "") -> bytes:
    """Return a value as line 1: compact JSON in ASCII, without the newline.

    Raises:
        FormatError: it is beyond the limit; the message begins with `subject`, and ends with `hint`.
    """
    line = _encoder.encode(value)
    if not line.isascii():
        line = json.dumps(json.loads(line), separators=(",", ":")).encode()
    if len(line) > limits.STATEMENT_BYTES:
        raise FormatError(f"{subject} would have {len(line)} bytes (limit {limits.STATEMENT_BYTES}){hint}")
    return line


def seal(line: bytes, form: str, signers: Iterable[Signer]) -> bytes:
    """Return the whole two-line file for a line 1, signed by each signer.

    Raises:
        KeyUnavailable: a signer cannot sign now.
    """
    text = message(line, form)
    signatures = [
        Signature(signer.key_id, signer.algorithm, b2a_base64(signer.sign(text), newline=False).decode())
        for signer in signers
    ]
    second = json.dumps({"signatures": [msgspec.structs.asdict(s) for s in signatures]}, separators=(",", ":"))
    return line + b"\n" + second.encode() + b"\n"


def check_hashes(subject: str, hashes: Sequence[str]) -> None:
    """Check that digests are SHA-256 in lower case hex.

    Raises:
        FormatError: one is not; the message begins with `subject`.
    """
    text = "".join(hashes)
    try:
        # About a third faster than a regex. White space and upper case do not survive the round trip.
        good = bytes.fromhex(text).hex() == text and _HEX_LENGTHS.issuperset(map(len, hashes))
    except ValueError:
        good = False
    if not good:
        wrong = next(text for text in hashes if not _HEX.fullmatch(text))
        raise FormatError(f"{subject}: {wrong[:100]!r} is no SHA-256 in lower case hex")


def check_passed_over(subject: str, hashes: list[str], sequence: int) -> None:
    """Check that an entry passes over no more slots than there are before it, and than the format allows.

    Raises:
        FormatError: it does; the message begins with `subject`.
    """
    if len(hashes) > min(limits.PASSED_OVER, sequence):
        raise FormatError(
            f"{subject}: passed_over has {counted(len(hashes), 'slot')} (limit {limits.PASSED_OVER}, and not before the"
            " first one)"
        )


def parse_file(data: bytes, parse_statement: Callable[[bytes], S_co], form: str) -> SignedFile[S_co]:
    """Parse a two-line file.

    Args:
        data: the file.
        parse_statement: returns the statement of a line 1; raises FormatError.
        form: the file's `format`.

    Raises:
        FormatError: it is not of the format; the message says which rule it breaks.
    """
    return parse_files([data], lambda lines: list(map(parse_statement, lines)), form)[0]


def parse_files(
    files: Sequence[bytes], parse_statements: Callable[[Sequence[bytes]], Sequence[S_co]], form: str
) -> list[SignedFile[S_co]]:
    """Parse two-line files, and return them in order: one step for all of them, then the next step.

    File by file, each step would push the code and data of the others out of the processor's caches, and parsing would
    take longer.

    Args:
        files: the files.
        parse_statements: returns the statements of lines 1; raises FormatError.
        form: the files' `format`.

    Raises:
        FormatError: one of them is not of the format; the message says which rule it breaks, and not which file.
    """
    pairs = [split_lines(data) for data in files]
    lines = [line for line, _ in pairs]
    statements = parse_statements(lines)
    signatures = _parse_signatures([second for _, second in pairs])
    messages = [message(line, form) for line in lines]
    return [SignedFile(*parts) for parts in zip(statements, lines, signatures, messages, strict=True)]


def split_lines(data: bytes) -> tuple[bytes, bytes]:
    """Split a two-line file into its lines, without newlines, and check their limits.

    Raises:
        FormatError: there are not exactly two lines, each with a newline, or one is too long.
    """
    if len(data) > limits.FILE_BYTES:
        raise FormatError(f"the file has {len(data)} bytes (limit {limits.FILE_BYTES})")
    first = data.find(b"\n")
    if first < 0 or data.find(b"\n", first + 1) != len(data) - 1:
        raise FormatError("the file is not two lines that each end in a newline")
    line, second = data[:first], data[first + 1 : -1]
    if len(line) > limits.STATEMENT_BYTES:
        raise FormatError(f"line 1 has {len(line)} bytes (limit {limits.STATEMENT_BYTES})")
    if len(second) > limits.SIGNATURES_BYTES:
        raise FormatError(f"line 2 has {len(second)} bytes (limit {limits.SIGNATURES_BYTES})")
    return line, second


def parse_signatures(second: bytes) -> Signatures:
    """Parse line 2.

    Raises:
        FormatError: it is malformed, or holds two signatures of one key. Which signatures must be there is not asked
            here, but by the policy (`custody.tlog.signatures`).
    """
    return _parse_signatures([second])[0]


def _parse_signatures(seconds: Sequence[bytes]) -> list[Signatures]:
    """Parse lines 2; raises as `parse_signatures`."""
    return [_decode_values(one.signatures) for one in decode_each(_signatures_decoder, seconds, "the signatures")]


def _decode_values(listed: Sequence[Signature]) -> Signatures:
    if len({signature.key for signature in listed}) != len(listed):
        raise FormatError("the signatures: a key signs twice")
    decoded = []
    for signature in listed:
        try:
            decoded.append((signature, decode_base64(signature.value, "its value")))
        except FormatError as error:
            raise FormatError(f"the signatures: key {signature.key!r}: {error}") from None
    return tuple(decoded)


def decode_base64(text: str, subject: str) -> bytes:
    """Return the bytes that a text spells in canonical base64.

    Raises:
        FormatError: it is none; the message begins with `subject`.
    """
    try:
        value = a2b_base64(text, strict_mode=True)
    except ValueError:
        raise FormatError(f"{subject} is not base64") from None
    # Bits that the last character has too many do not survive the round trip.
    if b2a_base64(value, newline=False).decode() != text:
        raise FormatError(f"{subject} is not canonical base64")
    return value


def decode_strictly(decoder: msgspec.json.Decoder[Any], line: bytes, subject: str) -> Any:
    """Decode a line so that fields are exactly the type's, in its order, once each.

    Raises:
        FormatError: they are not; the message begins with `subject`.
    """
    return decode_each(decoder, [line], subject)[0]


def decode_each(decoder: msgspec.json.Decoder[Any], lines: Sequence[bytes], subject: str) -> list[Any]:
    """Decode lines as `decode_strictly` does, and return their values in order.

    Raises:
        FormatError: as there. It does not say of which line.
    """
    try:
        values = list(map(decoder.decode, lines))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        raise FormatError(f"{subject}: {str(error)[:200]}") from None
    # Our own form is canonical: encoding what was decoded gives the same bytes, so nothing stood there twice, in
    # another order, or beside. Another writer's white space or escapes take the slow way.
    encoded = list(map(_encoder.encode, values))
    if encoded != lines:
        for line, value, again in zip(lines, values, encoded, strict=True):
            if again != line:
                _check_shape(line, value, subject)
    return values


def _check_shape(line: bytes, value: object, subject: str) -> None:
    """Compare names and their order, at every level, between the bytes and what was decoded from them."""

    def integer(text: str) -> int:
        # A decoder takes it for 0. Other signs are for the types to refuse.
        if text == "-0":
            raise FormatError("a number has a sign")
        return int(text)

    def other(text: str) -> None:
        raise FormatError(f"{text[:40]!r} is no integer")

    try:
        if not line.isascii():
            line.decode()
        check_depth(line, limits.STATEMENT_DEPTH)
        shape = json.loads(
            line.decode(), object_pairs_hook=unique, parse_int=integer, parse_float=other, parse_constant=other
        )
    except (FormatError, ValueError, RecursionError) as error:
        raise FormatError(f"{subject}: {error}") from None
    # By way of bytes, for `to_builtins` would leave ranges tuples, which no list equals.
    expected = json.loads(_encoder.encode(value))
    # Dictionaries are equal in any order of their names; their JSON is not.
    if json.dumps(shape) != json.dumps(expected):
        raise FormatError(f"{subject}: fields are missing, unknown or out of order")
