"""What custody makes of foreign text before it shows it."""

import re
from pathlib import Path

import pytest

from custody.errors import counted, legible


@pytest.mark.parametrize(
    "password", ["secret", "se/cret", "se@cret", "se:cret//", "%2Fsecret"], ids=["plain", "slash", "at", "slashes", "%"]
)
def test_a_password_in_a_url_is_hidden(password: str) -> None:
    """Whatever is in it, nothing of it is shown, and the host is."""
    shown = legible(f"GET http://user:{password}@host:9200/index failed\n\x1b[31m")
    assert shown == "GET http://***@host:9200/index failed \\x1b[31m"


def test_a_long_text_is_cut() -> None:
    """Only the beginning is looked at and shown."""
    assert legible("//" * 10_000_000) == "//" * 150 + "…"


def test_a_number_agrees_with_its_noun() -> None:
    """One thing is not several."""
    assert [counted(number, "topic") for number in (0, 1, 2_000)] == ["0 topics", "1 topic", "2,000 topics"]
    assert [counted(number, "batch is", "batches are") for number in (1, 2)] == ["1 batch is", "2 batches are"]


@pytest.mark.parametrize("room", ["custody", "flows", "tasks"])
def test_no_message_says_one_things(room: str) -> None:
    """A message that begins with a number and a noun has both forms: `counted` writes it."""
    nouns = (
        "documents|events|findings|heads|keys|logs|objects|offsets|problems|records|requests|segments|slots|statements"
    )
    plain = re.compile(
        rf"(?<!of )(?<!all )(?!\{{_[A-Z])\{{(?:len\([^{{}}]*\)|[^{{}}]*:,)\}} (?:(?:more|newest|other) )?(?:{nouns})\b"
    )
    for path in (Path(__file__).parents[2] / room).rglob("*.py"):
        # No row of a table, nor a column of a progress bar.
        messages = path.read_text().replace('"{task.fields[', "")
        assert plain.findall(messages) == [], path
