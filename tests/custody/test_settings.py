"""The auditor's settings: their sources, the errors for wrong ones, and that no secret is ever shown."""

import json
import os
import re
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
    ("CUSTODY_KEYRING_PASSPHRASE", "", "at least 1 item"),
    ("CUSTODY_ARCHIVE", "", "at least 1 character"),
    ("CUSTODY_KEYS", "keyring.json", "file:PATH"),
    ("CUSTODY_CHECKPOINT_KEYS", "keyring.json", "file:PATH"),
    ("CUSTODY_TRUST", "", "unset it"),
    ("CUSTODY_S3__RETENTION_MODE", "FOREVER", "'COMPLIANCE'"),
    ("CUSTODY_S3__RETENTION_DAYS", "ten", "a valid integer"),
    ("CUSTODY_S3__LEGAL_HOLD", "perhaps", "a valid boolean"),
    ("CUSTODY_S3", "text", "a dictionary"),
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


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Such a file is refused, and so is one in such a folder, or one that others own. Variables are still taken."""
    file = tmp_path / "custody.toml"
    file.write_text('archive = "this"')
    file.chmod(mode)
    for _ in range(2):
        message = refusal(Settings)
        assert "custody.toml" in message
        assert "can be written by others" in message
        # Named, it is refused too.
        monkeypatch.setenv("CUSTODY_CONFIG", str(file))
    monkeypatch.delenv("CUSTODY_CONFIG")
    file.chmod(0o644)
    assert Settings().archive == "this"
    tmp_path.chmod(mode | 0o700)
    assert f"{str(tmp_path)!r} can be written by others" in refusal(Settings)
    tmp_path.chmod(mode | 0o1700)
    assert Settings().archive == "this", "with the sticky bit, others cannot put another file in its place"
    tmp_path.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(file, 54321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert "belongs to somebody else" in refusal(Settings)


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
