"""Notes and checkpoints are C2SP's, strictly, and what they do not allow is said."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from custody import checkpoint
from custody.checkpoint import Checkpoint, Note, NoteKey, NoteSignature, parse_checkpoint, parse_note
from custody.errors import FormatError, SignatureInvalid
from custody.keys import Keyring, Secret
from custody.kms import KmsKey
from custody.layout import Log
from custody.trust import Trust, TrustedKey

# From the documentation of Go's golang.org/x/mod/sumdb/note.
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()
NOW = datetime(2026, 11, 24, tzinfo=UTC)
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = PRIVATE.public_key().public_bytes_raw()
KEY = NoteKey("key-1", PUBLIC)


def signed(text: bytes, key: NoteKey = KEY) -> Note:
    return Note(text, (NoteSignature(key.name, key.key_hash, PRIVATE.sign(text)),))


def test_known_note() -> None:
    """The note and the key of the reference implementation's documentation verify."""
    key = NoteKey.parse(VKEY)
    note = parse_note(NOTE)
    assert checkpoint.verify_note(note, {(key.name, key.key_hash): key}) == [key]
    assert key.vkey == VKEY
    assert note.encode() == NOTE


@pytest.mark.parametrize("place", range(0, len(NOTE), 7))
def test_known_note_flipped(place: int) -> None:
    """Whatever byte of it is changed, it does not verify."""
    key = NoteKey.parse(VKEY)
    data = bytearray(NOTE)
    data[place] ^= 1
    with pytest.raises((FormatError, SignatureInvalid)):
        checkpoint.verify_note(parse_note(bytes(data)), {(key.name, key.key_hash): key})


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_round_trip(origin: str, size: int, root: bytes) -> None:
    """A checkpoint reads back as it was written, signed or not."""
    made = Checkpoint(f"key/{origin}", size, root)
    assert parse_checkpoint(made.text()) == made
    note = parse_note(signed(made.text()).encode())
    assert parse_checkpoint(note.text) == made
    assert checkpoint.verify_note(note, {(KEY.name, KEY.key_hash): KEY}) == [KEY]


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    """Bytes that are no note, and texts that are no checkpoint, are a format error and nothing else."""
    for parse in (parse_note, parse_checkpoint):
        try:
            parse(data)
        except FormatError:
            continue


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n0\n" + ROOT + "\n",
        "origin\n0\n" + ROOT,
        "origin\n0\n" + ROOT + "\nextension\n",
        "origin\n-1\n" + ROOT + "\n",
        "origin\n01\n" + ROOT + "\n",
        "origin\n9223372036854775808\n" + ROOT + "\n",
        "origin\n1.0\n" + ROOT + "\n",
        "origin\n0\n" + ROOT[:-4] + "\n",
        "origin\n0\n" + ROOT.replace("=", "") + "\n",
        "origin\n0\n" + ROOT[:-2] + "B=\n",
        "origin\n0\n\n",
    ],
)
def test_no_checkpoint(text: str) -> None:
    """Three lines, a plain size, a root of 32 bytes in canonical base64: nothing less and nothing more."""
    with pytest.raises(FormatError):
        parse_checkpoint(text.encode())


LINE = f"— key-1 {base64.b64encode(bytes(68)).decode()}\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        f"text\n\n{LINE}"[:-1].encode(),
        f"text\n\n{LINE}more\n".encode(),
        f"text\n\n{LINE.replace('— ', '- ')}".encode(),
        f"text\n\n{LINE.replace('key-1', 'key+1')}".encode(),
        f"text\n\n{LINE.replace(' key-1', '')}".encode(),
        "text\n\n— key-1 AAAAAA==\n".encode(),
        "text\n\n— key-1 !!!!\n".encode(),
        f"te\x00xt\n\n{LINE}".encode(),
        f"te\rxt\n\n{LINE}".encode(),
        b"te\xffxt\n\n" + LINE.encode(),
        ("text\n\n" + LINE * (checkpoint.SIGNATURES_LIMIT + 1)).encode(),
        b"x" * checkpoint.NOTE_LIMIT + b"\n\n" + LINE.encode(),
    ],
)
def test_no_note(data: bytes) -> None:
    """What is not exactly a signed note within the limits is refused."""
    with pytest.raises(FormatError):
        parse_note(data)


def test_the_last_empty_line_divides() -> None:
    """A text may have empty lines of its own: the signatures are what follows the last one."""
    note = Note(b"one\n\ntwo\n", signed(b"one\n\ntwo\n").signatures)
    assert parse_note(note.encode()) == note


@pytest.mark.parametrize(
    "below", [LINE.rstrip("\n"), LINE[:-1] + "x", LINE.removeprefix("\u2014 "), "\u2014 " + LINE, LINE + "\n"]
)
def test_what_is_no_signature_line(below: str) -> None:
    """A line that lacks its dash or its end, or has more than it should, is no signature."""
    with pytest.raises(FormatError):
        parse_note(f"text\n\n{below}".encode())


def test_what_is_not_base64_is_named() -> None:
    """Who reads the error learns which part of a note or key is broken."""
    with pytest.raises(FormatError, match=r"^a signature of the note is not"):
        parse_note(b"text\n\n\xe2\x80\x94 key-1 !!!!\n")
    with pytest.raises(FormatError, match=r"^the checkpoint's root is not"):
        parse_checkpoint(b"origin\n0\n!!!!\n")
    with pytest.raises(FormatError, match=r"^the key is not"):
        NoteKey.parse("name+01234567+A")


def test_the_largest_size() -> None:
    """Sizes end where FORMAT.md's integers do."""
    text = f"origin\n{2**63 - 1}\n{ROOT}\n".encode()
    assert parse_checkpoint(text).size == 2**63 - 1
    with pytest.raises(FormatError, match="is no number of statements"):
        parse_checkpoint(text.replace(b"5807\n", b"5808\n"))


def test_as_many_signatures_as_allowed() -> None:
    """Limits are reached before they are passed."""
    note = parse_note(("text\n\n" + LINE * checkpoint.SIGNATURES_LIMIT).encode())
    assert len(note.signatures) == checkpoint.SIGNATURES_LIMIT
    whole = b"x" * (checkpoint.NOTE_LIMIT - len(LINE.encode()) - 2) + b"\n\n" + LINE.encode()
    assert len(whole) == checkpoint.NOTE_LIMIT
    assert parse_note(whole).text.startswith(b"xxx")


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        VKEY[:-4],
        VKEY.replace("c74f20a3", "c74f20a4"),
        VKEY.replace("Peter", "Paul"),
        VKEY.replace("+AR", "+AB"),
        VKEY + "\n",
        VKEY.replace("Peter", "Peter "),
        VKEY.replace("+", "-"),
    ],
)
def test_no_vkey(vkey: str) -> None:
    """A key that is not one, or whose hash is another's, is refused."""
    with pytest.raises(FormatError):
        NoteKey.parse(vkey)


def vkey(name: str, data: bytes) -> str:
    key_hash = sha256(f"{name}\n".encode() + data).digest()[:4]
    return f"{name}+{key_hash.hex()}+{base64.b64encode(data).decode()}"


def test_vkeys_of_other_kinds() -> None:
    """A key of another algorithm or size is refused, however right its hash is; any name in Unicode is taken."""
    assert NoteKey.parse(vkey("Zoë", b"\x01" + PUBLIC)) == NoteKey("Zoë", PUBLIC)
    for data in (b"\x02" + PUBLIC, b"\x01" + PUBLIC + b"\x00", b"\x01" + PUBLIC[:-1], b"\x01"):
        with pytest.raises(FormatError, match="is no vkey of an Ed25519 key"):
            NoteKey.parse(vkey("key", data))
    with pytest.raises(FormatError, match="is no vkey"):
        NoteKey.parse("\udcff" + VKEY)
    with pytest.raises(FormatError, match="does not belong to its key"):
        NoteKey.parse(VKEY.replace("c74f20a3", "c74f20a4"))


LOG = Log("audit.events", 3)


def test_signed_by_a_keyring() -> None:
    """A log's head is signed under the key's id, and holds by that key alone."""
    signer = next(one for one in Keyring.new(NOW, ed25519=True).signers(NOW) if one.algorithm == "Ed25519")
    note = checkpoint.sign_checkpoint(signer, "an-archive", LOG, 7, bytes(range(32)))
    assert parse_checkpoint(note.text) == Checkpoint(f"{signer.key_id}/an-archive/audit.events/3", 7, bytes(range(32)))
    public = signer.public  # type: ignore[attr-defined]
    key = NoteKey(signer.key_id, public)
    assert checkpoint.verify_note(parse_note(note.encode()), {(key.name, key.key_hash): key}) == [key]
    two = checkpoint.with_signature(note, NoteSignature("other", b"1234", bytes(64)))
    assert parse_note(two.encode()) == two


@dataclass(frozen=True)
class BadSigner:
    algorithm: Any
    key_id: str
    public: Any = PUBLIC

    def sign(self, message: bytes) -> bytes:
        return PRIVATE.sign(message)


@pytest.mark.parametrize(
    "signer",
    [BadSigner("HMAC-SHA256", "key"), BadSigner("Ed25519", "two words"), BadSigner("Ed25519", "key", None)],
)
def test_no_signer_of_checkpoints(signer: BadSigner) -> None:
    """A key that cannot sign notes is refused, by its name."""
    with pytest.raises(FormatError, match=f"the key '{signer.key_id}' cannot sign checkpoints"):
        checkpoint.sign_checkpoint(signer, "an-archive", LOG, 7, bytes(32))


def test_a_signer_without_a_public_half() -> None:
    """A key that does not say what it is checked by, as one in a KMS, cannot sign checkpoints."""
    signer = KmsKey("arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")
    with pytest.raises(FormatError, match="cannot sign checkpoints"):
        checkpoint.sign_checkpoint(signer, "an-archive", LOG, 7, bytes(32))


def test_signatures_of_others() -> None:
    """Others' signatures are left alone, but one that holds must be by a known key, and each known one must hold."""
    other = NoteSignature("other", b"1234", bytes(64))
    good = signed(b"text\n")
    keys = {(KEY.name, KEY.key_hash): KEY}
    assert checkpoint.verify_note(checkpoint.with_signature(good, other), keys) == [KEY]
    with pytest.raises(SignatureInvalid, match=r"none of its signatures \(other\)"):
        checkpoint.verify_note(Note(b"text\n", (other,)), keys)
    many = tuple(NoteSignature(name, b"1234", bytes(64)) for name in ("b", "a" * 200))
    with pytest.raises(SignatureInvalid, match=rf"none of its signatures \({'a' * 100}, b\)"):
        checkpoint.verify_note(Note(b"text\n", many), keys)
    with pytest.raises(SignatureInvalid, match="'key-1' is not over this note"):
        checkpoint.verify_note(Note(b"another text\n", good.signatures), keys)


def test_a_signature_is_replaced() -> None:
    """One key has one signature on a note: the later one."""
    again = NoteSignature(KEY.name, KEY.key_hash, bytes(64))
    assert checkpoint.with_signature(signed(b"text\n"), again).signatures == (again,)


def test_cosignature() -> None:
    """A witness signs the time and the text; a signature of the text alone is none of a witness's."""
    witness = NoteKey("witness", PUBLIC, checkpoint.COSIGNATURE)
    assert NoteKey.parse(witness.vkey) == witness
    assert witness.key_hash != NoteKey("witness", PUBLIC).key_hash
    text = b"origin\n1\n" + ROOT.encode() + b"\n"
    message = b"cosignature/v1\ntime 1700000000\n" + text
    assert checkpoint.cosigned(text, 1_700_000_000) == message
    signature = (1_700_000_000).to_bytes(8, "big") + PRIVATE.sign(message)
    assert witness.verify(text, signature) == 1_700_000_000
    assert KEY.verify(text, PRIVATE.sign(text)) is None
    for wrong in (PRIVATE.sign(text), (1_700_000_001).to_bytes(8, "big") + PRIVATE.sign(message), b""):
        with pytest.raises(SignatureInvalid):
            witness.verify(text, wrong)


def test_trusted_keys() -> None:
    """Checkpoints are trusted by vkeys, and by Ed25519 keys under their ids where the public half is there."""
    keys = {
        "key-1": TrustedKey("key-1", "Ed25519", material=PUBLIC),
        "hmac": TrustedKey("hmac", "HMAC-SHA256", material=Secret(bytes(32))),
        "unknown": TrustedKey("unknown", "Ed25519"),
        "two words": TrustedKey("two words", "Ed25519", material=PUBLIC),
    }
    found = checkpoint.checkpoint_keys(Trust(keys=keys, checkpoint=(VKEY,)))
    assert {key.name for key in found.values()} == {"key-1", "PeterNeumann"}
    assert found["key-1", KEY.key_hash] == KEY
