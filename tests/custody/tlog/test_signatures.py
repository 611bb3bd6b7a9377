"""The one policy by which a signature counts: each rule, for files and checkpoints, and that there is no other."""

import ast
import base64
import hmac
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.errors import KeyUnavailable
from custody.format.envelope import Algorithm, Signature, Signatures
from custody.format.layout import Log
from custody.keys.secret import Secret
from custody.keys.trust import TrustedKey
from custody.tlog.checkpoint import (
    COSIGNATURE,
    Checkpoint,
    Note,
    NoteKey,
    NoteSignature,
    cosigned,
    parse_checkpoint,
    sign_checkpoint,
    with_signature,
)
from custody.tlog.head import Head
from custody.tlog.signatures import (
    OUTSIDE,
    KeyOrder,
    Place,
    Problem,
    Verdict,
    check_checkpoint,
    check_file,
    newer_than,
    note_keys,
)

ROOT = Path(__file__).resolve().parents[3]
MESSAGE = b"custody/manifest/1\n" + b"a" * 64 + b"\n"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LOG = Log("audit", 0)
HEAD = Head(5, b"\1" * 32)

SECRETS = {"hmac": b"h" * 32, "newer": b"n" * 32}
PRIVATE = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number, name in enumerate(("ed", "ed2"))
}


def public(name: str) -> bytes:
    return PRIVATE[name].public_key().public_bytes_raw()


def key(name: str, **more: Any) -> TrustedKey:
    if name in SECRETS:
        return TrustedKey(name, "HMAC-SHA256", **{"material": Secret(SECRETS[name]), **more})
    return TrustedKey(more.pop("id_", name), "Ed25519", **{"material": public(name), **more})


def signed(*names: str, message: bytes = MESSAGE, **algorithms: Algorithm) -> Signatures:
    made = []
    for name in names:
        value = hmac.digest(SECRETS[name], message, "sha256") if name in SECRETS else PRIVATE[name].sign(message)
        algorithm = algorithms.get(name, "HMAC-SHA256" if name in SECRETS else "Ed25519")
        made.append((Signature(name, algorithm, base64.b64encode(value).decode()), value))
    return tuple(made)


def check(
    signatures: Signatures,
    keys: Iterable[TrustedKey],
    *,
    wanted: tuple[Algorithm, ...] = ("HMAC-SHA256",),
    sequence: int = 3,
    place: Place | None = None,
    within: Callable[[Head], bool] = lambda _: False,
    **more: Any,
) -> Verdict:
    return check_file(
        MESSAGE,
        signatures,
        {one.id: one for one in keys},
        wanted=wanted,
        position=place or Place(str(LOG), sequence),
        sealed_at=more.pop("sealed_at", NOW),
        within=within,
        **more,
    )


def kinds(verdict: Verdict) -> list[str]:
    return [problem.kind for problem in verdict.problems]


def test_a_good_signature_counts() -> None:
    """A file counts by the one signature that its form wants."""
    verdict = check(signed("hmac"), [key("hmac")])
    assert verdict.counts
    assert verdict.clean
    assert verdict.held == ("hmac",)


def test_another_form_wants_both() -> None:
    """Audits and archive.json count by exactly one signature of each algorithm."""
    both: tuple[Algorithm, ...] = ("HMAC-SHA256", "Ed25519")
    keys = [key("hmac"), key("ed")]
    assert check(signed("hmac", "ed"), keys, wanted=both).clean
    for lacking in (signed("hmac"), signed("ed"), ()):
        verdict = check(lacking, keys, wanted=both)
        assert not verdict.counts
        assert "signature" in kinds(verdict)


def test_one_signature_too_many() -> None:
    """A second signature of an algorithm, or one of another algorithm, makes the file invalid."""
    for more in (signed("hmac", "newer"), signed("hmac", "ed")):
        verdict = check(more, [key("hmac"), key("newer"), key("ed")])
        assert not verdict.counts
        assert verdict.refused
        assert not verdict.void, "somebody who has a key signed it: no slot may be passed over for it"


@pytest.mark.parametrize("wrong", [b"", b"x" * 32, b"x" * 64])
def test_a_wrong_signature(wrong: bytes) -> None:
    """A signature over other bytes is refused, and a slot that holds such a file may be passed over."""
    ((signature, _),) = signed("hmac")
    verdict = check(((signature, wrong),), [key("hmac")])
    assert kinds(verdict) == ["signature"]
    assert verdict.void
    assert not verdict.counts


def test_none_at_all() -> None:
    """A file without a signature is refused, and a slot that holds it may be passed over."""
    verdict = check((), [key("hmac")])
    assert (kinds(verdict), verdict.void, verdict.counts) == (["signature"], True, False)


def test_an_unknown_key() -> None:
    """A key that is not trusted here speaks neither for nor against: another verifier may know it."""
    verdict = check(signed("newer"), [key("hmac")])
    assert kinds(verdict) == ["key-unknown"]
    assert (verdict.unknown, verdict.void, verdict.counts, verdict.refused) == (True, False, False, False)


def test_another_algorithm() -> None:
    """A key id names one algorithm for ever."""
    verdict = check(signed("ed", ed="HMAC-SHA256"), [key("ed")])
    assert kinds(verdict) == ["key-algorithm"]
    assert not verdict.counts


def test_a_key_without_its_secret() -> None:
    """What cannot be checked is no proof, and no fault."""
    verdict = check(signed("hmac"), [key("hmac", material=None)])
    assert kinds(verdict) == ["unchecked-signature"]
    assert not verdict.counts
    assert not verdict.refused


def test_one_of_two_can_be_checked() -> None:
    """An auditor without the HMAC secret is convinced by the Ed25519 signature beside it."""
    keys = [key("hmac", material=None), key("ed")]
    verdict = check(signed("hmac", "ed"), keys, wanted=("HMAC-SHA256", "Ed25519"))
    assert verdict.counts
    assert verdict.held == ("ed",)


def test_the_span_is_policy() -> None:
    """Outside its key's span a signature counts, and is reported; what is irreversible is not decided by it."""
    for span, sealed in (((NOW, None), NOW - DAY), ((None, NOW), NOW)):
        verdict = check(signed("hmac"), [key("hmac", from_=span[0], to=span[1])], sealed_at=sealed)
        assert verdict.counts
        assert not verdict.clean
        assert [(one.kind, one.policy) for one in verdict.problems] == [("key-span", True)]


@pytest.mark.parametrize(
    ("until", "sequence", "within", "counts"),
    [
        (None, 10**6, False, True),
        ({str(LOG): HEAD}, 4, True, True),
        ({str(LOG): HEAD}, 4, False, False),
        ({str(LOG): HEAD}, 5, True, False),
        ({str(LOG): HEAD}, 6, True, False),
        ({"other/0": HEAD}, 0, True, False),
        ({}, 0, True, False),
    ],
    ids=[
        "not ended",
        "within",
        "before, in another tree",
        "at its end",
        "beyond",
        "log not listed",
        "ended everywhere",
    ],
)
def test_an_ended_key(until: dict[str, Head] | None, sequence: int, within: bool, counts: bool) -> None:
    """A key with `until` counts for what lies within the heads named there, and for nothing else."""
    asked: list[Head] = []

    def shown(head: Head) -> bool:
        asked.append(head)
        return within

    verdict = check(signed("hmac"), [key("hmac", until=until)], sequence=sequence, within=shown)
    assert verdict.counts is counts
    assert not verdict.void, "a good signature stands there: two histories, and nothing to be passed over"
    assert kinds(verdict) == ([] if counts else ["key-span"])
    assert all(head == HEAD for head in asked)


def test_an_ended_key_outside_of_all_logs() -> None:
    """Lists of tables and pieces of audits lie in no tree, so an ended key signs none of them."""
    assert check(signed("hmac"), [key("hmac")], place=OUTSIDE).counts
    assert not check(signed("hmac"), [key("hmac", until={str(LOG): HEAD})], place=OUTSIDE, within=lambda _: True).counts


def test_the_archive_file_knows_no_end() -> None:
    """Spans and `until` do not apply to archive.json: it is from the beginning."""
    ended = key("hmac", until={}, from_=NOW + DAY)
    verdict = check_file(MESSAGE, signed("hmac"), {"hmac": ended}, wanted=("HMAC-SHA256",), position=None)
    assert verdict.clean


def test_an_older_key_never_signs_again() -> None:
    """Once a newer key has signed in a log the older one does not count there any more."""
    older, newer = key("hmac", from_=NOW - DAY), key("newer", from_=NOW)
    order = KeyOrder()
    assert check(signed("hmac"), [older, newer], order=order).counts
    assert check(signed("newer"), [older, newer], order=order).counts
    verdict = check(signed("hmac"), [older, newer], order=order)
    assert kinds(verdict) == ["key-span"]
    assert not verdict.counts
    assert check(signed("newer"), [older, newer], order=order).counts


def test_keys_of_one_age_take_over_once() -> None:
    """Of two keys without a span the one that signed first does not come back."""
    order, keys = KeyOrder(), [key("hmac"), key("newer")]
    counted = [check(signed(name), keys, order=order).counts for name in ("hmac", "newer", "hmac", "newer")]
    assert counted == [True, True, False, True]


# --- checkpoints


class _Signer:
    def __init__(self, name: str) -> None:
        self.key_id, self.public = name, public(name)
        self.algorithm: Algorithm = "Ed25519"

    def sign(self, message: bytes) -> bytes:
        return PRIVATE[self.key_id].sign(message)


def noted(name: str = "ed", head: Head = HEAD) -> tuple[Note, Checkpoint]:
    note = sign_checkpoint(_Signer(name), "00000000-0000-4000-8000-000000000000", LOG, head)
    return note, parse_checkpoint(note.text)


WITNESS = NoteKey("witness", public("ed2"), COSIGNATURE)


def cosign(note: Note, moment: datetime, name: str = "ed2") -> Note:
    time = int(moment.timestamp())
    value = time.to_bytes(8, "big") + PRIVATE[name].sign(cosigned(note.text, time))
    return with_signature(note, NoteSignature(WITNESS.name, WITNESS.key_hash, value))


def judge(note: Note, found: Checkpoint, *keys: TrustedKey, **more: Any) -> Any:
    more.setdefault("within", lambda _: False)
    return check_checkpoint(note, found, str(LOG), {one.id: one for one in keys}, **more)


def test_a_checkpoint_counts_by_its_key() -> None:
    """A checkpoint counts by a trusted Ed25519 key, and by no other."""
    assert judge(*noted(), key("ed")).counts
    stranger = judge(*noted(), key("ed2"))
    assert not stranger.counts
    assert stranger.unsigned
    note, found = noted()
    broken = Note(note.text, (NoteSignature("ed", note.signatures[0].key_hash, b"x" * 64),))
    verdict = judge(broken, found, key("ed"))
    assert not verdict.counts
    assert not verdict.unsigned


def test_unknown_lines_are_ignored() -> None:
    """Lines of keys and algorithms that are not known are left alone, so that others can be added beside ours."""
    note, found = noted()
    for line in (NoteSignature("pq", b"1234", b"x" * 3000), NoteSignature("ed", b"\0\0\0\0", b"x" * 64)):
        assert judge(Note(note.text, (*note.signatures, line)), found, key("ed")).counts


@pytest.mark.parametrize(
    ("until", "size", "within", "counts"),
    [
        ({str(LOG): HEAD}, 5, True, True),
        ({str(LOG): HEAD}, 3, True, True),
        ({str(LOG): HEAD}, 3, False, False),
        ({str(LOG): HEAD}, 6, True, False),
        ({"audits/0": HEAD}, 1, True, False),
        ({}, 1, True, False),
    ],
    ids=["at its head", "smaller, shown", "smaller, another tree", "larger", "log not listed", "ended everywhere"],
)
def test_a_checkpoint_by_an_ended_key(until: dict[str, Head], size: int, within: bool, counts: bool) -> None:
    """A checkpoint by an ended key counts only if its tree is shown to be a prefix of the key's last head."""
    verdict = judge(*noted(head=Head(size, b"\2" * 32)), key("ed", until=until), within=lambda _: within)
    assert verdict.counts is counts
    assert not verdict.unsigned


def test_witnesses_and_quorum() -> None:
    """A checkpoint counts once enough witnesses have cosigned it; a cosignature alone never does."""
    note, found = noted()
    witnessed = cosign(note, NOW)
    assert not judge(note, found, key("ed"), witnesses=[WITNESS], quorum=1).counts
    verdict = judge(witnessed, found, key("ed"), witnesses=[WITNESS], quorum=1, now=NOW)
    assert verdict.counts
    assert verdict.witnessed == (("witness", int(NOW.timestamp())),)
    assert not judge(witnessed, found, witnesses=[WITNESS], quorum=1, now=NOW).counts
    assert not judge(witnessed, found, key("ed"), witnesses=[WITNESS], quorum=2, now=NOW).counts


def test_cosignatures_that_do_not_count() -> None:
    """A cosignature from the future counts for no quorum; one over another note makes the note invalid."""
    note, found = noted()
    for cosigned_note, without_quorum in ((cosign(note, NOW + DAY), True), (cosign(note, NOW, "ed"), False)):
        verdict = judge(cosigned_note, found, key("ed"), witnesses=[WITNESS], quorum=1, now=NOW)
        assert not verdict.counts
        assert verdict.witnessed == ()
        assert judge(cosigned_note, found, key("ed"), witnesses=[WITNESS], now=NOW).counts is without_quorum


def test_older_keys_of_checkpoints() -> None:
    """In order of size an older key does not sign after a newer one."""
    order = KeyOrder()
    older, newer = key("ed", from_=NOW - DAY), key("ed2", from_=NOW)
    counted = [
        judge(*noted(name, Head(size, b"\2" * 32)), older, newer, order=order).counts
        for size, name in enumerate(("ed", "ed2", "ed"), 1)
    ]
    assert counted == [True, True, False]


# --- what is said


class _Away:
    """A key whose KMS does not answer."""

    def __init__(self, one: TrustedKey) -> None:
        self._one = one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._one, name)

    def verify(self, message: bytes, value: bytes) -> None:
        raise KeyUnavailable(f"KMS does not answer about {len(message)} bytes, {len(value)} signed")


def test_each_problem_is_told_whole() -> None:
    """Of each fault: the finding, what happened, the key, and what is expected and found."""
    ((signature, value),) = signed("hmac")
    unknown = check(signed("hmac", "newer"), [key("newer")]).problems[1]
    assert unknown == Problem("key-unknown", "the key 'hmac' is not among those trusted", "hmac")
    assert check(signed("hmac", hmac="Ed25519"), [key("hmac")], wanted=("Ed25519",)).problems == (
        Problem(
            "key-algorithm",
            "the key 'hmac' signs by an algorithm that it does not have",
            "hmac",
            expected="HMAC-SHA256",
            found="Ed25519",
        ),
    )
    assert check(((signature, b"wrong"),), [key("hmac")], subject="audit").problems == (
        Problem("signature", "the signature of key 'hmac' is not over this audit", "hmac"),
    )
    away: Any = _Away(key("hmac"))
    said = f"a signature could not be checked: KMS does not answer about {len(MESSAGE)} bytes, 32 signed"
    assert check(((signature, value),), [away]).problems == (Problem("unreadable", said, "hmac"),)
    (unchecked,) = check(((signature, value),), [key("hmac", material=None)]).problems
    assert (unchecked.kind, unchecked.key) == ("unchecked-signature", "hmac")
    assert "the secret of the key 'hmac' is not available" in unchecked.message
    ended = key("hmac", until={str(LOG): HEAD})
    assert check(((signature, value),), [ended], subject="audit").problems == (
        Problem(
            "key-span",
            "the key 'hmac' ended at this log's size 5, and this audit is not shown to lie within that head",
            "hmac",
        ),
    )
    assert check(((signature, value),), [ended], place=OUTSIDE, subject="note").problems == (
        Problem("key-span", "the key 'hmac' has ended, and nothing shows that it signed this note before", "hmac"),
    )
    order = KeyOrder()
    assert check(signed("newer"), [key("newer", from_=NOW)], order=order).clean
    assert check(((signature, value),), [key("hmac", from_=NOW - DAY)], order=order).problems == (
        Problem("key-span", "the older key 'hmac' signs after the newer 'newer'", "hmac"),
    )
    more = check(signed("hmac", "ed"), [key("hmac"), key("ed")]).problems
    assert more == (Problem("signature", "the statement has a signature by Ed25519, which it may not have"),)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ({"from_": NOW + DAY}, f"sealed from {NOW + DAY} to ever"),
        ({"to": NOW}, f"sealed from ever to {NOW}"),
        ({"from_": NOW - DAY, "to": NOW}, f"sealed from {NOW - DAY} to {NOW}"),
    ],
)
def test_what_is_said_of_a_span(span: dict[str, datetime], expected: str) -> None:
    """The span is said, and when the file was sealed."""
    assert check(signed("hmac"), [key("hmac", **span)]).problems == (
        Problem(
            "key-span",
            "the key 'hmac' signs outside its span",
            "hmac",
            policy=True,
            expected=expected,
            found="2026-03-01T00:00:00.000000Z",
        ),
    )


def test_each_signature_is_looked_at() -> None:
    """What is wrong with one signature keeps no other from being judged."""
    both: tuple[Algorithm, ...] = ("HMAC-SHA256", "Ed25519")
    assert check(signed("hmac", "ed"), [key("ed")], wanted=both).held == ("ed",)
    crossed = signed("hmac", "ed", hmac="Ed25519")
    verdict = check(crossed, [key("hmac"), key("ed")], wanted=both)
    assert verdict.held == ("ed",)
    assert kinds(verdict) == ["signature", "signature", "key-algorithm"]


def test_which_keys_are_newer() -> None:
    """Newer are those of the same algorithm whose span begins later, and no others."""
    mine = key("hmac", from_=NOW)
    others = [mine, key("newer", from_=NOW + DAY), key("ed", from_=NOW + DAY)]
    same = TrustedKey("same", "HMAC-SHA256", from_=NOW, material=Secret(b"s" * 32))
    assert newer_than(mine, {one.id: one for one in [*others, same]}) == {"newer"}


def test_which_keys_sign_notes() -> None:
    """Ed25519 keys do whose public half is known, under names that a note can hold."""
    keys = [key("hmac"), key("ed"), key("ed2", id_="a+b"), key("ed2", id_="hidden", material=None)]
    assert note_keys({one.id: one for one in keys}) == [NoteKey("ed", public("ed"))]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "the statement has no HMAC-SHA256 signature"),
        (("hmac", "newer"), "the statement has 2 HMAC-SHA256 signatures"),
        (("hmac", "ed"), "the statement has a signature by Ed25519, which it may not have"),
    ],
)
def test_which_signatures_are_miscounted(names: tuple[str, ...], said: str) -> None:
    """How many there are is said."""
    verdict = check(signed(*names), [key("hmac"), key("newer"), key("ed")])
    assert [problem.message for problem in verdict.problems] == [said]


def test_what_is_wrong_with_a_checkpoint() -> None:
    """The key at fault is named, and what it did."""
    note, found = noted(head=Head(1, b"\2" * 32))
    broken = Note(note.text, (NoteSignature("ed", note.signatures[0].key_hash, b"x" * 64),))
    (problem,) = judge(broken, found, key("ed")).problems
    assert problem == Problem("signature", "the signature of key 'ed' is not over this checkpoint", "ed")
    ended = key("ed", until={str(LOG): Head(1, b"\1" * 32)})
    assert judge(note, found, ended, within=lambda _: True).counts
    (problem,) = judge(note, found, ended).problems
    assert (problem.kind, problem.key, problem.policy) == ("key-span", "ed", False)
    assert "this checkpoint is not shown to lie within that head" in problem.message


def test_a_checkpoint_of_what_was_sealed_after_its_key() -> None:
    """A span ends before its last moment; what a key signs from then on counts, and is policy."""
    note, found = noted()
    assert judge(note, found, key("ed", to=NOW), sealed_at=NOW - timedelta(microseconds=1)).problems == ()
    verdict = judge(note, found, key("ed", to=NOW), sealed_at=NOW)
    (problem,) = verdict.problems
    assert verdict.counts
    what = "the key 'ed' signs a checkpoint of statements sealed after its span"
    assert problem == Problem("key-span", what, "ed", policy=True)


def test_what_is_wrong_with_a_cosignature() -> None:
    """The witness at fault is named; five minutes ahead is no fault yet."""
    note, found = noted()
    for cosigned_note, kind, policy in (
        (cosign(note, NOW + DAY), "key-span", True),
        (cosign(note, NOW, "ed"), "signature", False),
    ):
        (problem,) = judge(cosigned_note, found, key("ed"), witnesses=[WITNESS], now=NOW).problems
        assert (problem.kind, problem.key, problem.policy) == (kind, "witness", policy)
        assert "the cosignature of 'witness'" in problem.message
    slack = timedelta(minutes=5)
    assert judge(cosign(note, NOW + slack), found, key("ed"), witnesses=[WITNESS], quorum=1, now=NOW).counts
    late = cosign(note, NOW + slack + timedelta(seconds=1))
    assert not judge(late, found, key("ed"), witnesses=[WITNESS], quorum=1, now=NOW).counts


def test_a_line_that_names_a_key_that_signs_no_notes() -> None:
    """An HMAC key, and one whose name no note can hold, sign no checkpoints: such lines are unknown."""
    note, found = noted()
    lines = (NoteSignature("hmac", b"1234", b"x" * 64), NoteSignature("a+b", b"1234", b"x" * 64))
    verdict = judge(Note(note.text, (*lines, *note.signatures)), found, key("ed"), key("hmac"), key("ed2", id_="a+b"))
    assert (verdict.counts, verdict.problems) == (True, ())


# --- and nobody else


def test_nothing_else_verifies() -> None:
    """No module but the policy calls a key's `verify`, and only keys themselves ask the cryptography."""
    allowed = {
        # The policy.
        "custody/tlog/signatures.py": {"key.verify", "witness.verify"},
        # Ed25519 itself, in what `verify` of a key is.
        "custody/tlog/checkpoint.py": {"Ed25519PublicKey.from_public_bytes(self.public).verify"},
        "custody/keys/trust.py": {"Ed25519PublicKey.from_public_bytes(public).verify"},
        # `custody check` tries a signature over a random text, which nothing else takes.
        "tasks/check/keys.py": {"trust.keys[signer.key_id].verify"},
    }
    # `custody verify` itself: a module's function, not a key's method.
    functions = {"verifying.verify"}
    found: dict[str, set[str]] = {}
    for path in sorted(one for room in ("custody", "tasks", "flows") for one in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "verify":
                text = ast.unparse(node)
                if text not in functions:
                    found.setdefault(path.relative_to(ROOT).as_posix(), set()).add(text)
    assert found == allowed
