"""The examples of docs/detect.md are rules that load, whose tests pass, and that the page names rightly."""

import re
from pathlib import Path

import pytest

from tasks.detect import lint, memory

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "detect.md").read_text()


@pytest.mark.parametrize(("language", "count"), [("yaml", 1), ("sql", 1)])
def test_examples_can_be_used(tmp_path: Path, language: str, count: int) -> None:
    """Each example of a rule is complete: a reader who saves it under the name that the page gives can use it."""
    blocks = re.findall(
        rf"^Save this as `rules/([a-z-]+\.[a-z]+)`:\n\n```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == count
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    files = lint.lint([tmp_path])
    assert [problem for file in files for problem in file.problems] == []
    assert len(files) == count


def test_all_views_are_listed() -> None:
    """A rule in SQL can read the views that the page lists; `kept` is what `events` has of it with a window."""
    (table,) = re.findall(r"^\| view \| .*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE)) == set(memory.VIEWS) - {"kept"}
