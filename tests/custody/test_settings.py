"""The auditor's settings: their sources, the errors for wrong ones, and that no secret is ever shown."""

import contextlib
import grp
import json
import os
import pwd
import re
import struct
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody.errors import ConfigurationError
from custody.format.archive_file import Pin
from custody.keys import trust_file
from custody.keys.keyring import new_keyring
from custody.settings import OPERATORS_SECTIONS, S3_MEANINGS, Settings
from custody.store.protocol import S3Options
from custody.store.s3_client import s3_clients
from tests.helpers.environment import clear_settings
from tests.helpers.settings import CANARY, check_wrong_variable, refusal, refusal_by


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder without a variable of ours."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def test_defaults_need_nothing() -> None:
    """Without file, variables and arguments, each setting has a default."""
    settings = Settings()
    assert not Path(settings.archive).is_absolute()
    assert settings.keys == "file:keyring.json"
    assert settings.passphrase() is None
    assert settings.s3 == S3Options()


def test_arguments_come_before_variables_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order applies inside sections too. What a source lacks is taken from the next one."""
    Path("custody.toml").write_text(
        'archive = "file"\nkeys = "file:from-file"\n[s3]\nregion = "file"\nlegal_hold = true\n'
    )
    monkeypatch.setenv("CUSTODY_ARCHIVE", "variable")
    monkeypatch.setenv("CUSTODY_KEYS", "file:from-variable")
    monkeypatch.setenv("CUSTODY_S3__REGION", "variable")
    settings = Settings(archive="argument")
    assert (settings.archive, settings.keys) == ("argument", "file:from-variable")
    assert settings.s3 == S3Options(region="variable", legal_hold=True)


def test_what_signs_and_what_is_trusted_come_from_the_same_settings(tmp_path: Path) -> None:
    """A writer trusts the keys that sign, within the limits of trust.json. A wrong source is an error for both."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    new_keyring(tmp_path / "one.json", now, CANARY, ("HMAC-SHA256",))
    new_keyring(tmp_path / "other.json", now, CANARY, ("Ed25519", "SHAKE-256"))
    uris = {"keys": f"file:{tmp_path}/one.json", "checkpoint_keys": f"file:{tmp_path}/other.json"}
    settings = Settings(**uris, keyring_passphrase=CANARY)
    signers, trust = settings.signers(now), settings.own_trust()
    assert [signer.key_id for signer in signers.both()] == list(trust.keys)
    assert signers.leaves is not None
    assert list(trust.leaves) == [signers.leaves.key_id]
    narrowed = tmp_path / "trust.json"
    trust_file.publish(narrowed, Pin("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "44" * 32), [])
    assert Settings(**uris, keyring_passphrase=CANARY, trust=narrowed).own_trust().archive is not None
    for broken in (Settings(**uris), Settings(**uris, keyring_passphrase="another")):
        for use in (lambda broken=broken: broken.signers(now), broken.own_trust):
            with pytest.raises(ConfigurationError, match="passphrase"):
                use()


def test_config_variable_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file in CUSTODY_CONFIG is read instead of custody.toml, and must exist."""
    Path("custody.toml").write_text('archive = "not-this"')
    other = tmp_path / "other.toml"
    monkeypatch.setenv("CUSTODY_CONFIG", str(other))
    assert str(other) in refusal(Settings)
    other.write_text('archive = "this"')
    assert Settings().archive == "this"


def test_a_file_that_serves_operators_too_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's sections and variables are skipped, right or wrong: an auditor's commands use none of them."""
    sections = "".join(f"[{name}]\nwhatever = 5\n" for name in OPERATORS_SECTIONS)
    Path("custody.toml").write_text(f'archive = "this"\n{sections}')
    for name in OPERATORS_SECTIONS:
        monkeypatch.setenv(f"CUSTODY_{name.upper()}__WHATEVER", "5")
    assert Settings().archive == "this"


def test_each_option_of_s3_is_shown_with_its_meaning() -> None:
    """`custody config` shows all of them."""
    assert list(S3_MEANINGS) == [field.name for field in fields(S3Options)]


WRONG = [
    ("CUSTODY_KEYRING_PASSPHRASE", "", "it is empty"),
    ("CUSTODY_ARCHIVE", "", "it is empty"),
    ("CUSTODY_KEYS", "keyring.json", "file:PATH"),
    ("CUSTODY_KEYS", "/p/k.json", "write file:/p/k.json"),
    ("CUSTODY_KEYS", "a secret/of somebody", "write file:PATH"),
    ("CUSTODY_CHECKPOINT_KEYS", "keyring.json", "file:PATH"),
    ("CUSTODY_TRUST", "", "it is empty; want the path of a file, or unset it"),
    ("CUSTODY_TRUST", ".", "'.' is a folder"),
    ("CUSTODY_S3__RETENTION_MODE", "FOREVER", "want 'GOVERNANCE' or 'COMPLIANCE', not 'FOREVER'"),
    ("CUSTODY_S3__RETENTION_DAYS", "ten", "want a whole number, not 'ten'"),
    ("CUSTODY_S3__LEGAL_HOLD", "perhaps", "want true or false, not 'perhaps'"),
    ("CUSTODY_S3", "text", "want settings, each by its name"),
]


@pytest.mark.parametrize(("variable", "value", "wants"), WRONG)
def test_wrong_variable_is_named_with_what_it_wants(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wants: str
) -> None:
    """The error names the variable and the wanted value."""
    check_wrong_variable(Settings, monkeypatch, variable, value, wants)


def test_wrong_keys_of_the_file_are_all_named() -> None:
    """Every wrong key of custody.toml has its line, with the key's path and the file."""
    Path("custody.toml").write_text("archive = 5\n[s3]\nregion = 9\nlegal_hold = 'perhaps'\n")
    lines = refusal(Settings).splitlines()
    assert len(lines) == 3
    for line, key in zip(lines, ("archive", "s3.region", "s3.legal_hold"), strict=True):
        assert line.startswith(f"{key} in custody.toml")


def test_a_wrong_argument_is_named_as_one() -> None:
    """The error for a wrong argument says that it is one."""
    assert refusal(Settings, s3={"retention_days": "ten"}).startswith("s3.retention_days in the arguments")
    assert "not a setting" in refusal(Settings, kafka={})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CUSTODY_ARCHIV", "CUSTODY_ARCHIVE"),
        ("CUSTODY_KEYRING_PASSPHRAZE", "CUSTODY_KEYRING_PASSPHRASE"),
        *((f"CUSTODY_S3_{field.name.upper()}", f"CUSTODY_S3__{field.name.upper()}") for field in fields(S3Options)),
    ],
)
def test_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, meant: str) -> None:
    """A misspelt variable is an error, not silently the default. Its value is not shown."""
    monkeypatch.setenv(variable, CANARY)
    message = refusal(Settings)
    assert f"did you mean {meant}?" in message
    assert CANARY not in message


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that Kubernetes sets for a service called custody are ignored."""
    without = Settings()
    for name in ("CUSTODY_SERVICE_HOST", "CUSTODY_SERVICE_PORT", "CUSTODY_PORT", "CUSTODY_PORT_80_TCP_ADDR"):
        monkeypatch.setenv(name, "10.0.0.1")
    assert Settings() == without


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("archiv = 'x'", "did you mean archive?"),
        ("[s4]\nregion = 'x'", "s4 in custody.toml is not a setting"),
        ("[kafkaa]\ngroup = 'x'", "did you mean kafka?"),
        ("[s3]\nreigon = 'x'", "region"),
        ("archive =", "not TOML"),
        ("[s3]\nretention_days = 5", "retention_mode"),
    ],
)
def test_wrong_file_says_what_is_wrong(text: str, says: str) -> None:
    """Unknown keys and sections, and broken TOML, are errors with a reason."""
    Path("custody.toml").write_text(text)
    assert says in refusal(Settings)


LEAKS: list[dict[str, object]] = [
    {"keyring_passphrase": [CANARY]},
    {"keyring_passphrase": {"value": CANARY}},
    {"keys": CANARY},
    {"checkpoint_keys": CANARY},
    {"archive": f"s3://user:{CANARY}@bucket/prefix"},
    {"archive": f"s3://user:{CANARY}/+@bucket/prefix"},
    {"s3": {"endpoint_url": f"https://user:{CANARY.replace('#', '')}@host"}},
    {"s3": CANARY},
    {"keyring_pasphrase": CANARY},
]


@pytest.mark.parametrize("values", LEAKS, ids=lambda values: json.dumps(values)[:40])
@pytest.mark.parametrize("way", ["argument", "variables", "file"])
def test_no_refusal_shows_a_secret(monkeypatch: pytest.MonkeyPatch, values: dict[str, object], way: str) -> None:
    """No error shows a secret in the wrong place, or beside a wrong setting, from any source."""
    assert "canary" not in refusal_by(way, Settings, values, monkeypatch).lower()


def test_each_secret_is_hidden_by_its_type() -> None:
    """No setting of text is called a secret, and shown: a secret has a type that is hidden."""
    names = re.compile("pass|secret|token|api_key")
    secrets = [name for name in Settings.model_fields if names.search(name)]
    assert secrets == ["keyring_passphrase"]
    assert all("SecretStr" in str(Settings.model_fields[name].annotation) for name in secrets)
    assert Settings.model_config["hide_input_in_errors"]


def share_groups(monkeypatch: pytest.MonkeyPatch, *members: str) -> None:
    """Give each group the name of its user, and these members."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((name, "x", gid, [name, *members])))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Such a file is refused, named or not, and so is one in such a folder. All that is wrong is reported at once."""
    share_groups(monkeypatch, "somebody")
    file = tmp_path / "custody.toml"
    file.write_text('archive = "this"')
    file.chmod(mode)
    for _ in range(2):
        assert "custody.toml' can be written by others" in refusal(Settings)
        monkeypatch.setenv("CUSTODY_CONFIG", str(file))
    monkeypatch.delenv("CUSTODY_CONFIG")
    tmp_path.chmod(mode | 0o700)
    message = refusal(Settings)
    assert "'custody.toml' can be written by others" in message
    assert f"{str(tmp_path)!r} can be written by others" in message
    file.chmod(0o644)
    assert "'custody.toml' can be written" not in refusal(Settings)
    tmp_path.chmod(mode | 0o1700)
    assert Settings().archive == "this", "with the sticky bit, others cannot put another file in its place"


def test_a_private_group_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With umask 002, files of an ordinary user can be written by the user's own group, which is accepted."""
    file = tmp_path / "custody.toml"
    file.write_text('archive = "this"')
    file.chmod(0o664)
    tmp_path.chmod(0o775)
    share_groups(monkeypatch)
    assert Settings().archive == "this"
    file.chmod(0o666)
    assert "can be written by others" in refusal(Settings)


def test_an_access_list_is_no_private_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an access list, the group's rights in the mode are those of users that it names: so others may write."""
    file = tmp_path / "custody.toml"
    file.write_text('archive = "this"')
    file.chmod(0o664)
    share_groups(monkeypatch)
    assert Settings().archive == "this"
    # Of the owner, the user 65534, the group, the mask and others: each as in linux/posix_acl_xattr.h.
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 6, 65534), (4, 4, nobody), (16, 6, nobody), (32, 4, nobody)]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(file, "system.posix_acl_access", access)
    assert "custody.toml' can be written by others" in refusal(Settings)
    file.chmod(0o644)
    assert Settings().archive == "this", "without write in the mask, nobody whom the list names may write"


def test_a_file_that_others_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, unless CUSTODY_CONFIG names it: root in a container reads the files of a user of the host."""
    file = tmp_path / "custody.toml"
    file.write_text('archive = "this"')
    if os.geteuid() == 0:
        os.chown(file, 54321, 54321)
        os.chown(tmp_path, 54321, 54321)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    message = refusal(Settings)
    assert "'custody.toml' belongs to somebody else" in message
    assert f"{str(tmp_path)!r} belongs to somebody else" in message
    assert "if you trust its owner, set CUSTODY_CONFIG to it" in message
    assert "chown" not in message
    monkeypatch.setenv("CUSTODY_CONFIG", str(file))
    assert Settings().archive == "this"
    file.chmod(0o646)
    assert "can be written by others" in refusal(Settings)


def test_each_folder_on_the_way_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may write to a folder above the file, nor to one that a link to it lies in."""
    real, lax = tmp_path / "real", tmp_path / "lax"
    (lax / "inner").mkdir(parents=True)
    real.mkdir()
    (real / "custody.toml").write_text('archive = "this"')
    (lax / "file").symlink_to("../real/custody.toml")
    (lax / "folder").symlink_to(real)
    (tmp_path / "twice").symlink_to("lax/file")
    (lax / "inner" / "custody.toml").write_text('archive = "this"')
    for mode, accepted in ((0o755, True), (0o777, False), (0o1777, True)):
        lax.chmod(mode)
        for named in (lax / "file", lax / "folder/custody.toml", tmp_path / "twice", lax / "inner/custody.toml"):
            monkeypatch.setenv("CUSTODY_CONFIG", str(named))
            if accepted:
                assert Settings().archive == "this"
            else:
                assert f"{str(lax)!r} can be written by others" in refusal(Settings)
        monkeypatch.delenv("CUSTODY_CONFIG")
        monkeypatch.chdir(lax / "inner")
        if accepted:
            assert Settings().archive == "this"
        else:
            assert f"{str(lax)!r} can be written by others" in refusal(Settings)


@pytest.mark.timeout(120)
def test_only_a_regular_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, which nobody may ever write to, or a device, is an error at once."""
    os.mkfifo(tmp_path / "custody.toml", 0o600)
    assert "'custody.toml' cannot be read: it is not a regular file" in refusal(Settings)
    for path in ("/dev/zero", str(tmp_path)):
        monkeypatch.setenv("CUSTODY_CONFIG", path)
        assert "cannot be read" in refusal(Settings)


BAD_URLS = ["http://[bad", "http://[1:2]", "http://host:99999", "https://", "host:9200", "http://\u2100.example"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_what_is_no_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A URL that a parser refuses is a wrong setting, and no traceback, at each setting that takes a URL."""
    monkeypatch.setenv("CUSTODY_S3__ENDPOINT_URL", url)
    assert "s3 in CUSTODY_S3__ENDPOINT_URL: want https://HOST" in refusal(Settings)
    monkeypatch.delenv("CUSTODY_S3__ENDPOINT_URL")
    for name in ("archive", "keys", "checkpoint_keys"):
        for value in (url, f"file:{url[5:]}", f"s3:{url[5:]}", f"aws-kms:{url[5:]}"):
            with contextlib.suppress(ConfigurationError):
                Settings(**{name: value})


def test_nothing_that_is_trusted_lies_in_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting takes a key, trust.json or the state from there, from wherever it comes. S3 holds no such file."""
    inside = tmp_path / "archive" / "reports"
    inside.mkdir(parents=True)
    for name, value in (
        *(("keys", "file:own.json"), ("checkpoint_keys", "file:own.json")),
        *(("trust", "own.json"), ("state", "own.json")),
    ):
        monkeypatch.chdir(inside)
        assert "lies in the archive" in refusal(Settings, archive="..", **{name: value})
        Path("custody.toml").write_text(f'{name} = "{value}"')
        assert "lies in the archive" in refusal(Settings, archive=str(inside.parent))
        assert Settings(archive="s3://bucket/prefix").archive
        Path("custody.toml").write_text("")
        assert "custody.toml lies in the archive" in refusal(Settings, archive=str(inside.parent))
        Path("custody.toml").unlink()
        monkeypatch.chdir(tmp_path)
        assert "lies in the archive" in refusal(
            Settings, archive="archive", **{name: value.replace("own.json", "archive/own.json")}
        )
    monkeypatch.chdir(inside)
    assert Settings(archive="..").keys == "file:keyring.json", "the default names nothing that is there"
    Path("keyring.json").touch()
    assert "lies in the archive" in refusal(Settings, archive="..")


def test_plain_connections_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Data for a server elsewhere, by a connection that others can read, gives a warning, once a process."""
    for host in ("127.0.0.1", "[::1]", "localhost", "LOCALHOST", "127.9.9.9"):
        assert Settings(s3=S3Options(endpoint_url=f"http://{host}:8333")).insecure() == []
    assert Settings(s3=S3Options(endpoint_url="https://s3.example.com")).insecure() == []
    for _ in range(2):
        Settings(s3=S3Options(endpoint_url="HTTP://s3.example.com"))
    assert [record.getMessage()[:27] for record in caplog.records] == ["s3.endpoint_url is http://:"]


@pytest.mark.parametrize("way", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "profile"])
def test_plain_endpoints_of_aws_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, way: str
) -> None:
    """The client also takes an endpoint from AWS's variables or profile. It is warned of, unless ours replaces it."""
    url = f"http://{way.lower().replace('_', '-')}.example.com"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    if way == "profile":
        (tmp_path / "aws").write_text(f"[default]\nendpoint_url = {url}\n")
    else:
        monkeypatch.setenv(way, url)
    s3_clients(S3Options(endpoint_url="https://s3.example.com"), 1)
    assert caplog.messages == []
    for _ in range(2):
        s3_clients(S3Options(), 1)
    (message,) = caplog.messages
    assert f"{url} for S3: others on the network" in message


def test_names_that_are_none_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no setting could have may be a secret in the wrong position. It is in no error."""
    for variable in ("CUSTODY_S3", "CUSTODY_TIERS"):
        monkeypatch.setenv(variable, json.dumps({f"slack://{CANARY}": 1}))
        message = refusal(Settings)
        assert f"(a hidden name) in {variable} is not a setting" in message
        assert CANARY not in message
        monkeypatch.delenv(variable)


def test_settings_do_not_change() -> None:
    """Settings do not change during a run."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().archive = "other"


def test_locks_last_as_long_as_the_life() -> None:
    """By default, a lock ends with the life of evidence. It can be set to end sooner."""
    Path("custody.toml").write_text('[s3]\nretention_mode = "COMPLIANCE"\n[tiers]\nlife_days = 4000\n')
    assert Settings().s3.retention_days == Settings().protection().lock_days == 4000
    Path("custody.toml").write_text('[s3]\nretention_mode = "COMPLIANCE"\nretention_days = 30\n')
    assert Settings().s3.retention_days == 30
    assert Settings(s3=S3Options(retention_mode="GOVERNANCE")).s3.retention_days == 2555
    Path("custody.toml").unlink()
    assert Settings().s3.retention_days is None


def test_times_of_tiers_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification checks the times that the roll sets, if somebody has set them."""
    assert Settings().protection().moves is None
    monkeypatch.setenv("CUSTODY_TIERS__LIFE_DAYS", "4000")
    assert Settings().protection().moves is None
    monkeypatch.setenv("CUSTODY_TIERS__COLD_DAYS", "400")
    assert Settings().protection().moves == Settings().tiers.moves == ((90, "STANDARD_IA"), (400, "DEEP_ARCHIVE"))
