"""The nightly audit's turn: whatever changes is found within `audit.reread_days`, and a night costs with the new."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.archive import slots
from custody.errors import TransientStoreError
from custody.format import layout
from custody.format.audit import parse as parse_audit
from custody.format.layout import Log
from custody.format.manifest import parse
from custody.format.times import format_time
from custody.store.protocol import ObjectInfo, S3Options
from custody.verify.records import Stretch, names_of
from tasks.audit.turn import choose, share_of
from tasks.settings import AuditSettings, Settings
from tests.helpers.archives import member
from tests.helpers.audit import audit
from tests.helpers.nights import FIRST, LockingStore, Nights, Spread, opened, settings_of
from tests.helpers.sample import event
from tests.servers.s3 import SeaweedServer

REREAD = 6
STATEMENTS = 60
LOG = Log("audit.grows", 0)
NOTICES = frozenset({"stale", "clock"})
Change = Callable[[LockingStore, Spread], str]
"""Changes an archive, and returns the key that the finding names; '' if it names none."""


def put(key: str, store: LockingStore, _: Spread) -> str:
    store.objects[key] = b"not ours"
    return key


def plant(
    date: str, store: LockingStore, _: Spread, first: int = FIRST + 7, last: int | None = None, folder: str = "events"
) -> str:
    """Put a segment, well named, that no statement names: another event at an offset that has one."""
    data = member(event(7).replace(b"request-7", b"planted-7") + b"\n")
    offsets = f"{first:020}-{first if last is None else last:020}"
    key = f"{folder}/{date}-audit.grows-0-{offsets}-{sha256(data).hexdigest()[:16]}.jsonl.gz"
    store.objects[key] = data
    return key


def plant_for_no_log(store: LockingStore, grown: Spread) -> str:
    key = plant("2026/03/02/00/00/00", store, grown)
    made = key.replace("audit.grows-0", "orders-3")
    store.objects[made] = store.objects.pop(key)
    return made


def segment(store: LockingStore, sequence: int) -> str:
    statement = parse(store.objects[layout.manifest_key(LOG, sequence)]).statement
    assert statement.segment
    return statement.segment.key


def remove_segment(store: LockingStore, _: Spread) -> str:
    key = segment(store, 11)
    del store.objects[key]
    return key


def replace_segment(store: LockingStore, _: Spread) -> str:
    key = segment(store, 17)
    store.objects[key] = bytes(len(store.objects[key]))
    return key


def lengthen_segment(store: LockingStore, _: Spread) -> str:
    key = segment(store, 23)
    store.objects[key] += b"\0"
    return key


def overwrite_segment(store: LockingStore, _: Spread) -> str:
    """Put another version above a segment, with the same bytes."""
    key = segment(store, 29)
    store.versions[key] = [store.objects[key], store.objects[key]]
    return key


def hide_segment(store: LockingStore, _: Spread) -> str:
    """Put a delete marker above a segment."""
    key = segment(store, 31)
    store.versions[key] = [None, store.objects.pop(key)]
    return key


def hide_and_restore_manifest(store: LockingStore, _: Spread) -> str:
    key = layout.manifest_key(LOG, 37)
    store.versions[key] = [store.objects[key], None, store.objects[key]]
    return key


def overwrite_audit(store: LockingStore, _: Spread) -> str:
    key = layout.audit_key(0)
    store.versions[key] = [store.objects[key], store.objects[key]]
    return key


def unlock_segment(store: LockingStore, _: Spread) -> str:
    key = segment(store, 41)
    store.unlocked.add(key)
    return key


def unlock_manifest(store: LockingStore, _: Spread) -> str:
    key = layout.manifest_key(LOG, 43)
    store.unlocked.add(key)
    return key


def change_manifest(store: LockingStore, _: Spread) -> str:
    key = layout.manifest_key(LOG, 47)
    store.objects[key] = store.objects[key].replace(b'"writer":"a test"', b'"writer":"a tesT"')
    return ""


def change_audit(store: LockingStore, _: Spread) -> str:
    key = layout.audit_key(1)
    store.objects[key] = store.objects[key].replace(b'"verdict":"notices"', b'"verdict":"policyy"')
    return key


def orphan_of_audits(store: LockingStore, _: Spread) -> str:
    data = b"no audit refers to this"
    key = layout.audit_object_key(sha256(data).hexdigest())
    store.objects[key] = data
    return key


def plant_table(store: LockingStore, _: Spread) -> str:
    key = f"tables/day=2026-03-02/audit.grows-0-{3:012}-{9:012}-1of1-{'0' * 16}.parquet"
    store.objects[key] = b"PAR1"
    return key


def plant_checkpoint(store: LockingStore, _: Spread) -> str:
    key = layout.checkpoint_key(LOG, 19)
    store.objects[key] = b"no checkpoint"
    return key


FOREIGN = (
    *("notes.txt", "other/deep/down.txt", "events/.DS_Store", "events/2026/x", "events/2026/03/zz/x", "events/zz/x"),
    *("events/2026/03/02/07/00/x", "events/2026/03/02/07/00/00/x", "events/1999/x", "quarantine/2026/03/02/x"),
    *("manifests/x", "manifests/no log!/x", "manifests/audit.grows/x", "manifests/audit.grows/00/x"),
    *(
        "manifests/audit.grows/0/0",
        "manifests/audit.grows/0/000000000019",
        "manifests/audit.grows/0/000000000019.jsonx",
    ),
    *("manifests/audit.grows/0/000000000033/x", "manifests/audit.grows/0/zz", "manifests/audit.grows/0/!"),
    *("checkpoints/x", "checkpoints/audit.grows/0/x", "checkpoints/audit.grows/0/000000000020x"),
    *("checkpoints/audit.grows/0/!", "audits/x", "audits/objects/x", "checkpoints/audits/0/x"),
    *("checkpoints/ghost/0/x", "checkpoints/audit.grows@2/0/x", "manifests/ghost/0/x"),
)
DATE = "2026/03/02/19/34/56"
CHANGES: Mapping[str, tuple[str, Change]] = {
    **{f"foreign {key}": ("foreign", partial(put, key)) for key in FOREIGN},
    "unlisted, at its date": ("unlisted", partial(plant, "2026/03/01/19/34/56")),
    "unlisted, long before": ("unlisted", partial(plant, "1999/01/01/00/00/00")),
    "unlisted, long after": ("unlisted", partial(plant, "2099/12/31/23/59/59")),
    "unlisted, of no log": ("unlisted", plant_for_no_log),
    "unlisted, before the first offset": ("unlisted", partial(plant, DATE, first=5)),
    "unlisted, up to the first offset": ("unlisted", partial(plant, DATE, first=5, last=FIRST + 2)),
    "unlisted, to beyond the end": ("unlisted", partial(plant, DATE, first=FIRST + 7, last=2**63 - 1)),
    "unlisted, in quarantine": ("unlisted", partial(plant, DATE, folder="quarantine")),
    "beyond the end": ("orphan", partial(plant, DATE, first=10**15)),
    "beyond the end, in quarantine": ("unlisted", partial(plant, DATE, first=10**15, folder="quarantine")),
    "segment removed": ("segment-missing", remove_segment),
    "segment replaced": ("segment-hash", replace_segment),
    "segment longer": ("segment-size", lengthen_segment),
    "segment overwritten": ("version", overwrite_segment),
    "segment hidden": ("delete-marker", hide_segment),
    "manifest hidden for a time": ("delete-marker", hide_and_restore_manifest),
    "manifest changed": ("signature", change_manifest),
    "segment without a lock": ("lock", unlock_segment),
    "manifest without a lock": ("lock", unlock_manifest),
    "checkpoint planted": ("checkpoint", plant_checkpoint),
    "audit overwritten": ("version", overwrite_audit),
    "audit changed": ("audit", change_audit),
    "object of no audit": ("orphan", orphan_of_audits),
    "table planted": ("tables", plant_table),
}


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Nights, Spread]:
    """An archive that was audited for some nights, in the middle of a turn."""
    store = LockingStore()
    grown = Spread(tmp_path_factory.mktemp("aged"), store)
    grown.append(STATEMENTS)
    with opened(store):
        nights = Nights(store, settings_of(grown.keyring, days=REREAD, piece=4, tables=True), datetime.now(UTC))
        for _ in range(3):
            assert nights.audit().verdict == "notices"
    # Not before: other tests of this module open archives of their own.
    return nights, grown


def branch(nights: Nights) -> Nights:
    """Return these nights, to go on in another way."""
    store = LockingStore(dict(nights.store.objects))
    return Nights(store, nights.settings, nights.now)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_in_time(aged: tuple[Nights, Spread], change: str) -> None:
    """Whatever is added, removed or replaced anywhere is found by one of the next `reread_days` audits."""
    nights, grown = branch(aged[0]), aged[1]
    name, apply = CHANGES[change]
    with opened(nights.store):
        key = apply(nights.store, grown)
        found = [(night, seen) for night, seen, of in nights.until(REREAD) if seen == name and (not key or of == key)]
    assert found, f"{name} {key} was not found in {REREAD} nights"


IN_FOLDER = (
    *(f"foreign {key}" for key in FOREIGN if key.startswith(("manifests/", "checkpoints/"))),
    *("segment removed", "manifest changed", "checkpoint planted", "beyond the end"),
)


@pytest.fixture
def in_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the archive pass for one in a folder, where a listing goes through all names wherever it begins."""
    monkeypatch.setattr(LockingStore, "url", "file:///memory/archive")


@pytest.fixture
def long_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each log pass for a long one: in a folder, its slots are looked for by their names."""
    monkeypatch.setattr(slots, "_FEW", 0)


@pytest.mark.usefixtures("in_folder", "long_logs")
@pytest.mark.parametrize("change", IN_FOLDER)
def test_a_change_in_a_folder_is_found_in_time(aged: tuple[Nights, Spread], change: str) -> None:
    """So is one in a folder, of which most nights list no long log."""
    test_a_change_is_found_in_time(aged, change)


@pytest.mark.usefixtures("in_folder", "long_logs")
@pytest.mark.parametrize("distance", [999, 5000])
def test_what_is_put_behind_the_end_in_a_folder_is_found_in_time(aged: tuple[Nights, Spread], distance: int) -> None:
    """What is near is found in the next night, as all of it is in a bucket; what is far when the log is listed."""
    nights, grown = branch(aged[0]), aged[1]
    with opened(nights.store):
        key = put(layout.manifest_key(LOG, STATEMENTS + distance), nights.store, grown)
        found = [night for night, seen, of in nights.until(REREAD) if (seen, of) == ("statement", key)]
    if distance < 1000:
        assert set(found) == set(range(1, REREAD + 1))
    assert found, f"{key} was not found in {REREAD} nights"


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("distance", [3, 1100])
def test_what_is_put_behind_the_end_of_a_short_log_in_a_folder_is_found_each_night(
    aged: tuple[Nights, Spread], distance: int
) -> None:
    """It is listed, as in a bucket, so what is far is found in the next night too."""
    nights, grown = branch(aged[0]), aged[1]
    with opened(nights.store):
        key = put(layout.manifest_key(LOG, STATEMENTS + distance), nights.store, grown)
        found = [night for night, seen, of in nights.until(2) if (seen, of) == ("statement", key)]
    assert found == [1, 2]


@pytest.mark.usefixtures("in_folder", "long_logs")
def test_a_log_in_a_folder_is_listed_in_one_night_of_a_turn(aged: tuple[Nights, Spread]) -> None:
    """In all other nights the slots of a long log are looked for by their names, at any age."""
    nights = branch(aged[0])
    listed = []
    with opened(nights.store):
        for _ in range(REREAD):
            nights.audit()
            listed.append(sum(call == "list" and key == layout.log_prefix(LOG) for call, key in nights.store.calls))
    assert sorted(listed) == [*[0] * (REREAD - 1), 1]


def night_of(nights: Nights, key: str, refused: int | None, refuses: Callable[..., bool]) -> int:
    """Return the night in which an object is found, if the store refuses some listings of one night."""
    nights.store.objects[key] = b"x"
    listed = nights.store.list
    with opened(nights.store), pytest.MonkeyPatch.context() as patch:
        for night in range(1, 2 * REREAD):

            def refuse(prefix: str = "", night: int = night, **more: Any) -> Iterator[ObjectInfo]:
                if night == refused and refuses(prefix, **more):
                    raise TransientStoreError("503: slow down")
                return listed(prefix, **more)

            patch.setattr(nights.store, "list", refuse)
            if any(problem.get("key") == key for problem in nights.audit().findings):
                return night
    raise AssertionError("it was not found")


def test_a_part_that_cannot_be_listed_is_next_again(aged: tuple[Nights, Spread]) -> None:
    """A night in which the store refuses costs that night, and not a whole turn."""
    key = layout.checkpoint_key(LOG, 19) + "x"

    def refuses(prefix: str, **_: Any) -> bool:
        return prefix.startswith(layout.checkpoint_prefix(LOG))

    found = night_of(branch(aged[0]), key, None, refuses)
    assert night_of(branch(aged[0]), key, found, refuses) == found + 1


@pytest.mark.usefixtures("in_folder")
def test_a_log_in_a_folder_that_cannot_be_listed_is_next_again(aged: tuple[Nights, Spread]) -> None:
    """A folder that refuses in the one night in which a log is listed costs that night, and not a whole turn."""
    key = layout.manifest_key(LOG, 2) + ".bak"

    def refuses(prefix: str, after: str = "", **_: Any) -> bool:
        return prefix == layout.log_prefix(LOG) and not after

    found = night_of(branch(aged[0]), key, None, refuses)
    assert night_of(branch(aged[0]), key, found, refuses) == found + 1


def test_what_is_handed_on_is_also_known_without_it(aged: tuple[Nights, Spread]) -> None:
    """If it is removed each night, old statements are read again as fast as with it, whatever an archive grows by."""

    def covered(keep: bool) -> list[tuple[int, int]]:
        nights, grown = branch(aged[0]), aged[1]
        grown.store, kept = nights.store, grown._statements
        spans: list[tuple[int, int]] = []
        with opened(nights.store):
            for _ in range(REREAD):
                grown.append(9)
                if not keep:
                    for key in [key for key in nights.store.objects if key.startswith("reports/turns/")]:
                        del nights.store.objects[key]
                made = parse_audit(nights.store.objects[layout.audit_key(nights.audit().sequence)]).statement
                spans += [(span.from_, span.to) for span in made.covered[str(LOG)] if span.read == "again"]
        grown._statements = kept
        return spans

    assert covered(keep=False) == covered(keep=True)


def test_nothing_is_found_where_nothing_changed(aged: tuple[Nights, Spread]) -> None:
    """Two turns of an archive that nobody touched, and that grows, end with notices alone."""
    nights, grown = branch(aged[0]), aged[1]
    grown.store, kept = nights.store, grown._statements
    with opened(nights.store):
        for _ in range(2 * REREAD):
            grown.append(3)
            outcome = nights.audit()
            assert {problem["finding"] for problem in outcome.findings} <= NOTICES
    grown._statements = kept


def test_logs_of_all_sizes(tmp_path: Path) -> None:
    """Logs that began at other times, and small ones, raise no alarm; what is planted in any is found in time."""
    store = LockingStore()
    large, later, small = (Spread(tmp_path, store, partition) for partition in range(3))
    later.hours, small.hours = 120, -50
    for grown, statements in ((large, 50), (later, 20), (small, 1)):
        grown.append(statements)
    with opened(store):
        nights = Nights(store, settings_of(large.keyring, days=REREAD, piece=4), datetime.now(UTC))
        for night in range(2 * REREAD):
            # The log with the most statements is another one after some nights.
            later.append(8 if night > 2 else 1)
            large.append(1)
            assert {problem["finding"] for problem in nights.audit().findings} <= NOTICES
        keys = {
            plant("2026/03/04/00/00/00", store, large).replace("grows-0", f"grows-{partition}")
            for partition in range(3)
        }
        data = member(event(7).replace(b"request-7", b"planted-7") + b"\n")
        store.objects |= dict.fromkeys(keys, data)
        found = {key for _, name, key in nights.until(REREAD) if name == "unlisted"}
    assert found >= {key for key in keys if "grows-2" not in key}


def test_a_bucket(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a bucket that keeps versions, and sorts folder by folder, a part is listed as it is in memory."""
    seaweed.use(monkeypatch)
    built = LockingStore()
    grown = Spread(tmp_path, built)
    grown.append(9)
    bucket, client = seaweed.make_bucket(versioned=True), seaweed.client()

    def put_all(objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=f"a/{key}", Body=data)

    put_all(built.objects)
    settings = Settings(
        archive=f"s3://{bucket}/a",
        keys=f"file:{grown.keyring}",
        s3=S3Options(endpoint_url=seaweed.endpoint_url),
        audit=AuditSettings(piece_statements=3, reread_days=3, tables=False),
    )
    now = datetime.now(UTC)
    for night in range(2):
        assert {problem["finding"] for problem in audit(settings, now + timedelta(days=night)).findings} <= NOTICES
    hidden, overwritten = segment(built, 1), layout.manifest_key(LOG, 7)
    client.delete_object(Bucket=bucket, Key=f"a/{hidden}")
    foreign = {"events/2026-x/y", "events/2026/03/01/zz", "manifests/audit.grows/0/000000000004-x/y", "x/y"}
    put_all({overwritten: built.objects[overwritten], **dict.fromkeys(foreign, b"x")})
    found: set[tuple[str, str]] = set()
    for night in range(2, 5):
        found |= {
            (problem["finding"], problem.get("key", ""))
            for problem in audit(settings, now + timedelta(days=night)).findings
        }
    client.close()
    expected = {("foreign", key) for key in foreign} | {("delete-marker", hidden), ("version", overwritten)}
    assert {(name, key) for name, key in found if name not in NOTICES} == expected | {("segment-missing", hidden)}


def handed_on(nights: Nights) -> dict[str, Any]:
    """Return what the newest audit handed on, but for sizes."""
    newest = max(key for key in nights.store.objects if key.startswith("reports/turns/"))
    made: dict[str, Any] = json.loads(nights.store.objects[newest])
    del made["sizes"]
    return made


def test_a_missed_week_is_made_up_for(aged: tuple[Nights, Spread]) -> None:
    """After nights without an audit, all that is due is listed and read at once."""
    nights, grown = branch(aged[0]), aged[1]
    with opened(nights.store):
        keys = {apply(nights.store, grown) for name, (_, apply) in CHANGES.items() if name.startswith("foreign")}
        found = nights.audit(days=REREAD).findings
    assert {problem["key"] for problem in found if problem["finding"] == "foreign"} == keys


@pytest.mark.parametrize("how", ["missing", "changed", "full"])
def test_all_is_listed_where_it_is_not_known(aged: tuple[Nights, Spread], how: str) -> None:
    """A full audit lists all, and so does one that cannot use what the audit before handed on."""
    nights, grown = branch(aged[0]), aged[1]
    keys = {apply(nights.store, grown) for name, (_, apply) in CHANGES.items() if name.startswith("foreign events/")}
    newest = max(key for key in nights.store.objects if key.startswith("reports/turns/"))
    if how == "missing":
        del nights.store.objects[newest]
    elif how == "changed":
        nights.store.objects[newest] = nights.store.objects[newest].replace(b"1970", b"2970").replace(b"2026", b"2096")
    with opened(nights.store):
        found = nights.audit(full=how == "full").findings
    assert {problem["key"] for problem in found if problem["finding"] == "foreign"} == keys


def test_an_audit_of_a_part_hands_on_the_turn(aged: tuple[Nights, Spread]) -> None:
    """An audit of some logs, or of a time, lists no records, and the next one goes on where the one before ended."""
    nights = branch(aged[0])
    before = handed_on(nights)
    with opened(nights.store):
        for request in ({"logs": (str(LOG),)}, {"since": datetime.now(UTC) - timedelta(days=1)}):
            nights.audit(days=0.1, **request)
            assert not any(name == "list" and key.startswith("events/") for name, key in nights.store.calls)
            assert handed_on(nights) == before
        nights.audit(days=0.8)
        after = handed_on(nights)
        assert after["listed"][0] == before["listed"][0]
        assert after["following"] != before["following"]


def test_what_cannot_be_listed_is_due_again(aged: tuple[Nights, Spread]) -> None:
    """Keys that could not be listed are `unreadable`, and are listed in the next night."""
    nights = branch(aged[0])
    store = nights.store

    def refuse(name: str, key: str) -> None:
        if name == "list" and key.startswith("events/"):
            raise TransientStoreError("no answer")

    with opened(store):
        store.before = refuse
        assert "unreadable" in {problem["finding"] for problem in nights.audit().findings}
        store.before = None
        key = put("events/1999/x", store, aged[1])
        found = [night for night, name, of in nights.until(REREAD) if (name, of) == ("foreign", key)]
    assert found


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[tuple[Counter[str], Counter[str]]]]:
    """For two sizes of an archive, the calls of some nights with nothing new: by kind, and reads by key."""
    made: dict[int, list[tuple[Counter[str], Counter[str]]]] = {}
    for size in (60, 600):
        store = LockingStore()
        grown = Spread(tmp_path_factory.mktemp(f"of-{size}"), store)
        grown.append(size)
        with opened(store):
            nights = Nights(store, settings_of(grown.keyring, days=30, piece=20, tables=True), datetime.now(UTC))
            nights.audit()
            made[size] = []
            for _ in range(5):
                nights.audit()
                made[size].append((store.kinds(), Counter(key for name, key in store.calls if name == "read")))
    return made


def test_a_night_costs_with_the_new(costs: Mapping[int, Sequence[tuple[Counter[str], Counter[str]]]]) -> None:
    """An audit with nothing new makes at most 1.2 times the requests in an archive of ten times the age."""
    small, large = (sum((kinds for kinds, _ in costs[size]), Counter[str]()) for size in (60, 600))
    assert large.total() <= 1.2 * small.total(), (small, large)
    for kind, many in large.items():
        assert many <= 1.2 * small[kind] + 20, (kind, small[kind], many)


def test_each_old_object_is_read_once(costs: Mapping[int, Sequence[tuple[Counter[str], Counter[str]]]]) -> None:
    """Of the statements that are read again, each manifest and each segment is read once, but for the pieces' ends."""
    for _, reads in costs[600]:
        segments = [many for key, many in reads.items() if key.startswith("events/")]
        manifests = [many for key, many in reads.items() if key.startswith("manifests/")]
        assert (len(segments), set(segments)) == (20, {1})
        assert len(manifests) <= 24
        assert manifests.count(1) >= 18


@given(st.data())
def test_no_position_is_older_than_the_days(data: st.DataObject) -> None:
    """Whatever a night lists besides, and however many nights are missed, each position is listed when it is due."""
    days = data.draw(st.integers(2, 6))
    names = st.sampled_from(["", *(f"2026/0{month}/{day}" for month in range(1, 4) for day in ("01", "1x", "30"))])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    listed: Sequence[tuple[str, str]] = (("", format_time(now)),)
    ages = dict.fromkeys(("", "0", "2026/01/01", "2026/02/1x/y", "2026/03/30/00", "zz"), now)
    for _ in range(12):
        gap = data.draw(st.sampled_from([1, 1, 1, 2]))
        now += timedelta(days=gap)
        beside = [Stretch(data.draw(names), data.draw(st.none() | names)) for _ in range(data.draw(st.integers(0, 2)))]
        chosen, listed = choose(listed, beside, now, days)
        assert listed[0][0] == ""
        for position in ages:
            if any(stretch.holds(names_of(position)) for stretch in chosen):
                ages[position] = now
            # Nights that are missed delay it, by no more than they are.
            assert now - ages[position] < timedelta(days=days), position


@given(
    st.integers(1, 7), st.integers(1, 400), st.lists(st.integers(0, 90), min_size=20, max_size=20), st.integers(1, 9)
)
def test_each_statement_has_its_turn(days: int, size: int, growth: list[int], step: int) -> None:
    """However a log grows, each statement is read again within the days, also if it grows faster than it is read."""
    read = [0] * size
    start, before = 0, size
    for night, grown in enumerate(growth, 1):
        old = len(read)
        spans = share_of(start, old, before, 1 / days, step)
        for first, end in spans:
            read[first:end] = [night] * (end - first)
        assert len(spans) == 1 or min(read) < night, "what is all read is one range"
        start, before = spans[0][1], old
        assert min(read) > night - days
        read += [night] * grown
