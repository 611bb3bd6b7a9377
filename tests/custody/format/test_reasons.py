"""Each reason that custody gives has a kind, and nothing that an application or a stranger writes makes another one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.format.events import reason
from custody.format.reasons import KINDS, NOT_KNOWN, OTHER, Reasons, example_of, kind_of
from flows.operate.sample import invalid_values
from tests.helpers.corpus import BASE, CASES, EVENTS, Case, compact, nested, sized

CANARY = "canary-7f3a"
GIVEN = set(KINDS) - {OTHER, NOT_KNOWN}
"""The kinds of what the code says."""


def bent(**fields: object) -> bytes:
    return compact(EVENTS["auth_attempt"] | fields)


WAYS: list[tuple[str, bytes | None]] = [
    ("no value", None),
    ("no value", b" \n"),
    ("too large", sized(1_048_577)),
    ("too deep", nested(65)),
    ("not UTF-8", b'{"a":"\xff"}'),
    ("not JSON", b"{"),
    ("not JSON", b"NaN"),
    ("not JSON", b"\xef\xbb\xbf{}"),
    ("not an object", b"[]"),
    ("not an object", b"7"),
    ("event_type missing", b'{"nonsense":1}'),
    ("field invalid", b'{"event_type":1}'),
    ("field invalid", b'{"event_type":""}'),
    ("field invalid", b'{"event_type":"\\ud800"}'),
    ("field invalid", BASE[:-1] + b',"event_type":"query_executed"}'),
    ("timestamp", b'{"event_type":"a"}'),
    ("timestamp", b'{"event_type":"a","timestamp":1}'),
    ("timestamp", bent(timestamp="it's late")),
    ("timestamp", BASE[:-1] + b',"timestamp":"2026-03-01T12:34:56Z"}'),
    ("field missing", compact({name: value for name, value in EVENTS["auth_attempt"].items() if name != "status"})),
    ("field invalid", bent(status=CANARY)),
    ("field invalid", bent(key_version=2**70)),
    ("field invalid", bent(client_ip=CANARY)),
]


@pytest.mark.parametrize(("kind", "value"), WAYS)
def test_each_way_has_its_kind(kind: str, value: bytes | None) -> None:
    """The writer's sentence for a value has the kind that docs/metrics.md explains."""
    sentence = reason(value)
    assert sentence is not None
    assert kind_of(sentence) == kind
    # As drains say it of a record whose headers cannot be read.
    assert kind_of(f"{sentence}; its headers are left out, since a name among them is not UTF-8") == kind
    assert CANARY not in example_of(sentence)


def test_all_kinds_are_given() -> None:
    """The list has no kind that the code never gives. One is of types that a setting refuses."""
    assert {kind for kind, _ in WAYS} == GIVEN - {"unknown type"}
    own = reason(bent(event_type="it's own"), own_types=False)
    assert kind_of(own or "") == "unknown type"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_corpus(case: Case) -> None:
    """Each edge case that is refused has a kind, whatever the setting of unknown types is."""
    for own_types in (True, False):
        sentence = reason(case.value, own_types=own_types)
        assert sentence is None or kind_of(sentence) in GIVEN


def test_invalid_samples() -> None:
    """So has each invalid value of the demo."""
    assert {kind_of(reason(value) or "") for value in invalid_values()} <= GIVEN


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)
FIELDS = sorted({name for fields in EVENTS.values() for name in fields})


@given(
    st.sampled_from(sorted(EVENTS)), st.dictionaries(st.sampled_from(FIELDS), JSON), st.sets(st.sampled_from(FIELDS))
)
def test_any_event_that_is_refused(kind: str, changed: dict[str, object], gone: set[str]) -> None:
    """Whatever is wrong with the fields of an event, the reason has a kind."""
    fields = {name: value for name, value in (EVENTS[kind] | changed).items() if name not in gone}
    sentence = reason(json.dumps(fields).encode())
    assert sentence is None or kind_of(sentence) in GIVEN


@given(st.binary())
def test_any_bytes(value: bytes) -> None:
    """So it has for any bytes."""
    sentence = reason(value)
    assert sentence is None or kind_of(sentence) in GIVEN


@given(st.text())
def test_any_text(text: str) -> None:
    """A stranger's text makes no new kind. Its example is short, printable, and has nothing of a quoted value."""
    assert kind_of(text) in KINDS
    assert kind_of(f"so {text}") == OTHER
    shown = example_of(f"wrong value '{CANARY}{text}' here")
    assert len(shown) <= 160
    assert shown.isprintable()
    assert CANARY not in shown


@pytest.mark.parametrize(
    "text",
    ["", "own_type: Object missing required field `x`", " not JSON: x", "NOT JSON: x", "timestamps", "event_type 'a'"],
)
def test_other_sentences(text: str) -> None:
    """A sentence that only resembles one of ours is of no kind of ours."""
    assert kind_of(text) == OTHER


def line(sentence: str) -> bytes:
    return json.dumps({"offset": 1, "value": "AA==", "error": sentence, "omitted": None}).encode()


def test_the_commonest() -> None:
    """The commonest kind comes with its number, and with the first sentence of it, also after adding others."""
    first, second = Reasons(), Reasons()
    assert first.commonest() is None
    first.count([line("not JSON: a"), line("event_type is missing")])
    second.count([line("event_type is missing")] * 1_500)
    first.add(second)
    assert first.counts == {"not JSON": 1, "event_type missing": 1_501}
    assert first.records == 1_502
    assert first.commonest() == "event_type missing (1,501), for example: event_type is missing"


@pytest.mark.parametrize("bad", [b"", b"{}", b"[]", b'{"error":1}', b'{"error":"\xff"}', b"[" * 100_000])
def test_a_line_without_a_reason(bad: bytes) -> None:
    """What is no line of a quarantine object is the format's error."""
    with pytest.raises(FormatError):
        Reasons().count([bad])
