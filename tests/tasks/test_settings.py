"""The operator's settings: their sections, librdkafka's properties, the errors for wrong ones; no secret is shown."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.cli import render
from custody.errors import ConfigurationError
from custody.settings import OPERATORS_SECTIONS
from custody.settings import Settings as AuditorsSettings
from tasks.settings import DrainSettings, KafkaSettings, Settings
from tests.helpers.environment import clear_settings
from tests.helpers.settings import CANARY, check_wrong_variable, refusal, refusal_by


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder without a variable of ours."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def given_as(**values: Any) -> Settings:
    """Return settings given as plain values, as files and variables have them."""
    return Settings(**values)


FIELDS = [(section, name) for section in OPERATORS_SECTIONS for name in type(getattr(Settings(), section)).model_fields]
"""Each setting of each section."""


def test_the_library_knows_the_names_of_the_operators_sections() -> None:
    """An auditor's command skips exactly the sections that these settings add."""
    added = [name for name in Settings.model_fields if name not in AuditorsSettings.model_fields]
    assert added == list(OPERATORS_SECTIONS)


def test_defaults_need_nothing() -> None:
    """Without file, variables and arguments, each setting has a default."""
    settings = Settings()
    assert settings.kafka.librdkafka() == {"bootstrap.servers": settings.kafka.bootstrap_servers}


def test_arguments_come_before_variables_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order applies inside sections too. What a source lacks is taken from the next one."""
    Path("custody.toml").write_text(
        'archive = "file"\n[kafka]\ngroup = "file"\ntopics = ["a", "b"]\n[drain]\nlevel = 3\n'
    )
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", "variable")
    settings = Settings(archive="argument")
    assert settings.archive == "argument"
    assert (settings.kafka.group, settings.kafka.topics, settings.drain.level) == ("variable", ["a", "b"], 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MiB", 16 * 2**20), ("1 kB", 1000), ("1.5 KiB", 1536), ("4096", 4096), ("2mb", 2_000_000), ("7B", 7)],
)
def test_sizes_may_have_units(text: str, size: int) -> None:
    """A size is bytes, or a number with a decimal or binary unit."""
    assert given_as(drain={"segment_bytes": text}).drain.segment_bytes == size


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
    settings = given_as(kafka={"client": {name: CANARY}}, keyring_passphrase=CANARY)
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
    """Properties that are known to be harmless are shown, so that an operator can find a fault."""
    shown = repr(given_as(kafka={"client": {"security.protocol": "SASL_SSL", "ssl.ca.location": "/etc/ca.pem"}}))
    assert "SASL_SSL" in shown
    assert "/etc/ca.pem" in shown


WRONG = [
    ("CUSTODY_DRAIN__BATCH_EVENTS", "20000", "want 10000 or less"),
    ("CUSTODY_DRAIN__BATCH_EVENTS", "0", "want 1 or more"),
    ("CUSTODY_DRAIN__BATCH_EVENTS", "many", "want a whole number"),
    ("CUSTODY_DRAIN__SEGMENT_BYTES", "1 parsec", "16MiB"),
    ("CUSTODY_DRAIN__SEGMENT_BYTES", "1GiB", "want 268435456 or less"),
    ("CUSTODY_DRAIN__LEVEL", "9", "want 3 or less"),
    ("CUSTODY_DRAIN__FLUSH_SECONDS", "0", "want more than 0"),
    ("CUSTODY_DRAIN__SECONDS", "inf", "finite"),
    ("CUSTODY_DRAIN__TASK_RUNNER", "dusk", "'dask'"),
    ("CUSTODY_AUDIT__TASK_RUNNER", "a.b:C d", "package.module:Class"),
    ("CUSTODY_DASK__ADDRESS", "scheduler:8786", "tls://host:8786"),
    ("CUSTODY_DASK__WAIT_SECONDS", "inf", "finite"),
    ("CUSTODY_EVENTS__QUARANTINED_SHARE", "5", "want 1.0 or less"),
    ("CUSTODY_HEALTH__LAG_SECONDS", "-1", "want more than 0"),
    ("CUSTODY_KAFKA__TOPICS", "^a(", "regular expression"),
    ("CUSTODY_KAFKA__TOPICS", "a b", "names of topics"),
    ("CUSTODY_KAFKA__TOPICS", '["^a","b"]', "not both"),
    ("CUSTODY_KAFKA__GROUP", "", "it is empty"),
    ("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "one two", "host:port"),
    ("CUSTODY_KAFKA", "text", "want settings, each by its name"),
]


@pytest.mark.parametrize(("variable", "value", "wants"), WRONG)
def test_wrong_variable_is_named_with_what_it_wants(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wants: str
) -> None:
    """The error names the variable and the wanted value."""
    check_wrong_variable(Settings, monkeypatch, variable, value, wants)


def test_a_class_is_taken_from_a_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of a task runner runs as a program, so a file cannot name it in any section."""
    for section in ("drain", "audit", "backfill", "search"):
        Path("custody.toml").write_text(f'[{section}]\ntask_runner = "theirs.module:Runner"\n')
        assert f"set CUSTODY_{section.upper()}__TASK_RUNNER instead" in refusal(Settings)
    Path("custody.toml").unlink()
    monkeypatch.setenv("CUSTODY_DRAIN__TASK_RUNNER", "ours.module:Runner")
    assert Settings().drain.task_runner == "ours.module:Runner"


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ('address = "tls://scheduler:8786"', "needs all of ca_certs, certificate and key_file"),
        ('ca_certs = "/etc/ca.pem"', "needs all of ca_certs, certificate and key_file"),
        ('address = "tcp://127.0.0.1:8786"\nadaptive = true', "adaptive is for workers that a run starts"),
    ],
)
def test_settings_of_a_cluster_fit_together(text: str, wants: str) -> None:
    """Half a certificate, or two ways to get workers, are refused in one line that names the section."""
    Path("custody.toml").write_text(f"[dask]\n{text}\n")
    message = refusal(Settings)
    assert message.startswith("dask in custody.toml: ")
    assert wants in message
    assert "\n" not in message


def test_a_cluster_that_others_can_use_is_a_risk() -> None:
    """A scheduler without TLS gives a warning, unless it is this machine's."""
    assert given_as(dask={"address": "tcp://127.0.0.1:8786"}).insecure() == []
    (risk,) = given_as(dask={"address": "tcp://scheduler:8786"}).insecure()
    assert risk.startswith("dask.address is tcp://: others on the network can run programs on its workers")


def test_wrong_value_is_shown_where_it_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows the value, so that a shell's quoting mistake is visible."""
    monkeypatch.setenv("CUSTODY_DRAIN__BATCH_EVENTS", "1000 ")
    monkeypatch.setenv("CUSTODY_DRAIN__LEVEL", "two")
    assert "'two'" in refusal(Settings)


def test_wrong_keys_of_the_file_are_all_named() -> None:
    """Every wrong key of custody.toml has its line, with the key's path and the file."""
    Path("custody.toml").write_text("archive = 5\n[drain]\nlevel = 9\nworkers = 0\n")
    lines = refusal(Settings).splitlines()
    assert len(lines) == 3
    for line, key in zip(lines, ("archive", "drain.level", "drain.workers"), strict=True):
        assert line.startswith(f"{key} in custody.toml")


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_each_setting_with_one_underscore_is_refused(monkeypatch: pytest.MonkeyPatch, section: str, name: str) -> None:
    """CUSTODY_SEARCH_URL is an error, not silently the default, and so is each other one."""
    monkeypatch.setenv(f"CUSTODY_{section}_{name}".upper(), CANARY)
    message = refusal(Settings)
    assert f"did you mean CUSTODY_{section}__{name}?".upper() in message.upper()
    assert CANARY not in message


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_each_misspelt_setting_is_refused(section: str, name: str) -> None:
    """The error for a misspelt key of any section names it and the likely one. Its value is not shown."""
    Path("custody.toml").write_text(f"[{section}]\n{name}x = '{CANARY}'")
    message = refusal(Settings)
    assert message == f"{section}.{name}x in custody.toml is not a setting; did you mean {section}.{name}?"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CUSTODY_ARCHIV", "CUSTODY_ARCHIVE"),
        ("CUSTODY_SERCH__URL", "CUSTODY_SEARCH__URL"),
        ("CUSTODY_KAFKA_CLIENT_SASL_PASSWORD", "CUSTODY_KAFKA__CLIENT__SASL_PASSWORD"),
        ("CUSTODY_KAFKA_CLIENT__SASL_PASSWORD", "CUSTODY_KAFKA__CLIENT__SASL_PASSWORD"),
    ],
)
def test_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, meant: str) -> None:
    """A misspelt variable is an error, not silently the default. Its value is not shown."""
    monkeypatch.setenv(variable, CANARY)
    message = refusal(Settings)
    assert f"did you mean {meant}?" in message
    assert CANARY not in message


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that Kubernetes sets for services such as custody and custody-search are ignored."""
    for service in ("CUSTODY", *(f"CUSTODY_{name.upper()}" for name in OPERATORS_SECTIONS)):
        for name in ("SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_80_TCP_ADDR"):
            monkeypatch.setenv(f"{service}_{name}", "10.0.0.1")
    Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kafka]\ngrup = 'x'", "did you mean kafka.group?"),
        ("[serch]\nurl = 'x'", "did you mean search?"),
        ("[kafka.client]\ngroup.id = 'x'", "kafka.group sets it"),
        ("[kafka.client]\n'isolation.level' = 'read_uncommitted'", "isolation.level"),
        ("[kafka.client]\nsasl.password = ['x']", "sasl.password"),
    ],
)
def test_wrong_file_says_what_is_wrong(text: str, says: str) -> None:
    """Unknown keys, and properties that only we may set, are errors with a reason."""
    Path("custody.toml").write_text(text)
    assert says in refusal(Settings)


LEAKS: list[dict[str, object]] = [
    {"kafka": CANARY},
    {"kafka": {"client": CANARY}},
    {"kafka": {"client": {"sasl.password": [CANARY]}}},
    {"kafka": {"client": {"sasl.password": CANARY, "group.id": CANARY}}},
    {"kafka": {"client": {"sasl.password": CANARY}, "group": ""}},
    {"kafka": {"pasword": CANARY}},
    {"kafka": {"bootstrap_servers": f"user:{CANARY}@host:9092"}},
    {"search": {"api_key": [CANARY]}},
    {"search": {"url": f"https://user:{CANARY}@host"}},
    {"alert": {"urls": {"slack": CANARY}}},
    {"alert": {"urls": CANARY}},
    {"alert": {"urls": f"{CANARY}://host"}},
    {"alert": {"urls": [[CANARY]]}},
    {"alert": CANARY},
]


@pytest.mark.parametrize("values", LEAKS, ids=lambda values: json.dumps(values)[:40])
@pytest.mark.parametrize("way", ["argument", "variables", "file"])
def test_no_refusal_shows_a_secret(monkeypatch: pytest.MonkeyPatch, values: dict[str, object], way: str) -> None:
    """No error shows a secret in the wrong place, or beside a wrong setting, from any source."""
    assert "canary" not in refusal_by(way, Settings, values, monkeypatch).lower()


@given(
    st.dictionaries(
        st.text(max_size=20), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())), max_size=3
    )
)
def test_any_client_is_taken_or_refused_in_our_words(client: dict[str, object]) -> None:
    """Whatever stands under kafka.client, the outcome is settings for librdkafka or a ConfigurationError."""
    try:
        settings = given_as(kafka={"client": client})
    except ConfigurationError:
        return
    assert all(isinstance(value, str) for value in settings.kafka.librdkafka().values())


def test_each_secret_is_hidden_by_its_type() -> None:
    """No setting of text is called a secret, and shown: a secret has a type that is hidden."""
    names = re.compile("pass|secret|token|key$")
    settings = Settings()
    secrets = {
        f"{section}.{name}": str(field.annotation)
        for section in OPERATORS_SECTIONS
        for name, field in type(getattr(settings, section)).model_fields.items()
        if names.search(name) or f"{section}.{name}" in {"alert.urls", "metrics.otlp_headers"}
    }
    assert sorted(secrets) == ["alert.urls", "metrics.otlp_headers", "search.api_key"]
    assert all("SecretStr" in annotation for annotation in secrets.values())
    assert all(getattr(settings, section).model_config["hide_input_in_errors"] for section in OPERATORS_SECTIONS)


@pytest.mark.parametrize(
    "variable",
    ["ALERT__URLS", "SEARCH__API_KEY__X", "KAFKA__CLIENT", "KAFKA__CLIENT__GROUP_ID", "METRICS__OTLP_HEADERS"],
)
@pytest.mark.parametrize(
    "value", [f"slack://{CANARY}", f'["{CANARY}", 5]', f'{{"a": "{CANARY}', f'{{"a": ["{CANARY}"]}}']
)
def test_no_variable_of_a_section_shows_a_secret(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A secret that is no JSON, or JSON of another shape, is not in the error, and neither in `custody config`."""
    monkeypatch.setenv(f"CUSTODY_{variable}", value)
    try:
        shown = repr(Settings()) + repr(render.settings_json(Settings()))
    except ConfigurationError as error:
        shown = str(error)
        assert "CUSTODY_" in shown
    assert "canary" not in shown.lower()


RUNS_CODE = [
    "plugin.library.paths",
    "Plugin.Library.Paths",
    "plugin_library_paths",
    "ssl.engine.location",
    "ssl_engine_callback_data",
    "ssl.providers",
    "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.principal",
    "sasl.kerberos.keytab",
    "interceptors",
    "oauth_cb",
    "oauthbearer_token_refresh_cb",
    "open.cb",
]


@pytest.mark.parametrize("name", RUNS_CODE)
def test_no_file_runs_code(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What has librdkafka load or run something is refused in the file, in each way to write it, but not elsewhere."""
    for text in (
        f'[kafka.client]\n"{name}" = "canary"',
        f'[kafka.client]\n{name.replace("_", ".")} = "canary"',
        f'[kafka]\nclient = {{"{name}" = "canary"}}',
        f'kafka.client."{name}" = "canary"',
    ):
        Path("custody.toml").write_text(text)
        message = refusal(Settings)
        assert "can run other programs" in message
        assert "canary" not in message
    Path("custody.toml").unlink()
    monkeypatch.setenv("CUSTODY_KAFKA__CLIENT", json.dumps({name: "canary"}))
    assert "canary" in Settings().kafka.librdkafka().values()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"search": {"url": "http://elastic.example.com:9200", "api_key": CANARY}}, "search.url is http://"),
        (
            {"metrics": {"otlp_endpoint": "http://otel.example.com:4318", "otlp_headers": {"Authorization": CANARY}}},
            "metrics.otlp_endpoint is http://: others on the network can read or change metrics, and read its headers",
        ),
        ({"kafka": {"client": {"security.protocol": "sasl_plaintext"}}}, "SASL_PLAINTEXT"),
        *(
            ({"kafka": {"client": {"enable.ssl.certificate.verification": off}}}, "verification is off")
            for off in (False, "False", "f", 0, "0", "n", "No")
        ),
        ({"kafka": {"client": {"ssl.endpoint.identification.algorithm": "none"}}}, "algorithm is none"),
    ],
)
def test_insecure_connections_are_warned_of(section: dict[str, Any], says: str) -> None:
    """A connection that others can read, or on which anyone can pose as the server, is named. Loopback is fine."""
    elsewhere = {"kafka": {"bootstrap_servers": "broker.example.com:9092,127.0.0.1:9092", **section.get("kafka", {})}}
    (warning,) = given_as(**section | elsewhere).insecure()
    assert says in warning
    assert CANARY not in warning
    here = {"kafka": {"bootstrap_servers": "127.0.0.1:9092,[::1]:9092,localhost", **section.get("kafka", {})}}
    local = {"search": {"url": "http://127.0.0.1:9200", "api_key": CANARY}} if "search" in section else {}
    assert given_as(**here | local).insecure() == []


@pytest.mark.parametrize("servers", ["[1:2]:9092", "host:9092,[1:2]", "[::1]:99999999", "host]:9092", "\u2100:9092"])
def test_servers_that_are_none(monkeypatch: pytest.MonkeyPatch, servers: str) -> None:
    """A server or URL that a parser refuses is a wrong setting, and no traceback."""
    check_wrong_variable(Settings, monkeypatch, "CUSTODY_KAFKA__BOOTSTRAP_SERVERS", servers, "want host:port")


@pytest.mark.parametrize("url", ["http://[1:2]", "http://[bad", "http://host:99999", "host:9200", "ftp://host"])
def test_a_search_url_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A URL that a parser refuses is a wrong setting, and no traceback."""
    check_wrong_variable(Settings, monkeypatch, "CUSTODY_SEARCH__URL", url, "want https://HOST")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CUSTODY_ALERT", {f"slack://{CANARY}": 1}),
        ("CUSTODY_SEARCH", {f"{CANARY}\nforged": "x"}),
        ("CUSTODY_KAFKA__CLIENT", {f"sasl.password={CANARY}": []}),
        ("CUSTODY_KAFKA__CLIENT", {f"sasl.password={CANARY}": "x"}),
        ("CUSTODY_KAFKA__CLIENT", {"sasl": {f"password={CANARY}": True}}),
    ],
)
def test_names_that_are_none_are_hidden(monkeypatch: pytest.MonkeyPatch, variable: str, value: object) -> None:
    """A name that no setting could have may be a secret in the wrong position. It is in no error."""
    monkeypatch.setenv(variable, json.dumps(value))
    message = refusal(Settings)
    assert CANARY.lower() not in message.lower()
    assert variable in message
    monkeypatch.delenv(variable)
    Path("custody.toml").write_text(f'[kafka.client]\n"plugin={CANARY}" = "x"')
    assert CANARY.lower() not in refusal(Settings).lower()


@pytest.mark.parametrize("name", ["ssl.ca.location", "ssl.key.location", "ssl.keystore.location", "https.ca.location"])
def test_no_certificate_lies_in_the_archive(tmp_path: Path, name: str) -> None:
    """Whom TLS trusts is not taken from the archive, where an attacker could have put it."""
    ca = tmp_path / "archive/reports/ca.pem"
    ca.parent.mkdir(parents=True)
    ca.touch()
    for sections in ({"search": {"ca_certs": str(ca)}}, {"kafka": {"client": {name: str(ca)}}}):
        assert "ca.pem lies in the archive" in refusal(Settings, archive="archive", **sections)
        given_as(archive="elsewhere", **sections)
    given_as(archive=".", kafka={"client": {name: "probe"}})


def test_settings_survive_a_trip_to_another_process() -> None:
    """Task runners that are processes get the same settings, secrets included."""
    settings = given_as(kafka=KafkaSettings(client={"sasl.password": CANARY}), keyring_passphrase=CANARY)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own bytes


def test_each_value_has_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The source that counts: an argument, a variable, a section's variable, the file, or the default."""
    Path("custody.toml").write_text(
        'keys = "file:a.json"\n[kafka]\ngroup = "of-the-file"\ntopics = ["a"]\nclient."security.protocol" = "SSL"\n'
    )
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", "of-a-variable")
    monkeypatch.setenv("CUSTODY_KAFKA__CLIENT__SASL_PASSWORD", CANARY)
    monkeypatch.setenv("custody_drain", '{"level": 2}')
    monkeypatch.setenv("CUSTODY_DRAIN__WORKERS", "3")
    monkeypatch.setenv("CUSTODY_S3", '{"region": "eu-central-1"}')
    settings = Settings(archive="archive")
    file = str(tmp_path / "custody.toml")
    wanted = {
        "archive": "argument",
        "keys": file,
        "kafka.group": "CUSTODY_KAFKA__GROUP",
        "kafka.topics": file,
        "kafka.client": f"CUSTODY_KAFKA__CLIENT__SASL_PASSWORD, {file}",
        "drain.level": "custody_drain",
        "drain.workers": "CUSTODY_DRAIN__WORKERS",
        "drain.seconds": "default",
        "s3.region": "CUSTODY_S3",
        "s3.endpoint_url": "default",
    }
    assert settings.origins(wanted) == wanted
    assert (settings.kafka.group, settings.drain.level, settings.drain.workers) == ("of-a-variable", 2, 3)
    shown = render.sources_json(settings)
    assert shown["kafka.group"] == {"value": "of-a-variable", "source": "CUSTODY_KAFKA__GROUP"}
    assert CANARY not in json.dumps(shown)


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("json://a", ["json://a"]),
        ("json://a,json://b", ["json://a", "json://b"]),
        ("mailto://u:p@h?to=a@h,b@h, slack://A/B/C/#x,#y", ["mailto://u:p@h?to=a@h,b@h", "slack://A/B/C/#x,#y"]),
        ('["json://a,b", "json://c"]', ["json://a,b", "json://c"]),
    ],
)
def test_several_urls_in_a_variable(monkeypatch: pytest.MonkeyPatch, text: str, urls: list[str]) -> None:
    """A comma before a scheme ends a URL. Other commas are part of it."""
    monkeypatch.setenv("CUSTODY_ALERT__URLS", text)
    assert [url.get_secret_value() for url in Settings().alert.urls] == urls


def test_a_minute_of_drains() -> None:
    """With a run each minute, nothing waits longer between two runs than between two statements of a run.

    A run's time is a multiple of a statement's: its last statement is no short one, and there are four a minute.
    """
    drain = DrainSettings()
    assert 60 - drain.seconds <= drain.flush_seconds
    assert drain.seconds % drain.flush_seconds == 0
