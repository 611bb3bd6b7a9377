"""Leaves: the commitment is the one that FORMAT.md describes, and a verifier that has the secret checks it."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.findings import Severity
from custody.format import limits
from custody.format.leaves import LeafMaker, hashes, leaf_hash, root, salts
from custody.format.manifest import Batch, Leaves, SegmentRef
from custody.format.members import pack
from custody.keys.key import LeafKey
from custody.keys.secret import Secret
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.verify.contents import check
from custody.verify.pool import Pool
from custody.verify.work import Outcome, Work
from tests.helpers import archives
from tests.helpers.corpus import EVENTS, compact

SECRET = Secret(bytes(range(32)))
ARCHIVE = "7f1e4c52-0b1f-4f0e-9c33-3a1f3f0f7a11"
LOG = "audit.events@2/3"
GOOD = [compact(event) for event in EVENTS.values()]


def lines(events: list[bytes]) -> bytes:
    return b"".join(event + b"\n" for event in events)


def commitment(events: list[bytes], number: int) -> str:
    """Return what `leaves.sha256` is for the batch of that number."""
    return root(events, salts(SECRET, ARCHIVE, LOG, number, len(events)))


texts = st.binary(max_size=100).map(lambda text: text.replace(b"\n", b" "))


@given(st.lists(texts, max_size=40), st.integers(0, 2**63))
def test_commitment(events: list[bytes], number: int) -> None:
    """The commitment is what a second implementation, written from FORMAT.md, says, whatever the events are."""
    expected = archives.leaves_hash(SECRET.reveal(), ARCHIVE, LOG, number, events)
    assert commitment(events, number) == expected
    opened = LeafMaker(LeafKey("a-key", SECRET), ARCHIVE, LOG).begin(number, len(events) + 3)
    opened.add(events[:4])
    opened.add(events[4:])
    assert opened.end() == Leaves("a-key", expected)


def test_known_answer() -> None:
    """The bytes that go in are fixed: an archive that is written today can be checked in years."""
    made = salts(SECRET, ARCHIVE, LOG, 17, 3)
    seed = b"custody/salts/1\n" + bytes(range(32)) + b"\n7f1e4c52-0b1f-4f0e-9c33-3a1f3f0f7a11\naudit.events@2/3\n17\n"
    assert made == hashlib.shake_256(seed).digest(48)
    assert hashes([b"a", b"", b"c"], made) == b"".join(
        hashlib.sha256(made[16 * place :][:16] + event).digest() for place, event in enumerate([b"a", b"", b"c"])
    )
    # As `openssl dgst` gives it.
    expected = "c4f102728246d71ffb59a16eddf5311a74aa7c6733f66c1d896764ff9230f43c"
    assert commitment([b"a", b"", b"c"], 17) == expected


def test_one_event_of_many() -> None:
    """One event, its salt and its neighbours' leaf hashes make the commitment: no other event is needed."""
    made = salts(SECRET, ARCHIVE, LOG, 5, len(GOOD))
    others = hashes(GOOD, made)
    for place, event in enumerate(GOOD):
        own = leaf_hash(made[16 * place :][:16], event)
        rebuilt = others[: 32 * place] + own + others[32 * place + 32 :]
        assert hashlib.sha256(rebuilt).hexdigest() == commitment(GOOD, 5)


@pytest.mark.parametrize(
    ("archive", "log", "number"),
    [(ARCHIVE.replace("7", "8"), LOG, 5), (ARCHIVE, "audit.events/3", 5), (ARCHIVE, LOG, 6)],
)
def test_salts_are_of_one_place(archive: str, log: str, number: int) -> None:
    """Equal events have other salts in another archive, log or batch, so that nobody sees that they are equal."""
    here, other = salts(SECRET, ARCHIVE, LOG, 5, 100), salts(SECRET, archive, log, number, 100)
    cut = [made[at : at + 16] for made in (here, other) for at in range(0, 1600, 16)]
    assert len(set(cut)) == 200


def test_more_events_than_begun_for() -> None:
    """A batch takes no event for which it has no salt."""
    opened = LeafMaker(LeafKey("a-key", SECRET), ARCHIVE, LOG).begin(0, 3)
    opened.add([b"a", b"b"])
    with pytest.raises(ValueError, match="at most 3"):
        opened.add([b"c", b"d"])


def test_other_number_of_salts() -> None:
    """As many salts as events are needed: none is passed over."""
    for count in (2, 4):
        with pytest.raises(Exception, match="unpack"):
            hashes([b"a", b"b", b"c"], bytes(16 * count))


# --- the verifier


def stored(folder: Path, edit: Mapping[str, Any] | None = None, key: str = "leaves-a") -> tuple[Store, Work]:
    """Store a segment of two batches, the second one's `leaves` or number of events edited."""
    batches, data = [], b""
    for number in (7, 8):
        events = GOOD[: number - 2]
        member = pack(lines(events))
        made = Leaves(key, commitment(events, number))
        batch = Batch(
            number, 100 * number, 100 * number + len(events), len(events), len(data), len(member.data), member.inflated,
            member.sha256, "2026-03-01T12:34:56.789012Z", "2026-03-01T12:34:56.789012Z", None, made,
        )  # fmt: skip
        data += member.data
        batches.append(batch)
    batches[1] = msgspec.structs.replace(batches[1], **edit or {})
    ref = SegmentRef("events/a", len(data), hashlib.sha256(data).hexdigest())
    store = open_store(str(folder))
    store.create(ref.key, data)
    types = dict.fromkeys(EVENTS, 2) | {list(EVENTS)[-1]: 1}
    return store, Work(LOG, 3, 700, 806, ref, batches, dict(sorted(types.items())), None, [], archive=ARCHIVE)


def run(store: Store, work: Work, secrets: Mapping[str, Secret], workers: int) -> Outcome:
    outcomes: list[Outcome] = []
    with Pool(store, workers, outcomes.append, leaves=secrets) as pool:
        pool.put(work)
    (outcome,) = outcomes
    return outcome


WRONG = Leaves("leaves-a", "ab" * 32)


@pytest.mark.parametrize("workers", [0, 1])
def test_verifier(tmp_path: Path, workers: int) -> None:
    """Wrong leaves are tampering where the secret is at hand, in this process and in a worker; else nothing is said."""
    secrets = {"leaves-a": SECRET, "leaves-b": Secret(bytes(32))}
    store, good = stored(tmp_path / "good")
    assert run(store, good, secrets, workers).findings == []
    store, bad = stored(tmp_path / "bad", {"leaves": WRONG})
    (found,) = run(store, bad, secrets, workers).findings
    assert (found.finding, found.severity, found.batch) == ("leaves", Severity.TAMPERED, 8)
    right = commitment(GOOD, 8)
    assert (found.expected, found.found) == (f"SHA-256 {'ab' * 32}", right)
    assert (found.key, found.log, found.sequence) == ("events/a", LOG, 3)
    # The secret of the wrong id is a wrong secret; without any, or without leaves, nothing can be checked.
    other = run(store, good, {"leaves-a": Secret(bytes(32))}, workers)
    assert [one.finding for one in other.findings] == ["leaves"] * 2
    assert run(store, bad, {}, workers).findings == []
    assert run(store, bad, {"leaves-b": SECRET}, workers).findings == []
    assert check(store, bad).findings == []
    store, none = stored(tmp_path / "none", {"leaves": None})
    assert run(store, none, secrets, workers).findings == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("events", [0, 5, 7, limits.BATCH_EVENTS, 2**63 - 1])
def test_another_number_of_events(tmp_path: Path, workers: int, events: int) -> None:
    """A batch that states another number of events than it has says so, once, and costs no memory."""
    store, work = stored(tmp_path, {"events": events})
    findings = run(store, work, {"leaves-a": SECRET}, workers).findings
    assert [one.finding for one in findings] == ["event"]


def test_many_events_stated(tmp_path: Path) -> None:
    """Salts for more events than a group may have are not sent to a worker; the batches are checked all the same."""
    store, work = stored(tmp_path, {"leaves": WRONG})
    more = [msgspec.structs.replace(work.batches[0], number=9 + one, events=10_000, start=2**40) for one in range(200)]
    crowded = msgspec.structs.replace(work, batches=[*work.batches, *more])
    findings = run(store, crowded, {"leaves-a": SECRET}, 1).findings
    assert [one.batch for one in findings if one.finding == "leaves"] == [8]


def test_secrets_stay_here(tmp_path: Path) -> None:
    """What goes to a worker holds salts and no secret, and no secret can be sent to one."""
    _, work = stored(tmp_path)
    with Pool(open_store(str(tmp_path)), 0, lambda _: None, leaves={"leaves-a": SECRET}) as pool:
        sent = pickle.dumps(pool._made([work]))
    assert salts(SECRET, ARCHIVE, LOG, 7, 5) in sent
    assert SECRET.reveal() not in sent
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(SECRET)
