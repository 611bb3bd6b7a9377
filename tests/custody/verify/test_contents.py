"""What is found in a statement's objects does not depend on what was learnt of the objects before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import ObjectArchived
from custody.format import manifest
from custody.format.layout import Log, manifest_key
from custody.store.protocol import ObjectStatus
from custody.verify.contents import check, check_several
from custody.verify.work import Work, work_of
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing

STATEMENTS = 6
LOG = Log("audit.grows", 0)
FOUND = {
    "readable": [],
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
            self._call("read", key)
            raise ObjectArchived(f"{key} is in an archive storage class")
        return super().read(key, **how)

    def status(self, key: str) -> ObjectStatus:
        status, state = super().status(key), self._of(key)
        if "cannot be asked" in state:
            raise ObjectArchived(f"{key} is in an archive storage class")
        class_ = "INTELLIGENT_TIERING" if "another class" in state else "GLACIER" if "archive" in state else "STANDARD"
        digest = None if "without" in state else sha256(self.objects[key]).hexdigest()
        return replace(status, storage_class=class_, sha256=digest)


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[Work]]:
    """The objects of a log, and what its statements say of them."""
    grown = Growing(tmp_path_factory.mktemp("contents"))
    grown.append(STATEMENTS)
    objects = MemoryStore.of_folder(grown.folder).objects
    parsed = (manifest.parse(objects[manifest_key(LOG, sequence)]) for sequence in range(STATEMENTS))
    return objects, [work_of(each.statement, str(LOG)) for each in parsed]


def tiered(objects: Mapping[str, bytes], works: Sequence[Work], states: Sequence[str]) -> Tiered:
    """Return a bucket in which the segments of some statements are in these states."""
    of_key = {work.segment.key: state for work, state in zip(works, states, strict=False) if work.segment}
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
    states=st.lists(st.sampled_from(list(FOUND)), min_size=STATEMENTS, max_size=STATEMENTS),
    known=st.booleans(),
)
def test_what_is_found_does_not_depend_on_the_objects_before(
    statements: tuple[dict[str, bytes], list[Work]], states: list[str], known: bool
) -> None:
    """Whether the status of an object is asked for first, because the last one was archived, or after its bytes."""
    objects, works = statements
    store = tiered(objects, works, states)
    archived = {str(LOG)} if known else set[str]()
    for work, state in zip(works, states, strict=True):
        outcome = check(store, work, archived=archived)
        found = [each.finding for each in outcome.findings] + ["missing"] * len(outcome.missing)
        assert found == FOUND[state], state


def test_an_archived_object_behind_another_takes_one_request(
    statements: tuple[dict[str, bytes], list[Work]],
) -> None:
    """Only where the class changes is there one more."""
    objects, works = statements
    store = tiered(objects, works, ["readable", *["archived"] * 3, "readable", "readable"])
    outcomes = list(check_several(store, works, archived=set()))
    assert [len(outcome.findings) for outcome in outcomes] == [0, 1, 1, 1, 0, 0]
    keys = [work.segment.key for work in works if work.segment]
    assert [[name for name, key in store.calls if key == each] for each in keys] == [
        ["read"],
        ["read", "status"],
        ["status"],
        ["status"],
        ["status", "read"],
        ["read"],
    ]
