"""The reference pages are what the code gives: options, settings, exit codes, findings, events, tables, metrics."""

import pytest

from docs.reference import MADE, PAGES, pages, settings_page, with_made_part


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


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("commands.md", "| | 12 | no checkpoint of a log is signed by a trusted key |"),
        ("commands.md", "| | 130 | Ctrl-C ended `--watch` |"),
        ("commands.md", "| | 2 | a wrong argument or setting |"),
        ("events.md", "| `key_age_days` | yes | integer, -2^63 to 2^63-1, or null | days since that key was made |"),
        ("ocsf.md", "| `entity.data.tier` | `tier` |"),
        ("scale.md", "| events | 86,400,000,000 | 221,000,000,000,000 |"),
        (
            "metrics.md",
            "| `custody_lag_records` | gauge | `log` | Offsets in Kafka that are not archived yet |",
        ),
    ],
)
def test_a_row_that_somebody_took_out_is_made_again(name: str, row: str) -> None:
    """The rows between the two comments are the code's, and what stands around them stays."""
    page = (PAGES / name).read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(row)]
    assert with_made_part(name, page.replace(f"{line}\n", "")) == page
    assert set(MADE) == {"commands.md", "events.md", "metrics.md", "ocsf.md", "scale.md"}
