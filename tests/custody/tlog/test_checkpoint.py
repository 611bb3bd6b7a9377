"""Notes and checkpoints are C2SP's, strictly, and what they do not allow is said."""

import base64
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import FormatError, SignatureInvalid
from custody.format import limits
from custody.format.envelope import Algorithm
from custody.format.layout import Log
from custody.keys.keyring import Keyring
from custody.keys.secret import Secret
from custody.keys.trust import TrustedKey
from custody.tlog import checkpoint
from custody.tlog.checkpoint import Checkpoint, Note, NoteKey, NoteSignature, parse_checkpoint, parse_note
from custody.tlog.head import Head
from custody.tlog.signatures import NoteVerdict, check_checkpoint, note_keys

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
    assert key.verify(note.text, note.signatures[0].signature) is None
    assert (note.signatures[0].name, note.signatures[0].key_hash) == (key.name, key.key_hash)
    assert key.vkey == VKEY
    assert note.encode() == NOTE


@pytest.mark.parametrize("place", range(0, len(NOTE), 7))
def test_known_note_flipped(place: int) -> None:
    """Whatever byte of it is changed, it does not verify."""
    key = NoteKey.parse(VKEY)
    data = bytearray(NOTE)
    data[place] ^= 1
    with contextlib.suppress(FormatError, SignatureInvalid):
        note = parse_note(bytes(data))
        named = note.signatures[0]
        # Another name or hash is another key, which is not known; ours must not hold.
        holds = (named.name, named.key_hash) == (key.name, key.key_hash)
        assert not holds or key.verify(note.text, named.signature) is not None


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
    assert KEY.verify(note.text, note.signatures[0].signature) is None


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
        ("text\n\n" + LINE * (limits.NOTE_SIGNATURES + 1)).encode(),
        b"x" * limits.NOTE_BYTES + b"\n\n" + LINE.encode(),
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
    note = parse_note(("text\n\n" + LINE * limits.NOTE_SIGNATURES).encode())
    assert len(note.signatures) == limits.NOTE_SIGNATURES
    whole = b"x" * (limits.NOTE_BYTES - len(LINE.encode()) - 2) + b"\n\n" + LINE.encode()
    assert len(whole) == limits.NOTE_BYTES
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


ORIGIN = "custody/an-archive/audit.events/3"
TRUSTED = TrustedKey("key-1", "Ed25519", material=PUBLIC)
HEAD = Head(7, bytes(range(32)))


def judged(note: Note, *keys: TrustedKey, **given: Any) -> NoteVerdict:
    """Return what the policy says of a note; unless told, no tree is shown to lie within any head."""
    given = {"within": lambda _: False, **given}
    return check_checkpoint(note, parse_checkpoint(note.text), str(LOG), {key.id: key for key in keys}, **given)


def test_signed_by_a_keyring() -> None:
    """A log's head is signed under the key's id, and counts by that key alone; its origin names no key."""
    signer = Keyring.new(NOW).signers(NOW).ed25519()
    note = checkpoint.sign_checkpoint(signer, "an-archive", LOG, HEAD)
    assert parse_checkpoint(note.text) == Checkpoint(ORIGIN, 7, HEAD.root)
    assert checkpoint.origin_of("an-archive", LOG) == ORIGIN
    verdict = judged(parse_note(note.encode()), TrustedKey(signer.key_id, "Ed25519", material=signer.public))
    assert (verdict.counts, verdict.signers) == (True, (signer.key_id,))
    two = checkpoint.with_signature(note, NoteSignature("other", b"1234", bytes(64)))
    assert parse_note(two.encode()) == two


@dataclass(frozen=True)
class BadSigner:
    key_id: str
    public: bytes = PUBLIC
    algorithm: Algorithm = "Ed25519"

    def sign(self, message: bytes) -> bytes:
        return PRIVATE.sign(message)


@pytest.mark.parametrize("name", ["two words", "a+b", ""])
def test_no_signer_of_checkpoints(name: str) -> None:
    """A key that cannot sign notes is refused, by its name."""
    with pytest.raises(FormatError, match=f"the key {name!r} cannot sign checkpoints".replace("+", r"\+")):
        checkpoint.sign_checkpoint(BadSigner(name), "an-archive", LOG, HEAD)


TEXT = Checkpoint(ORIGIN, 7, HEAD.root).text()


def test_signatures_of_others() -> None:
    """Others' signatures are left alone, but one that holds must be by a known key, and each known one must hold."""
    other = NoteSignature("other", b"1234", bytes(64))
    good = signed(TEXT)
    verdict = judged(checkpoint.with_signature(good, other), TRUSTED)
    assert (verdict.counts, verdict.signers, verdict.problems) == (True, ("key-1",), ())
    nobody = judged(Note(TEXT, (other,)), TRUSTED)
    assert (nobody.counts, nobody.unsigned) == (False, True)
    assert nobody.reason == "none of its signatures is by a trusted key"
    wrong = judged(Note(Checkpoint(ORIGIN, 8, HEAD.root).text(), good.signatures), TRUSTED)
    assert (wrong.counts, wrong.unsigned) == (False, False)
    assert wrong.reason == "the signature of key 'key-1' is not over this checkpoint"
    # A second signature under the same name, with another hash, is of another key.
    assert judged(Note(TEXT, (NoteSignature("key-1", b"1234", bytes(64)), *good.signatures)), TRUSTED).counts


def test_keys_that_have_ended() -> None:
    """A key that ended counts for a tree that is shown to lie within its end, and is asked of no other."""
    asked: list[Head] = []

    def within(head: Head) -> bool:
        asked.append(head)
        return True

    for size, counts in ((6, False), (7, True), (8, True)):
        ended = TrustedKey("key-1", "Ed25519", material=PUBLIC, until={str(LOG): Head(size, bytes(32))})
        verdict = judged(signed(TEXT), ended, within=within)
        assert verdict.counts is counts
        assert not judged(signed(TEXT), ended).counts
        assert [one.kind for one in judged(signed(TEXT), ended).problems] == ["key-span"]
    assert [head.size for head in asked] == [7, 8]
    elsewhere = TrustedKey("key-1", "Ed25519", material=PUBLIC, until={"audit.other/0": Head(9, bytes(32))})
    assert not judged(signed(TEXT), elsewhere, within=within).counts
    assert "ended at this log's size 0" in judged(signed(TEXT), elsewhere, within=within).reason


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


def cosign(note: Note, witness: NoteKey, moment: datetime) -> Note:
    time = int(moment.timestamp())
    value = time.to_bytes(8, "big") + PRIVATE.sign(checkpoint.cosigned(note.text, time))
    return checkpoint.with_signature(note, NoteSignature(witness.name, witness.key_hash, value))


def test_a_quorum() -> None:
    """A checkpoint counts once enough witnesses cosigned it, none of them later than now, beside the log's own key."""
    one, other = (NoteKey(name, PUBLIC, checkpoint.COSIGNATURE) for name in ("one", "other"))
    good = signed(TEXT)
    by_one = cosign(good, one, NOW)
    asked = {"witnesses": (one, other), "now": NOW}
    assert [judged(by_one, TRUSTED, quorum=number, **asked).counts for number in range(3)] == [True, True, False]
    assert judged(by_one, TRUSTED, quorum=2, **asked).reason.startswith("1 of the 2 witnesses")
    assert judged(cosign(by_one, other, NOW), TRUSTED, quorum=2, **asked).counts
    # Twice by one witness is one witness, and no witness signs for the log.
    twice = Note(TEXT, (*by_one.signatures, by_one.signatures[-1]))
    assert not judged(twice, TRUSTED, quorum=2, **asked).counts
    assert not judged(by_one, quorum=1, **asked).counts
    late = cosign(good, one, NOW + timedelta(hours=1))
    assert judged(late, TRUSTED, **asked).counts
    assert not judged(late, TRUSTED, quorum=1, **asked).counts
    assert "from the future" in judged(late, TRUSTED, quorum=1, **asked).problems[0].message
    moved = checkpoint.with_signature(signed(Checkpoint(ORIGIN, 8, HEAD.root).text()), by_one.signatures[-1])
    assert [problem.kind for problem in judged(moved, TRUSTED, **asked).problems] == ["signature"]


def test_trusted_keys() -> None:
    """Checkpoints are checked by Ed25519 keys under their ids, where the public half is there and the id is a name."""
    keys = {
        "key-1": TrustedKey("key-1", "Ed25519", material=PUBLIC),
        "hmac": TrustedKey("hmac", "HMAC-SHA256", material=Secret(bytes(32))),
        "unknown": TrustedKey("unknown", "Ed25519"),
        "two words": TrustedKey("two words", "Ed25519", material=PUBLIC),
    }
    assert note_keys(keys) == [KEY]
