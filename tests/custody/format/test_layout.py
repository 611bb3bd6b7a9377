"""Object keys: built and parsed back, and nothing else taken for one."""

from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import ConfigurationError
from custody.format import layout
from custody.format.layout import Log, RecordsKey

DIGEST = sha256(b"").hexdigest()
topics = st.from_regex(r"[A-Za-z0-9._-]{1,150}", fullmatch=True).filter(
    lambda topic: topic not in {".", "..", "audits"}
)
logs = st.builds(Log, topics, st.integers(0, 2**31 - 1), st.integers(1, 9999))
offsets = st.integers(0, 2**63 - 1)


@given(logs, st.integers(0, 10**12 - 1))
def test_manifest_and_checkpoint_keys_come_back(log: Log, number: int) -> None:
    """A manifest's and a checkpoint's key parse to what they were made of, and not as each other."""
    manifest, checkpoint = layout.manifest_key(log, number), layout.checkpoint_key(log, number)
    assert layout.parse_manifest_key(manifest) == layout.parse_checkpoint_key(checkpoint) == (log, number)
    assert layout.parse_manifest_key(checkpoint) is layout.parse_checkpoint_key(manifest) is None
    assert manifest.startswith(layout.log_prefix(log))
    assert checkpoint.startswith(layout.checkpoint_prefix(log))
    assert layout.parse_records_key(manifest) is None


@given(
    st.sampled_from(["events", "quarantine"]), logs, offsets, offsets, st.none() | st.integers(-(2**63), 2**63 - 1),
    st.binary(),
)  # fmt: skip
def test_records_keys_come_back(
    kind: layout.Kind, log: Log, first: int, last: int, kafka_ms: int | None, data: bytes
) -> None:
    """A segment's key parses to what it was made of, whatever timestamp Kafka gave."""
    key = layout.records_key(kind, log, first, last, kafka_ms, sha256(data).hexdigest())
    assert layout.parse_records_key(key) == RecordsKey(kind, log, first, last, sha256(data).hexdigest()[:16])
    assert layout.parse_manifest_key(key) is layout.parse_checkpoint_key(key) is None
    assert all(len(component.encode()) <= 255 for component in key.split("/"))


@given(
    st.sampled_from(["events", "quarantine"]), logs, offsets, offsets, st.integers(0, 2**45), st.integers(0, 200),
    st.sampled_from(["/", "-", "0", "a", "A", "g", "\n", ".", "@", "@2", "\u0660", "\ud800"]),
)  # fmt: skip
def test_whose_key_it_is(
    kind: layout.Kind, log: Log, first: int, last: int, kafka_ms: int, place: int, character: str
) -> None:
    """A key is taken for that of certain records exactly where parsing it names them."""
    key = layout.records_key(kind, log, first, last, kafka_ms, DIGEST)
    place %= len(key)
    expected = RecordsKey(kind, log, first, last, DIGEST[:16])
    for given_key in (key, key[:place] + character + key[place + 1 :], key[:place] + key[place + 1 :], key + character):
        named = layout.parse_records_key(given_key) == expected
        assert layout.is_records_key(given_key, kind, log, first, last, DIGEST) is named
        assert layout.names_records(given_key) is (layout.parse_records_key(given_key) is not None)
        assert layout.names_records(given_key) or given_key != key
    other: layout.Kind = "quarantine" if kind == "events" else "events"
    assert not layout.is_records_key(key, other, log, first, last, DIGEST)
    assert not layout.is_records_key(key, kind, log, first, last + 1, DIGEST)
    assert not layout.is_records_key(key, kind, log, first, last, "f" * 64)


@pytest.mark.parametrize(
    "topic",
    [
        "a-1",
        "a-1-2",
        "-",
        "--",
        "0",
        "1-00000000000000000001",
        f"x-0-{1:020}-{2:020}-{'a' * 16}.jsonl.gz",
        "a.b_c",
        "...",
    ],
)
@pytest.mark.parametrize("epoch", [1, 2, 10])
def test_topics_that_look_like_what_follows(topic: str, epoch: int) -> None:
    """A topic may hold dashes, digits, even what a key ends in: keys are parsed from the right."""
    log = Log(topic, 7, epoch)
    key = layout.records_key("events", log, 3, 5, 0, DIGEST)
    assert layout.parse_records_key(key) == RecordsKey("events", log, 3, 5, DIGEST[:16])


def test_two_logs_share_no_prefix() -> None:
    """Listing one log's manifests never gives another's."""
    assert not layout.log_prefix(Log("a", 12)).startswith(layout.log_prefix(Log("a", 1)))
    assert not layout.log_prefix(Log("ab", 1)).startswith(layout.log_prefix(Log("a", 1)))
    assert not layout.log_prefix(Log("a", 1, 2)).startswith(layout.log_prefix(Log("a", 1)))


@pytest.mark.parametrize(
    ("moment", "date"),
    [
        (datetime(2026, 2, 28, 23, 59, 59, 999_000, tzinfo=UTC), "2026/02/28/23/59/59"),
        (datetime(2000, 1, 1, tzinfo=UTC), "2000/01/01/00/00/00"),
        (datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), "9999/12/31/23/59/59"),
    ],
)
def test_dates_are_cut_to_the_second(moment: datetime, date: str) -> None:
    """The date in a key is Kafka's timestamp in UTC, cut to the second and not rounded."""
    key = layout.records_key("events", Log("t", 0), 0, 0, round(moment.timestamp() * 1000), DIGEST)
    assert key.startswith(f"events/{date}-t-0-")


@pytest.mark.parametrize("kafka_ms", [None, -1, -(2**63), 253_402_300_800_000, 2**63 - 1])
def test_missing_and_impossible_dates(kafka_ms: int | None) -> None:
    """Without a timestamp between 1970 and 9999 the date is the beginning of 1970."""
    key = layout.records_key("quarantine", Log("t", 0), 0, 0, kafka_ms, DIGEST)
    assert key.startswith("quarantine/1970/01/01/00/00/00-t-0-")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "archive.json",
        "manifests/t/0/1.json",
        "manifests/t/0/0000000000001.json",
        "manifests/t/0/000000000001.json\n",
        "manifests/t/0/000000000001.json.tmp",
        "/manifests/t/0/000000000001.json",
        "x/manifests/t/0/000000000001.json",
        "manifests//t/0/000000000001.json",
        "manifests/t/00/000000000001.json",
        "manifests/t/-1/000000000001.json",
        "manifests/t/+1/000000000001.json",
        "manifests/t@1/0/000000000001.json",
        "manifests/t@0/0/000000000001.json",
        "manifests/t@02/0/000000000001.json",
        "manifests/t@/0/000000000001.json",
        "manifests/t@2@3/0/000000000001.json",
        "manifests/../0/000000000001.json",
        "manifests/.@2/0/000000000001.json",
        "manifests/t\u0660/0/000000000001.json",
        "manifests/t/0/00000000000\u0661.json",
        "checkpoints/t/0/1",
        "checkpoints/t/0/000000000001.json",
        "events/2026/01/01/00/00/00-t-0-1-2-0123456789abcdef.jsonl.gz",
        f"events/2026/01/01/00/00/00-t-0-{1:020}-{2:020}-0123456789ABCDEF.jsonl.gz",
        f"events/2026/01/01/00/00/00-t-{1:020}-{2:020}-0123456789abcdef.jsonl.gz",
        f"events/2026/01/01/00/00/00-t-0-{1:020}-{2:020}-0123456789abcdef.jsonl.gz.1",
        f"events/2026/01/01/00/00/00-t-0-{1:020}-{2:020}-0123456789abcdef.jsonl.gz\n",
        f"events/26/01/01/00/00/00-t-0-{1:020}-{2:020}-0123456789abcdef.jsonl.gz",
        f"tables/2026/01/01/00/00/00-t-0-{1:020}-{2:020}-0123456789abcdef.jsonl.gz",
    ],
)
def test_foreign_keys_are_none_of_ours(key: str) -> None:
    """A key that is not exactly of a form is None, for the caller to report."""
    assert layout.parse_manifest_key(key) is None
    assert layout.parse_checkpoint_key(key) is None
    assert layout.parse_records_key(key) is None
    assert not layout.names_records(key)


@given(logs, st.integers(0, 10**12 - 1), st.data())
def test_a_key_with_another_character(log: Log, number: int, data: st.DataObject) -> None:
    """One character more, less or other: a key that parses all the same is the one key of what it names."""
    for key in (layout.manifest_key(log, number), layout.checkpoint_key(log, number)):
        at = data.draw(st.integers(0, len(key)))
        put = data.draw(st.sampled_from(["", "0", "7", "/", ".", "@", "-", "\n", "\u0660", "\ud800"]))
        changed = key[:at] + put + key[at + data.draw(st.integers(0, 1)) :]
        if found := layout.parse_manifest_key(changed):
            assert layout.manifest_key(*found) == changed
        if found := layout.parse_checkpoint_key(changed):
            assert layout.checkpoint_key(*found) == changed


@given(st.text())
def test_any_key_is_parsed(key: str) -> None:
    """No key makes parsing fail, and what parses is what is built."""
    if found := layout.parse_manifest_key(key):
        assert layout.manifest_key(*found) == key
    if found := layout.parse_checkpoint_key(key):
        assert layout.checkpoint_key(*found) == key
    assert layout.names_records(key) is (layout.parse_records_key(key) is not None)


@pytest.mark.parametrize("topic", ["", ".", "..", "audits", "a/b", "a b", "ü", "a@2", "a\n", "x" * 250])
def test_topics_that_are_none(topic: str) -> None:
    """What is no Kafka topic name, or is the archive's own name, is refused."""
    with pytest.raises(ConfigurationError, match="topic"):
        layout.check_topic(topic)


@given(st.integers(1, 249), st.integers(0, 2**31 - 1))
def test_what_is_accepted_fits(length: int, partition: int) -> None:
    """A topic that is accepted makes no path component over 255 bytes, in no epoch; others are told by how much."""
    topic = "x" * length
    key = layout.records_key("quarantine", Log(topic, partition, 9999), 2**63 - 1, 2**63 - 1, 59_000, DIGEST)
    longest = max(len(component) for component in key.split("/"))
    try:
        layout.check_topic(topic, partition)
    except ConfigurationError as error:
        assert "shorter" in str(error)  # noqa: PT017
        assert longest + 5 > 255
    else:
        assert longest <= 255
        assert layout.parse_records_key(key)


@pytest.mark.parametrize("log", [Log("audit", 0), Log("audit.x-1", 4_294_967_295), Log("audit", 7, 12)])
def test_a_log_comes_back_from_its_text(log: Log) -> None:
    """What a log is called in audits, heads and trust.json leads back to it."""
    assert layout.parse_log_text(str(log)) == log


@pytest.mark.parametrize(
    "text",
    ["", "audit", "audit/", "/0", "audit/-1", "audit/01", "audit/٣", "audit@1/0", "a/b/0", "audit/" + "9" * 5000],
)
def test_what_names_no_log(text: str) -> None:
    """Any other text names none, a number too long to convert among them."""
    assert layout.parse_log_text(text) is None


def test_epoch_that_no_statement_has() -> None:
    """An epoch of more digits than an integer of ours has is no epoch, however many they are."""
    for digits in (20, 5000):
        log = f"audit@{'9' * digits}"
        key = f"events/2026/01/01/00/00/00-{log}-0-{0:020}-{0:020}-{'a' * 16}.jsonl.gz"
        assert layout.parse_records_key(key) is None
        assert not layout.names_records(key)
        assert layout.parse_log(log, 0) is None
