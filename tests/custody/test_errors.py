"""What custody makes of foreign text before it shows it."""

import pytest

from custody.errors import legible


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
