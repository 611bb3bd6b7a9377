"""A folder's tiers: what is old moves to them, and whatever happens on the way it can be read and verified."""

import errno
import gzip
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import custody.store.folder
from custody.errors import StoreError, TierUnmounted, TransientStoreError
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import Report, verify
from tasks.audit.run import Request, conclude, plan_audit, verify_pieces
from tasks.backfill import run as backfill
from tasks.roll import tiers
from tasks.roll.expire import expire
from tasks.roll.indices import Action
from tasks.roll.tiers import measure_usage, roll_folder
from tasks.settings import AuditSettings, Settings, TierSettings
from tests.helpers.sample import Growing, event

NOW = datetime.now(UTC)
QUARANTINED = 7


class Killed(BaseException):
    """The process ends here."""


def content(offset: int) -> bytes:
    return b"no event" if offset == QUARANTINED else event(offset)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """An archive of a statement of 400 days ago, two of 100 days, one of them with a quarantine object, one of 10."""
    made = Growing(tmp_path, begun=NOW - timedelta(days=400), retention_days=1)
    made.append(1)
    made.begun = NOW - timedelta(days=100)
    made.append(2, content)
    made.begun = NOW - timedelta(days=10)
    made.append(1)
    return made


@pytest.fixture
def tiered(growing: Growing) -> Growing:
    """The same, with both tiers made and nothing in them."""
    for name in ("warm", "cold"):
        (growing.folder / ".tiers" / name).mkdir(parents=True)
    return growing


def settings(growing: Growing, **days: int) -> Settings:
    return Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        tiers=TierSettings(**days),  # type: ignore[arg-type]
    )


def roll(growing: Growing, **more: Any) -> list[Action]:
    return list(roll_folder(settings(growing), NOW, **more))


def judged(growing: Growing) -> Report:
    trust = open_trust([f"file:{growing.keyring}"])
    return verify(open_store(str(growing.folder)), trust, now=growing.sealed_at(4), workers=0)


def assert_whole(growing: Growing) -> None:
    report = judged(growing)
    assert (report.exit_code, report.findings) == (0, [])
    assert report.logs[0].events == growing.events - 1


def records(folder: Path) -> list[str]:
    """Return the segments and quarantine objects right in a place, and nothing of places within it."""
    found = (path for part in ("events", "quarantine") for path in (folder / part).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def places(growing: Growing) -> tuple[int, int, int]:
    root = growing.folder
    return len(records(root)), len(records(root / ".tiers/warm")), len(records(root / ".tiers/cold"))


def staged(growing: Growing) -> list[Path]:
    return list((growing.folder / ".tiers").glob("*/.staging/*"))


def everything(growing: Growing) -> dict[str, bytes | None]:
    return {
        path.relative_to(growing.folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in growing.folder.rglob("*")
    }


def test_moved_by_age(tiered: Growing) -> None:
    """Each object goes to the tier of its age, once, with its time; the archive verifies without a finding."""
    assert_whole(tiered)
    before = {key: (tiered.folder / key).stat().st_mtime_ns for key in records(tiered.folder)}
    actions = roll(tiered)
    assert sorted((one.outcome, one.target.rpartition(" ")[2], one.why) for one in actions) == [
        ("done", "cold", "sealed more than 365 days ago"),
        *[("done", "warm", "sealed more than 90 days ago")] * 3,
    ]
    assert places(tiered) == (1, 3, 1)
    for tier in ("warm", "cold"):
        for key in records(tiered.folder / ".tiers" / tier):
            assert (tiered.folder / ".tiers" / tier / key).stat().st_mtime_ns == before[key]
            assert open_store(str(tiered.folder)).status(key).storage_class == tier
    assert not staged(tiered)
    assert_whole(tiered)
    assert roll(tiered) == []


def test_on_as_time_goes_by(tiered: Growing) -> None:
    """What lies in the warm tier goes on to the cold one."""
    roll(tiered)
    assert len(list(roll_folder(settings(tiered), NOW + timedelta(days=300)))) == 4
    assert places(tiered) == (0, 1, 4)
    assert_whole(tiered)


def test_audits_and_usage(tiered: Growing) -> None:
    """A full audit of a tiered archive finds nothing, new statements go on, and the usage tells the tiers apart."""
    roll(tiered)
    given = settings(tiered)
    plan = plan_audit(given, Request(full=True), NOW)
    outcome = conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))
    assert {one["finding"] for one in outcome.findings} <= {"stale"}
    tiered.append(1)
    assert judged(tiered).exit_code == 0
    found = {(one.part, one.storage_class): one.objects for one in measure_usage(given)}
    assert found["events/", "folder"] == 2
    assert (found["events/", "warm"], found["quarantine/", "warm"], found["events/", "cold"]) == (2, 1, 1)
    assert {class_ for part, class_ in found if part == "manifests/"} == {"folder"}


def test_tiers_are_opted_into(growing: Growing) -> None:
    """Without the folders nothing moves, and nothing is said; with one of them, what is old goes there."""
    before = everything(growing)
    assert roll(growing) == []
    assert everything(growing) == before
    (growing.folder / ".tiers/warm").mkdir(parents=True)
    roll(growing)
    assert places(growing) == (1, 4, 0)
    assert not (growing.folder / ".tiers/cold").exists()
    assert_whole(growing)


@pytest.mark.parametrize("name", [".tiers", ".tiers/warm"])
@pytest.mark.parametrize("kind", ["link", "file", "empty"])
def test_what_is_no_tier(growing: Growing, tmp_path: Path, name: str, kind: str) -> None:
    """A link or a file in a tier's place is not followed, and said once; nothing is moved."""
    (tmp_path / "elsewhere").mkdir()
    path = growing.folder / name
    path.parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        path.write_text("")
    elif name == ".tiers":
        path.mkdir()
    actions = roll(growing)
    assert [(one.what, one.outcome) for one in actions] == [("move", "refused")]
    assert str(path if kind != "empty" else growing.folder / ".tiers") in actions[0].why
    assert places(growing)[0] == 5
    assert not list((tmp_path / "elsewhere").iterdir())
    assert_whole(growing)


def test_dry_run(tiered: Growing) -> None:
    """A dry run says what would move, and changes nothing."""
    before = everything(tiered)
    actions = roll(tiered, dry_run=True)
    assert [(one.what, one.outcome) for one in actions] == [("move", "planned")] * 4
    assert everything(tiered) == before


def killing(monkeypatch: pytest.MonkeyPatch, call: str, at: int, *, effect: bool) -> Callable[[], int]:
    """Let the process end in a call of the operating system, with or without its effect; from then on none is made."""
    made = 0

    def patch(name: str) -> None:
        real = getattr(os, name)

        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal made
            if name == call or made > at:
                made += 1
            if made > at:
                if effect and made == at + 1:
                    real(*arguments, **named)
                raise Killed
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, run)

    for name in ("replace", "unlink", "fsync", "mkdir", "write", "utime", "link"):
        patch(name)
    return lambda: made


@pytest.mark.parametrize(
    ("call", "effect"),
    [
        ("fsync", False),
        ("write", False),
        *((call, effect) for call in ("replace", "unlink") for effect in (False, True)),
    ],
)
def test_killed_anywhere(tiered: Growing, tmp_path: Path, call: str, effect: bool) -> None:
    """A roll that dies at any of its steps leaves an archive that verifies, and the next roll goes on to the end."""
    at = 0
    while True:
        copy = tiered.copy(tmp_path / "copy")
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, call, at, effect=effect)
            try:
                roll(copy)
            except Killed:
                ended = False
            else:
                ended = True
        assert_whole(copy)
        roll(copy)
        assert places(copy) == (1, 3, 1)
        assert roll(copy) == []
        assert_whole(copy)
        shutil.rmtree(copy.root)
        if ended:
            break
        at += 1
    assert at >= 4


def test_durable_before_the_hot_one_goes(tiered: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy, its folder and the folders above are synced before the hot object is unlinked, also if found there."""
    steps: list[str] = []
    sync, unlink, replace = os.fsync, os.unlink, os.replace
    root = tiered.folder.resolve()

    def synced(descriptor: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(root)}")
        sync(descriptor)

    def unlinked(path: str) -> None:
        steps.append(f"unlink {Path(path).relative_to(root)}")
        unlink(path)

    def replaced(source: str, target: str) -> None:
        steps.append(f"replace {Path(target).relative_to(root)}")
        replace(source, target)

    key = min(records(tiered.folder))
    place = f".tiers/warm/{Path(key).parent}"
    for name, fake in (("fsync", synced), ("unlink", unlinked), ("replace", replaced)):
        monkeypatch.setattr(os, name, fake)
    open_store(str(tiered.folder)).move(key, "warm")
    at = steps.index(f"replace .tiers/warm/{key}")
    assert steps[at - 1].startswith("sync .tiers/warm/.staging/")
    assert {f"sync {above}" for above in (".tiers", ".tiers/warm", ".tiers/warm/events")} <= set(steps[:at])
    assert steps[at + 1 :] == [f"sync .tiers/warm/{key}", f"sync {place}", f"unlink {key}"]

    shutil.copy(tiered.folder / ".tiers/warm" / key, tiered.folder / key)
    steps.clear()
    open_store(str(tiered.folder)).move(key, "warm")
    assert steps[-3:] == [f"sync .tiers/warm/{key}", f"sync {place}", f"unlink {key}"]
    assert f"sync {Path(place).parent}" in steps


def test_a_copy_that_reads_differently(tiered: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not give back what was written gets no object: the hot one stays, and nothing has its name."""
    real = os.write

    def damage(descriptor: int, data: memoryview) -> int:
        return real(descriptor, bytes([data[0] ^ 1]) + bytes(data[1:]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", damage)
        actions = roll(tiered)
    assert [one.outcome for one in actions] == ["failed"] * 4
    assert "does not read as it was written" in actions[0].why
    assert places(tiered) == (5, 0, 0)
    assert not staged(tiered)
    assert_whole(tiered)


def test_two_equal_copies_are_one(tiered: Growing) -> None:
    """Whatever places hold a copy, the object is listed once, and the next roll leaves the coldest one."""
    keys = records(tiered.folder)
    for key in keys:
        for tier in ("warm", "cold"):
            target = tiered.folder / ".tiers" / tier / key
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiered.folder / key, target)
    assert_whole(tiered)
    assert {one.outcome for one in roll(tiered)} == {"done"}
    assert places(tiered) == (1, 1, 5)
    assert_whole(tiered)


def test_two_other_copies_stay(tiered: Growing) -> None:
    """Of copies that differ none is removed, and the roll says so; the hot one is what is read."""
    roll(tiered)
    key = records(tiered.folder / ".tiers/warm")[0]
    good = (tiered.folder / ".tiers/warm" / key).read_bytes()
    (tiered.folder / key).write_bytes(good)
    (tiered.folder / ".tiers/warm" / key).write_bytes(good[:-1] + b"x")
    assert_whole(tiered)
    (action,) = roll(tiered)
    assert (action.what, action.target, action.outcome) == ("move", f"{key} to warm", "failed")
    assert "different bytes" in action.why
    assert (tiered.folder / key).read_bytes() == good
    assert (tiered.folder / ".tiers/warm" / key).read_bytes() == good[:-1] + b"x"
    (tiered.folder / ".tiers/warm" / key).unlink()
    assert [one.outcome for one in roll(tiered)] == ["done"]
    assert_whole(tiered)


@pytest.mark.parametrize("tier", ["warm", "cold"])
def test_a_flipped_bit_in_a_tier(tiered: Growing, tier: str) -> None:
    """Verification reads what lies in tiers as it reads the rest."""
    roll(tiered)
    path = tiered.folder / ".tiers" / tier / records(tiered.folder / ".tiers" / tier)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert judged(tiered).exit_code == 13


def test_lost_in_a_tier(tiered: Growing) -> None:
    """An object that is gone from a tier which is there is missing; a stranger's object is found."""
    roll(tiered)
    path = tiered.folder / ".tiers/warm" / records(tiered.folder / ".tiers/warm")[0]
    data = path.read_bytes()
    path.unlink()
    assert (judged(tiered).exit_code, [one.finding for one in judged(tiered).findings]) == (11, ["segment-missing"])
    path.write_bytes(data)
    assert_whole(tiered)
    stranger = tiered.folder / ".tiers/warm/events/2026/01/01/00/00/00-x.jsonl.gz"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(gzip.compress(b"{}\n"))
    assert judged(tiered).findings


# --- mounts


def unmount(growing: Growing, tier: str, how: str) -> Callable[[], None]:
    """Take a tier away as a missing mount does, and return what mounts it again."""
    path, away = growing.folder / ".tiers" / tier, growing.root / "unmounted"
    shutil.move(path, away)
    match how:
        case "empty":
            path.mkdir()
        case "other":
            other = ".tier-cold" if tier == "warm" else ".tier-warm"
            path.mkdir()
            shutil.copy(growing.folder / other, path / ".tier")
        case "all":
            shutil.move(growing.folder / ".tiers", growing.root / "all")

    def mount() -> None:
        if how == "all":
            shutil.move(growing.root / "all", growing.folder / ".tiers")
        shutil.rmtree(path, ignore_errors=True)
        shutil.move(away, path)

    return mount


HOW = ["empty", "absent", "other", "all"]
"""The folder that is mounted on is empty, or not there; another disk is mounted; nor is `.tiers` there."""


@pytest.mark.parametrize("tier", ["warm", "cold"])
@pytest.mark.parametrize("how", HOW)
def test_not_mounted(tiered: Growing, tier: str, how: str) -> None:
    """A tier that is not mounted is said once, with what to do; nothing in it is called missing; mounted, all is well.

    The rest is verified, and what is drained meanwhile is archived.
    """
    roll(tiered)
    hidden = len(records(tiered.folder / ".tiers" / tier)) if how != "all" else 4
    mount = unmount(tiered, tier, how)
    report = judged(tiered)
    assert report.exit_code == 12
    assert {one.finding for one in report.findings} == {"unmounted"}
    listed, read = report.findings if report.findings[0].log is None else reversed(report.findings)
    assert (listed.count, read.count) == (1, hidden)
    assert re.search(r"the tier '\w+' is not mounted at .*; mount it", read.message)
    assert report.logs[0].events == (5 if how == "all" else {"warm": 10, "cold": 14}[tier])
    tiered.append(1)
    assert {one.finding for one in judged(tiered).findings} == {"unmounted"}
    mount()
    assert_whole(tiered)


@pytest.mark.parametrize("how", HOW)
def test_nothing_moves_or_ends_where_a_tier_is_not_mounted(tiered: Growing, how: str) -> None:
    """The roll writes nothing into a mount's folder, and calls nothing expired; mounted again, both go on."""
    roll(tiered)
    later = NOW + timedelta(days=300)
    mount = unmount(tiered, "cold", how)
    before = everything(tiered)
    (action,) = roll_folder(settings(tiered), later)
    assert (action.what, action.outcome) == ("move", "refused")
    assert "mount it" in action.why
    with pytest.raises(TierUnmounted, match="mount it"):
        list(expire(settings(tiered, life_days=50), NOW))
    assert everything(tiered) == before
    mount()
    assert {one.outcome for one in roll_folder(settings(tiered), later)} == {"done"}
    assert places(tiered) == (0, 1, 4)
    assert_whole(tiered)


def test_a_backfill_where_a_tier_is_not_mounted(tiered: Growing, tmp_path: Path) -> None:
    """What lies there is not called lost: the backfill says what to mount, and then copies everything."""
    roll(tiered)
    mount = unmount(tiered, "warm", "empty")
    since, until = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    request = backfill.Request(since=since, until=until, target="folder", folder=str(tmp_path / "out"))
    with pytest.raises(TierUnmounted, match="mount it"):
        backfill.plan_backfill(settings(tiered), request)
    mount()
    plan = backfill.plan_backfill(settings(tiered), request)
    assert backfill.copy(settings(tiered), plan).created == tiered.events - 1


def test_unmounted_while_a_store_is_open(tiered: Growing) -> None:
    """A mount that goes while somebody reads is noticed as well."""
    roll(tiered)
    key = records(tiered.folder / ".tiers/warm")[0]
    store = open_store(str(tiered.folder))
    assert store.exists(key)
    unmount(tiered, "warm", "empty")
    for ask in (store.exists, store.status, store.remove, lambda one: store.read(one, limit=1 << 20)):
        with pytest.raises(TierUnmounted):
            ask(key)


@contextmanager
def stale(path: Path, number: int) -> Iterator[None]:
    """Let the operating system refuse all under a path, as it does where a mount is stale, or its disk fails."""

    def refusing(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *more: Any, **named: Any) -> Any:
            where = "" if isinstance(first, int) else os.fspath(first)
            if where == str(path) or where.startswith(f"{path}/"):
                raise OSError(number, os.strerror(number), where)
            return inner(first, *more, **named)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("open", "lstat", "stat", "scandir", "mkdir", "unlink"):
            patched.setattr(os, name, refusing(getattr(os, name)))
        yield


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN], ids=errno.errorcode.get)
def test_a_mount_that_is_stale(tiered: Growing, number: int) -> None:
    """A tier that answers with errors is said not to be mounted, or to be unreadable: nothing in it is called missing.

    It is so whether it fails before an archive is opened or behind, as a whole or in a part; and nothing is moved.
    """
    roll(tiered)
    before = everything(tiered)
    trust = open_trust([f"file:{tiered.keyring}"])
    opened = open_store(str(tiered.folder))
    path = tiered.folder / ".tiers/warm"
    with stale(path, number):
        reports = [judged(tiered), verify(opened, trust, now=tiered.sealed_at(4), workers=0)]
        (action,) = roll_folder(settings(tiered), NOW + timedelta(days=300))
        with pytest.raises(StoreError):
            list(expire(settings(tiered, life_days=50), NOW))
    assert (action.what, action.outcome) == ("move", "refused")
    with stale(path / "events", number):
        reports.append(judged(tiered))
        with pytest.raises(StoreError, match="cannot list"):
            list(roll_folder(settings(tiered), NOW + timedelta(days=300)))
    said = [({one.finding for one in report.findings}, report.exit_code) for report in reports]
    assert said == [({"unmounted"}, 12), ({"unreadable"}, 12), ({"unreadable"}, 12)]
    assert everything(tiered) == before
    assert_whole(tiered)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO], ids=errno.errorcode.get)
def test_a_stale_mount_that_was_never_used(tiered: Growing, number: int) -> None:
    """Nothing is moved to any tier while one cannot be looked at, which is said; then all is."""
    with stale(tiered.folder / ".tiers/cold", number):
        (action,) = roll(tiered)
        report = judged(tiered)
    assert (action.what, action.outcome, ".tiers/cold" in action.why) == ("move", "refused", True)
    assert places(tiered) == (5, 0, 0)
    assert ({one.finding for one in report.findings}, report.exit_code) == ({"unreadable"}, 12)
    assert {one.outcome for one in roll(tiered)} == {"done"}


def test_a_tier_is_marked_at_its_first_use(tiered: Growing) -> None:
    """A tier that nothing was moved to may come and go; one that is copied without its mark gets it as the error says.

    One that is given up is forgotten once its record is gone.
    """
    shutil.rmtree(tiered.folder / ".tiers/warm")
    assert_whole(tiered)
    (tiered.folder / ".tiers/warm").mkdir()
    roll(tiered)
    for tier in ("warm", "cold"):
        record, mark = tiered.folder / f".tier-{tier}", tiered.folder / ".tiers" / tier / ".tier"
        assert record.read_bytes() == mark.read_bytes()
        mark.unlink()
        assert judged(tiered).exit_code == 12
        shutil.copy(record, mark)
        assert_whole(tiered)
    assert {info.key for info in open_store(str(tiered.folder)).list() if "tier" in info.key} == set()
    for tier in ("warm", "cold"):
        shutil.copytree(tiered.folder / ".tiers" / tier, tiered.folder, dirs_exist_ok=True)
        (tiered.folder / f".tier-{tier}").unlink()
    shutil.rmtree(tiered.folder / ".tiers")
    (tiered.folder / ".tier").unlink()
    assert_whole(tiered)


def test_another_archives_tier(tiered: Growing, tmp_path: Path) -> None:
    """Nothing is moved to a tier that another archive has marked."""
    other = Growing(tmp_path / "other", begun=NOW - timedelta(days=100))
    other.append(1)
    (other.folder / ".tiers/warm").mkdir(parents=True)
    roll(other)
    shutil.rmtree(tiered.folder / ".tiers/warm")
    shutil.move(other.folder / ".tiers/warm", tiered.folder / ".tiers/warm")
    actions = [one for one in roll(tiered) if one.target.endswith("warm")]
    assert {one.outcome for one in actions} == {"failed"}
    assert "another archive" in actions[0].why
    assert places(tiered)[0] == 4


def test_expired_in_tiers(tiered: Growing) -> None:
    """The end of life comes in tiers too, in every place that holds a copy, and what is left verifies."""
    roll(tiered)
    key = records(tiered.folder / ".tiers/cold")[0]
    shutil.copy(tiered.folder / ".tiers/cold" / key, tiered.folder / key)
    given = settings(tiered, life_days=50)
    actions = [one for one in expire(given, NOW) if one.what == "delete"]
    assert [one.outcome for one in actions] == ["done"] * 4
    assert places(tiered) == (1, 0, 0)
    report = judged(tiered)
    assert report.exit_code in {0, 3}
    assert report.logs[0].expired == 3


def test_expired_whatever_the_order(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder lists in any order: old days are met behind young ones, too."""
    real = custody.store.folder.FolderStore._scan

    def backwards(store: Any, *arguments: Any) -> Any:
        return iter(sorted(real(store, *arguments), key=lambda entry: entry.name))

    for path in (growing.folder / "events").rglob("*.gz"):
        young = growing.folder / "events/2999/01/01/00/00" / path.name
        young.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, young)
    monkeypatch.setattr(custody.store.folder.FolderStore, "_scan", backwards)
    actions = [one for one in expire(settings(growing, life_days=50), NOW) if one.what == "delete"]
    assert len(actions) == 4


def test_one_broken_object_stops_no_other(tiered: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be moved is said, and tried again by the next roll; many in a row end this one."""
    real = custody.store.folder.FolderStore.move
    bad = {records(tiered.folder)[0]}

    def move(store: Any, key: str, tier: str) -> None:
        if key in bad:
            raise TransientStoreError("the disk is busy")
        real(store, key, tier)

    with monkeypatch.context() as patch:
        patch.setattr(custody.store.folder.FolderStore, "move", move)
        assert sorted(one.outcome for one in roll(tiered)) == ["done", "done", "done", "failed"]
        bad = set(records(tiered.folder)) | bad
        patch.setattr(tiers, "_FAILURES", 1)
        assert [one.outcome for one in roll(tiered)] == ["failed", "refused"]
    assert [one.outcome for one in roll(tiered)] == ["done"]
    assert_whole(tiered)


def test_a_log_that_cannot_be_dated(tiered: Growing) -> None:
    """A manifest that is none is a failure of its log, and keeps the roll from nothing else."""
    other = Growing(tiered.root, partition=1, begun=NOW - timedelta(days=100))
    other.append(1)
    for path in sorted((tiered.folder / "manifests" / "audit.grows" / "0").iterdir())[:-1]:
        path.unlink()
        path.write_text("{}")
    actions = roll(tiered)
    assert [(one.target.partition(" ")[0], one.outcome) for one in actions if one.outcome == "failed"] == [
        (tiered.log, "failed")
    ]
    assert sum(one.outcome == "done" for one in actions) == 1
