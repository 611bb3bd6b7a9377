"""The reference pages are what the code gives: commands, options, and the names and defaults of settings."""

from docs.reference import PAGES, pages, settings_page


def test_the_pages_are_what_the_code_gives() -> None:
    """Each page that is made from the code is committed as it would be made now. `make docs-reference` makes them."""
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name} is not what the code gives: run `make docs-reference`"


def test_a_wrong_default_and_a_missing_setting_are_put_right() -> None:
    """The defaults of docs/settings.md are the code's, and what a setting means stays as it was written."""
    page = (PAGES / "settings.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith(("| `drain.batch_events`", "| `search.url`"))]
    assert rows[0].startswith("| `drain.batch_events` | 1000 | events in a batch")
    wrong = page.replace("`drain.batch_events` | 1000", "`drain.batch_events` | 999").replace(rows[1] + "\n", "")
    right = settings_page(wrong)
    assert rows[0] in right
    assert "| `search.url` | none | " in right
