"""docs/events.md says what the code does: the types, the example, the reasons."""

import json
import re
from pathlib import Path

import pytest

from custody.format.events import EVENT_TYPES, reason
from tests.helpers.corpus import EVENTS, TIME, compact, sized

TEXT = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
LOGIN = {"event_type": "user_login", "timestamp": TIME}


def test_the_types_are_those_of_the_code() -> None:
    """An event that lacks a field which the page calls required is none, and the page lists each field of each type."""
    common, *parts = re.split(r"^### ", TEXT.partition("### Fields of all six types")[2], flags=re.MULTILINE)
    for part in parts:
        event = EVENTS[part.split()[0]]
        required = re.findall(r"^\| `(\w+)` \| yes \| .+ \|$", common + part.partition("<!-- End")[0], re.MULTILINE)
        assert set(required) == set(EVENT_TYPES[part.split()[0]].__struct_fields__)
        for name in required:
            assert reason(compact({key: value for key, value in event.items() if key != name})), name
    assert len(parts) == len(EVENT_TYPES)


def test_the_example_is_an_event() -> None:
    """What a newcomer copies is archived."""
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert reason(example.encode()) is None


@pytest.mark.parametrize(
    ("value", "own_types"),
    [
        (None, True),
        (b"text", True),
        (b"\xff", True),
        (b'{"event_type":"a",' + compact(LOGIN)[1:], True),
        (compact(LOGIN | {"timestamp": "yesterday"}), True),
        (sized(2_000_000), True),
        (compact({name: value for name, value in EVENTS["auth_attempt"].items() if name != "status"}), True),
        (compact(LOGIN), False),
    ],
    ids=lambda part: str(part)[:20],
)
def test_the_reasons_are_those_of_the_drain(value: bytes | None, own_types: bool) -> None:
    """Each kind of value that the page names is quarantined, with the reason that it gives."""
    table = TEXT.partition("## What is quarantined")[2]
    given = [row.strip("`").strip() for row in re.findall(r"^\| .+ \| (`.+`) \|$", table, re.MULTILINE)]
    why = str(reason(value, own_types=own_types))
    assert sum(why.startswith(start.removesuffix("…").strip()) for start in given) == 1, why
    assert len(given) == 8


def test_sizes_are_those_of_the_format() -> None:
    """The largest event is as large as the page says, and one byte more is not."""
    assert (reason(sized(1_048_576)), json.loads(sized(1_048_576))["event_type"]) == (None, "query_executed")
    assert reason(sized(1_048_577))
