"""The reference of the tables is true: the list in the code, what a connection has, and docs/views.md are the same."""

from contextlib import closing
from pathlib import Path

import custody
from custody.query import views
from tests.helpers.sample import make_archive

PAGE = Path(__file__).resolve().parents[3] / "docs" / "views.md"


def test_the_list_has_each_column_of_a_connection(tmp_path: Path) -> None:
    """Each table and column that a query can name is in `views.VIEWS` with its type, and none that it cannot name.

    One is left out there: what `events` is made of, with the same columns in another order.
    """
    connection = custody.connect(str(make_archive(tmp_path).folder))
    try:
        named = [
            name
            for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
        ]
        named += [
            name for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        ]
        assert sorted(named) == sorted([*views.NAMES, views.SCANNED])
        for view in views.VIEWS:
            described = connection.execute(f"DESCRIBE {view.name}").fetchall()
            listed = [(column.name, column.type) for column in view.columns]
            assert [row[:2] for row in described] == listed, (
                f"mend the columns of {view.name} in custody/query/views.py"
            )
    finally:
        connection.close()


def test_who_asks_for_no_ocsf_does_not_pay_for_it(tmp_path: Path) -> None:
    """The view `ocsf`, which takes DuckDB longer than all others, is parsed and bound when a query names it."""
    with closing(custody.connect(str(make_archive(tmp_path).folder))) as connection:
        bound = "SELECT is_bound FROM duckdb_views() WHERE view_name = 'ocsf'"
        connection.execute("SELECT count(*) FROM events").fetchall()
        assert connection.execute(bound).fetchall() == [(False,)]
        assert connection.execute("SELECT count(*) > 0 FROM ocsf").fetchall() == [(True,)]


def test_the_page_is_made_from_the_list() -> None:
    """docs/views.md is what the code makes; a changed page, or a changed list, fails."""
    assert PAGE.read_text() == views.page(), "write what custody.query.views.page() returns to docs/views.md"


def test_what_most_questions_need_comes_first() -> None:
    """`SELECT *` shows on a narrow screen what happened, and not where the record lay."""
    names = [column.name for column in views.VIEWS[0].columns]
    assert names[:7] == ["time", "log", "offset", "event_type", "api_key_id", "client_ip", "status"]
    assert names[-5:] == ["topic", "partition", "batch", "sequence", "day"]
