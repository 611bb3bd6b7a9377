"""What is found in a statement's objects does not depend on what was learnt of the objects before it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import ObjectArchived, TransientStoreError
from custody.format import manifest
from custody.format.layout import Log, manifest_key
from custody.format.manifest import QuarantineRef, SegmentRef
from custody.store.protocol import ObjectStatus
from custody.verify.contents import Archived, check, check_several
from custody.verify.work import Work, work_of
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing, event

STATEMENTS = 6
LOG = Log("audit.grows", 0)
FOUND: dict[str, list[str]] = {
    "readable": [],
    "readable, and its status cannot be asked for": [],
    "archived": ["deferred"],
    "changed": ["segment-hash"],
    "archived and changed": ["segment-hash"],
    "archived and longer": ["segment-size"],
    "archived without a digest": ["unreadable"],
    "archived, and its status cannot be asked for": ["unreadable"],
    "in an archive tier of another class": ["deferred"],
    "gone": ["missing"],
}


@dataclass
class Tiered(MemoryStore):
    """A bucket whose objects are in several storage classes, and harmed in several ways."""

    states: Mapping[str, str] = field(default_factory=dict)

    def _of(self, key: str) -> str:
        return self.states.get(key, "readable")

    def read(self, key: str, **how: Any) -> bytes:
        if "archive" in self._of(key):
            super().read(key, **how)
            raise ObjectArchived(f"{key} is in an archive storage class")
        return super().read(key, **how)

    def status(self, key: str) -> ObjectStatus:
        status, state = super().status(key), self._of(key)
        if "cannot be asked" in state:
            raise TransientStoreError(f"cannot look at {key}: 503")
        class_ = "INTELLIGENT_TIERING" if "another class" in state else "GLACIER" if "archive" in state else "STANDARD"
        digest = None if "without" in state else sha256(self.objects[key]).hexdigest()
        return replace(status, storage_class=class_, sha256=digest)


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[Work]]:
    """The objects of a log, and what its statements say of them."""
    grown = Growing(tmp_path_factory.mktemp("contents"))
    # Each statement has a segment and a quarantine object.
    grown.append(STATEMENTS, lambda offset: b"no event" if offset % 5 == 4 else event(offset))
    objects = MemoryStore.of_folder(grown.folder).objects
    parsed = (manifest.parse(objects[manifest_key(LOG, sequence)]) for sequence in range(STATEMENTS))
    return objects, [work_of(each.statement, str(LOG)) for each in parsed]


def keys_of(works: Sequence[Work]) -> list[str]:
    """Return the keys of the objects of some statements, in the order in which they are checked."""
    return [ref.key for work in works for ref in (work.segment, work.quarantine) if ref is not None]


def tiered(objects: Mapping[str, bytes], works: Sequence[Work], states: Sequence[str]) -> Tiered:
    """Return a bucket in which the objects of some statements are in these states."""
    of_key = dict(zip(keys_of(works), states, strict=True))
    harmed = dict(objects)
    for key, state in of_key.items():
        data = harmed[key]
        if state == "gone":
            del harmed[key]
        elif "changed" in state:
            harmed[key] = data[:-1] + bytes([data[-1] ^ 1])
        elif "longer" in state:
            harmed[key] = data + b"\0"
    return Tiered(harmed, states=of_key)


@given(
    states=st.lists(st.sampled_from(list(FOUND)), min_size=2 * STATEMENTS, max_size=2 * STATEMENTS),
    known=st.booleans(),
)
def test_what_is_found_does_not_depend_on_the_objects_before(
    statements: tuple[dict[str, bytes], list[Work]], states: list[str], known: bool
) -> None:
    """Whether the status of an object is asked for first, because the last one was archived, or after its bytes."""
    objects, works = statements
    store = tiered(objects, works, states)
    archived: Archived = {(str(LOG), kind) for kind in (SegmentRef, QuarantineRef) if known}
    for work, of_work in zip(works, zip(states[::2], states[1::2], strict=True), strict=True):
        outcome, alone = check(store, work, archived=archived), check(store, work)
        assert (outcome.findings, outcome.missing) == (alone.findings, alone.missing)
        found = Counter([*(each.finding for each in outcome.findings), *["missing"] * len(outcome.missing)])
        assert found == Counter(chain.from_iterable(FOUND[state] for state in of_work)), of_work


def test_an_archived_object_behind_another_takes_one_request(
    statements: tuple[dict[str, bytes], list[Work]],
) -> None:
    """Only where the class of a log's segments changes is there one more. Those of quarantine are not moved here."""
    objects, works = statements
    segments = ["readable", *["archived"] * 3, "readable", "readable"]
    store = tiered(objects, works, [state for each in segments for state in (each, "readable")])
    outcomes = list(check_several(store, works, archived=set()))
    assert [len(outcome.findings) for outcome in outcomes] == [0, 1, 1, 1, 0, 0]
    assert [[name for name, key in store.calls if key == each] for each in keys_of(works)[::2]] == [
        ["read"],
        ["read", "status"],
        ["status"],
        ["status"],
        ["status", "read"],
        ["read"],
    ]
    assert [[name for name, key in store.calls if key == each] for each in keys_of(works)[1::2]] == [["read"]] * 6
