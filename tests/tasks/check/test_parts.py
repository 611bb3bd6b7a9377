"""Each line of a check that needs no server: settings, keys, a folder, alerts; and how the parts are run."""

import errno
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from custody.archive.reader import read_archive
from custody.cli.keys import public_keys
from custody.errors import StoreError, TerminalStoreError, TransientSourceError
from custody.format import layout
from custody.keys import trust_file
from custody.keys.keyring import Keyring, new_keyring, rotate_keyring
from custody.store import folder as folder_store
from custody.store.folder import FolderStore
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.verify.run import verify
from tasks.check import alerts, archive, keys, metrics, prefect, retention
from tasks.check import settings as settings_check
from tasks.check.model import PARTS, Line, Part, Reporter, worst_level
from tasks.check.run import CHECKS, Asked, run_checks
from tasks.settings import AlertSettings, DrainSettings, KafkaSettings, MetricsSettings, SearchSettings, Settings
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing
from tests.servers.kms import ED25519_ARN, HMAC_ARN, FakeKms
from tests.servers.ports import free_ports

TOKEN = "xoxb-s3cret"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear_settings(monkeypatch)
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """An archive in a folder, with its keyring and trust.json."""
    made = Growing(tmp_path / "site")
    made.append(1)
    publish(made)
    return made


def publish(growing: Growing) -> None:
    pin = read_archive(FolderStore(str(growing.folder))).pin
    trust_file.publish(growing.root / "trust.json", pin, public_keys(given(growing)))


def given(growing: Growing, **more: Any) -> Settings:
    """Return the settings of an archive, with a broker that does not answer."""
    (port,) = free_ports(1)
    values = {"kafka": KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}"), **more}
    return Settings(**{"archive": str(growing.folder), "keys": f"file:{growing.keyring}", **values})


def now() -> datetime:
    return datetime.now(UTC)


def of(lines: Iterator[Line], subject: str) -> Line:
    """Return the only line about a subject."""
    (line,) = (line for line in lines if line.subject == subject)
    return line


def asked(settings: Settings) -> Asked:
    return Asked(settings, now(), Path("deployments.yaml"))


# How the parts are run.


def test_a_part_that_raises_hides_no_other(growing: Growing) -> None:
    """Whatever a part meets becomes a failed line, without the text of an error that may hold a secret."""

    def ours(_: Asked) -> Iterator[Line]:
        yield Reporter("keys").ok("first", "it worked")
        raise TransientSourceError("the broker is away")

    def bug(_: Asked) -> Iterator[Line]:
        raise ValueError(TOKEN)

    checks = {**dict.fromkeys(PARTS, CHECKS["alerts"]), "keys": ours, "search": bug}
    lines = run_checks(asked(given(growing)), checks=checks)
    by_part = {part: [line for line in lines if line.part == part or line.part == "alerts"] for part in PARTS}
    assert all(by_part.values())
    assert [(line.subject, line.level, line.passing) for line in lines if line.part == "keys"] == [
        ("first", "ok", False),
        ("check", "failed", True),
    ]
    (line,) = (line for line in lines if line.part == "search")
    assert (line.level, line.passing) == ("failed", False)
    assert "ValueError" in line.message
    assert TOKEN not in repr(lines)


def test_a_part_that_is_late_is_left_alone(growing: Growing) -> None:
    """What a late part has said so far is shown, and that it did not end."""
    release = threading.Event()

    def late(_: Asked) -> Iterator[Line]:
        yield Reporter("kafka").ok("login", "it worked")
        release.wait(60)

    checks = {**dict.fromkeys(PARTS, CHECKS["alerts"]), "kafka": late}
    try:
        lines = run_checks(asked(given(growing)), seconds=0.5, checks=checks)
    finally:
        release.set()
    assert [(line.subject, line.level) for line in lines if line.part == "kafka"] == [
        ("login", "ok"),
        ("check", "failed"),
    ]
    assert sum(line.part == "alerts" for line in lines) == len(PARTS) - 1


def test_lines_come_in_the_order_of_the_parts(growing: Growing) -> None:
    """All parts are there, in one order; a part that is left out is not."""
    lines = run_checks(asked(given(growing)), left_out={"prefect"})
    shown = list(dict.fromkeys(line.part for line in lines))
    assert shown == [part for part in PARTS if part != "prefect"]
    assert worst_level(lines) == "failed"
    kafka = [line for line in lines if line.part == "kafka"]
    assert [(line.subject, line.level, line.passing) for line in kafka] == [("login", "failed", True)]
    assert "Connection refused" in kafka[0].message


# Settings.


def test_settings_say_where_they_are_from(growing: Growing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file's path and the variables' names are shown, and never a value."""
    (tmp_path / "custody.toml").write_text(f'archive = "{growing.folder}"\n')
    monkeypatch.setenv("CUSTODY_KEYRING_PASSPHRASE", TOKEN)
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", "custody-eu")
    monkeypatch.setenv("CUSTODY_SOMETHING_OF_OTHERS", TOKEN)
    lines = list(settings_check.check(Settings()))
    assert str(tmp_path / "custody.toml") in of(iter(lines), "file").message
    assert "2 variables: CUSTODY_KAFKA__GROUP, CUSTODY_KEYRING_PASSPHRASE" in of(iter(lines), "variables").message
    assert {line.level for line in lines} == {"ok"}
    assert TOKEN not in repr(lines)


def test_dangerous_settings_and_those_without_effect_are_warned_of(growing: Growing) -> None:
    """A warning for each, with a remedy."""
    search = SearchSettings(api_key=SecretStr(TOKEN))
    drain = DrainSettings(task_runner="threads")
    settings = given(growing, search=search, drain=drain, s3={"endpoint_url": "http://s3.example"})
    lines = [line for line in settings_check.check(settings) if line.level != "ok"]
    assert [line.subject for line in lines] == [
        "s3.endpoint_url",
        "search.api_key",
        "s3.endpoint_url",
        "drain.task_runner",
    ]
    assert {line.level for line in lines} == {"warning"}
    assert all(line.remedy for line in lines)
    assert TOKEN not in repr(lines)


def test_a_missing_libdeflate_is_warned_of(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """It matters unless all batches are fast, and the warning says what to install."""
    settings = given(growing)
    assert [line for line in settings_check.check(settings) if line.subject == "drain.compression"] == []
    monkeypatch.setattr(settings_check, "has_libdeflate", lambda: False)
    warning = of(settings_check.check(settings), "drain.compression")
    assert (warning.level, "custody-archive[dense]" in warning.remedy) == ("warning", True)
    fast = given(growing, drain=DrainSettings(compression="fast"))
    assert [line for line in settings_check.check(fast) if line.subject == "drain.compression"] == []


# Keys.


def test_keys_that_sign(growing: Growing) -> None:
    """Each key signs and is verified, and trust.json lists both."""
    lines = list(keys.check(given(growing), now()))
    assert [(line.subject, line.level) for line in lines] == [
        ("HMAC-SHA256", "ok"),
        ("Ed25519", "ok"),
        ("trust.json", "ok"),
    ]


def test_a_keyring_that_is_missing_or_open_to_others_fails(growing: Growing) -> None:
    """The file's name is in the message; it will not pass by itself."""
    growing.keyring.chmod(0o644)
    (line,) = keys.check(given(growing), now())
    assert (line.level, line.passing) == ("failed", False)
    assert "others can read" in line.message
    growing.keyring.unlink()
    (line,) = keys.check(given(growing), now())
    assert line.level == "failed"
    assert "no such file" in line.message


def test_a_key_that_has_ended_or_ends_soon(growing: Growing) -> None:
    """A key that ends within 30 days is a warning; once it has ended, nothing signs."""
    ring = Keyring.load(growing.keyring)
    growing.keyring.unlink()
    ends = now() + timedelta(days=10)
    # A rotation ends the keys; without the new ones, these are what is left.
    Keyring(ring.rotate(ends, timedelta(0)).keys[: len(ring.keys)]).save(growing.keyring)
    soon = [line for line in keys.check(given(growing), now()) if line.level == "warning"]
    assert [line.subject for line in soon] == ["HMAC-SHA256", "Ed25519"]
    assert all("custody keys rotate" in line.remedy for line in soon)
    ended = [line for line in keys.check(given(growing), ends) if line.level == "failed"]
    assert [line.subject for line in ended] == ["hmac", "ed25519"]


def test_a_rotation_that_auditors_do_not_know_of(growing: Growing) -> None:
    """A trust.json that lacks a key that signs is a warning, until it is exported."""
    rotate_keyring(growing.keyring)
    line = of(keys.check(given(growing), now()), "trust.json")
    assert line.level == "warning"
    assert "custody keys export" in line.remedy
    publish(growing)
    assert of(keys.check(given(growing), now()), "trust.json").level == "ok"


def test_a_passphrase_beside_a_plain_keyring(growing: Growing) -> None:
    """It encrypts nothing: a warning, until a rotation encrypts the keyring."""
    settings = given(growing, keyring_passphrase=SecretStr(TOKEN))
    lines = list(keys.check(settings, now()))
    assert of(iter(lines), "keyring_passphrase").level == "warning"
    assert TOKEN not in repr(lines)
    rotate_keyring(growing.keyring, passphrase=TOKEN)
    assert not [line for line in keys.check(settings, now()) if line.subject == "keyring_passphrase"]


def test_keys_in_kms(fake_kms: FakeKms) -> None:
    """Keys in KMS really sign and verify there; one that may not is a failure."""
    settings = Settings(keys=f"aws-kms:///{HMAC_ARN}", checkpoint_keys=f"aws-kms:///{ED25519_ARN}")
    lines = [line for line in keys.check(settings, now()) if line.subject != "trust.json"]
    assert [(line.subject, line.level) for line in lines] == [("HMAC-SHA256", "ok"), ("Ed25519", "ok")]
    assert {"GenerateMac", "VerifyMac", "Sign"} <= set(fake_kms.asked)
    fake_kms.refused.add("GenerateMac")
    lines = [line for line in keys.check(settings, now()) if line.subject != "trust.json"]
    assert [(line.subject, line.level) for line in lines] == [("HMAC-SHA256", "failed"), ("Ed25519", "ok")]
    assert "AccessDenied" in lines[0].message


# The archive in a folder.


def test_a_folder_that_works(growing: Growing) -> None:
    """All is tried, nothing is left, and the archive verifies as before."""
    lines = list(archive.check(given(growing), now()))
    assert [(line.subject, line.level) for line in lines] == [
        ("archive.json", "ok"),
        ("put", "ok"),
        ("conditional put", "ok"),
        ("free space", "ok"),
    ]
    assert list(FolderStore(str(growing.folder)).list(archive.PROBES)) == []


def test_probe_objects_that_are_left_are_no_finding(growing: Growing) -> None:
    """They lie where nothing is evidence; and the next check removes them."""
    store = open_store(str(growing.folder))
    trust = given(growing).own_trust()
    before = verify(store, trust, now=now()).findings
    store.create(f"{archive.PROBES}left", b"custody check\n")
    assert archive.PROBES.startswith(layout.REBUILDABLE)
    assert verify(store, trust, now=now()).findings == before
    # Another check may still need it.
    list(archive.check(given(growing), now()))
    assert [left.key for left in store.list(archive.PROBES)] == [f"{archive.PROBES}left"]
    list(archive.check(given(growing), now() + timedelta(hours=1)))
    assert list(store.list(archive.PROBES)) == []


def test_a_folder_that_cannot_be_written(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The put fails, with the reason; nothing else is tried."""

    def refuse(path: str, _: bytes) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folder_store, "create_file", refuse)
    line = of(archive.check(given(growing), now()), "put")
    assert (line.level, line.passing) == ("failed", False)
    assert "Permission denied" in line.message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_folder_without_room(growing: Growing, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The remedy is room, and says nothing of permissions."""

    def refuse(path: str, _: bytes) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(folder_store, "create_file", refuse)
    line = of(archive.check(given(growing), now()), "put")
    assert (line.level, line.remedy) == ("failed", "free space, or move the archive to a larger file system")


def test_a_store_that_overwrites(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose second put of a key wins is not one for an archive."""

    def overwrite(_: FolderStore, path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    monkeypatch.setattr(FolderStore, "_create", overwrite)
    line = of(archive.check(given(growing), now()), "conditional put")
    assert (line.level, line.passing) == ("failed", False)
    assert "wrote over" in line.message


def test_a_probe_object_that_stays(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it cannot be removed, that is a warning."""

    def refuse(_: FolderStore, key: str) -> StoreError | None:
        raise TerminalStoreError(f"{key} stays")

    monkeypatch.setattr(FolderStore, "remove", refuse)
    assert of(archive.check(given(growing), now()), "delete").level == "warning"


def test_no_archive(tmp_path: Path, growing: Growing) -> None:
    """Without an archive its folder is not created."""
    settings = given(growing, archive=str(tmp_path / "nowhere"))
    (line,) = archive.check(settings, now())
    assert (line.level, line.remedy) == ("failed", "run 'custody init'")
    assert not (tmp_path / "nowhere").exists()
    (line,) = retention.check(settings, now())
    assert line.level == "warning"


def test_an_archive_that_other_keys_signed(growing: Growing, tmp_path: Path) -> None:
    """The wrong keyring, or the wrong archive, is a failure."""
    new_keyring(tmp_path / "other.json", now())
    line = of(archive.check(given(growing, keys=f"file:{tmp_path / 'other.json'}"), now()), "archive.json")
    assert line.level == "failed"
    assert "not signed by trusted keys" in line.message


def test_a_full_disk(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a GiB, or less than yesterday's records take, is a warning."""
    monkeypatch.setattr(archive, "LEAST_FREE", 2**60)
    line = of(archive.check(given(growing), now()), "free space")
    assert line.level == "warning"
    assert re.match(r"[\d.,]+ [MGTPE]B are free; yesterday's records take ", line.message)


# Prefect and alerts.


def test_prefect_that_is_not_used(tmp_path: Path) -> None:
    """Without PREFECT_API_URL nothing is asked."""
    (line,) = prefect.check(tmp_path, {})
    assert line.level == "warning"
    assert "custody up" in line.remedy


def test_prefect_that_does_not_answer(tmp_path: Path) -> None:
    """It fails, and its credentials are not shown."""
    (port,) = free_ports(1)
    environment = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_API_AUTH_STRING": TOKEN}
    (line,) = prefect.check(tmp_path, environment)
    assert (line.level, line.passing) == ("failed", True)
    assert TOKEN not in repr(line)


def test_who_is_alerted(growing: Growing) -> None:
    """Nobody is a warning; receivers are shown without their tokens."""
    (line,) = alerts.check(given(growing))
    assert (line.level, line.message) == ("warning", "nobody is alerted")
    urls = [SecretStr(f"slack://{TOKEN}/B/C")]
    (line,) = alerts.check(given(growing, alert=AlertSettings(urls=urls)))
    assert (line.level, TOKEN in json.dumps(line.to_dict())) == ("ok", False)
    assert line.message.startswith("1 (slack)")
    # What no service of Apprise's takes would tell nobody.
    urls.append(SecretStr(f"nonsense://{TOKEN}"))
    wrong, right = alerts.check(given(growing, alert=AlertSettings(urls=urls)))
    assert (wrong.level, wrong.message.partition(" is ")[0]) == ("failed", "2 (nonsense)")
    assert (right.level, right.message.partition(";")[0]) == ("ok", "1 (slack)")
    assert TOKEN not in json.dumps([wrong.to_dict(), right.to_dict()])


PARTS_WITHOUT_STORAGE: set[Part] = {"settings", "keys", "kafka", "search", "prefect", "alerts", "metrics"}


def test_a_frozen_storage_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: the first part names the server, the others were not tried."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen(100)
        s3 = S3Options(endpoint_url=f"http://127.0.0.1:{frozen.getsockname()[1]}", region="eu-west-1")
        asked = Asked(Settings(archive="s3://bucket/audit", s3=s3), datetime.now(UTC), tmp_path / "none")
        lines = run_checks(asked, left_out=PARTS_WITHOUT_STORAGE, seconds=2)
    assert [(line.part, line.level) for line in lines] == [
        ("archive", "failed"),
        ("retention", "warning"),
        ("clock", "warning"),
    ]
    assert s3.endpoint_url
    assert [s3.endpoint_url in line.message for line in lines] == [True, False, False]
    assert {line.message for line in lines[1:]} == {"not tried: the storage does not answer"}


def test_an_url_without_a_bucket_is_told_once(tmp_path: Path) -> None:
    """The other parts that ask the storage refer to the archive's."""
    asked = Asked(Settings(archive="s3://"), datetime.now(UTC), tmp_path / "none")
    lines = run_checks(asked, left_out=PARTS_WITHOUT_STORAGE)
    assert [(line.part, line.level) for line in lines] == [
        ("archive", "failed"),
        ("retention", "warning"),
        ("clock", "warning"),
    ]
    assert [line.remedy for line in lines[1:]] == ["see the part archive"] * 2


def test_keys_of_nobody_have_one_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is configured, `custody init` makes the keys."""
    monkeypatch.chdir(tmp_path)
    (line,) = keys.check(Settings(), datetime.now(UTC))
    assert line.message == "keyring keyring.json: there is no such file"
    assert line.remedy.startswith("run 'custody init'")


# Metrics.


def test_files_of_metrics_that_cannot_be_written(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that does not exist or is not writable is said for each file, and nothing is made."""
    (line,) = metrics.check(given(growing))
    assert (line.level, "none are exported" in line.message) == ("ok", True)
    files = {"file": tmp_path / "custody.prom", "emf": str(tmp_path / "emf.log"), "state": tmp_path / "a/b/state.json"}
    lines = list(metrics.check(given(growing, metrics=MetricsSettings.model_validate(files))))
    assert [(line.subject, line.level) for line in lines] == [(f"metrics.{name}", "ok") for name in files]
    nowhere = {"file": tmp_path / "nowhere/custody.prom", "emf": str(tmp_path / "nowhere/emf.log")}
    absent = given(growing, metrics=MetricsSettings.model_validate(nowhere))
    for subject in ("metrics.file", "metrics.emf"):
        line = of(metrics.check(absent), subject)
        assert (line.level, f"the folder {tmp_path / 'nowhere'} does not exist" in line.message) == ("failed", True)
        assert line.remedy
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "nowhere").exists()
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused = list(metrics.check(given(growing, metrics=MetricsSettings.model_validate(files))))
    assert [line.level for line in refused] == ["failed"] * 3
