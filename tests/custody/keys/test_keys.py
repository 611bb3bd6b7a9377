"""Keys: who may sign when, what a verifier trusts, and that no secret gets out."""

import base64
import contextlib
import copy
import dataclasses
import json
import logging
import multiprocessing
import os
import pickle
import stat
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.stub import Stubber
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.errors import ConfigurationError, KeyUnavailable, SignatureInvalid
from custody.format.archive_file import Pin
from custody.format.layout import Log
from custody.format.times import parse_time
from custody.keys.key import ALGORITHMS, Ed25519Key, HmacKey, KeyAlgorithm, LeafKey
from custody.keys.keyring import OVERLAP, Keyring, new_keyring, rotate_keyring
from custody.keys.kms import KmsKey, _Kms
from custody.keys.open import open_public, open_signers
from custody.keys.secret import Secret
from custody.keys.signers import Signers
from custody.keys.trust import Trust, TrustedKey, _merge, _trusted, open_trust
from custody.tlog.checkpoint import NoteKey, parse_note, sign_checkpoint
from custody.tlog.head import Head
from tests.golden.keyrings import FILES, PASSPHRASE, WITNESS, witness
from tests.golden.keyrings import KEYS as GOLDEN
from tests.servers.kms import ED25519_ARN, HMAC_ARN, FakeKms
from tests.servers.s3 import MotoServer

KEYRING, ENCRYPTED, TRUST = ((GOLDEN / name).read_bytes() for name in ("plain.json", "encrypted.json", "trust.json"))
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SECRET = bytes(range(100, 132))
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
HMAC_KEY = HmacKey("hmac-1", Secret(SECRET))
ED25519_KEY = Ed25519Key("ed25519-1", Secret(SEED))
LEAF_KEY = LeafKey("leaves-1", Secret(SECRET))
NOTE_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
"""Of a key that signs notes, type 1."""
VKEY = witness("witness.example/w1", WITNESS)
IDS = ["hmac-000000000001", "hmac-000000000002", "ed25519-000000000001"]
"""The golden keyring's keys that sign."""
ARN = "arn:aws:kms:us-east-1:123456789012:key/0a1b2c3d-0000-4000-8000-000000000000"


def put(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """A file with these bytes and this mode, which git would not keep."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


def trusted(ring: Keyring, folder: Path) -> Trust:
    """What a verifier trusts who has this keyring."""
    path = folder / "trusted.json"
    ring.save(path)
    return open_trust([f"file:{path}"])


def ids(signers: Signers) -> list[str]:
    """The ids of what signs, and of the leaf secret."""
    return [one.key_id for one in (signers.statements, signers.checkpoints, signers.leaves) if one is not None]


def entry(**changes: Any) -> dict[str, Any]:
    """A key as it stands in a file."""
    key = {"id": "k", "algorithm": "HMAC-SHA256", "from": None, "to": None, "secret": base64.b64encode(SECRET).decode()}
    return {name: value for name, value in (key | changes).items() if value != "absent"}


def ring_of(*entries: Any) -> bytes:
    """A keyring's bytes."""
    return json.dumps({"format": "custody/keyring/1", "keys": entries}).encode()


# --- the algorithms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "message", "mac"),
    [
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            b"Jefe",
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        (
            b"\xaa" * 131,
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
    ],
    ids=["1", "2", "3", "4", "6"],
)
def test_rfc_4231(key: bytes, message: bytes, mac: str) -> None:
    """HMAC-SHA256 is that of RFC 4231's test cases."""
    assert HmacKey("k", Secret(key)).sign(message).hex() == mac
    TrustedKey("k", "HMAC-SHA256", material=Secret(key)).verify(message, bytes.fromhex(mac))


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            SEED.hex(),
            PUBLIC.hex(),
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2"
            "4655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302ae"
            "eb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28"
            "dc027beceea1ec40a",
        ),
    ],
    ids=["1", "2", "3"],
)
def test_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    """Ed25519 is that of RFC 8032's test vectors."""
    key = Ed25519Key("k", Secret(bytes.fromhex(seed)))
    assert key.public == bytes.fromhex(public)
    assert key.sign(bytes.fromhex(message)).hex() == signature
    TrustedKey("k", "Ed25519", material=key.public).verify(bytes.fromhex(message), bytes.fromhex(signature))


@given(st.binary(max_size=100), st.binary(max_size=100), st.sampled_from([HMAC_KEY, ED25519_KEY]))
def test_only_the_signature_holds(message: bytes, other: bytes, key: HmacKey | Ed25519Key) -> None:
    """A signature holds for its message alone; any other value or message is invalid, never another error."""
    held = _trusted(key)
    value = key.sign(message)
    held.verify(message, value)
    for text, wrong in [(message, other), (message + b"\0", value), (message, value[:-1]), (message, value + b"\0")]:
        with pytest.raises(SignatureInvalid, match=key.key_id):
            held.verify(text, wrong)
    flipped = bytes([value[0] ^ 1]) + value[1:]
    with pytest.raises(SignatureInvalid):
        held.verify(message, flipped)


def test_without_its_secret_a_key_cannot_be_checked() -> None:
    """That a signature could not be checked is another error than that it is wrong."""
    held = TrustedKey("k", "HMAC-SHA256")
    assert not held.checkable
    with pytest.raises(KeyUnavailable, match="'k'"):
        held.verify(b"m", b"v")


# --- the keyring's file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_golden_files_are_those_of_the_specification(name: str) -> None:
    """The golden files are what FORMAT.md's text makes of fixed keys: `python -m tests.golden` writes them."""
    assert (GOLDEN / name).read_bytes() == FILES[name]()


def test_golden_keyring(tmp_path: Path) -> None:
    """A keyring written today is written the same for ever, and read."""
    ring = Keyring.load(put(tmp_path / "k.json", KEYRING))
    assert ring.encode() == KEYRING
    assert [(key.key_id, key.algorithm) for key in ring.keys] == [
        ("hmac-000000000001", "HMAC-SHA256"),
        ("hmac-000000000002", "HMAC-SHA256"),
        ("ed25519-000000000001", "Ed25519"),
        ("leaves-000000000001", "SHAKE-256"),
    ]
    turn = parse_time("2026-04-01T12:00:00.000001Z")
    assert [one[-1] for one in ids(ring.signers(turn))] == ["2", "1", "1"]
    assert [one[-1] for one in ids(ring.signers(turn - timedelta(microseconds=1)))] == ["1", "1", "1"]
    leaves = ring.signers(turn).leaves
    assert leaves is not None
    assert leaves.secret == Secret(bytes(range(64, 96)))


def test_golden_encrypted_keyring(tmp_path: Path) -> None:
    """A keyring put under a passphrase by the specification alone is opened."""
    path = put(tmp_path / "k.json", ENCRYPTED)
    assert Keyring.load(path, PASSPHRASE).encode() == KEYRING
    trust = open_trust([f"file:{path}"], passphrase=PASSPHRASE)
    assert list(trust.keys) == IDS
    assert trust.leaves == {"leaves-000000000001": Secret(bytes(range(64, 96)))}


def test_encrypted_as_specified(tmp_path: Path) -> None:
    """A keyring is encrypted by scrypt and AES-256-GCM as specified, each time with new salt and nonce."""
    path = tmp_path / "k.json"
    ring = new_keyring(path, NOW, PASSPHRASE)
    outer = json.loads(path.read_bytes())
    assert list(outer) == ["format", "scrypt", "nonce", "ciphertext"]
    parameters = outer["scrypt"]
    kdf = Scrypt(base64.b64decode(parameters["salt"]), 32, parameters["n"], parameters["r"], parameters["p"])
    cipher = AESGCM(kdf.derive(PASSPHRASE.encode()))
    inner = cipher.decrypt(base64.b64decode(outer["nonce"]), base64.b64decode(outer["ciphertext"]), None)
    assert inner == ring.encode()
    ring.save(path, PASSPHRASE)
    again = json.loads(path.read_bytes())
    assert (again["nonce"], again["scrypt"]["salt"]) != (outer["nonce"], parameters["salt"])


@pytest.mark.parametrize(
    "passphrase", [None, "", "wrong", "correct horse ", "\ud800"], ids=["none", "empty", "wrong", "space", "surrogate"]
)
def test_wrong_passphrase(tmp_path: Path, passphrase: str | None) -> None:
    """Without the passphrase, or with another, an encrypted keyring is refused, and no passphrase is repeated."""
    path = put(tmp_path / "k.json", ENCRYPTED)
    with pytest.raises(ConfigurationError, match=r"passphrase") as caught:
        Keyring.load(path, passphrase)
    assert str(path) in str(caught.value) or passphrase == "\ud800"
    assert "correct" not in str(caught.value)


@pytest.mark.parametrize(
    ("n", "r", "p"),
    [(2**40, 8, 1), (2**22, 8, 1), (2**14, 8, 2**20), (2**14, 2**30, 1), (2**13, 8, 1), (3 * 2**13, 8, 1), (0, 8, 1),
     (-(2**14), 8, 1), (2**14, 0, 1), (2**14, 8, 0), (2**70, 8, 1)],
)  # fmt: skip
def test_scrypt_is_bounded(n: int, r: int, p: int) -> None:
    """A file cannot make us spend memory or time: its parameters are looked at first."""
    document = json.loads(ENCRYPTED)
    document["scrypt"].update(n=n, r=r, p=p)
    began = time.process_time()
    with pytest.raises(ConfigurationError, match=r"scrypt|int"):
        Keyring.parse(json.dumps(document).encode(), passphrase=PASSPHRASE)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("name", ["salt", "nonce", "ciphertext"])
def test_altered_encrypted_keyring(name: str) -> None:
    """One bit changed in an encrypted keyring is noticed."""
    document = json.loads(ENCRYPTED)
    part = document["scrypt"] if name == "salt" else document
    data = bytearray(base64.b64decode(part[name]))
    data[0] ^= 1
    part[name] = base64.b64encode(data).decode()
    with pytest.raises(ConfigurationError, match="altered"):
        Keyring.parse(json.dumps(document).encode(), passphrase=PASSPHRASE)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610, 0o777])
def test_a_keyring_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Whatever anyone but the owner may do with the file, it is refused with the command that mends it."""
    path = put(tmp_path / "k.json", KEYRING, mode)
    for use in (
        lambda: Keyring.load(path),
        lambda: open_trust([f"file:{path}"]),
        lambda: open_signers(f"file:{path}", NOW),
        lambda: rotate_keyring(path, NOW),
    ):
        with pytest.raises(ConfigurationError, match="chmod 600"):
            use()
    path.chmod(0o400)
    assert Keyring.load(path).keys


def test_what_is_written_is_private(tmp_path: Path) -> None:
    """A keyring has mode 0600 whatever the umask, when it is made and after rotation."""
    path = tmp_path / "k.json"
    before = os.umask(0)
    try:
        new_keyring(path, NOW)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        rotate_keyring(path, NOW + SECOND)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [path]


def test_new_never_replaces(tmp_path: Path) -> None:
    """`keys new` over a keyring is refused, and the keyring stays: its secrets exist nowhere else."""
    path = tmp_path / "k.json"
    new_keyring(path, NOW)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="already"):
        new_keyring(path, NOW)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_keyring(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle of a rotation, the old keyring is still whole, and nothing lies beside it."""
    path = tmp_path / "k.json"
    new_keyring(path, NOW)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fault, fail)
        with pytest.raises(ConfigurationError, match="No space left"):
            rotate_keyring(path, NOW + SECOND)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Rotating through a symbolic link replaces what it points at."""
    (tmp_path / "real").mkdir()
    new_keyring(tmp_path / "real" / "k.json", NOW)
    link = tmp_path / "k.json"
    link.symlink_to(tmp_path / "real" / "k.json")
    rotate_keyring(link, NOW + SECOND)
    assert link.is_symlink()
    assert len(Keyring.load(link).keys) == 6


def _rotate(path: Path) -> list[str]:
    return [key.key_id for key in rotate_keyring(path)[1]]


def test_rotations_at_once_lose_no_key(tmp_path: Path) -> None:
    """Of rotations at the same time each adds its key: none throws away a secret that may have signed already."""
    path = tmp_path / "k.json"
    first = new_keyring(path, datetime(2026, 1, 1, tzinfo=UTC))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        added = [key for made in pool.map(_rotate, [path] * 12) for key in made]
    assert len(set(added)) == 36
    assert {key.key_id for key in Keyring.load(path).keys} == {key.key_id for key in first.keys} | set(added)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "custody keys new"),
        (lambda path: path.mkdir(), "regular file"),
        (lambda path: os.mkfifo(path, 0o600), "regular file"),
        (lambda path: path.symlink_to(path), "k.json"),
        (lambda path: put(path, b" " * (1024 * 1024 + 1)), "larger"),
    ],
    ids=["missing", "folder", "pipe", "loop", "large"],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    """What cannot be read as a keyring is refused at once, with its name and what to do."""
    path = tmp_path / "k.json"
    make(path)
    for use in (lambda: Keyring.load(path), lambda: rotate_keyring(path, NOW), lambda: open_trust([f"file:{path}"])):
        with pytest.raises(ConfigurationError, match=words) as caught:
            use()
        assert str(path) in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    """A keyring that cannot be written says so."""
    for path in (tmp_path / "none" / "k.json", tmp_path / "k\0.json"):
        with pytest.raises(ConfigurationError, match="cannot be written"):
            new_keyring(path, NOW)


SHORT = base64.b64encode(SECRET[:-1]).decode()
ED: dict[str, Any] = {"algorithm": "Ed25519", "secret": "absent", "private": base64.b64encode(SEED).decode()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"\xef\xbb\xbf" + KEYRING,
        KEYRING + b"x",
        KEYRING[:-3],
        KEYRING.replace(b"keyring/1", b"keyring/2"),
        KEYRING.replace(b'"keys"', b'"keys":[],"keys"'),
        KEYRING.replace(b'"algorithm"', b'"algorithm":"Ed25519","algorithm"', 1),
        b"[" * 100_000,
        b'{"format":' + b"[" * 100_000,
        b'{"format":"custody/keyring/1","scrypt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"format":"custody/keyring/1","scrypt":' + b"1" * 5000 + b"}",
        b'{"format":"custody/keyring/1","scrypt":null}',
        b'{"format":"custody/keyring/1","scrypt":{},"keys":[]}',
        ring_of(entry(more=1)),
        ring_of(entry(), entry()),
        ring_of(entry(id="")),
        ring_of(entry(id="a\nb")),
        ring_of(entry(id="x" * 257)),
        ring_of(entry(id=None)),
        ring_of(entry(id="absent")),
        ring_of(entry(to="absent")),
        ring_of(entry(algorithm="none")),
        ring_of(entry(algorithm="Ed25519")),
        ring_of(entry(secret="absent")),
        ring_of(entry(secret=None)),
        ring_of(entry(secret=SHORT)),
        ring_of(entry(secret="")),
        ring_of(entry(secret=entry()["secret"] + "\n")),
        ring_of(entry(secret=entry()["secret"].rstrip("="))),
        ring_of(entry(secret="ü" * 44)),
        ring_of(entry(public=entry()["secret"])),
        ring_of(entry(algorithm="SHAKE-256", secret="absent")),
        ring_of(entry(algorithm="SHAKE-256", secret=SHORT)),
        ring_of(entry(algorithm="SHAKE-256", public=entry()["secret"])),
        ring_of(entry(**ED)),
        ring_of(entry(**ED, public=entry()["secret"])),
        ring_of(entry(**ED | {"private": "absent"}, public=base64.b64encode(PUBLIC).decode())),
        ring_of(entry(**{"from": "2026-01-01"})),
        ring_of(entry(**{"from": "2026-02-30T00:00:00.000000Z"})),
        ring_of(entry(**{"from": "2026-01-02T00:00:00.000000Z", "to": "2026-01-01T00:00:00.000000Z"})),
        ring_of(entry(until={})),
    ],
    ids=lambda data: data[-60:].decode(errors="replace"),
)
def test_malformed_keyrings(tmp_path: Path, data: bytes) -> None:
    """A malformed keyring is a ConfigurationError that names the file, and repeats no secret."""
    path = put(tmp_path / "k.json", data)
    with pytest.raises(ConfigurationError) as caught:
        Keyring.load(path, PASSPHRASE)
    assert str(path) in str(caught.value)
    for secret in (SECRET, SEED, SECRET[:-1]):
        assert base64.b64encode(secret).decode().rstrip("=") not in str(caught.value)


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    """Even a secret that somebody wrote where a word belongs does not get into the error."""
    secret = entry()["secret"]
    for wrong in (
        ring_of(entry(algorithm=secret)),
        ring_of(entry(**{secret: 1})),
        ring_of(entry(**{"from": secret})),
        ring_of(secret),
        json.dumps({"format": secret}).encode(),
        json.dumps({"format": "custody/keyring/1", "keys": [], secret: 1}).encode(),
        ring_of(entry())[:-20] + secret.encode(),
    ):
        with pytest.raises(ConfigurationError) as caught:
            Keyring.parse(wrong)
        assert secret not in "".join(traceback.format_exception(caught.value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and index in a JSON value."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for name, below in inner:
        yield value, name
        yield from places(below)


@st.composite
def altered(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with one value replaced, removed or moved, or with other bytes somewhere."""
    if draw(st.booleans()):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 6))
        return data[:start] + draw(st.binary(max_size=6)) + data[end:]
    value = json.loads(data)
    container, name = draw(st.sampled_from(list(places(value))))
    if draw(st.booleans()):
        container[name] = draw(JSON)
    else:
        del container[name]
    return json.dumps(value).encode()


@given(st.binary() | st.one_of(*map(altered, [KEYRING, TRUST])))
@settings(max_examples=400)
def test_any_keyring(data: bytes) -> None:
    """Whatever bytes stand in a keyring, reading it gives keys or a ConfigurationError."""
    with contextlib.suppress(ConfigurationError):
        assert Keyring.parse(Keyring.parse(data).encode()).keys is not None


@given(altered(ENCRYPTED))
@settings(max_examples=60, deadline=None)
def test_any_encrypted_keyring(data: bytes) -> None:
    """Whatever bytes stand in an encrypted keyring, reading it gives keys or a ConfigurationError."""
    with contextlib.suppress(ConfigurationError):
        assert Keyring.parse(data, passphrase=PASSPHRASE).encode() == KEYRING


@given(st.binary() | st.one_of(*map(altered, [TRUST, KEYRING])))
@settings(max_examples=400)
def test_any_trust(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes stand in a trust.json, reading it gives trust or a ConfigurationError."""
    path = put(tmp_path_factory.getbasetemp() / "any-trust.json", data)
    with contextlib.suppress(ConfigurationError):
        assert isinstance(open_trust(trust=path), Trust)


# --- spans and rotation --------------------------------------------------------------------------------------------


def test_new_keys_are_new() -> None:
    """Every key has an id and a secret of its own; one of each algorithm unless asked otherwise."""
    rings = [Keyring.new(NOW) for _ in range(20)]
    assert len({key.key_id for ring in rings for key in ring.keys}) == 60
    secrets = {key.secret.reveal() for ring in rings for key in ring.keys}
    assert len(secrets) == 60
    assert all([key.algorithm for key in ring.keys] == list(ALGORITHMS) for ring in rings)
    assert [key.algorithm for key in Keyring.new(NOW, ("HMAC-SHA256",)).keys] == ["HMAC-SHA256"]


@pytest.mark.parametrize("overlap", [timedelta(0), OVERLAP])
@pytest.mark.parametrize("algorithms", [("HMAC-SHA256",), ALGORITHMS], ids=len)
def test_no_instant_is_without_a_key(tmp_path: Path, overlap: timedelta, algorithms: tuple[KeyAlgorithm, ...]) -> None:
    """From the first on, some key signs at every instant, in its span, and it is never an older one."""
    ring = Keyring.new(NOW, algorithms)
    turns = [NOW + number * timedelta(hours=1) for number in range(4)]
    for turn in turns[1:]:
        ring = ring.rotate(turn, overlap)
    trust = trusted(ring, tmp_path)
    assert len(ring.keys) == 4 * len(algorithms)
    tick = timedelta(microseconds=1)
    moments = sorted(turn + step for turn in turns for step in (-tick, timedelta(0), tick, overlap, overlap - tick))
    newest: dict[str, datetime] = {}
    used = set()
    for moment in moments:
        signers = ring.signers(moment)
        if moment < NOW:
            with pytest.raises(KeyUnavailable, match="custody keys rotate"):
                signers.hmac()
            with pytest.raises(KeyUnavailable, match="Ed25519"):
                signers.ed25519()
            assert signers.leaves is None
            continue
        assert (signers.leaves is not None) == ("SHAKE-256" in algorithms)
        for signer in signers.both() if "Ed25519" in algorithms else [signers.hmac()]:
            key = trust.keys[signer.key_id]
            key.verify(b"statement", signer.sign(b"statement"))
            assert key.holds(moment)
            assert key.began >= newest.get(key.algorithm, key.began)
            newest[key.algorithm] = key.began
            used.add(key.id)
    assert used == set(trust.keys)


def test_a_run_may_end_with_the_key_it_began_with() -> None:
    """What a drain that was at work during a rotation still seals lies in its key's span; later it does not."""
    ring = Keyring.new(NOW)
    held = ring.signers(NOW).hmac()
    rotated = ring.rotate(NOW + SECOND)
    first = rotated.keys[0]
    assert isinstance(first, HmacKey)
    old = _trusted(first)
    assert old.id == held.key_id
    assert old.holds(NOW + 60 * SECOND)
    assert not old.holds(NOW + SECOND + OVERLAP)
    assert rotated.signers(NOW + SECOND).hmac().key_id != held.key_id


def test_rotation_ends_no_key_later() -> None:
    """A key that has ended, or soon will, keeps its end."""
    soon, long_ago = NOW + SECOND, NOW - timedelta(days=9)
    ring = Keyring((dataclasses.replace(HMAC_KEY, to=soon), dataclasses.replace(HMAC_KEY, key_id="old", to=long_ago)))
    assert [key.to for key in ring.rotate(NOW).keys] == [soon, long_ago, None]


def test_rotation_with_a_clock_that_went_back() -> None:
    """A rotation before the newest key's beginning is refused: the new key would not be the newest."""
    with pytest.raises(ConfigurationError, match="clock"):
        Keyring.new(NOW).rotate(NOW - SECOND)


def test_rotation_keeps_what_was(tmp_path: Path) -> None:
    """After `keys rotate` the keyring holds the old key and a new one, and tells which is new."""
    path = tmp_path / "k.json"
    first = new_keyring(path, NOW, PASSPHRASE)
    ring, new = rotate_keyring(path, NOW + SECOND, PASSPHRASE)
    assert Keyring.load(path, PASSPHRASE) == ring
    assert [key.key_id for key in ring.keys] == [key.key_id for key in (*first.keys, *new)]
    assert [key.algorithm for key in new] == list(ALGORITHMS)
    assert ids(open_signers(f"file:{path}", NOW + SECOND, PASSPHRASE)) == [key.key_id for key in new]


def test_rotation_adds_no_algorithm() -> None:
    """A keyring of one algorithm, as one beside a KMS, stays one."""
    ring = Keyring.new(NOW, ("Ed25519", "SHAKE-256")).rotate(NOW + SECOND)
    assert [key.algorithm for key in ring.keys] == ["Ed25519", "SHAKE-256"] * 2


def test_of_two_that_began_together_the_later_in_the_file() -> None:
    """Which key signs is never in doubt."""
    ring = Keyring((HMAC_KEY, dataclasses.replace(HMAC_KEY, key_id="hmac-2")))
    assert ids(ring.signers(NOW)) == ["hmac-2"]


def test_each_algorithm_is_asked_for_by_what_needs_it() -> None:
    """A statement needs HMAC-SHA256, a checkpoint Ed25519, an audit both: what is missing is said, with what to do."""
    for key, missing, there in ((ED25519_KEY, "HMAC-SHA256", "ed25519"), (HMAC_KEY, "Ed25519", "hmac")):
        signers = Keyring((key,)).signers(NOW)
        assert getattr(signers, there)() == key
        with pytest.raises(KeyUnavailable, match=missing):
            signers.both()


def test_checkpoint_keys_give_what_the_first_source_lacks(tmp_path: Path) -> None:
    """Of `checkpoint_keys` the Ed25519 key and the leaf secret are taken; its HMAC keys neither sign nor count."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    first, second = new_keyring(one, NOW, algorithms=("HMAC-SHA256",)), new_keyring(other, NOW)
    uris = f"file:{one}", f"file:{other}"
    signers = open_signers(uris[0], NOW, checkpoint_uri=uris[1])
    wanted = [first.keys[0].key_id, *(key.key_id for key in second.keys[1:])]
    assert ids(signers) == wanted
    assert [key.key_id for key in open_public(uris[0], checkpoint_uri=uris[1])] == wanted
    trust = open_trust(uris[:1], checkpoint_keys=uris[1])
    assert [*trust.keys, *trust.leaves] == wanted


def test_one_id_names_one_key_in_both_sources(tmp_path: Path) -> None:
    """Two sources that call different keys by one id are refused before anything is published of them."""
    Keyring((HMAC_KEY, ED25519_KEY)).save(tmp_path / "one.json")
    other = Keyring.new(NOW, ("Ed25519",)).keys[0]
    assert isinstance(other, Ed25519Key)
    Keyring((dataclasses.replace(other, key_id=ED25519_KEY.key_id),)).save(tmp_path / "other.json")
    with pytest.raises(ConfigurationError, match="two different keys"):
        open_public(f"file:{tmp_path / 'one.json'}", checkpoint_uri=f"file:{tmp_path / 'other.json'}")


def test_what_is_public_holds_no_secret(tmp_path: Path) -> None:
    """What everybody may know of keys: ids, spans and public halves, of old keys as well."""
    path = put(tmp_path / "k.json", KEYRING)
    public = open_public(f"file:{path}")
    assert [key.key_id for key in public] == [*IDS, "leaves-000000000001"]
    assert [key.public for key in public] == [None, None, PUBLIC, None]
    assert public[0].to == public[1].from_ == parse_time("2026-04-01T12:00:00.000001Z")


# --- secrets -------------------------------------------------------------------------------------------------------

HOLDERS = [
    Secret(SECRET),
    HMAC_KEY,
    Ed25519Key("e", Secret(SECRET)),
    LEAF_KEY,
    Keyring((HMAC_KEY, LEAF_KEY)),
    Signers(statements=HMAC_KEY, leaves=LEAF_KEY),
    _trusted(HMAC_KEY),
    Trust(keys={"hmac-1": _trusted(HMAC_KEY)}),
    Trust(leaves={"leaves-1": LEAF_KEY.secret}),
]
SHAPES = [SECRET.hex(), base64.b64encode(SECRET).decode(), repr(SECRET), repr(list(SECRET)), repr(SECRET)[4:-4]]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: type(holder).__name__)
def test_secrets_are_never_shown(holder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A secret is in no repr, format, log line, error or dictionary of what holds it, and is not pickled."""
    logging.getLogger("custody").warning("%s %r", holder, [holder])
    error = ConfigurationError("about", holder)
    shown = [str(holder), repr(holder), f"{holder}", f"{holder!r:>500}", f"{[holder]}", caplog.text, str(error)]
    shown += traceback.format_exception(error)
    shown += [repr(copy.copy(holder)), repr(copy.deepcopy(holder))]
    with contextlib.suppress(TypeError):
        shown.append(repr(vars(holder)))
    if dataclasses.is_dataclass(holder) and not isinstance(holder, type):
        shown += [repr(dataclasses.asdict(holder)), repr(dataclasses.astuple(holder))]
    with pytest.raises(TypeError):
        json.dumps(holder)
    for text in shown:
        assert not any(shape in text for shape in SHAPES)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(holder, protocol)


def test_secrets_compare() -> None:
    """Secrets are equal when their bytes are, and are no keys of dictionaries."""
    assert Secret(SECRET) == Secret(SECRET) != Secret(SEED)
    assert Secret(SECRET) != SECRET
    with pytest.raises(TypeError):
        hash(Secret(SECRET))


# --- trust ---------------------------------------------------------------------------------------------------------


def test_golden_trust(tmp_path: Path) -> None:
    """Everything that a trust.json can say is read."""
    trust = open_trust(trust=put(tmp_path / "trust.json", TRUST, 0o644))
    assert trust.archive == Pin("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "44" * 32)
    hmac, ed25519, kms = trust.keys.values()
    assert not hmac.checkable
    assert hmac.until == {"audit.events/0": Head(7, b"\x11" * 32)}
    assert hmac.to == datetime(2026, 3, 1, tzinfo=UTC)
    assert not hmac.holds(datetime(2026, 3, 1, tzinfo=UTC))
    assert ed25519.until is None
    ed25519.verify(b"m", ED25519_KEY.sign(b"m"))
    assert not kms.checkable
    assert kms.began < hmac.began
    assert trust.leaves == {}
    assert trust.witnesses == (NoteKey.parse(VKEY),)
    assert trust.quorum == 1
    assert trust.heads == {"audit.events@2/3": Head(12, b"\x22" * 32)}
    assert trust.retention_days == 2555
    assert [(each.finding, each.log, each.sequence, each.key, each.sha256) for each in trust.accepted] == [
        ("segment-hash", "audit.events/0", 3, None, "33" * 32),
        ("unlisted", None, None, "events/stray", None),
    ]


def test_a_kms_is_asked_only_where_a_key_uri_names_one(tmp_path: Path) -> None:
    """An auditor with trust.json alone needs no AWS: a key's ARN is its id there. Who names a KMS asks it of all."""
    path = put(tmp_path / "trust.json", TRUST)
    arn = "arn:aws:kms:eu-west-1:123456789012:key/0a1b2c3d-0000-4000-8000-000000000000"
    ring = put(tmp_path / "k.json", KEYRING)
    for uris in ([], [f"file:{ring}"]):
        assert open_trust(uris, path).keys[arn].material is None
    asked = open_trust([f"aws-kms:///{ARN}"], path).keys
    assert isinstance(asked[arn].material, KmsKey)
    assert isinstance(asked[ARN].material, KmsKey)
    assert asked["hmac-000000000001"].material is None


def test_secrets_of_leaves_in_trust(tmp_path: Path) -> None:
    """A trust.json may hold the leaf secret, is private then, and must agree with the keyring's."""
    leaf = entry(id="leaves-1", algorithm="SHAKE-256")
    path = put(tmp_path / "trust.json", json.dumps({"format": "custody/trust/1", "keys": [leaf]}).encode())
    trust = open_trust(trust=path)
    assert (trust.leaves, trust.keys) == ({"leaves-1": Secret(SECRET)}, {})
    Keyring((LEAF_KEY,)).save(tmp_path / "same.json")
    assert open_trust([f"file:{tmp_path / 'same.json'}"], path).leaves == trust.leaves
    Keyring((dataclasses.replace(LEAF_KEY, secret=Secret(SEED)),)).save(tmp_path / "other.json")
    with pytest.raises(ConfigurationError, match="two different keys"):
        open_trust([f"file:{tmp_path / 'other.json'}"], path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_trust(trust=path)


@pytest.mark.parametrize(
    ("until", "wanted"),
    [
        ("absent", None),
        (None, None),
        ({}, {}),
        ({"audits/0": {"size": 1, "root": "55" * 32}}, {"audits/0": Head(1, b"\x55" * 32)}),
    ],
    ids=["absent", "null", "nowhere", "audits"],
)
def test_a_key_that_ended_everywhere_is_none_that_has_not_ended(
    tmp_path: Path, until: Any, wanted: dict[str, Head] | None
) -> None:
    """`until` null or absent: the key has not ended. `{}`: it counts for nothing, in no log."""
    data = json.dumps({"format": "custody/trust/1", "keys": [entry(secret="absent", until=until)]}).encode()
    assert open_trust(trust=put(tmp_path / "trust.json", data)).keys["k"].until == wanted


def test_trust_without_secrets_reaches_other_processes(tmp_path: Path) -> None:
    """Trust that holds public keys alone is pickled as it is."""
    trust = open_trust(trust=put(tmp_path / "trust.json", TRUST))
    again = pickle.loads(pickle.dumps(trust))  # noqa: S301
    assert repr(again) == repr(trust)


def test_trust_of_nothing() -> None:
    """Without sources nothing is trusted."""
    assert open_trust() == Trust()
    assert not Trust().keys


def test_least_trust(tmp_path: Path) -> None:
    """A trust.json says what it has to say and leaves out the rest."""
    assert open_trust(trust=put(tmp_path / "t.json", b'{"format":"custody/trust/1"}', 0o644)) == Trust()


def test_trust_with_a_secret_is_private(tmp_path: Path) -> None:
    """A trust.json that holds a secret is refused where others can read it."""
    data = json.dumps({"format": "custody/trust/1", "keys": [entry()]}).encode()
    path = put(tmp_path / "trust.json", data)
    open_trust(trust=path).keys["k"].verify(b"m", HMAC_KEY.sign(b"m"))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_trust(trust=path)


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"format": "custody/keyring/1"},
        {"archive": "x"},
        {"archive": "6ba7b810-9dad-41d1-80b4-00c04fd430c8"},
        {"archive": {"id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8"}},
        {"archive": {"sha256": "44" * 32}},
        {"archive": {"id": "6BA7B810-9dad-41d1-80b4-00c04fd430c8", "sha256": "44" * 32}},
        {"archive": {"id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "sha256": "44" * 31}},
        {"archive": {"id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "sha256": "4G" * 32}},
        {"archive": {"id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "sha256": "44" * 32, "more": 1}},
        {"keys": [entry(algorithm="SHAKE-256", secret="absent", until={})]},
        {"keys": [entry(algorithm="SHAKE-256", secret=SHORT)]},
        {"keys": [entry(secret="absent"), entry(algorithm="SHAKE-256", secret="absent")]},
        {"keys": [entry(secret="absent", until=[])]},
        {"keys": [entry(secret="absent", until={"audits/1/0": {"size": 1, "root": "00" * 32}})]},
        {"keys": [entry(id="e", algorithm="Ed25519", secret="absent")]},
        {"keys": [entry(secret="absent"), entry(secret="absent")]},
        {"keys": [entry(until={"t/0": {"size": 1}})]},
        {"keys": [entry(until={"t/0": {"size": -1, "root": "00" * 32}})]},
        {"keys": [entry(until={"t": {"size": 1, "root": "00" * 32}})]},
        {"heads": {"t/0": {"size": 1, "root": "00" * 31}}},
        {"heads": {"t/00": {"size": 1, "root": "00" * 32}}},
        {"heads": {"t@1/0": {"size": 1, "root": "00" * 32}}},
        {"heads": {"/0": {"size": 1, "root": "00" * 32}}},
        {"heads": None},
        {"retention_days": -1},
        {"retention_days": 1.5},
        {"retention_days": 0},
        {"retention_days": 36_526},
        {"checkpoint": [VKEY]},
        {"witnesses": VKEY},
        {"witnesses": [""]},
        {"witnesses": [NOTE_VKEY]},
        {"witnesses": [VKEY[:-4]]},
        {"witnesses": [VKEY.replace("example", "exampel")]},
        {"witnesses": [witness("w", WITNESS, 2)]},
        {"witnesses": [witness("w", WITNESS[:-1])]},
        {"witnesses": [VKEY + "\n"]},
        {"witnesses": [VKEY.replace("witness", "witness ")]},
        {"witnesses": ["\ud800" + VKEY]},
        {"witnesses": [VKEY, VKEY]},
        {"witnesses": [VKEY, witness("another name", WITNESS)]},
        {"witnesses": [VKEY, witness("another-name", WITNESS)]},
        {"witnesses": [VKEY, witness("witness.example/w1", bytes(32))]},
        {"quorum": 1},
        {"quorum": -1},
        {"quorum": None},
        {"witnesses": [VKEY], "quorum": 2},
        {
            "keys": [entry(**ED | {"private": "absent"}, public=base64.b64encode(PUBLIC).decode())],
            "witnesses": [witness("w", PUBLIC)],
        },
        {"accepted": [{"finding": "f", "reason": "r", "by": "b", "at": "2026-01-01T00:00:00.000000Z"}]},
        {"accepted": [{"finding": "f", "reason": "r", "by": "b", "at": "2026-01-01T00:00:00.000000Z", "log": "t/0"}]},
        {"accepted": [{"finding": "f", "reason": "r", "by": "b", "at": "2026-01-01T00:00:00.000000Z", "sequence": 1}]},
        {"accepted": [{"finding": "f", "reason": "r", "by": "b", "at": "2026-02-30T00:00:00.000000Z", "key": "k"}]},
        {"accepted": [{"finding": "f", "reason": "", "by": "b", "at": "2026-01-01T00:00:00.000000Z", "key": "k"}]},
        {"accepted": [{"finding": "f", "by": "b", "at": "2026-01-01T00:00:00.000000Z", "key": "k"}]},
    ],
    ids=lambda change: json.dumps(change)[:80],
)
def test_malformed_trust(tmp_path: Path, change: dict[str, Any]) -> None:
    """A malformed trust.json is a ConfigurationError that names the file."""
    path = put(tmp_path / "trust.json", json.dumps({"format": "custody/trust/1"} | change).encode())
    with pytest.raises(ConfigurationError) as caught:
        open_trust(trust=path)
    assert str(path) in str(caught.value)


def test_missing_trust(tmp_path: Path) -> None:
    """A trust.json that is not there is an error: less would be verified than was asked for."""
    with pytest.raises(ConfigurationError, match="no such file"):
        open_trust(trust=tmp_path / "trust.json")


def test_trust_narrows_a_keyring(tmp_path: Path) -> None:
    """A key in a keyring and in a trust.json has the secret of the one, and the strictest span and end of both."""
    ring = put(tmp_path / "k.json", KEYRING)
    trust = open_trust([f"file:{ring}"], put(tmp_path / "trust.json", TRUST))
    key = trust.keys["hmac-000000000001"]
    assert key.checkable
    assert key.to == datetime(2026, 3, 1, tzinfo=UTC)
    assert key.until == {"audit.events/0": Head(7, b"\x11" * 32)}
    assert trust.keys["hmac-000000000002"].checkable
    assert len(trust.keys) == 4
    assert list(trust.leaves) == ["leaves-000000000001"]


def test_an_older_copy_of_a_keyring_does_not_prolong_a_key(tmp_path: Path) -> None:
    """A copy made before a rotation and the keyring after it together give the keyring after it."""
    ring = Keyring.new(NOW)
    ring.save(tmp_path / "old.json")
    ring.rotate(NOW + SECOND).save(tmp_path / "new.json")
    after = open_trust([f"file:{tmp_path / 'new.json'}"])
    for order in (["old.json", "new.json"], ["new.json", "old.json", "new.json"]):
        assert open_trust([f"file:{tmp_path / name}" for name in order]).keys == after.keys


@pytest.mark.parametrize(
    "other",
    [
        HmacKey("k", Secret(SEED)),
        Ed25519Key("k", Secret(SEED)),
    ],
    ids=["secret", "algorithm"],
)
def test_one_id_names_one_key(tmp_path: Path, other: HmacKey | Ed25519Key) -> None:
    """Two sources that call different keys by one id are refused."""
    Keyring((HmacKey("k", Secret(SECRET)),)).save(tmp_path / "one.json")
    Keyring((other,)).save(tmp_path / "other.json")
    with pytest.raises(ConfigurationError, match="'k' names two different keys"):
        open_trust([f"file:{tmp_path / 'one.json'}", f"file:{tmp_path / 'other.json'}"])


def test_ends_of_a_leaked_key_merge() -> None:
    """Of two ends of a key the smaller head of each log counts; a log that one lacks ended there at size 0.

    Two roots at one size contradict each other.
    """
    one = TrustedKey("k", "HMAC-SHA256", until={"a/0": Head(5, b"a"), "b/0": Head(1, b"b")})
    other = TrustedKey("k", "HMAC-SHA256", until={"a/0": Head(3, b"c"), "c/0": Head(9, b"d")})
    never, nowhere = dataclasses.replace(one, until=None), dataclasses.replace(one, until={})
    assert _merge(one, other).until == _merge(other, one).until == {"a/0": Head(3, b"c")}
    assert _merge(one, never).until == _merge(never, one).until == one.until
    assert _merge(one, nowhere).until == _merge(nowhere, one).until == {}
    assert _merge(never, nowhere).until == _merge(nowhere, never).until == {}
    assert _merge(never, never).until is None
    with pytest.raises(ConfigurationError, match="two different heads"):
        _merge(one, dataclasses.replace(one, until={"a/0": Head(5, b"x")}))


# --- URIs ----------------------------------------------------------------------------------------------------------


def test_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyring is named relative to the working folder, or from the root, escaped or not."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my keyring.json"
    new_keyring(path, NOW)
    for uri in ("file:my keyring.json", "file:./my%20keyring.json", f"file:{path}", f"file://{path}", path.as_uri()):
        assert ids(open_signers(uri, NOW))[:2] == list(open_trust([uri]).keys)


@pytest.mark.parametrize(
    "uri",
    ["", "keyring.json", "/keyring.json", "env:KEY", "FILE:k", "file:", "file://", "file:///\0", "file:%00", "file://host/k",
     "aws-kms:", "aws-kms:///", "aws-kms://key", "aws-kms:///alias/", "aws-kms:///alias/a b", "aws-kms:///alias/a?x=1",
     "aws-kms:///arn:aws:s3:::bucket", "aws-kms:////alias/a", "gcp-kms:///x"],
)  # fmt: skip
def test_wrong_uris(uri: str) -> None:
    """What names no key says what would."""
    for use in (lambda: open_signers(uri, NOW), lambda: open_trust([uri])):
        with pytest.raises(ConfigurationError, match=r"file|aws-kms|no host|regular"):
            use()


def test_a_secret_given_for_a_uri_is_not_repeated() -> None:
    """Whoever sets the secret itself where its place is asked for does not find it in the log."""
    secret = base64.b64encode(SECRET).decode()
    for uri in (secret, f"hmac:{secret}", f"aws-kms:///{secret}", f"aws-kms://{secret}", f"file://{secret}"):
        with pytest.raises(ConfigurationError) as caught:
            open_signers(uri, NOW)
        assert secret not in "".join(traceback.format_exception(caught.value))


# --- AWS KMS -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kms(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of moto's KMS, which the code under test finds by the standard variables."""
    moto.use(monkeypatch)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", moto.endpoint_url)
    client = boto3.client("kms")
    yield client
    client.close()


def kms_key(client: Any, alias: str | None = None, spec: str = "HMAC_256", usage: str = "GENERATE_VERIFY_MAC") -> str:
    """A new key's ARN."""
    arn: str = client.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"]
    if alias:
        with contextlib.suppress(client.exceptions.NotFoundException):
            client.delete_alias(AliasName=alias)
        client.create_alias(AliasName=alias, TargetKeyId=arn)
    return arn


def test_kms_signs_and_checks(kms: Any) -> None:
    """A KMS key signs under its ARN, whichever name it was opened by, and checks what it signed."""
    arn = kms_key(kms, "alias/custody")
    for name in ("alias/custody", arn, arn.rpartition("/")[2]):
        signers = open_signers(f"aws-kms:///{name}", NOW)
        assert (signers.checkpoints, signers.leaves) == (None, None)
        signer = signers.hmac()
        assert (signer.key_id, signer.algorithm) == (arn, "HMAC-SHA256")
        value = signer.sign(b"m" * 84)
        assert len(value) == 32
        trust = open_trust([f"aws-kms:///{name}"])
        assert list(trust.keys) == [arn]
        key = trust.keys[arn]
        key.verify(b"m" * 84, value)
        assert key.holds(NOW)
        for message, wrong in ((b"n" * 84, value), (b"m" * 84, bytes(32)), (b"m" * 84, b"short"), (b"m" * 84, b"")):
            with pytest.raises(SignatureInvalid):
                key.verify(message, wrong)


def test_kms_after_the_alias_moved(kms: Any, tmp_path: Path) -> None:
    """When an alias was given to a new key, old statements still verify by the old ARN, which trust.json names."""
    old = kms_key(kms, "alias/moves")
    signer = open_signers("aws-kms:///alias/moves", NOW).hmac()
    value = signer.sign(b"m")
    new = kms_key(kms, "alias/moves")
    assert signer.sign(b"m") == value
    listed = [entry(id=old, secret="absent", to="2026-06-01T00:00:00.000000Z"), entry(id=new, secret="absent")]
    path = put(tmp_path / "trust.json", json.dumps({"format": "custody/trust/1", "keys": listed}).encode())
    trust = open_trust(["aws-kms:///alias/moves"], path)
    assert list(trust.keys) == [old, new]
    trust.keys[old].verify(b"m", value)
    with pytest.raises(SignatureInvalid):
        trust.keys[new].verify(b"m", value)


def test_kms_key_of_another_kind(kms: Any) -> None:
    """A key that can make neither kind of signature is refused when it is opened, with what to create."""
    arn = kms_key(kms, spec="RSA_2048", usage="SIGN_VERIFY")
    for use in (lambda: open_signers(f"aws-kms:///{arn}", NOW), lambda: KmsKey.open(arn)):
        with pytest.raises(ConfigurationError, match=r"HMAC_256.*ECC_NIST_EDWARDS25519"):
            use()


@pytest.mark.usefixtures("kms")
def test_kms_key_that_is_not_there() -> None:
    """A name without a key says so; of an ARN in a trust.json it is found when it is needed."""
    with pytest.raises(KeyUnavailable, match="no such key"):
        open_signers("aws-kms:///alias/none", NOW)
    with pytest.raises(KeyUnavailable, match="no such key"):
        open_trust([f"aws-kms:///{ARN}"]).keys[ARN].verify(b"m", bytes(32))
    with pytest.raises(KeyUnavailable, match="no such key"):
        KmsKey(ARN).sign(b"m")


def stubbed(monkeypatch: pytest.MonkeyPatch) -> tuple[KmsKey, Stubber]:
    """A KMS key whose client answers what it is told."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    key = KmsKey(ARN)
    return key, Stubber(key._kms().client)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("KMSInvalidMacException", SignatureInvalid),
        ("AccessDeniedException", KeyUnavailable),
        ("DisabledException", KeyUnavailable),
        ("KMSInvalidStateException", KeyUnavailable),
        ("KMSInternalException", KeyUnavailable),
        ("KeyUnavailableException", KeyUnavailable),
        ("ThrottlingException", KeyUnavailable),
        ("ExpiredTokenException", KeyUnavailable),
        ("SignatureDoesNotMatch", KeyUnavailable),
        ("SomethingNew", KeyUnavailable),
    ],
)
def test_every_refusal_of_kms_is_mapped(code: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """What KMS refuses is our error with its code, and without its text, which may quote signed requests."""
    key, stub = stubbed(monkeypatch)
    stub.add_client_error("verify_mac", code, "the text: very-secret", 400)
    with stub, pytest.raises(error) as caught:
        key.check(b"m", bytes(32))
    assert "very-secret" not in "".join(traceback.format_exception(caught.value))
    assert ARN in str(caught.value)
    assert code in str(caught.value) or error is SignatureInvalid
    if code in {"AccessDeniedException", "ExpiredTokenException"}:
        assert "refused VerifyMac" in str(caught.value)
        assert "to access key id of env: allow kms:VerifyMac" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://u:very-secret@h"),
        ConnectTimeoutError(endpoint_url="http://u:very-secret@h"),
        ReadTimeoutError(endpoint_url="http://u:very-secret@h"),
        NoCredentialsError(),
        BotoCoreError(),
        ClientError({}, "GenerateMac"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_silence_of_kms_is_mapped(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """When KMS does not answer, neither signing nor checking says that anything is wrong: the key is unavailable."""
    key, _ = stubbed(monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(key._kms().client, "_make_api_call", fail)
    for use in (lambda: key.sign(b"m"), lambda: key.check(b"m", bytes(32))):
        with pytest.raises(KeyUnavailable) as caught:
            use()
        assert "very-secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "answer",
    [
        {"Mac": bytes(31), "KeyId": ARN},
        {"Mac": bytes(32), "KeyId": ARN[:-1] + "1"},
        {"Mac": b"", "KeyId": ARN},
        {"KeyId": ARN},
        {"Mac": bytes(32)},
        {},
    ],
    ids=str,
)
def test_answers_of_kms_that_make_no_sense(answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that answers like KMS with another key or half a MAC does not get into a signature."""
    key, stub = stubbed(monkeypatch)
    stub.add_response("generate_mac", answer)
    with stub, pytest.raises(KeyUnavailable):
        key.sign(b"m")


def test_an_unsure_kms_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check without error that does not say "valid" is not valid."""
    key, stub = stubbed(monkeypatch)
    stub.add_response("verify_mac", {"KeyId": ARN})
    with stub, pytest.raises(SignatureInvalid):
        key.check(b"m", bytes(32))


def test_kms_by_the_general_endpoint(moto: MotoServer, kms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL alone is enough, as with any AWS tool."""
    arn = kms_key(kms)
    monkeypatch.delenv("AWS_ENDPOINT_URL_KMS")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint_url)
    assert open_signers(f"aws-kms:///{arn}", NOW).hmac().key_id == arn


@pytest.mark.parametrize("way", ["AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL"])
def test_a_plain_endpoint_of_kms_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """An endpoint elsewhere with http:// gives a warning, once a process; one on this machine gives none."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_KMS", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv(way, "http://127.0.0.1:1")
    _Kms(None)
    assert caplog.messages == []
    url = f"http://{way.lower().replace('_', '-')}.example.com"
    monkeypatch.setenv(way, url)
    for _ in range(2):
        _Kms(None)
    (message,) = caplog.messages
    assert f"{url} for KMS: others on the network" in message


def test_kms_that_is_gone_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody at the endpoint, signing fails in seconds, and says that KMS did not answer."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(KeyUnavailable, match="did not answer"):
        KmsKey(ARN).sign(b"m")
    assert time.monotonic() - began < 30


def test_kms_without_a_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An alias needs a region from the settings; an ARN has its own."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="AWS_DEFAULT_REGION"):
        open_signers("aws-kms:///alias/custody", NOW)
    assert KmsKey(ARN)._kms().client.meta.region_name == "us-east-1"


def test_kms_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without boto3 an aws-kms key says what to install; one in a trust.json is merely unavailable."""
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(ConfigurationError, match=r"with its extra `s3`"):
        open_signers("aws-kms:///alias/custody", NOW)
    with pytest.raises(KeyUnavailable, match=r"with its extra `s3`"):
        open_trust([f"aws-kms:///{ARN}"]).keys[ARN].verify(b"m", bytes(32))


# --- Ed25519 in KMS: a fake, since no real one can be had -----------------------------------------------------------


@pytest.mark.parametrize("name", ["alias/checkpoints", ED25519_ARN, ED25519_ARN.rpartition("/")[2]])
def test_ed25519_in_kms_signs_checkpoints_under_its_arn(fake_kms: FakeKms, name: str) -> None:
    """A fake KMS signs a note that any client with the public key alone can check; the key's name there is its ARN."""
    signers = open_signers("aws-kms:///alias/statements", NOW, checkpoint_uri=f"aws-kms:///{name}")
    assert ids(signers) == [HMAC_ARN, ED25519_ARN]
    signer = signers.ed25519()
    assert signer.public == fake_kms.public
    note = sign_checkpoint(signer, "6ba7b810-9dad-41d1-80b4-00c04fd430c8", Log("audit", 3), Head(7, bytes(32)))
    parsed = parse_note(note.encode())
    (signature,) = parsed.signatures
    assert signature.name == ED25519_ARN
    key = NoteKey.parse(NoteKey(ED25519_ARN, fake_kms.public).vkey)
    assert signature.key_hash == key.key_hash
    key.verify(parsed.text, signature.signature)


def test_trust_of_ed25519_in_kms_is_public(fake_kms: FakeKms) -> None:
    """Who verifies by the fake KMS's Ed25519 key asks for its public half once, and then checks without KMS."""
    trust = open_trust(["aws-kms:///alias/statements"], checkpoint_keys=f"aws-kms:///{ED25519_ARN}")
    assert trust.keys[ED25519_ARN].public == fake_kms.public
    signer = open_signers("aws-kms:///alias/checkpoints", NOW).ed25519()
    value = signer.sign(b"m")
    fake_kms.asked.clear()
    trust.keys[ED25519_ARN].verify(b"m", value)
    with pytest.raises(SignatureInvalid):
        trust.keys[ED25519_ARN].verify(b"n", value)
    assert fake_kms.asked == []
    assert [
        (key.key_id, key.public)
        for key in open_public("aws-kms:///alias/statements", None, "aws-kms:///alias/checkpoints")
    ] == [
        (HMAC_ARN, None),
        (ED25519_ARN, fake_kms.public),
    ]


@pytest.mark.parametrize(
    ("operation", "changed"),
    [
        ("GetPublicKey", {"PublicKey": base64.b64encode(bytes(32)).decode()}),
        ("GetPublicKey", {"PublicKey": base64.b64encode(bytes(44)).decode()}),
        ("GetPublicKey", {"PublicKey": None}),
        ("Sign", {"Signature": base64.b64encode(bytes(63)).decode()}),
        ("Sign", {"Signature": None}),
        ("Sign", {"KeyId": HMAC_ARN}),
        ("Sign", {"KeyId": None}),
    ],
    ids=str,
)
def test_answers_about_ed25519_that_make_no_sense(fake_kms: FakeKms, operation: str, changed: dict[str, Any]) -> None:
    """Something that answers like KMS with another key or half a signature signs nothing."""
    signer = None if operation == "GetPublicKey" else open_signers(f"aws-kms:///{ED25519_ARN}", NOW).ed25519()
    fake_kms.changed.update(changed)
    use = (lambda: signer.sign(b"m")) if signer else (lambda: open_signers(f"aws-kms:///{ED25519_ARN}", NOW))
    with pytest.raises(KeyUnavailable, match=operation):
        use()


def test_kms_that_refuses_to_sign(fake_kms: FakeKms) -> None:
    """A key that was made for something else is refused with what to create."""
    arn = KmsKey(ED25519_ARN)
    with pytest.raises(KeyUnavailable, match=r"InvalidKeyUsageException.*ECC_NIST_EDWARDS25519"):
        arn.sign(b"m")
    assert fake_kms.asked == ["GenerateMac"]
