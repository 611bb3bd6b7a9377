"""Settings: where they come from, what a wrong one says, and that no secret is ever shown."""

import json
import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import ConfigurationError
from custody.format.archive_file import Pin
from custody.keys import trust_file
from custody.keys.keyring import new_keyring
from custody.settings import KafkaSettings, Settings
from custody.store.protocol import S3Options
from tests.helpers.environment import clear_settings

CANARY = "canary-Zq7#secret"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder without a variable of ours."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def refusal(**arguments: object) -> str:
    """Return what a wrong setting is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        Settings(**arguments)
    hidden = caught.value.__context__ is None or caught.value.__suppress_context__
    assert caught.value.__cause__ is None and hidden, "what it was raised from would be printed, and holds the input"  # noqa: PT018
    return str(caught.value)


def test_defaults_need_nothing() -> None:
    """Without file, variables and arguments there is a setting for everything."""
    settings = Settings()
    assert not Path(settings.archive).is_absolute()
    assert settings.keys == "file:keyring.json"
    assert settings.passphrase() is None
    assert settings.s3 == S3Options()
    assert settings.kafka.librdkafka() == {"bootstrap.servers": settings.kafka.bootstrap_servers}


def test_arguments_come_before_variables_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precedence holds inside sections, and what a source does not say is taken from the next."""
    Path("custody.toml").write_text(
        'archive = "file"\nkeys = "file:from-file"\n[kafka]\ngroup = "file"\ntopics = ["a", "b"]\n'
        '[drain]\nlevel = 3\n[s3]\nregion = "file"\nlegal_hold = true\n'
    )
    monkeypatch.setenv("CUSTODY_ARCHIVE", "variable")
    monkeypatch.setenv("CUSTODY_KEYS", "file:from-variable")
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", "variable")
    monkeypatch.setenv("CUSTODY_S3__REGION", "variable")
    settings = Settings(archive="argument")
    assert (settings.archive, settings.keys) == ("argument", "file:from-variable")
    assert (settings.kafka.group, settings.kafka.topics, settings.drain.level) == ("variable", ["a", "b"], 3)
    assert settings.s3 == S3Options(region="variable", legal_hold=True)


def test_what_signs_and_what_is_trusted_come_from_the_same_settings(tmp_path: Path) -> None:
    """A writer trusts the keys that sign, within what trust.json says of them; a wrong source is refused by both."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    new_keyring(tmp_path / "one.json", now, CANARY, ("HMAC-SHA256",))
    new_keyring(tmp_path / "other.json", now, CANARY, ("Ed25519", "SHAKE-256"))
    uris = {"keys": f"file:{tmp_path}/one.json", "checkpoint_keys": f"file:{tmp_path}/other.json"}
    settings = Settings(**uris, keyring_passphrase=CANARY)
    signers, trust = settings.signers(now), settings.own_trust()
    assert [one.key_id for one in signers.both()] == list(trust.keys)
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
    """CUSTODY_CONFIG is read instead of custody.toml, and must be there."""
    Path("custody.toml").write_text('archive = "not-this"')
    other = tmp_path / "other.toml"
    monkeypatch.setenv("CUSTODY_CONFIG", str(other))
    assert str(other) in refusal()
    other.write_text('archive = "this"')
    assert Settings().archive == "this"


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MiB", 16 * 2**20), ("1 kB", 1000), ("1.5 KiB", 1536), ("4096", 4096), ("2mb", 2_000_000), ("7B", 7)],
)
def test_sizes_may_have_units(text: str, size: int) -> None:
    """A size is bytes, or a number with a decimal or binary unit."""
    assert Settings(drain={"segment_bytes": text}).drain.segment_bytes == size


@pytest.mark.parametrize(
    ("variable", "topics"),
    [
        ("audit.events", ["audit.events"]),
        ("a, b,c", ["a", "b", "c"]),
        ('["a","b"]', ["a", "b"]),
        (r"^audit\.[a-z]{1,9}$", [r"^audit\.[a-z]{1,9}$"]),
    ],
)
def test_topics_from_a_variable(monkeypatch: pytest.MonkeyPatch, variable: str, topics: list[str]) -> None:
    """Topics are names with commas between them, JSON, or one regular expression in which a comma is a comma."""
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", variable)
    assert Settings().kafka.topics == topics


def test_properties_of_librdkafka_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Properties pass to librdkafka under its own names, however they were written, and variables win."""
    Path("custody.toml").write_text(
        '[kafka.client]\nsecurity.protocol = "SASL_SSL"\n"sasl.password" = "from-file"\n'
        "socket.timeout.ms = 7000\nenable.ssl.certificate.verification = false\n"
    )
    monkeypatch.setenv("CUSTODY_KAFKA__CLIENT__SASL_PASSWORD", CANARY)
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "one:9092,SASL_SSL://two:9093")
    assert Settings().kafka.librdkafka() == {
        "bootstrap.servers": "one:9092,SASL_SSL://two:9093",
        "security.protocol": "SASL_SSL",
        "sasl.password": CANARY,
        "socket.timeout.ms": "7000",
        "enable.ssl.certificate.verification": "false",
    }


SECRETS = [
    "sasl.password",
    "sasl.username",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.jaas.config",
    "some.property.of.tomorrow",
]


@pytest.mark.parametrize("name", SECRETS)
def test_what_may_be_secret_is_hidden_and_passed_on(name: str) -> None:
    """A property that is not known to be harmless is in no repr and no dump, and reaches librdkafka as it is."""
    settings = Settings(kafka={"client": {name: CANARY}}, keyring_passphrase=CANARY)
    for shown in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        repr(settings.model_dump()),
        f"{settings.kafka}",
    ):
        assert CANARY not in shown
    assert settings.kafka.librdkafka()[name] == CANARY
    assert settings.passphrase() == CANARY


def test_harmless_properties_are_shown() -> None:
    """What an operator has to see to find a fault is not hidden."""
    shown = repr(Settings(kafka={"client": {"security.protocol": "SASL_SSL", "ssl.ca.location": "/etc/ca.pem"}}))
    assert "SASL_SSL" in shown
    assert "/etc/ca.pem" in shown


WRONG = [
    ("CUSTODY_DRAIN__BATCH_EVENTS", "20000", "at most 10000"),
    ("CUSTODY_DRAIN__BATCH_EVENTS", "0", "at least 1"),
    ("CUSTODY_DRAIN__BATCH_EVENTS", "many", "a whole number"),
    ("CUSTODY_DRAIN__SEGMENT_BYTES", "1 parsec", "16MiB"),
    ("CUSTODY_DRAIN__SEGMENT_BYTES", "1GiB", "at most 268435456"),
    ("CUSTODY_DRAIN__LEVEL", "9", "at most 3"),
    ("CUSTODY_DRAIN__FLUSH_SECONDS", "0", "more than 0"),
    ("CUSTODY_DRAIN__SECONDS", "inf", "finite"),
    ("CUSTODY_DRAIN__TASK_RUNNER", "dusk", "'dask'"),
    ("CUSTODY_KAFKA__TOPICS", "^a(", "regular expression"),
    ("CUSTODY_KAFKA__TOPICS", "a b", "names of topics"),
    ("CUSTODY_KAFKA__TOPICS", '["^a","b"]', "not both"),
    ("CUSTODY_KAFKA__GROUP", "", "empty"),
    ("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "one two", "host:port"),
    ("CUSTODY_KEYRING_PASSPHRASE", "", "empty"),
    ("CUSTODY_ARCHIVE", "", "empty"),
    ("CUSTODY_KEYS", "keyring.json", "file:PATH"),
    ("CUSTODY_CHECKPOINT_KEYS", "keyring.json", "file:PATH"),
    ("CUSTODY_TRUST", "", "unset it"),
    ("CUSTODY_S3__RETENTION_MODE", "FOREVER", "'COMPLIANCE'"),
    ("CUSTODY_S3__RETENTION_DAYS", "ten", "a whole number"),
    ("CUSTODY_S3__LEGAL_HOLD", "perhaps", "true or false"),
    ("CUSTODY_KAFKA", "text", "a table"),
]


@pytest.mark.parametrize(("variable", "value", "wants"), WRONG)
def test_wrong_variable_is_named_with_what_it_wants(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wants: str
) -> None:
    """The refusal names the variable and says what belongs there."""
    monkeypatch.setenv(variable, value)
    message = refusal()
    assert message.startswith(variable)
    assert wants in message
    assert "\n" not in message


def test_wrong_value_is_shown_where_it_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a setting got is said, so that a shell's quoting mistake is seen."""
    monkeypatch.setenv("CUSTODY_DRAIN__BATCH_EVENTS", "1000 ")
    monkeypatch.setenv("CUSTODY_DRAIN__LEVEL", "two")
    assert "'two'" in refusal()


def test_wrong_keys_of_the_file_are_all_named() -> None:
    """Every wrong key of custody.toml has its line, with the key's path and the file."""
    Path("custody.toml").write_text("archive = 5\n[drain]\nlevel = 9\nworkers = 0\n")
    lines = refusal().splitlines()
    assert len(lines) == 3
    for line, key in zip(lines, ("archive", "drain.level", "drain.workers"), strict=True):
        assert line.startswith(f"{key} in custody.toml")


def test_a_wrong_argument_is_named_as_one() -> None:
    """A program that gives a wrong argument is not sent to look for a variable."""
    assert refusal(drain={"level": 7}).startswith("the argument drain.level")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CUSTODY_ARCHIV", "CUSTODY_ARCHIVE"),
        ("CUSTODY_KEYRING_PASSPHRAZE", "CUSTODY_KEYRING_PASSPHRASE"),
        ("CUSTODY_KAFKA_GROUP", "CUSTODY_KAFKA__GROUP"),
        ("CUSTODY_S3_REGION", "CUSTODY_S3__REGION"),
    ],
)
def test_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, meant: str) -> None:
    """A slip in a variable's name does not silently leave the default, and its value is not shown."""
    monkeypatch.setenv(variable, CANARY)
    message = refusal()
    assert meant in message
    assert CANARY not in message


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes sets for a service called custody is no setting and no error."""
    for name in ("CUSTODY_SERVICE_HOST", "CUSTODY_SERVICE_PORT", "CUSTODY_PORT", "CUSTODY_PORT_80_TCP_ADDR"):
        monkeypatch.setenv(name, "10.0.0.1")
    Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("archiv = 'x'", "did you mean archive?"),
        ("[kafka]\ngrup = 'x'", "did you mean kafka.group?"),
        ("[s3]\nreigon = 'x'", "region"),
        ("archive =", "not TOML"),
        ("[kafka.client]\ngroup.id = 'x'", "kafka.group sets it"),
        ("[kafka.client]\n'isolation.level' = 'read_uncommitted'", "isolation.level"),
        ("[kafka.client]\nsasl.password = ['x']", "sasl.password"),
        ("[s3]\nretention_days = 5", "retention_mode"),
    ],
)
def test_wrong_file_says_what_is_wrong(text: str, says: str) -> None:
    """Unknown keys, broken TOML and properties that are ours to set are refused with a reason."""
    Path("custody.toml").write_text(text)
    assert says in refusal()


LEAKS = [
    {"keyring_passphrase": [CANARY]},
    {"keyring_passphrase": {"value": CANARY}},
    {"keys": CANARY},
    {"checkpoint_keys": CANARY},
    {"archive": f"s3://user:{CANARY}@bucket/prefix"},
    {"archive": f"s3://user:{CANARY}/+@bucket/prefix"},
    {"s3": {"endpoint_url": f"https://user:{CANARY.replace('#', '')}@host"}},
    {"s3": CANARY},
    {"kafka": CANARY},
    {"kafka": {"client": CANARY}},
    {"kafka": {"client": {"sasl.password": [CANARY]}}},
    {"kafka": {"client": {"sasl.password": CANARY, "group.id": CANARY}}},
    {"kafka": {"client": {"sasl.password": CANARY}, "group": ""}},
    {"kafka": {"pasword": CANARY}},
    {"kafka": {"bootstrap_servers": f"user:{CANARY}@host:9092"}},
    {"keyring_pasphrase": CANARY},
]


@pytest.mark.parametrize("values", LEAKS, ids=lambda values: json.dumps(values)[:40])
@pytest.mark.parametrize("way", ["argument", "variables", "file"])
def test_no_refusal_shows_a_secret(monkeypatch: pytest.MonkeyPatch, values: dict[str, object], way: str) -> None:
    """A secret that stands in the wrong place, or beside a wrong setting, is in no error, whichever way it came."""
    if way == "argument":
        message = refusal(**values)
    else:
        if way == "file":
            Path("custody.toml").write_text(toml(values))
        else:
            for name, value in values.items():
                monkeypatch.setenv(f"CUSTODY_{name.upper()}", value if isinstance(value, str) else json.dumps(value))
        if way == "variables" and isinstance(values.get("keyring_passphrase"), list | dict):
            pytest.skip("a variable is always text, so this is a passphrase")
        message = refusal()
    assert "canary" not in message.lower()


def toml(values: dict[str, object]) -> str:
    """Write JSON types as TOML's inline tables."""

    def inline(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {inline(inner)}" for name, inner in value.items()) + "}"
        return json.dumps(value)

    return "\n".join(f"{name} = {inline(value)}" for name, value in values.items())


@given(
    st.dictionaries(
        st.text(max_size=20), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())), max_size=3
    )
)
def test_any_client_is_taken_or_refused_in_our_words(client: dict[str, object]) -> None:
    """Whatever stands under kafka.client, the outcome is settings for librdkafka or a ConfigurationError."""
    try:
        settings = Settings(kafka={"client": client})
    except ConfigurationError:
        return
    assert all(isinstance(value, str) for value in settings.kafka.librdkafka().values())


def test_settings_survive_a_trip_to_another_process() -> None:
    """Task runners that are processes get the same settings, secrets included."""
    settings = Settings(kafka=KafkaSettings(client={"sasl.password": CANARY}), keyring_passphrase=CANARY)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own bytes


def test_settings_do_not_change() -> None:
    """What a run began with stays as it is."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().archive = "other"  # type: ignore[misc]


def test_locks_last_as_long_as_the_life() -> None:
    """Where nothing else is set a lock ends with the life; it may be set to end sooner."""
    Path("custody.toml").write_text('[s3]\nretention_mode = "COMPLIANCE"\n[tiers]\nlife_days = 4000\n')
    assert Settings().s3.retention_days == Settings().protection().lock_days == 4000
    Path("custody.toml").write_text('[s3]\nretention_mode = "COMPLIANCE"\nretention_days = 30\n')
    assert Settings().s3.retention_days == 30
    assert Settings(s3=S3Options(retention_mode="GOVERNANCE")).s3.retention_days == 2555
    Path("custody.toml").unlink()
    assert Settings().s3.retention_days is None


def test_times_of_tiers_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the roll sets is what verification checks, and only where somebody has set it."""
    assert Settings().protection().moves is None
    monkeypatch.setenv("CUSTODY_TIERS__LIFE_DAYS", "4000")
    assert Settings().protection().moves is None
    monkeypatch.setenv("CUSTODY_TIERS__COLD_DAYS", "400")
    assert Settings().protection().moves == Settings().tiers.moves == ((90, "STANDARD_IA"), (400, "DEEP_ARCHIVE"))
